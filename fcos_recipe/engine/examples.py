"""Images of an evaluation on which the model did best and worst, with what was right and wrong."""

import logging
import shutil
from pathlib import Path

import numpy as np

from fcos_recipe.engine.coco_metric import CocoMetric

log = logging.getLogger("fcos")

EXAMPLES = "examples"  #: folder; index.json tells what its pictures are
WORST, BEST = 6, 4  #: how many images of each kind are drawn
SIDE = 560  #: pixels of a picture's longer side
CAPTIONS = 6  #: boxes of a kind that get one: more would hide the image
RIGHT, WRONG = (30, 100, 200), (214, 84, 0)  # told apart by colour-blind eyes as well


def outcomes(metric: CocoMetric, threshold: float) -> dict[int, dict]:
    """What became of each image's objects and boxes at IoU 0.50, of boxes above a score.

    Args:
        metric: after `result()`, by hotcoco.
        threshold: boxes that score less do not count.

    Returns:
        image id -> `right`, `false` (boxes), `missed` (objects): rows of `metric.judged`'s
        `found`, `found` and `truth`, int lists; and `objects`, the rows of `truth` that were found.
    """
    found, truth = metric.judged["found"], metric.judged["truth"]
    diagnostics = metric.judge.image_diagnostics(iou_thr=0.5, score_thr=threshold)
    result = {
        i: {"right": [], "false": [], "missed": [], "objects": []}
        for i in metric.judged["image_id"].tolist()
    }
    strong = found["score"] >= threshold
    images = found["image_id"].tolist()
    for number, status in diagnostics["dt_status"].items():
        if strong[number - 1] and status in ("tp", "fp"):
            kind = "right" if status == "tp" else "false"
            result[images[number - 1]][kind].append(number - 1)
    matched = diagnostics["gt_match"]
    images = truth["image_id"].tolist()
    for number, status in diagnostics["gt_status"].items():
        if truth["iscrowd"][number - 1]:
            continue
        hit = status == "matched" and strong[matched[number] - 1]
        result[images[number - 1]]["objects" if hit else "missed"].append(number - 1)
    return result


def ranked(rows: dict[int, dict]) -> tuple[list[int], list[int]]:
    """Image ids, worst first and best first.

    Worst are those with most missed and false boxes; best, of those with more right than wrong
    ones, those with the highest F1 and then with most right ones.
    """
    def wrong(i: int) -> int:
        return len(rows[i]["missed"]) + len(rows[i]["false"])

    def f1(i: int) -> float:
        right = 2 * len(rows[i]["right"])
        return right / max(right + wrong(i), 1)

    worst = [i for i in sorted(rows, key=lambda i: (-wrong(i), i)) if wrong(i)]
    best = sorted(rows, key=lambda i: (-f1(i), -len(rows[i]["right"]), i))
    return worst, [i for i in best if len(rows[i]["right"]) > wrong(i)]


def draw_examples(metric: CocoMetric, threshold: float, folder: Path) -> int:
    """Draw ground truth and detections of the worst and best images, one JPEG each.

    Args:
        metric: after `result()`, by hotcoco; its `dataset` says where the images are.
        threshold: score from which a box is drawn.
        folder: run directory; its `EXAMPLES` is replaced.

    Returns:
        number of images; 0 where it is not known where they are.
    """
    from fcos_recipe.engine.checkpoint import write_json

    dataset = metric.dataset
    if dataset is None:
        return 0
    files = {}
    for i in range(len(dataset)):
        info = dataset.image_info(i)
        files[info["im_id"]] = info["im_file"]
    rows = outcomes(metric, threshold)
    worst, best = ranked(rows)
    best = [i for i in best if i in files][:BEST]
    worst = [i for i in worst if i in files and i not in best][:WORST]
    target = folder / EXAMPLES
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    told = []
    for kind, chosen in (("worst", worst), ("best", best)):
        for number, i in enumerate(chosen, 1):
            told.append({
                "kind": kind, "image_id": i, "file": Path(files[i]).name,
                **{key: len(rows[i][key]) for key in ("right", "false", "missed")},
                **_pictures(metric, rows[i], files[i], target, f"{kind}_{number}"),
            })  # fmt: skip
    write_json(target / "index.json", {"score_threshold": threshold, "images": told})
    return len(told)


def _pictures(metric: CocoMetric, row: dict, file: str, target: Path, name: str) -> dict:
    from PIL import Image

    from fcos_recipe.data.reader import read_image
    from fcos_recipe.predict.draw import draw

    image = Image.fromarray(read_image(file))
    scale = min(3.0, SIDE / max(image.size))  # captions need room on small images, too
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.BILINEAR)
    ids = sorted(metric.categories)
    names = [str(metric.categories[i])[:40] for i in ids]
    result = {"width": image.width, "height": image.height}
    # chroma is kept at full resolution below: lines are one or two pixels wide
    for part, good, bad, word in (("truth", "objects", "missed", "missed"),
                                  ("found", "right", "false", "false")):  # fmt: skip
        table = metric.judged[part]
        chosen = np.array(row[good] + row[bad], np.int64)
        boxes = table["bbox"][chosen].reshape(-1, 4) * scale
        boxes[:, 2:] += boxes[:, :2]
        # mistakes come last, that is on top; within a kind what scores most, or is largest
        score = table["score"][chosen] if "score" in table else None
        rank = table["area"][chosen] if score is None else score
        rank = np.argsort(np.argsort(rank, kind="stable"))
        order = (rank + len(chosen) * (np.arange(len(chosen)) >= len(row[good]))).astype(float)
        captions = []
        for k in range(len(chosen)):
            right = k < len(row[good])
            better = (rank[: len(row[good])] if right else rank[len(row[good]) :]) > rank[k]
            text = "{}" if right else f"{word}: {{}}"
            text += "" if score is None else f" {score[k]:.2f}"
            captions.append(text if better.sum() < CAPTIONS else "")
        picture = draw(
            np.asarray(image), boxes, order, np.searchsorted(ids, table["category_id"][chosen]),
            names, 0.0, [RIGHT] * len(row[good]) + [WRONG] * len(row[bad]), captions,
        )  # fmt: skip
        result[part] = f"{name}_{part}.jpg"
        path = target / result[part]
        Image.fromarray(picture).save(path, quality=78, optimize=True, subsampling=0)
    return result
