"""Kinds of findings of `fcos dataset verify`, and where they are collected."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# kind: (is an error, what it means). Errors are what stops training or evaluation, or what they
# leave out or get wrong; what they cope with is a warning.
KINDS = {
    "annotation_file": (True, "a file or folder that the config names is missing"),
    "not_json": (True, "the file is no JSON in UTF-8"),
    "structure": (True, "a section is missing or is no list"),
    "type": (True, "a field is missing or has the wrong type"),
    "id_not_number": (True, "an id is no whole number below 2**63"),
    "nothing_to_train": (True, "no box is left that could be trained on"),
    "image_id_twice": (True, "one id for several files"),
    "image_repeated": (True, "the same entry again; evaluation refuses it"),
    "file_listed_twice": (True, "one file under several ids"),
    "file_name": (True, "the file name is empty"),
    "file_name_outside": (False, "the file name leaves the image folder"),
    "image_size_wrong": (True, "negative or absurd width or height; the image would be left out"),
    "image_size_odd": (False, "width or height is 0 or no whole number; the file's is used"),
    "category_id_twice": (True, "one id for several categories"),
    "category_unnamed": (False, "a category without a name; it is called by its id"),
    "category_name_twice": (False, "two categories of one name"),
    "category_name_odd": (False, "control characters or outer spaces in a category's name"),
    "category_unused": (False, "no box of this category in the training split"),
    "num_classes": (True, "the config's num_classes is another number"),
    "category_order": (True, "categories differ from the other list; classes go by their order"),
    "category_ids": (False, "same names, but other category ids than in the other split"),
    "annotation_id_twice": (True, "one id for several annotations"),
    "annotation_id_missing": (False, "no annotation id; COCO's own tools need one"),
    "unknown_image": (True, "image_id is not among the images; left out"),
    "unknown_category": (True, "category_id is not among the categories; training stops"),
    "ignored": (False, "marked ignore; training leaves it out, evaluation counts it"),
    "crowd_value": (False, "iscrowd is neither 0 nor 1"),
    "only_crowds": (False, "an image with crowds only; left out unless load_crowd"),
    "box_missing": (True, "no bbox; left out"),
    "box_not_finite": (True, "NaN or infinity in the bbox"),
    "box_negative": (True, "negative width or height (corners in place of a size?); left out"),
    "box_empty": (False, "no width or no height, as two in COCO; nothing to train on, left out"),
    "box_huge": (True, "absurdly large or far away (more than twice the image's side)"),
    "box_outside": (True, "wholly outside its image; never trained on"),
    "box_format": (True, "the boxes are not x, y, width, height in pixels"),
    "box_partly_outside": (False, "more than a pixel outside its image; clipped"),
    "box_tiny": (False, "less than a pixel wide or high"),
    "box_twice": (False, "same image, category and bbox again"),
    "box_of_two_classes": (False, "same image and bbox, another category"),
    "near_duplicate": (False, "IoU above 0.95 with another box of its category (hotcoco)"),
    "area_not_positive": (True, "area is 0 or less though the box is not; left out"),
    "area_differs": (False, "area is not the box's and no mask explains it, or exceeds the box's"),
    "image_folder": (True, "the folder of the images is not found"),
    "file_missing": (True, "the image file is missing"),
    "file_unreadable": (True, "not a file, or no permission to read it"),
    "image_empty": (True, "the image file has no bytes"),
    "image_truncated": (True, "the image file ends too early"),
    "image_undecodable": (True, "training can't decode the image and skips it"),
    "image_too_large": (True, "too many pixels; training skips it"),
    "image_crashes": (True, "the decoder's process died on this image"),
    "image_size_differs": (True, "width and height are not the file's; boxes would be misplaced"),
    "exif_turned": (False, "turned when read, as its EXIF tag says; boxes must match that"),
    "greyscale": (False, "greyscale; turned into RGB"),
    "cmyk": (False, "CMYK; turned into RGB"),
    "sixteen_bit": (False, "more than 8 bits per channel; reduced to 8"),
    "alpha": (False, "transparent; the alpha channel is dropped"),
    "animated": (False, "several frames; the first is used"),
    "extension": (False, "the file's format is not what its extension says"),
    "decoder_warning": (False, "decoded, but with a complaint"),
    "same_content": (False, "two files of a split with the same bytes"),
    "leak": (True, "the same image in two splits; figures are not to be trusted"),
    "unlisted": (False, "an image in the folder that no annotation file lists"),
}


@dataclass
class Findings:
    """Everything found in one split: kind -> items `{id, file, at, text}`, as far as they apply.

    `id` is the entry's own id, `file` the image's name, `at` the entry's place in the JSON.
    """

    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: str, id=None, file: str | None = None, at=None, text: str = "") -> None:
        """Args: at: (section, position)."""
        assert kind in KINDS, kind
        item = {"id": id, "file": file, "at": at and f"{at[0]}[{at[1]}]", "text": text}
        found = self.items.setdefault(kind, [])
        found.append({key: value for key, value in item.items() if value not in (None, "")})

    def count(self, errors: bool, allowed: Iterable[str] = ()) -> int:
        """How many errors (those of `allowed` kinds are none) or warnings there are."""
        return sum(
            len(items)
            for kind, items in self.items.items()
            if (KINDS[kind][0] and kind not in allowed) == errors
        )


def by(values: Iterable[float]) -> str:
    """Width and height in words."""
    return " x ".join(f"{v:g}" for v in values)
