"""COCO data set on the memory-mapped index: images and boxes are read only when used."""

import logging
import os
import random
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fcos_recipe.config.load import data_paths
from fcos_recipe.data.index import Index, concatenated, open_index
from fcos_recipe.errors import UserError

logger = logging.getLogger("fcos.data")


class COCODataSet:
    """Images and boxes of COCO annotation files, in the order of PaddleDetection's COCODataSet.

    Files are read one after another, with each file's images sorted by id. Classes have the order
    of the first file's categories. Crowd boxes are left out unless `load_crowd` is set; images
    without a box are left out unless `allow_empty` is set, and then come last. Nothing is
    downloaded.

    Args:
        dataset_dir: folder that `image_dir` and `anno_path` are relative to.
        image_dir: folder of the images, or a list with one folder for each annotation file.
        anno_path: COCO annotation file, or a list of files, whose classes must have the same names.
        data_fields: contents of a sample besides the image: gt_bbox, gt_class, is_crowd.
        sample_num: number of images to use, from the first; -1: all.
        load_crowd: keep boxes marked `iscrowd`.
        allow_empty: keep images without a box.
        empty_ratio: largest share of images without a box, in [0, 1); other values: no limit.
        repeat: how many times an epoch uses each image.
        seed: for the random choice of images without a box that `empty_ratio` keeps.
    """

    def __init__(
        self,
        dataset_dir: str | None = None,
        image_dir: str | list[str] | None = None,
        anno_path: str | list[str] | None = None,
        data_fields: Sequence[str] = ("image",),
        sample_num: int = -1,
        load_crowd: bool = False,
        allow_empty: bool = False,
        empty_ratio: float = 1.0,
        repeat: int = 1,
        seed: int | None = 0,
    ):
        self.dataset_dir = dataset_dir or ""
        self.image_dir = image_dir or ""
        self.anno_path = anno_path
        section = {"dataset_dir": dataset_dir, "image_dir": image_dir, "anno_path": anno_path}
        self.files = data_paths(section, "anno_path")
        self.folders = data_paths(section, "image_dir") or [self.dataset_dir]
        if len(self.folders) == 1:
            self.folders *= len(self.files)
        self.data_fields = list(data_fields)
        self.sample_num = sample_num
        self.load_crowd = load_crowd
        self.allow_empty = allow_empty
        self.empty_ratio = empty_ratio
        self.repeat = repeat
        self.seed = seed
        self.index: Index = None  # type: ignore[assignment]  # until parse_dataset
        self.box_count = 0  # usable boxes on the images in use
        self.rows = np.zeros(0, np.int64)  # image rows of the index, in this data set's order

    def __call__(self) -> "COCODataSet":
        return self  # PaddleDetection calls the configured object to get the data set

    def __len__(self) -> int:
        return len(self.rows) * self.repeat

    def get_anno(self) -> str | list[str] | None:
        """Path of the annotation file, or a list of paths if there are several."""
        return (self.files if len(self.files) > 1 else self.files[0]) if self.files else None

    @property
    def _source(self) -> str:
        return " + ".join(self.files)

    def check_or_download_dataset(self) -> None:
        """Check that the annotation files and image folders exist.

        Raises:
            UserError: something is missing; the message says how to correct it.
        """
        if not self.anno_path:
            raise UserError("COCODataSet: anno_path is not set")
        if len(self.folders) != len(self.files):
            raise UserError(
                f"COCODataSet: image_dir has {len(self.folders)} entries, anno_path has "
                f"{len(self.files)}; give one directory for all files, or one for each"
            )
        for kind, path, there in (
            *(("annotation file", path, os.path.isfile) for path in self.files),
            *(("image directory", path, os.path.isdir) for path in dict.fromkeys(self.folders)),
        ):
            if not there(path):
                raise UserError(f"{path}: {kind} not found; {self._remedy(path)}")

    def _remedy(self, path: str) -> str:
        if "2017" in path:
            return "for COCO run: python datasets/download_coco.py"
        return "set dataset_dir, image_dir and anno_path to the location of your data"

    def parse_dataset(self) -> None:
        """Open the index and choose the images; does nothing the second time.

        Raises:
            UserError: no image is left.
        """
        if self.index is not None:
            return
        index = self._open()
        rows = np.flatnonzero(self._present(index))
        missing = len(index) - len(rows)
        if missing:
            folders = ", ".join(dict.fromkeys(self.folders))
            logger.warning(
                "%s: %d of %d image files do not exist in %s; these images are left out%s",
                self._source,
                missing,
                len(index),
                folders,
                f" ({self._remedy(folders)})" if "2017" in folders else "",
            )
        if index.counts:
            found = ", ".join(f"{count} {kind}" for kind, count in index.counts.items())
            logger.warning("%s: left out: %s", self._source, found)
        if index.has_annotations:
            rows = self._choose(index, rows)
        elif self.sample_num > 0:
            rows = rows[: self.sample_num]
        if not len(index):
            raise UserError(f"{self._source}: images: empty; name an annotation file with images")
        if not len(rows):
            raise UserError(
                f"{self._source}: no usable images: of {len(index)} listed images, {missing} are "
                "missing and the others have no usable box; `fcos dataset verify` tells what is "
                "wrong, and `fcos config new` finds images under other names"
            )
        self.index, self.rows = index, rows
        logger.info("%s: %d of %d images in use", self._source, len(rows), len(index))

    def _open(self) -> Index:
        if len(self.files) == 1:
            self._root = self.folders[0]
            return open_index(self.files[0])
        self._root = ""
        return concatenated([open_index(path) for path in self.files], self.folders)

    def _present(self, index: Index) -> np.ndarray:
        """bool [N], whether the image file exists; lists each directory once, which is faster."""
        names = index.file_names()
        listings: dict[str, set[str]] = {}
        for folder in {os.path.dirname(name) for name in names}:
            try:
                listings[folder] = set(os.listdir(os.path.join(self._root, folder) or "."))
            except (OSError, ValueError):  # ValueError: the name contains a null character
                listings[folder] = set()
        flat = listings.get("", set())
        return np.fromiter(
            (
                os.path.basename(name) in listings[os.path.dirname(name)]
                if "/" in name
                else name in flat
                for name in names
            ),
            bool,
            len(names),
        )

    def _choose(self, index: Index, rows: np.ndarray) -> np.ndarray:
        boxes = np.diff(index.box_start)
        if not self.load_crowd:
            crowd = np.concatenate([[0], np.cumsum(index.crowd, dtype=np.int64)])
            boxes = boxes - np.diff(crowd[index.box_start])
        if not self.allow_empty:
            rows = rows[boxes[rows] > 0]
        if self.sample_num > 0:
            rows = rows[: self.sample_num]
        self.box_count = int(boxes[rows].sum())
        full, empty = rows[boxes[rows] > 0], rows[boxes[rows] == 0]
        if len(empty) and 0 <= self.empty_ratio < 1:
            keep = min(int(len(full) * self.empty_ratio / (1 - self.empty_ratio)), len(empty))
            empty = np.array(random.Random(self.seed).sample(empty.tolist(), keep), np.int64)
        return np.concatenate([full, empty])

    @property
    def class_names(self) -> list[str]:
        return self.index.class_names

    @cached_property
    def catid2clsid(self) -> dict[int, int]:
        """Category id in the file -> class index."""
        return {category: i for i, category in enumerate(self.index.category_id.tolist())}

    @cached_property
    def cname2cid(self) -> dict[str, int]:
        """Class name -> class index."""
        return {name: i for i, name in enumerate(self.class_names)}

    @property
    def roidbs(self) -> "COCODataSet":
        return self  # PaddleDetection's trainer only uses its length

    def image_sizes(self) -> np.ndarray:
        """int32 [len(self), 2]: height and width in the annotation file, pixels; 0 if missing."""
        return np.tile(self.index.size[self.rows], (self.repeat, 1))

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """How often an epoch should use each image, so that rare classes are seen more often.

        max(1, sqrt(threshold / f)) with f the share of the images in use that contain a class; an
        image has the largest factor of its classes, one without boxes has 1. This is the
        repeat-factor sampling of Gupta et al. 2019 (LVIS, arXiv 1908.03195), section 4.

        Args:
            threshold: t of the paper: classes in a smaller share of the images than this are rare.

        Returns:
            float64 [len(self)], at least 1.
        """
        index, count = self.index, np.diff(self.index.box_start)
        owner = np.repeat(np.arange(len(index)), count)
        kept = np.isin(owner, self.rows) & (self.load_crowd | (index.crowd == 0))
        contains = np.unique(np.stack([owner[kept], index.label[kept]]), axis=1)
        images = np.bincount(contains[1], minlength=len(self.class_names))
        of_class = np.sqrt(threshold * len(self.rows) / np.maximum(images, 1))
        factors = np.ones(len(index))
        np.maximum.at(factors, contains[0], of_class[contains[1]])
        return np.tile(factors[self.rows], self.repeat)

    def image_info(self, i: int) -> dict[str, Any]:
        """Return `im_id` (int), `im_file` (path), `h` and `w` (pixels; 0: not in the file)."""
        row = int(self.rows[i % len(self.rows)])
        height, width = self.index.size[row].tolist()
        name = self.index.file_name(row)
        return {
            "im_id": int(self.index.image_id[row]),
            "im_file": os.path.join(self._root, name),
            "h": height,
            "w": width,
        }

    def record(self, i: int) -> dict[str, Any]:
        """Return a new sample in the form that PaddleDetection's transforms expect.

        Returns:
            `im_file`, `im_id` int64 [1], and those of `data_fields`: `gt_bbox` float32 [G, 4] x1,
            y1, x2, y2 in pixels, `gt_class` int32 [G, 1], `is_crowd` int32 [G, 1].
        """
        info = self.image_info(i)
        record = {"im_file": info["im_file"], "im_id": np.array([info["im_id"]], np.int64)}
        if not self.index.has_annotations:
            return record
        row = int(self.rows[i % len(self.rows)])
        use = slice(*self.index.box_start[row : row + 2].tolist())
        if not self.load_crowd:
            use = use.start + np.flatnonzero(self.index.crowd[use] == 0)
        fields = {
            "gt_bbox": lambda: self.index.box[use].copy(),
            "gt_class": lambda: self.index.label[use].reshape(-1, 1).copy(),
            "is_crowd": lambda: self.index.crowd[use].reshape(-1, 1).astype(np.int32),
        }
        record.update({name: fields[name]() for name in self.data_fields if name in fields})
        return record

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.record(i)
