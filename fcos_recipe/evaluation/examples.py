"""Images of an evaluation on which the model did best and worst, with what was right and wrong."""

from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.files.atomic import draft_folder, write_json

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
    diagnostics = metric.coco_eval.image_diagnostics(iou_thr=0.5, score_thr=threshold)
    result: dict[int, dict[str, list[int]]] = {
        i: {"right": [], "false": [], "missed": [], "objects": []}
        for i in metric.judged["image_id"].tolist()
    }
    strong = found["score"] >= threshold
    images = found["image_id"].tolist()
    for number, status in sorted(diagnostics["dt_status"].items()):  # its order is random
        if strong[number - 1] and status in ("tp", "fp"):
            kind = "right" if status == "tp" else "false"
            result[images[number - 1]][kind].append(number - 1)
    matched = diagnostics["gt_match"]
    images = truth["image_id"].tolist()
    for number, status in sorted(diagnostics["gt_status"].items()):
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
    folder.mkdir(parents=True, exist_ok=True)
    told = []
    with draft_folder(target) as part:
        for kind, chosen in (("worst", worst), ("best", best)):
            for number, i in enumerate(chosen, 1):
                told.append({
                    "kind": kind, "image_id": i, "file": Path(files[i]).name,
                    **{key: len(rows[i][key]) for key in ("right", "false", "missed")},
                    **_pictures(metric, rows[i], files[i], part, f"{kind}_{number}"),
                })  # fmt: skip
        write_json(part / "index.json", {"score_threshold": threshold, "images": told})
    return len(told)


def _pictures(metric: CocoMetric, row: dict, file: str, target: Path, name: str) -> dict:
    from PIL import Image

    from fcos_recipe.data.images import read_image

    image = Image.fromarray(read_image(file))
    scale = min(3.0, SIDE / max(image.size))  # captions need room on small images, too
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    result: dict[str, Any] = {"width": image.width, "height": image.height}
    for part, good, bad, word in (("truth", "objects", "missed", "missed"),
                                  ("found", "right", "false", "false")):  # fmt: skip
        picture = image.copy()
        _draw(picture, metric, part, row[good], scale, RIGHT, "")
        _draw(picture, metric, part, row[bad], scale, WRONG, f"{word}: ")
        result[part] = f"{name}_{part}.jpg"
        # chroma at full resolution: lines are one or two pixels wide
        picture.save(target / result[part], quality=78, optimize=True, subsampling=0)
    return result


def _draw(picture, metric: CocoMetric, part: str, rows: list[int], scale: float,
          color: tuple[int, int, int], word: str) -> None:  # fmt: skip
    """Draw boxes; `CAPTIONS` of them, the surest or the largest, get their class's name."""
    from PIL import ImageDraw

    from fcos_recipe.drawing import outline, pen_sizes, readable, tag

    table, ids = metric.judged[part], sorted(metric.categories)
    boxes = table["bbox"][rows].reshape(-1, 4) * scale
    boxes[:, 2:] += boxes[:, :2]
    pen = ImageDraw.Draw(picture)
    width, size = pen_sizes(np.asarray(picture))
    for box in boxes:
        outline(pen, box, color, width, dashed=bool(word))
    rank = table["score" if part == "found" else "area"][rows]
    for k in np.argsort(rank, kind="stable")[-CAPTIONS:]:  # after all boxes, the surest on top
        category = int(table["category_id"][rows[k]])
        label = ids.index(category)
        name, font = readable(str(metric.categories[category])[:40], label, size)
        score = f" {rank[k]:.2f}" if part == "found" else ""
        tag(pen, boxes[k], f"{word}{name}{score}", color, font)
