"""Definition of throughput, and the throughput of a run.

This project prints and records throughput with one meaning:

- `images_per_second_per_card` between two log lines: images trained by one rank (one card) / wall
  time. The time includes data waits, forward and backward pass, gradient all-reduce and optimizer,
  but not evaluation, logging and saving. The data wait is also recorded separately as `data_time`,
  seconds per batch.
- `images_per_second`: the same times the world size.
- A run's throughput (`throughput`): the median over its log lines without the first one, during
  which workers start and caches fill.

`images_per_second` of an evaluation is for all ranks together, from files to detections, without
COCO's matching (`evaluation.loop`). `fcos benchmark train` uses the median over single steps,
including data waits, without the first steps.

PaddleDetection 2.6's `ips` is the same quantity per card: images per step of one card / rank 0's
smoothed time per step including data waits. The published "FPS 8.24" of eight BI-V100 is most
likely this: 8.24 images/s per card, 66 in total, 6 hours for 12 epochs. If it were the total, 12
epochs would take 47 hours. No published log confirms this.
"""

import statistics
from collections.abc import Sequence


def steady(values: Sequence[float]) -> float:
    """The median without the first value, during which workers start and caches fill.

    Args:
        values: of a run's log lines, at least one.
    """
    return statistics.median(values[1:] or values)


def throughput(records: list[dict]) -> dict[str, float]:
    """A run's throughput, as defined above.

    Args:
        records: of its metrics.jsonl.

    Returns:
        `images_per_second_per_card` and `images_per_second`; {} if nothing was logged.
    """
    stretches = [record for record in records if record["kind"] == "train"]
    if not stretches:
        return {}
    names = ("images_per_second_per_card", "images_per_second")
    return {name: steady([record[name] for record in stretches]) for name in names}
