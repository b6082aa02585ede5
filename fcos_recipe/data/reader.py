"""Read images and build batches: TrainReader, EvalReader and TestReader with their YAML keys.

`transforms.UsualChain` or `transforms.StockChain` transforms the images; in both cases
`targets.Gt2FCOSTarget` computes the targets.
"""

import copy
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from fcos_recipe.compat import stop_loading
from fcos_recipe.data.images import BadImage, Sample
from fcos_recipe.data.sampler import TrainBatches
from fcos_recipe.data.targets import Gt2FCOSTarget
from fcos_recipe.data.transforms import StockChain, UsualChain, named, others_needed, transformed
from fcos_recipe.errors import RunFailure, UserError, one_line
from fcos_recipe.plugins import fault

logger = logging.getLogger("fcos.data")
MOST_WORKERS = 8  # per card; one worker decodes about 200 COCO images per second
IMAGE_BYTES = 1344 * 1344 * 3  # of a padded COCO image, to estimate the shared memory needed

# An array of a batch without images: Paddle's workers can send neither no array nor an empty one.
NOTHING = {"im_id": np.zeros((1, 1), np.int64)}


class Pipeline:
    """The data set that worker processes read; an item is addressed by (epoch, image).

    Image i + k * len(self) is image i, repeated for the k-th time in this epoch.

    Args:
        dataset: has `record(i)`, or `roidbs` as in PaddleDetection.
        chain: `UsualChain` or `StockChain`.
        target: computes the targets of a batch; None: no targets.
        seed: of all random transforms.
        replace: use the next readable image instead of an unreadable one; False: leave it out.
        most_bad: number of unreadable images in a row after which no other image is tried.
        mixing: transforms that mix samples, see `transforms.others_needed`.
    """

    def __init__(
        self, dataset, chain, target, seed: int, replace: bool, most_bad: int,
        mixing: dict[str, int] | None = None,
    ):  # fmt: skip
        self.dataset, self.chain, self.target = dataset, chain, target
        self.mixing = mixing or {}
        self.seed, self.replace, self.most_bad = seed, replace, most_bad

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> tuple[Sample | None, list[str]]:
        """Return the sample (None if no image was readable) and the errors of unreadable images."""
        try:
            return self._sample(item)
        except Exception as error:
            return None, [_fault(error)]

    def _sample(self, item: int | tuple[int, int]) -> tuple[Sample | None, list[str]]:
        epoch, first = item if isinstance(item, tuple) else (0, item)
        bad: list[str] = []
        others = others_needed(self.mixing, epoch)
        for offset in range(min(self.most_bad + 1, len(self)) if self.replace else 1):
            again, i = divmod(first, len(self))
            i = (i + offset) % len(self)
            rng = np.random.default_rng([self.seed, epoch, i, *([again] if again else [])])
            try:
                if not others:
                    return transformed(self.chain, self._record(i, epoch), rng), bad
                drawn = [self._record(int(k), epoch) for k in rng.integers(len(self), size=others)]
                return transformed(self.chain, self._record(i, epoch), rng, drawn), bad
            except BadImage as error:
                bad.append(str(error))
        return None, bad

    def _record(self, i: int, epoch: int) -> Sample:
        if hasattr(self.dataset, "record"):
            record = self.dataset.record(i)
        else:
            record = copy.deepcopy(self.dataset.roidbs[i % len(self.dataset.roidbs)])
        # GridMask masks more often with it. PaddleDetection counts what this worker has read.
        record["curr_iter"] = epoch * len(self)
        return record

    def collate(self, items: list[tuple[Sample | None, list[str]]]) -> dict[str, Any]:
        text = next((m for _, messages in items for m in messages if isinstance(m, _Fault)), None)
        if text is None:
            try:
                return self._collate(items)
            except Exception as error:
                text = _fault(error)
        return {"fault": str(text), "bad": [], **NOTHING}

    def _collate(self, items: list[tuple[Sample | None, list[str]]]) -> dict[str, Any]:
        bad = [message for _, messages in items for message in messages]
        samples = [sample for sample, _ in items if sample is not None]
        if not samples:
            return {"bad": bad, **NOTHING}
        batch = self.chain.batch(samples)
        for key, dtype in (("im_shape", np.float32), ("scale_factor", np.float32)):
            batch[key] = np.stack([s[key] for s in samples]).astype(dtype)
        batch["im_id"] = np.stack([np.reshape(s["im_id"], 1) for s in samples]).astype(np.int64)
        if self.target is not None:
            boxes, classes = ([s[key] for s in samples] for key in ("gt_bbox", "gt_class"))
            batch.update(self.target(boxes, classes, *self.chain.size(batch["image"])))
        return {**batch, "bad": bad}


class _Fault(str):
    """Why a batch cannot be made."""


def _fault(error: Exception) -> _Fault:
    """The error as text, which `Reader._checked` raises where the batches are used.

    A thread of DataLoader that raises leaves the run waiting for ever, and a worker process adds
    its traceback. Only a process without memory ends by itself, see `system.out_of_memory`.
    """
    from paddle.io import get_worker_info

    if isinstance(error, (UserError, RunFailure)):
        return _Fault(error)
    if isinstance(error, MemoryError) and get_worker_info():
        raise error
    what = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    if isinstance(error, MemoryError):
        return _Fault(what)
    return _Fault(
        fault(error)
        or f"no batch can be made of these images ({one_line(what)}); look at "
        "sample_transforms, of which Decode is the first, and at batch_transforms"
    )


def raise_fault(batch: dict) -> None:
    """Raise the error of a batch that could not be made.

    Raises:
        MemoryError, UserError: as told by `_fault`.
    """
    if text := batch.get("fault"):
        memory = text.startswith("MemoryError: ")
        raise MemoryError(text.removeprefix("MemoryError: ")) if memory else UserError(text)


def worker_count(wanted: int | str, cards: int) -> int:
    """Number of reader processes per card.

    Args:
        wanted: a number, or "auto": the CPU cores per card minus one for training, at most
            MOST_WORKERS.
        cards: ranks on this machine.
    """
    if wanted != "auto":
        return int(wanted)
    return max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // cards - 1))


def shared_memory_fits(batch_size: int, workers: int, cards: int, path: str = "/dev/shm") -> bool:
    """Whether the prefetched batches of all cards fit into shared memory; warns if not."""
    if sys.platform != "linux" or not workers:
        return False
    needed = 2 * workers * batch_size * IMAGE_BYTES * cards
    try:
        found = os.statvfs(path)
        free = found.f_bavail * found.f_frsize
    except OSError:
        free = 0
    if free >= needed:
        return True
    logger.warning(
        "%s has %d MB free, but %d MB are needed: batches are sent through pipes, which is slower "
        "(docker: --shm-size=%dm)",
        path,
        free >> 20,
        needed >> 20,
        2 * needed >> 20,
    )
    return False


class Reader:
    """Batches of a data set. Takes PaddleDetection's arguments, then this recipe's own.

    Args:
        sample_transforms: transforms of each image, as {name: arguments}.
        batch_transforms: transforms of each batch, as {name: arguments}.
        batch_size: images per batch of one card.
        shuffle: new order in every epoch; TrainReader's default is True.
        drop_last: leave out an incomplete batch; TrainReader's default is True.
        num_classes: must equal the number of classes in the annotations.
        collate_batch: accepted for compatibility with PaddleDetection; no effect.
        use_shared_memory: send batches from workers through /dev/shm if they fit.
        inputs_def: accepted for compatibility with PaddleDetection; no effect.
        fuse_normalize: accepted for compatibility with PaddleDetection; no effect.
        group_by_aspect: put images of similar aspect ratio into one batch (training only).
        repeat_threshold: use images of rare classes more often, by Gupta et al. 2019 (LVIS, arXiv
            1908.03195): max(1, sqrt(repeat_threshold / f)) times per epoch, for a class in a share
            f of the images; 0: off. An epoch becomes longer (training only).
        seed: of order and augmentation.
        max_bad_images: unreadable images that are skipped before the run stops.
        mixup_epoch: epochs, from the first, in which the transform Mixup is used; 0: all; -1: all
            if the transform is listed, without which it must not be set. Training only.
        cutmix_epoch: the same for Cutmix.
        mosaic_epoch: the same for Mosaic.
    """

    __shared__ = ["num_classes", "seed", "max_bad_images"]
    training = False

    def __init__(
        self,
        sample_transforms: Sequence[dict] = (),
        batch_transforms: Sequence[dict] = (),
        batch_size: int = 1,
        shuffle: bool | None = None,
        drop_last: bool | None = None,
        num_classes: int = 80,
        collate_batch: bool = True,
        use_shared_memory: bool = False,
        inputs_def: dict | None = None,
        fuse_normalize: bool = False,
        group_by_aspect: bool = False,
        repeat_threshold: float = 0.0,
        seed: int = 0,
        max_bad_images: int = 10,
        mixup_epoch: int = -1,
        cutmix_epoch: int = -1,
        mosaic_epoch: int = -1,
    ):
        name = type(self).__name__
        self.batch_size = batch_size
        self.shuffle = self.training if shuffle is None else shuffle
        self.drop_last = self.training if drop_last is None else drop_last
        self.num_classes = num_classes
        self.use_shared_memory = use_shared_memory
        self.group_by_aspect, self.repeat_threshold = group_by_aspect, repeat_threshold
        self.seed, self.max_bad_images = seed or 0, max_bad_images
        usual = UsualChain.of(sample_transforms, batch_transforms)
        self.chain = usual or StockChain(sample_transforms, batch_transforms, num_classes)
        if usual is None:
            logger.info("%s: PaddleDetection's transforms are used (slower)", name)
        listed = dict(named(sample_transforms))
        epochs = {"Mixup": mixup_epoch, "Cutmix": cutmix_epoch, "Mosaic": mosaic_epoch}
        self.mixing = {
            name: max(last, 0) for name, last in epochs.items() if self.training and name in listed
        }
        rules = dict(named(batch_transforms)).get("Gt2FCOSTarget")
        self.target: Any = None if rules is None else Gt2FCOSTarget(**rules)
        self.bad_images: dict[str, int] = {}

    def __call__(self, dataset, worker_num: int | str = 0, batch_sampler=None) -> "Reader":
        """Use a data set.

        Args:
            dataset: a COCODataSet, or a data set of PaddleDetection such as ImageFolder.
            worker_num: number of worker processes, or "auto".
            batch_sampler: yields lists of image indices; default: all images, divided over ranks.

        Raises:
            UserError: data is missing, or `num_classes` differs from the annotations.
        """
        from paddle.io import DataLoader

        dataset.check_or_download_dataset()
        dataset.parse_dataset()
        self._check_classes(dataset)
        index = getattr(dataset, "index", None)
        if self.target is not None and index is not None and not index.has_annotations:
            raise UserError(f"{dataset.get_anno()}: no annotations; training needs boxes")
        self.dataset, self.epoch = dataset, 0
        ranks = int(os.environ.get("PADDLE_TRAINERS_NUM", 1))
        cards = int(os.environ.get("PADDLE_LOCAL_SIZE", ranks))
        self.sampler: Any = None  # TrainBatches
        if batch_sampler is None:
            self.sampler = TrainBatches(
                len(dataset),
                self.batch_size,
                shuffle=self.shuffle,
                drop_last=self.drop_last,
                rank=int(os.environ.get("PADDLE_TRAINER_ID", 0)),
                ranks=ranks,
                seed=self.seed,
                sizes=dataset.image_sizes() if self.group_by_aspect else None,
                group_by_aspect=self.group_by_aspect,
                repeats=self.repeats(dataset),
            )
        self.batch_sampler = batch_sampler
        workers = worker_count(worker_num, cards)
        shared = self.use_shared_memory and shared_memory_fits(self.batch_size, workers, cards)
        pipeline = Pipeline(
            dataset, self.chain, self.target, self.seed, self.training, self.max_bad_images,
            self.mixing,
        )  # fmt: skip

        def load(batches):
            return DataLoader(
                pipeline,
                batch_sampler=batches,
                collate_fn=pipeline.collate,
                num_workers=workers,
                use_shared_memory=shared,
                worker_init_fn=_one_thread,
                return_list=True,
            )

        self._load = load
        self._stream: Any = None
        self._at: tuple[int, int] | None = None
        self._first_step = 0
        return self

    def repeats(self, dataset) -> np.ndarray | None:
        """How often an epoch uses each image of a COCODataSet, float64 [images]; None: once."""
        if not self.repeat_threshold:
            return None
        factors = dataset.repeat_factors(self.repeat_threshold)
        logger.info(
            "repeat_threshold %g: %d of %d images are used more than once per epoch, up to %.3g "
            "times; an epoch has %d images",
            self.repeat_threshold, int((factors > 1).sum()), len(factors), factors.max(),
            math.ceil(factors.sum()),
        )  # fmt: skip
        return factors

    def _check_classes(self, dataset) -> None:
        classes = getattr(dataset, "catid2clsid", None)
        if classes is not None and not classes:
            raise UserError(f"{dataset.get_anno()}: categories: missing or empty; add the classes "
                            "of the data set, each with id and name")  # fmt: skip
        if classes is not None and len(classes) != self.num_classes:
            raise UserError(
                f"{dataset.get_anno()}: categories: the file has {len(classes)} classes, but the "
                f"config has num_classes: {self.num_classes}; set num_classes: {len(classes)}"
            )

    def __len__(self) -> int:
        """Number of batches of this rank in the epoch."""
        return len(self.batch_sampler) if self.sampler is None else self.sampler.steps(self.epoch)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration be that of `epoch`, starting at batch `step`."""
        self.epoch, self._first_step = epoch, step

    def __iter__(self) -> Iterator[dict]:
        """Yield the batches of one epoch. In training, workers already read the next epoch."""
        if self.sampler is None or not self.training:
            yield from self._pass()
            return
        if self._stream is None or self._at != (self.epoch, self._first_step):
            self._stream = iter(self._load(_Batches(self.sampler, self.epoch, self._first_step)))
        self._at = None  # if this iteration ends early, the next one starts a new stream
        for _ in range(self._first_step, len(self)):
            yield self._checked(next(self._stream))
        self.set_epoch(self.epoch + 1)
        self._at = (self.epoch, 0)

    def _pass(self) -> Iterator[dict]:
        batches = self.batch_sampler
        if batches is None:
            batches = self.sampler.batches(self.epoch)
        stream = iter(self._load(batches))
        try:
            for batch in stream:
                batch = self._checked(batch)
                if "image" in batch:
                    yield batch
        finally:
            stop_loading(stream)

    def close(self) -> None:
        """End the threads and worker processes that prefetch batches."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stop_loading(stream)

    def _checked(self, batch: dict) -> dict:
        """Remove the errors of unreadable images from a batch and log each once.

        Raises:
            UserError: there are more than `max_bad_images`, no image of the batch is readable, or
                no batch could be made.
        """
        raise_fault(batch)
        for message in batch.pop("bad"):
            self.bad_images[message] = self.bad_images.get(message, 0) + 1
            if self.bad_images[message] == 1:
                logger.warning("%s; skipped (%d)", message, len(self.bad_images))
        none_left = self.training and "image" not in batch
        if len(self.bad_images) > self.max_bad_images or none_left:
            raise UserError(
                f"{len(self.bad_images)} unreadable images (max_bad_images: "
                f"{self.max_bad_images}): " + "; ".join(self.bad_images)
            )
        return batch


class TrainReader(Reader):
    """Training batches: shuffled; an unreadable image is replaced by the next one."""

    training = True


class EvalReader(Reader):
    """Evaluation batches: in order; unreadable images are left out."""


class TestReader(Reader):
    """Inference batches: in order; unreadable images are left out."""


class _Batches:
    """`TrainBatches.stream` as the iterable that DataLoader needs."""

    def __init__(self, sampler: TrainBatches, epoch: int, step: int):
        self.start = (sampler, epoch, step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        sampler, epoch, step = self.start
        return sampler.stream(epoch, step)


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(0)
