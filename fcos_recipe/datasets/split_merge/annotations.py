"""Annotation files for `fcos dataset subset`, `split` and `merge`.

Entries are copied byte for byte, with all their fields; only an id or file name that must change is
rewritten. Images are not copied: file names stay relative to their folder. hotcoco's sample, split
and merge drop unknown fields and ids, ignore classes, and can't merge files of different classes.
"""

from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw

from fcos_recipe.data import coco_json
from fcos_recipe.datasets.account import Account
from fcos_recipe.errors import UserError, path_reason
from fcos_recipe.files.atomic import replace_file

SECTIONS = {
    "images": coco_json.ListedImage, "annotations": coco_json.Labels,
    "categories": coco_json.Category,
}  # fmt: skip


@dataclass
class Annotations:
    """An annotation file: its entries as bytes, and the ids in them."""

    path: str
    other: dict[str, Raw]  #: all keys except SECTIONS, such as `info` and `licenses`
    images: list[Raw]
    annotations: list[Raw]
    categories: list[Raw]
    image_id: np.ndarray  #: int64 [N]
    file_name: list[str]
    annotation_id: list[int | str | None]
    of_image: np.ndarray  #: int64 [M], row of the image of each annotation; -1: none
    of_class: np.ndarray  #: int64 [M], row of its category
    category_id: np.ndarray  #: int64 [K]
    class_names: list[str]

    @classmethod
    def read(cls, path: Path, content: memoryview | bytes | None = None) -> "Annotations":
        """Read an annotation file.

        Args:
            path: the file, or what was converted, for messages.
            content: of the file, if it is not to be read.

        Raises:
            UserError: the file is missing or not COCO, an id occurs twice, a category is unknown.
        """
        with coco_json.explained(path):
            content = coco_json.mapped(path) if content is None else content
            decoder = getincrementaldecoder("utf-8")()
            for start in range(0, len(content), 1 << 20):  # `Raw` values are copied unseen
                decoder.decode(content[start : start + (1 << 20)])
            top = msgspec.json.decode(content, type=dict[str, Raw])
            coco_json.refuse_repeated(path, content)
            if "images" not in top:
                raise UserError(f"{path}: has no `images`: not COCO's format")
            parts = {name: top.pop(name, Raw(b"[]")) for name in SECTIONS}
            raw = {
                name: msgspec.json.decode(part, type=list[Raw] | None) or []
                for name, part in parts.items()
            }
            images, annotations, categories = (  # ignored: a type that is a value to mypy
                msgspec.json.decode(parts[name], type=list[kind] | None) or []  # type: ignore[valid-type]
                for name, kind in SECTIONS.items()
            )
        name = str(path)
        image_id = coco_json.ids(name, "images", images)
        category_id = coco_json.ids(name, "categories", categories)
        for section, ids in (("images", image_id), ("categories", category_id)):
            if len(np.unique(ids)) < len(ids):
                again = Counter(ids.tolist()).most_common(1)[0][0]
                raise UserError(f"{path}: {section}: id {again} occurs twice; make ids unique")
        of_class = coco_json.rows_of(
            category_id, coco_json.ids(name, "annotations", annotations, "category_id")
        )
        if (of_class < 0).any():
            first = int(np.flatnonzero(of_class < 0)[0])
            raise UserError(
                f"{path}: annotations[{first}].category_id: {annotations[first].category_id} is "
                f"not among the {len(category_id)} categories of the file"
            )
        of_image = coco_json.rows_of(
            image_id, coco_json.ids(name, "annotations", annotations, "image_id")
        )
        return cls(
            name, top, raw["images"], raw["annotations"], raw["categories"], image_id,
            [i.file_name for i in images],
            [coco_json.number(a.id) if coco_json.is_id(a.id) else a.id for a in annotations],
            of_image, of_class,
            category_id, coco_json.class_names(categories, category_id),
        )  # fmt: skip

    def labels(self) -> np.ndarray:
        """int64 [n, 2]: the distinct pairs of image row and class row, sorted."""
        listed = self.of_image >= 0
        pairs = np.stack([self.of_image[listed], self.of_class[listed]], axis=1)
        return np.unique(pairs, axis=0)

    def part(self, rows: np.ndarray) -> dict[str, Any]:
        """The file reduced to image rows, int64 [n]: their annotations and all categories."""
        keep = np.zeros(len(self.images) + 1, bool)  # the last is for annotations without an image
        keep[rows] = True
        chosen = np.flatnonzero(keep[self.of_image])
        return {
            **self.other,
            "images": [self.images[i] for i in np.flatnonzero(keep[:-1])],
            "annotations": [self.annotations[i] for i in chosen],
            "categories": self.categories,
        }

    def rename(self, names: Mapping[str, str]) -> None:
        """Replace file names: old -> new."""
        for row, old in enumerate(self.file_name):
            if old in names:
                entry = {**msgspec.json.decode(self.images[row]), "file_name": names[old]}
                self.images[row] = Raw(msgspec.json.encode(entry))
                self.file_name[row] = names[old]

    @property
    def orphans(self) -> int:
        """Number of annotations whose image the file does not list."""
        return int((self.of_image < 0).sum())

    def account(self) -> Account:
        """What the file holds; annotations of unlisted images are left out of every output."""
        account = Account()
        account.seen.update(images=len(self.images), annotations=len(self.annotations))
        account.leave_out("annotations", "of images that are not listed", self.orphans)
        return account


def refuse_overwriting(paths: Iterable[Path], force: bool) -> None:
    """Check that no output file exists.

    Raises:
        UserError: one exists, and `force` is not set.
    """
    for path in paths:
        if path.exists() and not force:
            raise UserError(f"{path}: exists; choose another name or add --force")


def write(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file atomically.

    Raises:
        UserError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, msgspec.json.encode(content))
    except OSError as error:
        raise UserError(f"{error.filename or path}: {path_reason(error)}") from None
