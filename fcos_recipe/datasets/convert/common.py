"""The COCO file that a conversion builds, and helpers that all formats share.

Libraries that were tried: hotcoco 1.3 loses file extensions, subfolders and images without a label,
accepts NaN and stops at the first bad line; globox 2.9 handles one image extension per call and
names neither file nor line of an error. Datumaro and FiftyOne work but need 17 and 50 packages.
"""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_recipe.data.image_files import is_image
from fcos_recipe.datasets.account import Account
from fcos_recipe.errors import UserError, is_text
from fcos_recipe.files.reading import read_text

MISSING = "missing, or not readable"  # the account's reason for images


class Bad(Exception):
    """One line or entry that can't be converted.

    Args:
        text: what is wrong with it.
        reason: the kind of fault, as the account names it.
    """

    def __init__(self, text: str, reason: str = "not readable"):
        super().__init__(text)
        self.reason = reason


@dataclass
class Converted:
    """The COCO file under construction, with the problems that were met.

    A reader counts what it finds in `account.seen`, by other code than that which reads it: images,
    boxes, label files. What it can't convert goes to `refuse`, and what it passes over on purpose
    to `account.leave_out`. `content` counts what is written and checks that nothing is missing.

    Args:
        root: folder that file names are relative to.
        classes: names, in order of their ids from 1.
    """

    root: Path
    classes: list[str]
    other: dict[str, Any] = field(default_factory=dict)  #: sections of the source that are kept
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)  #: "file:line: what"
    said: Counter = field(default_factory=Counter)  #: remark -> how often it applies
    account: Account = field(default_factory=Account)

    def refuse(
        self, place: Any, error: Bad | UserError | str, item: str = "boxes", count: int = 1,
        reason: str = "not readable",
    ) -> None:  # fmt: skip
        """Leave something out that should have been converted.

        Args:
            place: the file, or "file:line".
            error: what is wrong; a `Bad` has a reason of its own.
            item: what is left out, and `count` its number.
            reason: as the account names it.
        """
        text = str(error)
        self.bad.append(text if text.startswith(str(place)) else f"{place}: {text}")
        self.account.leave_out(item, getattr(error, "reason", reason), count)

    def unused(self, files: Iterable[Path], used: Iterable[Path | None], reason: str) -> None:
        """Count files of the data set that nothing refers to.

        Args:
            files: all files, with or without those that are used.
            used: files that annotations refer to, and annotation files.
            reason: why images are left out; other files are named by their endings.
        """
        real = {os.path.realpath(file) for file in used if file is not None}
        for file in files:
            if os.path.realpath(file) in real:
                continue
            hidden = file.name.startswith(".")
            images = is_image(file)
            why = "hidden" if hidden else file.suffix.lower() or file.name
            item = "images" if images else "other files"
            self.account.seen[item] += 1
            self.account.leave_out(item, reason if images else why)

    def image(self, file: Path, size: tuple[int, int]) -> dict[str, Any]:
        """Add an image of `size` (height, width) in pixels; returns its entry."""
        name = Path(os.path.relpath(file, self.root)).as_posix()
        entry = {"id": len(self.images) + 1, "file_name": name, "height": size[0], "width": size[1]}
        self.images.append(entry)
        return entry

    def box(self, image: dict[str, Any], label: int, corners: list[float], **more: Any) -> None:
        """Add a box x1, y1, x2, y2 in pixels, clipped to the image.

        Raises:
            Bad: a coordinate is not finite, or no part of the box is inside the image.
        """
        if not all(map(math.isfinite, corners)):
            raise Bad(f"box {corners}: not a finite number", "not a finite number")
        x1, y1, x2, y2 = corners
        if x2 <= x1 or y2 <= y1:
            told = [round(v, 2) for v in corners]
            raise Bad(f"box {told}: width and height must be positive", "without width or height")
        width, height = image["width"], image["height"]
        inside = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
        if inside[2] <= inside[0] or inside[3] <= inside[1]:
            told = [round(v, 2) for v in corners]
            raise Bad(f"box {told}: outside the {width}x{height} image", "outside the image")
        if max(abs(a - b) for a, b in zip(inside, corners)) > 1:
            self.said["boxes extended beyond their image and are clipped"] += 1
        x1, y1, x2, y2 = inside
        bbox = [round(v, 4) for v in (x1, y1, x2 - x1, y2 - y1)]
        if min(bbox[2:]) <= 0:
            raise Bad(f"box {corners}: too small to be written", "without width or height")
        entry = {
            "id": len(self.annotations) + 1, "image_id": image["id"], "category_id": label + 1,
            "bbox": bbox, "area": round(bbox[2] * bbox[3], 4), "iscrowd": 0, **more,
        }  # fmt: skip
        self.annotations.append(entry)

    def tell(self, turned: bool, crowd: bool) -> None:
        """Note that a box is the upright one around a rotated box, or that training skips it."""
        if turned:
            self.account.seen["rotations"] += 1
            self.account.leave_out("rotations", "lost: upright boxes around them are used")
            self.said["boxes are upright around rotated ones, whose corners are kept as "
                      "segmentation"] += 1  # fmt: skip
        if crowd:
            self.said["objects are marked difficult or as a group and get iscrowd 1: training "
                      "skips them"] += 1  # fmt: skip

    def content(self) -> dict[str, Any]:
        """The COCO file as a dict.

        Raises:
            UserError: something that was seen is neither written nor left out for a reason, or a
                file name is not UTF-8, which JSON can't hold.
        """
        for image in self.images:
            if not is_text(image["file_name"]):
                raise UserError(f"{self.root}: the file name {image['file_name']!r} is not UTF-8; "
                                "rename the file")  # fmt: skip
        self.account.written["images"] = len(self.images)
        self.account.written["boxes"] = len(self.annotations)
        self.account.check(self.root)
        names = [{"id": k, "name": n} for k, n in enumerate(self.classes, start=1)]
        mine = {"images": self.images, "annotations": self.annotations}
        return {"categories": names, **self.other, **mine}


def read_names(path: Path) -> list[str]:
    """Class names from a text file with one name per line.

    Raises:
        UserError: the file can't be read, is empty, or has a name twice.
    """
    names = [name.strip() for name in read_text(path).rstrip().splitlines()]
    if "" in names:
        at = names.index("") + 1
        raise UserError(f"{path}:{at}: empty line; the class numbers after it would be unclear")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: it must have at least one class name, and none twice")
    return names


def class_list(given: list[str] | None) -> list[str] | None:
    """Class names from the argument of --classes: names, or a file of them."""
    if given and len(given) == 1 and Path(given[0]).is_file():
        return read_names(Path(given[0]))
    return given


def as_number(word: Any) -> float:
    try:
        return float(word)
    except (TypeError, ValueError, OverflowError):
        raise Bad(f"{word!r} is not a number", "not a number") from None


def common_folder(images: Path | None, files: list[Path], places: Sequence[Path] = ()) -> Path:
    """The folder that file names are relative to.

    Args:
        images: the image folder that was named; it is returned.
        files: the images.
        places: folders that images usually are in; the first that has all of them is returned.
    """
    if images is not None:
        return images
    common = Path(os.path.commonpath([path.parent for path in files])) if files else Path()
    return next((place for place in places if files and common.is_relative_to(place)), common)
