"""`fcos infer`: images in; drawings, COCO results and CSV out."""

import argparse
import csv
import glob
import json
import os
import sys
from pathlib import Path

from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
PREDICTIONS = "predictions.json"
_EXAMPLE = """\
examples:
  python tools/infer.py --weights output/fcos_r18_fpn_demo/best_model.pdparams \\
      --input datasets/demo/val --output output/drawn
  python tools/infer.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml \\
      -o weights=fcos_r50_fpn_1x_coco.pdparams --infer_img cat.jpg --draw_threshold 0.4
exit codes: 0 done, 1 some images could not be read (each is named), 2 bad input
"""


def main(argv: list[str]) -> int:
    """Predict on images."""
    args = _parse(argv)
    output = Path(args.output)
    files = find_images(args.input, skip=output)
    config = load_config(args.config, args.opt, strict=args.strict) if args.config else None
    weights = args.weights or (config.data.get("weights") if config else None)
    if not weights:
        raise UserError("--weights: missing; name a weights file (or -o weights=FILE with -c)")
    targets = {file: output / relative for file, relative in files.items()}
    for file, target in targets.items():
        if target.resolve() == file.resolve():
            raise UserError(f"--output {output}: would overwrite the image {file}; choose another")

    from fcos_recipe.runtime import cpu_math

    cpu_math.ensure((config.data["device"] if config else None) or "auto")
    from fcos_recipe.engine.run_dir import to_console

    to_console(0)
    from fcos_recipe.predict.predictor import Predictor

    predictor = Predictor(weights, config, score_threshold=args.score_threshold)
    rows, bad = _predict_all(predictor, targets, args.draw_threshold)
    _write(output, rows, args.csv)
    shown = sum(row["score"] >= args.draw_threshold for row in rows)
    print(
        f"{len(files) - len(bad)} images, {len(rows)} detections ({shown} drawn, score >= "
        f"{args.draw_threshold}) -> {output}"
    )
    for message in bad:
        print(f"error: {message}; skipped", file=sys.stderr)
    return 1 if bad else 0


def find_images(inputs: list[str], skip: Path | None = None) -> dict[Path, Path]:
    """Image files named by files, directories (searched to any depth), globs and lists (.txt).

    Args:
        inputs: as on the command line. A list has one path per line, relative to the list.
        skip: nothing below this directory is taken from a directory: an earlier run's drawings.

    Returns:
        file -> relative path for its drawing, unique, in sorted order of each input.

    Raises:
        UserError: an input that names nothing.
    """
    found: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            every = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            skipped = skip.resolve() if skip and skip.resolve() != path.resolve() else None
            new = {p: p.relative_to(path) for p in every if skipped not in p.resolve().parents}
        elif path.suffix == ".txt" and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            listed = [path.parent / line.strip() for line in lines if line.strip()]
            new = {p: Path(p.name) for p in listed}
        elif path.is_file():
            new = {path: Path(path.name)}
        else:
            new = {Path(p): Path(p).name for p in sorted(glob.glob(text, recursive=True))}
        if not new:
            raise UserError(f"--input {text}: no image found ({', '.join(sorted(SUFFIXES))})")
        found.update({p: Path(name) for p, name in new.items() if p not in found})
    taken: set[Path] = set()
    for path, name in found.items():  # two folders may hold images of the same name
        number = 1
        while name in taken:
            number += 1
            name = found[path].with_stem(f"{found[path].stem}_{number}")
        taken.add(name)
        found[path] = name
    return found


def _predict_all(predictor, targets: dict[Path, Path], threshold: float):
    """Draw each image. Returns COCO result rows and what was wrong with unreadable images."""
    import cv2
    from tqdm import tqdm

    from fcos_recipe.data.reader import BadImage, read_image
    from fcos_recipe.predict.draw import draw

    rows, bad = [], []
    ids = predictor.image_ids
    if len({file.name for file in targets} & set(ids)) < len(targets):
        ids = {}  # numbers of our own beside the annotations' could meet
    for number, (file, target) in enumerate(tqdm(targets.items(), disable=None, unit="image"), 1):
        try:
            found = predictor([file])[0]
            image = read_image(str(file))
        except BadImage as error:
            bad.append(str(error))
            continue
        drawn = draw(image, found.boxes, found.scores, found.labels, found.names, threshold)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(target), drawn[:, :, ::-1]):
            raise UserError(f"{target}: cannot be written")
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            rows.append(
                {
                    "image_id": ids.get(file.name, number),
                    "file_name": str(file),
                    "category_id": predictor.category_ids[label],
                    "category_name": found.names[label],
                    "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "score": float(f"{score:.9g}"),
                }
            )
    return rows, bad


def _write(output: Path, rows: list[dict], as_csv: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / PREDICTIONS).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    if not as_csv:
        return
    with open(output / "predictions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow("file_name category_name score x1 y1 x2 y2".split())
        for row in rows:
            x, y, w, h = row["bbox"]
            corners = [round(v, 3) for v in (x, y, x + w, y + h)]
            writer.writerow([row["file_name"], row["category_name"], row["score"], *corners])


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fcos infer", description="Draw boxes on images and write them as COCO results.",
        epilog=_EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("-c", "--config", help="YAML file (default: config.yml of the weights' run directory)")
    add("-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE",
        help="override config values; needs -c")  # fmt: skip
    add("--strict", action="store_true", default=None, help=argparse.SUPPRESS)
    add("--weights", metavar="W", help="checkpoint, .pdparams or URL (default: config's `weights`)")
    add("--input", "--infer_img", "--infer_dir", "--infer_list", nargs="+", action="extend",
        required=True, metavar="IMAGE|DIR|GLOB|LIST.txt",
        help="a directory is searched to any depth, a list has a path per line")  # fmt: skip
    add("--output", "--output_dir", default=os.path.join("output", "infer"), metavar="DIR",
        help=f"for the drawings and {PREDICTIONS} (default: %(default)s)")  # fmt: skip
    add("--draw_threshold", "--draw-threshold", type=float, default=0.5, metavar="SCORE",
        help="lowest score that is drawn (default: %(default)s)")  # fmt: skip
    add("--score_threshold", "--score-threshold", type=float, default=0.0, metavar="SCORE",
        help=f"lowest score in {PREDICTIONS} (default: all that NMS keeps)")  # fmt: skip
    add("--csv", action="store_true", help="also write predictions.csv")
    # PaddleDetection's; results are always saved, and there is nothing to log here
    ignored = dict(nargs="?", const=True, default=False, help="accepted, without effect")
    add("--save_results", **ignored)
    add("--use_vdl", **ignored)
    add("--vdl_log_dir", default=None, help="accepted, without effect")
    args = parser.parse_args(argv)
    if args.opt and not args.config:
        parser.error("-o needs -c CONFIG")
    return args
