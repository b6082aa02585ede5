"""`fcos infer`: images and videos in; drawings, COCO results and CSV out."""

import argparse
import csv
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fcos_recipe.commands import options
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.predict.backends import PRECISIONS
from fcos_recipe.predict.inputs import Video, decoded, find_inputs, is_video

PREDICTIONS = "predictions.json"
_EXAMPLE = """\
examples:
  python tools/infer.py --weights output/fcos_r18_fpn_demo/best_model.pdparams \\
      --input datasets/demo/val --output output/drawn
  python tools/infer.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml \\
      -o weights=fcos_r50_fpn_1x_coco.pdparams --infer_img cat.jpg --draw_threshold 0.4
  python tools/infer.py --weights output/fcos_r18_fpn_demo/best_model.pdparams --input drive.mp4
exit codes: 0 done, 1 some images could not be read (each is named), 2 bad input
"""


def main(argv: list[str]) -> int:
    """Predict on images."""
    args = _parse(argv)
    output = Path(args.output)
    files = find_inputs(args.input, skip=output)
    config = load_config(args.config, args.opt, strict=args.strict) if args.config else None
    weights = args.weights or (config.data.get("weights") if config else None)
    if not weights:
        raise UserError("--weights: missing; name a weights file (or -o weights=FILE with -c)")
    targets = {file: output / relative for file, relative in files.items()}
    for file, target in targets.items():
        if target.resolve() == file.resolve():
            raise UserError(f"--output {output}: would overwrite the image {file}; choose another")

    from fcos_recipe.predict.predictor import Predictor, config_of
    from fcos_recipe.system import compute

    config = config_of(weights, config)
    device = compute.start(compute.requested(config)).device
    from fcos_recipe.console import to_console
    from fcos_recipe.system import out_of_memory

    to_console(0)
    advice = f"--batch-size {args.batch_size} does not fit; lower it, or use smaller images"
    with out_of_memory.explained(device, advice):
        predictor = Predictor(weights, config, device, args.score_threshold, args.precision)
        results = Results(predictor, list(files))
        images = {file: target for file, target in targets.items() if not is_video(file)}
        _predict_images(results, images, args.batch_size, args.draw_threshold)
        for file in targets.keys() - images.keys():
            _predict_video(results, file, targets[file], args.batch_size, args.draw_threshold)
    _write(output, results.rows, args.csv)
    shown = sum(row["score"] >= args.draw_threshold for row in results.rows)
    print(
        f"{results.images} images, {len(results.rows)} detections ({shown} drawn, score >= "
        f"{args.draw_threshold}) -> {output}"
    )
    for message in results.bad:
        print(f"error: {message}; skipped", file=sys.stderr)
    return 1 if results.bad else 0


class Results:
    """Detections as COCO results, and what could not be read."""

    def __init__(self, predictor, files: list[Path]):
        self.predictor = predictor
        self.rows: list = []
        self.bad: list = []
        self.images = 0
        ids = predictor.image_ids
        known = len({f.name for f in files} & set(ids)) == len(files)
        self._ids = ids if known else {}  # numbers of our own beside the annotations' could meet

    def add(self, file: Path, found, **more) -> None:
        """Keep the `Detections` of an image or frame; `more` goes into each row."""
        self.images += 1
        image_id = self._ids.get(file.name, self.images)
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            self.rows.append(
                {
                    "image_id": image_id,
                    "file_name": str(file),
                    **more,
                    "category_id": self.predictor.category_ids[label],
                    "category_name": found.names[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": float(score),
                }
            )


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _predict_images(results: Results, targets: dict[Path, Path], size: int, threshold: float):
    """Detect on images and draw them; unreadable ones are noted."""
    import cv2
    from tqdm import tqdm

    def good():
        for file, image in decoded(list(targets), ahead=2 * size + 2):
            bar.update()
            if isinstance(image, Exception):
                results.bad.append(str(image))
            else:
                yield file, image

    with tqdm(total=len(targets), disable=None, unit="image") as bar:
        for batch in _batches(good(), size):
            every = results.predictor([image for _, image in batch], batch_size=size)
            for (file, image), found in zip(batch, every, strict=True):
                results.add(file, found)
                drawn = _drawn(image, found, threshold)
                target = targets[file]
                target.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(target), drawn[:, :, ::-1]):
                    raise UserError(f"{target}: cannot be written")


def _predict_video(results: Results, file: Path, target: Path, size: int, threshold: float):
    """Detect on a video's frames and write the drawn ones as MP4 beside where they were asked."""
    import cv2
    from tqdm import tqdm

    from fcos_recipe.data.images import BadImage

    writer, number = None, 0
    try:
        video = Video(file)
        with tqdm(total=video.count or None, disable=None, unit="frame", desc=file.name) as bar:
            frames = _until_bad(video, results.bad)
            for batch in _batches(frames, size):
                every = results.predictor(batch, batch_size=size)
                for frame, found in zip(batch, every, strict=True):
                    seconds = round(number / video.rate, 3)
                    results.add(file, found, frame=number, seconds=seconds)
                    number += 1
                    if writer is None:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        code = cv2.VideoWriter_fourcc(*"mp4v")
                        shape = frame.shape[1::-1]
                        writer = cv2.VideoWriter(str(target), code, video.rate, shape)
                        if not writer.isOpened():
                            raise UserError(
                                f"{target}: cannot be written, or this OpenCV has no MP4 encoder"
                            )
                    writer.write(_drawn(frame, found, threshold)[:, :, ::-1])
                    bar.update()
    except BadImage as error:
        results.bad.append(str(error))
    finally:
        if writer is not None:
            writer.release()


def _until_bad(frames: Iterable, bad: list[str]) -> Iterator:
    """The frames there are; why there are no more, if it is not the end, goes to `bad`."""
    from fcos_recipe.data.images import BadImage

    try:
        yield from frames
    except BadImage as error:
        bad.append(str(error))


def _drawn(image, found, threshold: float):
    from fcos_recipe.drawing import draw

    return draw(image, found.boxes, found.scores, found.labels, found.names, threshold)


def _write(output: Path, rows: list[dict], as_csv: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / PREDICTIONS).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    if not as_csv:
        return
    with open(output / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow("file_name frame category_name score x1 y1 x2 y2".split())
        for row in rows:
            x, y, w, h = row["bbox"]
            corners = [round(v, 3) for v in (x, y, x + w, y + h)]
            place = [row["file_name"], row.get("frame", "")]
            writer.writerow([*place, row["category_name"], row["score"], *corners])


def _parse(argv: list[str]) -> argparse.Namespace:
    text = "Draw boxes on images and videos, write COCO results."
    parser = options.parser("infer", text, _EXAMPLE)
    add = parser.add_argument
    options.add_config(parser, "YAML file (default: config.yml of the weights' run directory)")
    options.add_overrides(parser, "override config values; needs -c")
    add("--strict", action="store_true", default=None, help=argparse.SUPPRESS)
    add("--weights", metavar="W", help="checkpoint, .pdparams or URL (default: config's `weights`)")
    add(
        "--input",
        "--infer_img",
        "--infer_dir",
        "--infer_list",
        nargs="+",
        action="extend",
        required=True,
        metavar="IMAGE|DIR|GLOB|VIDEO|LIST.txt",
        help="a directory is searched for images to any depth, a list has a path per line",
    )
    add("--output", "--output_dir", default=os.path.join("output", "infer"), metavar="DIR",
        help=f"for the drawings and {PREDICTIONS} (default: %(default)s)")  # fmt: skip
    add("--draw_threshold", "--draw-threshold", type=options.finite, default=0.5, metavar="SCORE",
        help="lowest score that is drawn (default: %(default)s)")  # fmt: skip
    add("--score_threshold", "--score-threshold", type=options.finite, default=0.0, metavar="SCORE",
        help=f"lowest score in {PREDICTIONS} (default: all that NMS keeps)")  # fmt: skip
    add("--batch-size", type=int, default=1, metavar="N",
        help="images that run together, padded to the largest, which changes scores a little "
        "(default: %(default)s; evaluation has EvalReader's)")  # fmt: skip
    add("--precision", choices=PRECISIONS, default="fp32",
        help="bf16: faster, other scores; exports of --format paddle")  # fmt: skip
    add("--csv", action="store_true", help="also write predictions.csv")
    # PaddleDetection's; results are always saved, and there is nothing to log here
    ignored: dict[str, Any] = dict(
        nargs="?", const=True, default=False, help="accepted, without effect"
    )
    add("--save_results", **ignored)
    add("--use_vdl", **ignored)
    add("--vdl_log_dir", default=None, help="accepted, without effect")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error("--batch-size: at least 1")
    if args.opt and not args.config:
        parser.error("-o needs -c CONFIG")
    return args
