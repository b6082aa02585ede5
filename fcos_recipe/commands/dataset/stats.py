"""`fcos dataset stats`: statistics of a data set, and how FCOS assigns its boxes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcos_recipe import exit_codes
from fcos_recipe.commands.dataset.shared import add_source, find_sources
from fcos_recipe.commands.options import add_json, parser, write
from fcos_recipe.datasets.fpn_levels import SIZES, WHY, Rules
from fcos_recipe.datasets.look.stats import statistics
from fcos_recipe.errors import UserError, one_line, path_reason
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.places import display

_HELP = """\
examples:
  fcos dataset stats datasets/coco
  fcos dataset stats -c my.yml --output output/my_data  # also stats.json, stats_train.png, ...
  fcos dataset stats my.json -c configs/fcos/fcos_r18_fpn_bccd.yml -o TrainReader.batch_size=1

The JSON has for each split ("splits" -> name):
  images           count, without_boxes and their ids, size_unknown, [width, height, images]
  boxes            count, crowd, left_out (kind: count); width, height, aspect_ratio and
                   sqrt_area in pixels: min, p5, median, p95, max, mean, histogram; by_size (areas
                   of boxes below 32 x 32, below 96 x 96 and above); by_size_of_coco_ap (the same
                   by the field area)
  boxes_per_image  the same figures; images_with[n] images have n boxes
  levels           for each FPN level the objects with a positive location on it, and the number
                   of its positive locations; without_location: reasons and examples. Sizes are
                   those after resizing in training, or in evaluation if training resizes at
                   random. Images are opened only if the annotations lack their size
  classes          id, name and the counts of the table
"""
_CODES = {exit_codes.BAD_INPUT: "wrong arguments, or unreadable annotations"}


def main(argv: list[str]) -> int:
    """See `fcos dataset stats --help`."""
    text = "Count classes, box sizes and boxes per FPN level of a data set."
    ask = parser("dataset stats", text, _HELP, _CODES)
    add_source(ask)
    add_json(ask, "write all statistics to FILE")
    ask.add_argument("--output", type=Path, metavar="DIR",
                     help="folder for stats.json and a plot per split")  # fmt: skip
    args = ask.parse_args(argv)
    found, config = find_sources(args)
    rules = Rules.of(config)
    splits = {source.name: statistics(source, rules) for source in found}
    print("\n\n".join("\n".join(table(name, row)) for name, row in splits.items()))
    text = json.dumps({"splits": splits}, indent=1, ensure_ascii=False) + "\n"
    path = args.output or args.json
    try:
        if args.json:
            write(args.json, text)
        if args.output:
            from fcos_recipe.datasets.look import stats_plot

            args.output.mkdir(parents=True, exist_ok=True)
            replace_file(args.output / "stats.json", text)
            for name, row in splits.items():
                path = args.output / f"stats_{name}.png"
                stats_plot.save(row, f"{name}: {display(row['annotations'])}", path)
                print(f"plot: {path}")
    except OSError as error:
        raise UserError(f"{error.filename or path}: {path_reason(error)}") from None
    return 0


def table(name: str, found: dict[str, Any]) -> Iterator[str]:
    """Console lines for the `statistics` of one split."""
    images, boxes, per_image = found["images"], found["boxes"], found["boxes_per_image"]
    yield f"{name}: {one_line(display(found['annotations']))}"
    sizes = images["width_height"]
    common = ", ".join(f"{w}x{h} ({n})" for w, h, n in sizes[:3])
    unknown = f", {images['size_unknown']} of unknown size" if images["size_unknown"] else ""
    yield (
        f"  images     {images['count']}, {images['without_boxes']} without boxes{unknown}; "
        f"{len(sizes)} sizes" + (f", most often {common}" if sizes else "")
    )
    yield f"  boxes      {boxes['count']} and {boxes['crowd']} crowds"
    if boxes["left_out"]:
        rows = ", ".join(f"{count} {kind}" for kind, count in boxes["left_out"].items())
        yield f"  left out   {rows}"
    if not boxes["count"]:
        return
    yield (
        f"  per image  mean {per_image['mean']:.1f}, median {per_image['median']:g}, "
        f"at most {per_image['max']:g} (image {per_image['most_id']})"
    )
    for title, key in (("sizes", "by_size"), ("", "by_size_of_coco_ap")):
        total = max(sum(boxes[key].values()), 1)
        shares = ", ".join(f"{k} {100 * n / total:.1f} %" for k, n in boxes[key].items())
        by = "the boxes' area" if title else "the field area, as in COCO's AP"
        yield f"  {title:<10} {shares} by {by}"
    for title, key, unit in (("width", "width", " px"), ("height", "height", " px"),
                             ("w / h", "aspect_ratio", "")):  # fmt: skip
        row = boxes[key]
        yield (
            f"  {title:<10} median {row['median']:.3g}{unit}, 90 % from {row['p5']:.3g} to "
            f"{row['p95']:.3g}, all from {row['min']:.3g} to {row['max']:.3g}"
        )
    yield ""
    yield from _class_rows(found["classes"], boxes["count"])
    yield ""
    yield from _level_rows(found["levels"])


def _class_rows(classes: list[dict[str, Any]], total: int) -> Iterator[str]:
    rows = [("class", "boxes", "share", "images", "crowd", *SIZES, "no location")]
    for row in sorted(classes, key=lambda row: -row["boxes"]):
        cells = [row[k] for k in ("images", "crowd", *SIZES, "without_location")]
        share = f"{100 * row['boxes'] / total:.2f} %"
        rows.append((one_line(row["name"], 60), row["boxes"], share, *cells))
    yield from _columns(rows)


def _level_rows(levels: dict[str, Any]) -> Iterator[str]:
    yield f"  {levels['rule']}"
    rows = [("level", "for sizes", "objects", "share", "locations", "share")]
    for row in levels["levels"]:
        high = row["smaller_than"]
        size = f"{row['larger_than']:g} to {high:g}" if high else f"over {row['larger_than']:g}"
        rows.append(
            (
                f"stride {row['stride']}", size, row["objects"],
                f"{100 * row['objects_share']:.1f} %", row["locations"],
                f"{100 * row['locations_share']:.1f} %",
            )
        )  # fmt: skip
    yield from _columns(rows)
    yield (
        f"  {levels['on_several_levels']} objects are on more than one level; locations per "
        f"object: median {levels['locations_per_object']['median'] or 0:g}"
    )
    lost = levels["without_location"]
    yield f"  {lost['count']} objects ({100 * lost['share']:.2f} %) are on no level: not trained on"
    for reason, text in WHY.items():
        if lost[reason]:
            first = next(e for e in lost["examples"] if e["reason"] == reason)
            box = ", ".join(f"{v:g}" for v in first["bbox"])
            yield (
                f"    {lost[reason]:>6}  {text}; first: image {first['image_id']} "
                f"({one_line(first['file_name'])}) at [{box}]"
            )


def _columns(rows: list[tuple]) -> Iterator[str]:
    """Align rows: the first column to the left, the others to the right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts)]
    for first, *rest in texts:
        cells = "".join(f"  {cell:>{w}}" for cell, w in zip(rest, widths[1:]))
        yield f"  {first:<{widths[0]}}{cells}".rstrip()
