"""`fcos dataset browse`: draw images with their boxes into one file.

hotcoco's COCO.browse() needs Gradio and a server; this writes one file.
"""

import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from fcos_recipe.config.load import Config
from fcos_recipe.console import say
from fcos_recipe.data.coco_json import MOST_BYTES, Detection, is_id, number
from fcos_recipe.data.images import BadImage, read_image
from fcos_recipe.data.index import Index
from fcos_recipe.data.targets import Assignment
from fcos_recipe.datasets.fpn_levels import REASONS, SIZES, WHY, Rules
from fcos_recipe.datasets.locate import Source
from fcos_recipe.datasets.look.contact_sheet import (
    PAGE_WIDTH,
    SHEET_WIDTH,
    Key,
    Tile,
    save,
    scaled,
)
from fcos_recipe.datasets.look.network_input import NetworkInput, Seen
from fcos_recipe.datasets.look.stats import size_class
from fcos_recipe.drawing import draw, outline, pen_sizes, readable, tag
from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import read_bytes
from fcos_recipe.places import display

ENDINGS = (".html", ".png", ".jpg", ".jpeg")
# Okabe and Ito's palette for colour-blind readers; the discs also grow with the level
LEVEL_COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (204, 121, 167), (0, 114, 178),
)  # fmt: skip
OWNED, LOST = (255, 255, 255), (255, 40, 40)


@dataclass
class Choice:
    """Which images and boxes of a data set to show.

    Args:
        classes: class names; None: all.
        size: one of `fpn_levels.SIZES`, by the box's area; None: all.
        ids: image ids, shown in this order; None: random images.
        limit: most images per split.
        seed: of the random choice.
    """

    classes: list[str] | None = None
    size: str | None = None
    ids: list[int] | None = None
    limit: int = 24
    seed: int = 0

    def boxes(self, path: str, names: list[str], label: np.ndarray, box: np.ndarray) -> np.ndarray:
        """bool [M]: which boxes have the chosen classes and size.

        Raises:
            UserError: the file lacks a chosen class.
        """
        use = np.ones(len(box), bool)
        if self.classes is not None:
            for name in set(self.classes) - set(names):
                near = difflib.get_close_matches(name, names)
                have = ", ".join(near or names[:10]) or "none"
                raise UserError(f"{path}: --classes: no class {name!r}; it has {have}")
            use &= np.isin(label, [i for i, name in enumerate(names) if name in self.classes])
        if self.size is not None:
            area = (box[:, 2:] - box[:, :2]).astype(np.float64).prod(axis=1)
            use &= size_class(area) == SIZES.index(self.size)
        return use

    def rows(self, index: Index, wanted: np.ndarray) -> np.ndarray:
        """int64 [n]: image rows in the order in which to show them.

        Args:
            index: of the annotations.
            wanted: int64 [n], rows of images with something to show.

        Raises:
            UserError: the file lacks a chosen image id.
        """
        if self.ids is None:
            return np.random.default_rng(self.seed).permutation(wanted)
        place = {int(image): row for row, image in enumerate(index.image_id)}
        if missing := [i for i in self.ids if i not in place]:
            raise UserError(f"{index.path}: --ids: no image {', '.join(map(str, missing))}")
        return np.array([place[i] for i in self.ids], np.int64)

    @property
    def filters(self) -> bool:
        return self.classes is not None or self.size is not None


@dataclass
class Detections:
    """Detections on the images of an index whose score reaches the threshold."""

    row: np.ndarray  #: int64 [D], image row
    label: np.ndarray  #: int64 [D], class
    box: np.ndarray  #: float64 [D, 4], x1, y1, x2, y2 in pixels
    score: np.ndarray  #: float64 [D]


class _Detection(Detection, gc=False):
    file_name: str | None = None


def read_detections(path: Path, index: Index, threshold: float) -> Detections:
    """Read COCO results, as `fcos infer` writes them.

    `fcos infer` makes up ids for images that the annotations do not list, so if a row has a file
    name, the name must match as well as the id.

    Raises:
        UserError: not COCO results, or no row matches an image and class of the annotations.
    """
    try:
        content = read_bytes(path, MOST_BYTES)
        found = msgspec.json.decode(content, type=list[_Detection])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}: {error}; expected COCO results: a list of image_id, category_id, bbox, score"
        ) from None
    images = {int(image): row for row, image in enumerate(index.image_id)}
    classes = {int(category): k for k, category in enumerate(index.category_id)}

    known = []
    for d in found:
        row = images.get(number(d.image_id)) if is_id(d.image_id) else None
        label = classes.get(number(d.category_id)) if is_id(d.category_id) else None
        if row is None or label is None:
            continue
        name = os.path.basename(index.file_name(row))
        if d.file_name is None or os.path.basename(d.file_name) == name:
            known.append((row, label, d.bbox, d.score))
    if found and not known:
        raise UserError(f"{path}: no detection matches {index.path}; was it made with other data?")
    if len(known) < len(found):
        say(
            f"warning: {path}: {len(found) - len(known)} of {len(found)} detections belong to "
            "images or classes that the annotations do not have; they are left out"
        )
    rows, labels, boxes, scores = list(zip(*(k for k in known if k[3] >= threshold))) or [()] * 4
    box = np.array(boxes, np.float64).reshape(-1, 4)
    box[:, 2:] += box[:, :2]
    return Detections(
        np.array(rows, np.int64), np.array(labels, np.int64), box, np.array(scores, np.float64)
    )


def annotated(
    source: Source, choice: Choice, most: int, predictions: Path | None = None,
    threshold: float = 0.5,
) -> Iterator[Tile]:  # fmt: skip
    """Yield tiles with the ground truth, and predictions next to it if there are any.

    Args:
        source: the split; `images` must be set.
        choice: what to show.
        most: long side of a picture, pixels.
        predictions: file of COCO results.
        threshold: lowest score to draw.
    """
    index = source.index()
    names = index.class_names
    use = choice.boxes(source.path, names, index.label, index.box)
    of_box = np.repeat(np.arange(len(index)), np.diff(index.box_start))
    wanted = np.unique(of_box[use]) if choice.filters else np.arange(len(index))
    found = None
    if predictions is not None:
        found = read_detections(predictions, index, threshold)
        use_found = choice.boxes(source.path, names, found.label, found.box)
        if choice.filters:
            wanted = np.union1d(wanted, found.row[use_found])
    shown = 0
    for row in choice.rows(index, wanted).tolist():
        if shown == choice.limit:
            return
        file = index.file_name(row)
        try:
            image = read_image(os.path.join(source.images or "", file))
        except BadImage as error:
            say(f"warning: image {index.image_id[row]}: {error}; skipped")
            continue
        shown += 1
        pick = slice(*index.box_start[row : row + 2].tolist())
        mask = use[pick]
        box, label, crowd = (a[pick][mask] for a in (index.box, index.label, index.crowd > 0))
        picture, factor = scaled(image, most)
        pictures = [("", draw(picture, box * factor, None, label, names, dashed=crowd))]
        part = f"{len(box)} of {len(mask)} boxes" if len(box) < len(mask) else _boxes(len(box))
        notes = [
            f"image {index.image_id[row]}, {image.shape[1]}x{image.shape[0]}, {part}"
            + (f", {crowd.sum()} of them crowds (dashed)" if crowd.any() else "")
        ]
        on_it = set(label.tolist())
        if found is not None:
            k = np.flatnonzero((found.row == row) & use_found)
            pictures = [
                ("ground truth", pictures[0][1]),
                (f"predictions, score {threshold:g} and more",
                 draw(picture, found.box[k] * factor, found.score[k], found.label[k], names,
                      threshold)),
            ]  # fmt: skip
            notes[0] += f"; {len(k)} prediction" + ("" if len(k) == 1 else "s")
            on_it |= set(found.label[k].tolist())
        counts = np.bincount(label, minlength=len(names))
        told = [f"{counts[c]} {names[c]}" for c in np.argsort(-counts, kind="stable") if counts[c]]
        notes += [", ".join(told)] if told else []
        yield Tile(file, notes, pictures, [names[c] for c in sorted(on_it)])


def seen_by_network(
    config: Config, source: Source, choice: Choice, most: int, epoch: int
) -> Iterator[tuple[Tile, Seen]]:
    """Yield tiles of training batches, see `network_input`.

    If `choice` has no ids, classes or size, these are the first batches of the epoch on one card.
    """
    network = NetworkInput(config, source)
    names = network.dataset.index.class_names
    shown = 0
    for batch in _batches(network, choice, epoch):
        arrays, images = network.batch(epoch, batch)
        for message in arrays["bad"]:
            say(f"warning: {message}; skipped (training uses the next image)")
        for seen in images:
            if shown == choice.limit:
                return
            shown += 1
            yield _tile(seen, names, source, network.reader.target.rules, most), seen


def _batches(network: NetworkInput, choice: Choice, epoch: int) -> Iterator[list[int]]:
    if choice.ids is None and not choice.filters:
        yield from network.order(epoch)
        return
    index = network.dataset.index
    use = choice.boxes(index.path, index.class_names, index.label, index.box)
    if not network.dataset.load_crowd:
        use &= index.crowd == 0
    of_box = np.repeat(np.arange(len(index)), np.diff(index.box_start))
    rows = choice.rows(index, np.unique(of_box[use]))
    places = network.positions(rows)
    if choice.ids is not None:
        for row in rows[places < 0]:
            say(
                f"warning: image {index.image_id[row]}: not in the training data (it has no box, "
                "or its file is missing)"
            )
    places = places[places >= 0].tolist()
    size = network.reader.batch_size
    for first in range(0, len(places), size):
        yield places[first : first + size]


def _tile(seen: Seen, names: list[str], source: Source, rules: Assignment, most: int) -> Tile:
    picture, factor = scaled(seen.pixels, most)
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    width, size = pen_sizes(picture)[0], max(10, round(max(picture.shape) / 64))
    lost = seen.why >= 0
    for fill, thick, mask in (((0, 0, 0), width + 2, ~lost), (OWNED, width, ~lost)):
        for box in seen.box[mask] * factor:  # white on black is visible on any background
            outline(pen, box + (width - thick) / 2 * np.array([1, 1, -1, -1]), fill, thick)
    for box in seen.box[lost] * factor:
        outline(pen, box, LOST, width + 1, dashed=True)
    for level in range(len(rules.strides)):
        color, r = LEVEL_COLORS[level % len(LEVEL_COLORS)], _radius(level, rules, factor)
        for x, y in seen.point[seen.level == level] * factor:
            pen.ellipse([x - r, y - r, x + r, y + r], color, "black")
    for k in np.argsort(lost, kind="stable"):  # boxes without a location on top
        text, font = readable(names[seen.label[k]], int(seen.label[k]), size)
        text, fill = (f"{text}: {REASONS[seen.why[k]]}", LOST) if lost[k] else (text, OWNED)
        tag(pen, seen.box[k] * factor, text, fill, font)
    height, wide = (round(v) for v in seen.inside)
    padded = seen.pixels.shape
    notes = [
        f"image {seen.image_id}, {wide}x{height} padded to {padded[1]}x{padded[0]}, "
        f"{_boxes(len(seen.box))}, {len(seen.point)} positives"
    ]
    counts = seen.positives.sum(axis=0).tolist()
    if any(counts):
        of_stride = (f"{n} of stride {s}" for s, n in zip(rules.strides, counts) if n)
        notes.append("positives: " + ", ".join(of_stride))
    for reason, text in enumerate(WHY.values()):
        if missed := int((seen.why == reason).sum()):
            notes.append(f"{_boxes(missed)} without a location: {text}")
    file = os.path.relpath(seen.file, source.images)
    on_it = [names[c] for c in sorted(set(seen.label.tolist()))]
    return Tile(file, notes, [("", np.asarray(image))], on_it, bool(lost.any()))


def _radius(level: int, rules: Assignment, factor: float) -> float:
    """Radius of a level's discs; discs of neighbouring locations do not touch."""
    return min(3 + 1.5 * level, max(1.5, rules.strides[level] * factor * 0.3))


def level_keys(rules: Assignment, counts: np.ndarray) -> list[Key]:
    """The legend of positive locations.

    Args:
        rules: as `assign` takes them.
        counts: int [levels], number of positives shown.
    """
    keys = []
    for level, (stride, (low, high)) in enumerate(zip(rules.strides, rules.ranges)):
        span = f"{max(low, 0):g} to {high:g} px" if np.isfinite(high) else f"over {low:g} px"
        keys.append(
            Key(f"stride {stride}, {span}: {counts[level]} positives",
                LEVEL_COLORS[level % len(LEVEL_COLORS)], 4 + level)
        )  # fmt: skip
    keys.append(Key("white: box with positives"))
    keys.append(Key("red, dashed: box without a location, not trained on"))
    keys.append(Key("plain border right and below: padding, zeros for the network"))
    return keys


def _boxes(count: int) -> str:
    return f"{count} box" + ("" if count == 1 else "es")


@dataclass
class Drawing:
    """How `browse` draws.

    Args:
        predictions: COCO results to draw next to the ground truth.
        threshold: lowest score to draw.
        epoch: show the training batches of this epoch; None: show the image files.
    """

    predictions: Path | None = None
    threshold: float = 0.5
    epoch: int | None = None


def browse(
    found: list[Source], config: Config, choice: Choice, drawing: Drawing, output: Path
) -> int:
    """Write several splits to one page or contact sheet.

    Args:
        found: the splits.
        config: the config that applies.
        choice: what to show of each split.
        drawing: how to draw it.
        output: file to write, with one of `ENDINGS`.

    Returns:
        number of images shown.

    Raises:
        UserError: no image is found or fits the choice, or a file can't be read or written.
    """
    seen = drawing.epoch is not None
    most = PAGE_WIDTH if output.suffix == ".html" else int(SHEET_WIDTH * (1.5 if seen else 1))
    tiles, legend, titles = [], [], []
    for source in found:
        if source.images is None:
            raise UserError(f"{source.title}: no images found near it; add --images DIR")
        if drawing.epoch is not None:
            pairs = list(seen_by_network(config, source, choice, most, drawing.epoch))
            rows = [tile for tile, _ in pairs]
            if pairs:
                counts = sum(each.positives.sum(axis=0) for _, each in pairs)
                legend = level_keys(Rules.of(config).targets, counts)
        else:
            rows = list(annotated(source, choice, most, drawing.predictions, drawing.threshold))
        titles.append(f"{source.name} ({display(source.title)}), {len(rows)} images")
        tiles += rows
    if not tiles:
        raise UserError(f"{'; '.join(s.path for s in found)}: no image to show")
    title = "; ".join(titles)
    if drawing.epoch is not None:
        title = f"Network input of {title}, {display(config.path)}, epoch {drawing.epoch}"
    try:
        save(tiles, legend, title, output)
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from None
    return len(tiles)
