"""Evaluation on all ranks: whole batches are dealt out, detections are gathered, figures agree."""

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import paddle
import paddle.distributed as dist

from fcos_recipe.compat import create
from fcos_recipe.config import eval_sets
from fcos_recipe.console import log
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.collectives import gather
from fcos_recipe.evaluation.metric import CocoMetric
from fcos_recipe.evaluation.tta import Views, resized


class DealtBatches:
    """Batches of consecutive images, of which each rank gets every n-th.

    The batches are formed before they are dealt, so that what shares a batch, and with it the
    padding that GroupNorm sees, does not depend on the number of ranks.

    Args:
        length: number of images.
        batch_size: images per batch; the last batch may be smaller.
        rank, ranks: which share to yield. None twice, none lost, and none added to even them out.
    """

    def __init__(self, length: int, batch_size: int, rank: int = 0, ranks: int = 1):
        batches = [
            list(range(start, min(start + batch_size, length)))
            for start in range(0, length, batch_size)
        ]
        self.batch_size, self.batches = batch_size, batches[rank::ranks]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


#: PaddleDetection's, which the published figures of FCOS were made with
REFERENCE_BATCHES = {"batch_size": 1, "batch_transforms": [{"PadBatch": {"pad_to_stride": 128}}]}


class EvaluationSet(NamedTuple):
    """What a model is evaluated on.

    Args:
        loader: yields this rank's batches.
        metric: collects detections and compares them with the ground truth.
        image_ids: ids of the images that count; None: all of the annotation file.
    """

    loader: Any
    metric: CocoMetric
    image_ids: list | None


def build_evaluation_set(
    cfg,
    rank: int,
    ranks: int,
    sizes: Sequence[int] | None = None,
    reader: dict | None = None,
    section: dict | None = None,
    **judging,
) -> EvaluationSet:
    """The config's EvalDataset or another data set, and this rank's share of it.

    Args:
        cfg: ppdet's global config.
        rank, ranks: this process and how many there are.
        sizes: short sides of test-time augmentation, () for the config's; None: batches are not
            `tta.Views`.
        reader: EvalReader's arguments that replace the config's.
        section: class and arguments of the other data set, in the form of EvalDataset.
        judging: `score_threshold` and `max_dets` of `CocoMetric`.
    """
    made = create("EvalDataset")
    dataset = made() if section is None else type(made)(**section)()
    dataset.check_or_download_dataset()
    dataset.parse_dataset()
    kind = type(create("EvalReader"))  # create's own arguments do not reach the class
    reader = {**cfg["EvalReader"], "num_classes": cfg["num_classes"], **(reader or {})}
    batches = DealtBatches(len(dataset), reader.get("batch_size", 1), rank, ranks)

    def load(**view):
        made = kind(**{**reader, **view})
        return made(dataset, cfg["worker_num"], batch_sampler=batches)

    if sizes is None:
        loader = load()
    else:
        transforms = reader.get("sample_transforms", ())
        views = [load(sample_transforms=resized(transforms, size)) for size in sizes]
        loader = Views(views or [load()])
    if rank == 0 and section is None and (other := _other_batches(reader)):
        log.info("%s", other)
    by_class = {class_id: category for category, class_id in dataset.catid2clsid.items()}
    metric = CocoMetric(dataset.get_anno(), [by_class[k] for k in sorted(by_class)], **judging)
    metric.dataset = dataset
    # only an explicit sample_num narrows the judgement: a missing image counts as not found
    chosen = range(len(dataset)) if dataset.sample_num > 0 else None
    ids = [dataset.image_info(i)["im_id"] for i in chosen] if chosen else None
    return EvaluationSet(loader, metric, ids)


def build_evaluation_sets(
    cfg, rank: int, ranks: int, only: str | None = None, **how
) -> dict[str, EvaluationSet]:
    """EvalDataset and the named sets of `eval_sets`, by name.

    Args:
        cfg, rank, ranks, how: see `build_evaluation_set`.
        only: one of the names; the other sets are not built.

    Raises:
        UserError: the classes of two sets differ, or there is no set of this name.
    """
    found: dict[str, EvaluationSet] = {}
    for name, key in eval_sets.sections(cfg, only).items():
        other = None if name == eval_sets.MAIN else eval_sets.section(cfg, key)
        one = found[name] = build_evaluation_set(cfg, rank, ranks, section=other, **how)
        first = next(iter(found.values())).metric
        same_classes(one.metric, list(first.categories.values()), first.source)
    return found


def same_classes(metric: CocoMetric, names: list[str], source) -> None:
    """Check that annotations have the same categories in the same order as others.

    Args:
        metric: of the annotations.
        names: of the categories that are expected.
        source: the annotations that have these, for the message.

    Raises:
        UserError: the first difference.
    """
    found = list(metric.categories.values())
    if found != names:
        pair = next(
            ((a, b) for a, b in zip(names, found) if a != b),
            (f"{len(names)} classes", f"{len(found)}"),
        )
        raise UserError(
            f"{metric.source}: categories: not the same, in the same order, as in {source} "
            f"({pair[0]} there, {pair[1]} here); make both lists equal"
        )


def evaluate_sets(model, sets: dict[str, EvaluationSet], autocast, beat=lambda: None) -> dict:
    """COCO figures of a model on several data sets. All ranks must call it; all get the result.

    Args:
        model, autocast, beat: see `evaluate`.
        sets: from `build_evaluation_sets`.

    Returns:
        the result of the first set as of `evaluate`; if there are others, with their results by
        name as `sets`.
    """
    first, *others = [evaluate(model, data, autocast, beat) for data in sets.values()]
    return {**first, "sets": dict(zip(list(sets)[1:], others))} if others else first


def evaluate(model, data: EvaluationSet, autocast, beat=lambda: None) -> dict:
    """COCO figures of a model. All ranks must call it; all get the result.

    Args:
        model: in any mode; left in evaluation mode.
        data: from `build_evaluation_set`.
        autocast: makes the context of each forward pass.
        beat: called after each batch, for a watchdog.

    Returns:
        `CocoMetric.result()` with `images_per_second` of all ranks together (loading, network and
        NMS; without the matching), `seconds` of the whole evaluation and `images`.
    """
    start = time.perf_counter()
    loader, metric, image_ids = data
    metric.reset()
    model.eval()
    if dist.get_world_size() > 1 and hasattr(model, "state_dict"):
        # each rank has BatchNorm statistics of its own images; judged are rank 0's, which are saved
        for _, value in sorted(model.state_dict().items()):
            if value.stop_gradient:
                dist.broadcast(value, src=0)
    images = 0
    with paddle.no_grad():
        for batch in loader:
            with autocast():
                found = model(batch)
            counts = found["bbox_num"].numpy()
            metric.update(batch["im_id"].numpy().reshape(-1), found["bbox"].numpy(), counts)
            images += len(counts)
            beat()
    inferred = time.perf_counter() - start
    if not any(gather(len(metric.state()["score"]))):  # every rank sees the same and goes along
        _count_low_scores(model, loader, metric, autocast, beat)
    shares = gather((metric.state(), images, inferred))
    result = None
    if dist.get_rank() == 0:
        metric.merge(state for state, _, _ in shares)
        result = metric.result(image_ids)
        result["images"] = sum(count for _, count, _ in shares)
        slowest = max(seconds for _, _, seconds in shares)
        result["images_per_second"] = result["images"] / slowest
        result["seconds"] = time.perf_counter() - start
    return gather(result)[0]


def _other_batches(reader: dict) -> str:
    """In what the batches differ from `REFERENCE_BATCHES`, "" if they do not."""
    size = reader.get("batch_size", 1)
    pads = [t["PadBatch"] or {} for t in reader.get("batch_transforms") or () if "PadBatch" in t]
    stride = pads[0].get("pad_to_stride", 0) if pads else 0
    if (size, stride) == (1, 128):
        return ""
    return (
        f"EvalReader: batches of {size} padded to multiples of {stride or 1}, PaddleDetection's "
        "figures are of 1 and 128; eval --padding-effect measures the difference"
    )


LOOKED_AT = 20  #: batches per rank of which low scores are counted


def _count_low_scores(model, loader, metric: CocoMetric, autocast, beat) -> None:
    """Tell the metric what the best boxes of some images score: none passed the threshold."""
    nms = getattr(getattr(model, "fcos_head", None), "nms", None)
    if nms is None:  # an exported model has its threshold inside
        return
    threshold, nms.score_threshold = nms.score_threshold, 0.0
    try:
        with paddle.no_grad():
            for batch in itertools.islice(loader, LOOKED_AT):
                with autocast():
                    found = model(batch)
                rows = int(found["bbox_num"].sum())
                metric.count_low(found["bbox"].numpy().reshape(-1, 6)[:rows, 1])
                beat()
    finally:
        nms.score_threshold = threshold
