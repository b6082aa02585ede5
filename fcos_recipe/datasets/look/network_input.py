"""What the network gets in training: the reader's batches, prepared for display.

Everything comes from training's own code: images from `Pipeline` with the config's transforms,
order and seeds, boxes from the call of the target operator, and positives from what it returned.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcos_recipe.compat import workspace
from fcos_recipe.config.load import Config
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.data.reader import Pipeline, TrainReader
from fcos_recipe.data.sampler import TrainBatches
from fcos_recipe.data.targets import Gt2FCOSTarget, grid_shapes
from fcos_recipe.data.transforms import named
from fcos_recipe.datasets.fpn_levels import positives, reasons
from fcos_recipe.datasets.locate import Source
from fcos_recipe.errors import UserError
from fcos_recipe.places import display

FIELDS = ["image", "gt_bbox", "gt_class", "is_crowd"]


@dataclass
class Seen:
    """One image of a batch with G boxes, P positive locations and L levels."""

    file: str  #: path of the image
    image_id: int
    pixels: np.ndarray  #: uint8 [H, W, 3], RGB; padding has the colour that normalises to 0
    inside: tuple[float, float]  #: height and width of the image without padding, pixels
    box: np.ndarray  #: float32 [G, 4], x1, y1, x2, y2 in pixels of the batch
    label: np.ndarray  #: int64 [G], class
    point: np.ndarray  #: float64 [P, 2], x, y of the positive locations
    level: np.ndarray  #: int64 [P], level of each
    positives: np.ndarray  #: int64 [G, L], number of positive locations
    why: np.ndarray  #: int64 [G], -1 or an index into `fpn_levels.REASONS`


class _Boxes:
    """Wraps the target operator and keeps its last arguments."""

    def __init__(self, target: Gt2FCOSTarget):
        self.target = target
        self.boxes: list[np.ndarray] = []
        self.classes: list[np.ndarray] = []

    def __call__(
        self, boxes: list[np.ndarray], classes: list[np.ndarray], height: int, width: int
    ) -> dict[str, np.ndarray]:
        self.boxes, self.classes = boxes, classes
        return self.target(boxes, classes, height, width)


class NetworkInput:
    """The training batches of a source under a config.

    Args:
        config: its TrainReader is used for any split.
        source: annotations and images; `images` must be set.

    Raises:
        UserError: the config has no Gt2FCOSTarget, or there is no image to train on.
    """

    def __init__(self, config: Config, source: Source):
        section = config.data["TrainReader"]
        if config.plugins:
            workspace(config.stock_data(), config.plugins)
        self.reader = TrainReader(
            **section, num_classes=config.data["num_classes"], seed=config.data["seed"]
        )
        if self.reader.target is None:
            raise UserError(
                f"{display(config.path)}: TrainReader.batch_transforms: no Gt2FCOSTarget, so there "
                "are no positives to show"
            )
        options = {
            "data_fields": FIELDS, **config.data["TrainDataset"], **source.options,
            "dataset_dir": "", "image_dir": source.images, "anno_path": source.path,
        }  # fmt: skip
        known = inspect.signature(COCODataSet).parameters
        self.dataset = COCODataSet(**{k: v for k, v in options.items() if k in known})
        self.dataset.parse_dataset()
        self.boxes = _Boxes(self.reader.target)
        self.pipeline = Pipeline(
            self.dataset, self.reader.chain, self.boxes, self.reader.seed, False, 0
        )
        steps = dict(named(section["sample_transforms"]))
        self.pixel_of = Pixels(steps.get("NormalizeImage"))

    def order(self, epoch: int) -> list[list[int]]:
        """Batches of an epoch on one card, as positions in the data set."""
        reader = self.reader
        return TrainBatches(
            len(self.dataset), reader.batch_size, shuffle=reader.shuffle,
            drop_last=reader.drop_last, seed=reader.seed,
            sizes=self.dataset.image_sizes() if reader.group_by_aspect else None,
            group_by_aspect=reader.group_by_aspect, repeats=reader.repeats(self.dataset),
        ).batches(epoch)  # fmt: skip

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Positions in the data set of index rows, int64 [n]; -1 for images not trained on."""
        place = np.full(len(self.dataset.index), -1)
        place[self.dataset.rows] = np.arange(len(self.dataset.rows))
        return place[rows]

    def batch(self, epoch: int, batch: list[int]) -> tuple[dict[str, Any], list[Seen]]:
        """One batch as training gets it (`bad` lists unreadable images), and its images."""
        items = [self.pipeline[epoch, i] for i in batch]
        arrays = self.pipeline.collate(items)
        if "image" not in arrays:
            return arrays, []
        files = [self.dataset.image_info(i)["im_file"]
                 for i, (sample, _) in zip(batch, items) if sample is not None]  # fmt: skip
        return arrays, list(self._images(arrays, files))

    def _images(self, arrays: dict[str, Any], files: list[str]) -> Iterator[Seen]:
        size = self.reader.chain.size(arrays["image"])
        rules = self.reader.target.rules
        owner, level, point = located(arrays, size, rules.strides, rules.num_shift)
        for n, file in enumerate(files):
            box = self.boxes.boxes[n]
            shape = np.tile(size, (len(box), 1))
            counts = positives(rules, box, shape, np.zeros(len(box), int))
            mine = owner == n
            yield Seen(
                file=file,
                image_id=int(arrays["im_id"][n, 0]),
                pixels=self.pixel_of(arrays["image"][n], arrays["im_shape"][n]),
                inside=tuple(arrays["im_shape"][n].tolist()),
                box=box,
                label=self.boxes.classes[n].reshape(-1),
                point=point[mine],
                level=level[mine],
                positives=counts,
                why=reasons(rules, box, shape, counts),
            )


def located(
    arrays: dict[str, np.ndarray], size: tuple[int, int], strides: list[int], num_shift: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Locate the positives of a batch from `targets.collate`.

    Args:
        arrays: a collated batch of N images.
        size: height and width of its images, pixels.
        strides: of the levels, pixels.
        num_shift: offset of a location inside its cell, in strides.

    Returns:
        image int64 [P], level int64 [P], and x, y float64 [P, 2] in pixels.
    """
    images = len(arrays["image"])
    grid = np.array(grid_shapes(*size, strides))
    cells = grid.prod(axis=1)
    start = np.concatenate([[0], np.cumsum(cells * images)])
    index = arrays["pos_index"][: arrays["num_pos"][0]]
    level = np.searchsorted(start, index, side="right") - 1
    image, cell = np.divmod(index - start[level], cells[level])
    row, column = np.divmod(cell, grid[level, 1])
    stride = np.asarray(strides)[level]
    return image, level, (np.stack([column, row], axis=1) + num_shift) * stride[:, None]


class Pixels:
    """Converts network input back to RGB.

    Args:
        normalize: arguments of NormalizeImage; None if the config does not normalise.
    """

    def __init__(self, normalize: dict[str, Any] | None):
        self.scale, self.mean, self.std = 1.0, np.zeros(3), np.ones(3)
        if normalize is None:
            return
        if normalize.get("is_scale", True):
            self.scale = 255.0
        if normalize.get("norm_type", "mean_std") == "mean_std":
            self.mean = np.asarray(normalize.get("mean", [0.485, 0.456, 0.406]), np.float64)
            self.std = np.asarray(normalize.get("std", [0.229, 0.224, 0.225]), np.float64)

    def __call__(self, image: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Return uint8 [H, W, 3], RGB.

        Args:
            image: uint8 [H, W, 3], which the model normalises and sets to zero outside `inside`,
                or float [3, H, W], already normalised.
            inside: height and width without padding, pixels.
        """
        if image.dtype == np.uint8:
            padding = np.ones(image.shape[:2], bool)
            rows, columns = (np.arange(n) < limit for n, limit in zip(image.shape, inside))
            padding[np.ix_(rows, columns)] = False
            return np.where(padding[..., None], self._pixels(np.zeros(3)), image)
        return self._pixels(image.transpose(1, 2, 0))

    def _pixels(self, values: np.ndarray) -> np.ndarray:
        return ((values * self.std + self.mean) * self.scale).round().clip(0, 255).astype(np.uint8)
