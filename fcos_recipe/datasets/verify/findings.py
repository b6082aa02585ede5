"""Kinds of findings of `fcos dataset verify`, and the class that collects them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# kind: (is an error, meaning). An error stops training or evaluation, or makes them skip or
# misread something; a warning does not.
KINDS = {
    "annotation_file": (True, "a file or folder that the config names is missing"),
    "not_json": (True, "the file is not JSON in UTF-8"),
    "not_converted": (True, "an annotation of another format than COCO that can't be converted"),
    "structure": (True, "a section is missing, empty or not a list"),
    "type": (True, "a field is missing or has the wrong type"),
    "id_not_number": (True, "an id is not an integer from 0 to 2**63 - 1"),
    "nothing_to_train": (True, "no box is left to train on"),
    "image_id_twice": (True, "one id for several files"),
    "image_repeated": (True, "the same entry occurs again; evaluation refuses it"),
    "file_listed_twice": (True, "one file has several ids"),
    "file_name": (True, "the file name is empty"),
    "file_name_other": (
        True,
        "training does not find the image by this name; --fix, `convert` and `config new` "
        "write the right one",
    ),
    "file_name_unclear": (True, "several files could be the image; --images DIR says which"),
    "file_name_outside": (False, "the file name points outside the image folder"),
    "image_size_wrong": (True, "negative or absurdly large width or height; the image is left out"),
    "image_size_odd": (False, "width or height is 0 or not an integer; the image file's is used"),
    "category_id_twice": (True, "one id for several categories"),
    "category_unnamed": (False, "a category without a name; its id is used instead"),
    "category_name_twice": (False, "two categories have the same name"),
    "category_name_odd": (False, "a category's name has control characters or spaces around it"),
    "category_unused": (False, "the training split has no box of this category"),
    "num_classes": (True, "the config's num_classes differs"),
    "category_order": (True, "category lists differ; classes are numbered by their order"),
    "category_ids": (False, "two splits have the same category names with different ids"),
    "annotation_id_twice": (True, "one id for several annotations"),
    "annotation_id_missing": (False, "no annotation id; COCO's own tools need one"),
    "unknown_image": (True, "image_id is not among the images; left out"),
    "unknown_category": (True, "category_id is not among the categories; training stops"),
    "ignored": (False, "marked ignore; training leaves it out, evaluation counts it"),
    "crowd_value": (False, "iscrowd is neither 0 nor 1"),
    "only_crowds": (False, "an image with crowds only; left out unless load_crowd is set"),
    "box_missing": (True, "no bbox; left out"),
    "box_not_finite": (True, "NaN or infinity in the bbox"),
    "box_negative": (True, "negative width or height (corners instead of a size?); left out"),
    "box_empty": (False, "zero width or height (two boxes of COCO have it); left out"),
    "box_huge": (True, "absurdly large or far away (more than twice the image's side)"),
    "box_outside": (True, "entirely outside its image; never trained on"),
    "box_format": (True, "the boxes are not x, y, width, height in pixels"),
    "box_partly_outside": (False, "more than a pixel outside its image; clipped"),
    "box_tiny": (False, "less than a pixel wide or high"),
    "box_twice": (False, "repeats another box of the same image and category"),
    "box_of_two_classes": (False, "repeats another box of the same image with another category"),
    "near_duplicate": (False, "IoU above 0.95 with another box of the same category (hotcoco)"),
    "area_not_positive": (True, "area is 0 or less although the box has a size; left out"),
    "area_differs": (False, "area exceeds the box's, or is under a tenth of it without a mask"),
    "image_folder": (True, "the image folder was not found"),
    "file_missing": (True, "the image file is missing"),
    "file_unreadable": (True, "not a regular file, or no permission to read it"),
    "image_empty": (True, "the image file has no bytes"),
    "image_truncated": (True, "the image file ends too early"),
    "image_undecodable": (True, "training can't decode the image and skips it"),
    "image_too_large": (True, "too many pixels; training skips it"),
    "image_crashes": (True, "the decoder crashed on this image"),
    "transform_fails": (True, "a transform of the config fails on this image; it is skipped"),
    "image_size_differs": (True, "width or height differs from the file; boxes would be misplaced"),
    "exif_turned": (False, "rotated when read, as its EXIF tag says; boxes must match that"),
    "greyscale": (False, "greyscale; converted to RGB"),
    "cmyk": (False, "CMYK; converted to RGB"),
    "sixteen_bit": (False, "more than 8 bits per channel; reduced to 8"),
    "alpha": (False, "transparent; the alpha channel is dropped"),
    "animated": (False, "several frames; the first is used"),
    "extension": (False, "the file's format is not what its extension says"),
    "decoder_warning": (False, "decoded, but with a warning"),
    "same_content": (False, "two files of a split have the same bytes"),
    "leak": (True, "the same image is in two splits; evaluation results would mislead"),
    "unlisted": (False, "an image in the folder is in no annotation file"),
}


@dataclass
class Findings:
    """Everything found in one split: kind -> items with the keys id, file, at, text that apply.

    `id` is the entry's own id, `file` the image's name, `at` the entry's position in the JSON.
    """

    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: str, id=None, file: str | None = None, at=None, text: str = "") -> None:
        """Add a finding; `at` is (section, position)."""
        assert kind in KINDS, kind
        item = {"id": id, "file": file, "at": at and f"{at[0]}[{at[1]}]", "text": text}
        found = self.items.setdefault(kind, [])
        found.append({key: value for key, value in item.items() if value not in (None, "")})

    def count(self, errors: bool, allowed: Iterable[str] = ()) -> int:
        """Number of errors or of warnings; errors of `allowed` kinds count as warnings."""
        return sum(
            len(items)
            for kind, items in self.items.items()
            if (KINDS[kind][0] and kind not in allowed) == errors
        )


def by(values: Iterable[float]) -> str:
    """Width and height as text, such as "640 x 480"."""
    return " x ".join(f"{v:g}" for v in values)
