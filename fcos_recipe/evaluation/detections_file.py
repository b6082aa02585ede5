"""What an evaluation judged, kept beside its figures, so that two can be compared by image."""

import os
import zipfile
from pathlib import Path

import numpy as np

from fcos_recipe.data.coco_json import rows_of
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.files.archives import RATIO
from fcos_recipe.files.atomic import replace_file
from fcos_recipe.files.reading import open_regular

JUDGED = "detections.npz"
MOST_BYTES = 4 << 30  #: unpacked; a file that claims more is not one of ours
_TRUTH = {"image_id": np.int32, "category_id": np.int32, "bbox": np.float32, "area": np.float32,
          "iscrowd": np.uint8}  # fmt: skip
_FOUND = {"image_id": np.int32, "category_id": np.int32, "bbox": np.float32, "score": np.float32}


def save(metric: CocoMetric, path: Path) -> None:
    """Write annotations and detections of the metric's last `result()`, about 20 bytes per box.

    Ids that do not fit 32 bits are written with 64. Boxes and scores are float32, as the model
    gives them.
    """
    judged = metric.judged
    arrays = {
        "images": judged["image_id"],
        "categories": np.array(sorted(metric.categories), np.int64),
        "names": np.array([str(metric.categories[i]) for i in sorted(metric.categories)], np.str_),
        "limits": np.array(metric.limits, np.int64),
    }  # fmt: skip
    for part, table in (("truth", _TRUTH), ("found", _FOUND)):
        for name, dtype in table.items():
            column = judged[part][name]
            short = column.astype(dtype)
            wide = dtype is np.int32 and not np.array_equal(short, column)
            arrays[f"{part}_{name}"] = column if wide else short
    replace_file(path, lambda file: np.savez_compressed(file, **arrays))


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `save` wrote.

    Raises:
        UserError: not such a file; the line says what is wrong.
    """
    try:
        with open(open_regular(path, MOST_BYTES), "rb") as opened:
            most = min(MOST_BYTES, max(RATIO * os.fstat(opened.fileno()).st_size, 1 << 26))
            with zipfile.ZipFile(opened) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > most:
                    raise UserError(f"{path}: unpacks to more than {most >> 20} MiB; not read")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
        rows = {part: len(found[f"{part}_image_id"]) for part in ("truth", "found")}
        for part, table in (("truth", _TRUTH), ("found", _FOUND)):
            for name in table:
                shape = (rows[part], 4) if name == "bbox" else (rows[part],)
                if found[f"{part}_{name}"].shape != shape:
                    raise ValueError(f"{part}_{name} has another length")
            for name, ids in (("image_id", found["images"]), ("category_id", found["categories"])):
                if (rows_of(ids, found[f"{part}_{name}"]) < 0).any():
                    raise ValueError(f"{part}_{name} is not among those judged")
        if len(found["names"]) != len(found["categories"]):
            raise ValueError("names has another length")
        found["limits"].reshape(3)
        return found
    except UserError:
        raise
    except Exception as error:  # a damaged archive can raise any exception
        raise UserError(f"{path}: not an evaluation's detections: {error}") from None


def same_truth(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    """Empty where both were judged on the same images and annotations, else in what they differ."""
    if not np.array_equal(a["images"], b["images"]):
        return f"they were judged on different images ({len(a['images'])} and {len(b['images'])})"
    if not (np.array_equal(a["categories"], b["categories"])
            and np.array_equal(a["names"], b["names"])):  # fmt: skip
        return "their classes differ"
    if not np.array_equal(a["limits"], b["limits"]):
        return "they were judged with different numbers of detections per image"
    if not all(np.array_equal(a[f"truth_{name}"], b[f"truth_{name}"]) for name in _TRUTH):
        return "their annotations differ"
    return ""
