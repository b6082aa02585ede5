"""Throughput: what it is, and a run's.

It means the same wherever this project prints or records it:

- `images_per_second_per_card` of a stretch between two log lines: the images that one rank (one
  card, one process) trained on / the wall time of the stretch. That time has the wait for data,
  forward, backward, the exchange of gradients and the optimizer in it; evaluations, the writing of
  log lines and the part of saving that training waits for are not. The wait for data is also
  recorded on its own: `data_time`, seconds per batch.
- `images_per_second` of a stretch: that times the ranks, as all take the same step.
- A run's throughput (`throughput`): the median over its stretches without the first one, in which
  workers start and caches fill.

`images_per_second` of an evaluation is of all ranks together, from files to detections, without
COCO's matching (`evaluation.loop`). `fcos benchmark train` takes the median over single steps, wait
for data included, without the first ones.

PaddleDetection 2.6's `ips` is the images per step of one card / rank 0's time per step with the
wait for data, smoothed: the same quantity per card. The published "FPS 8.24" of eight BI-V100 is
most likely that: 8.24 images/s per card, 66 in all, 6 hours for 12 epochs. If it were of all eight
cards, 12 epochs would take 47 hours. No log was published that would tell.
"""

import statistics


def throughput(records: list[dict]) -> dict[str, float]:
    """A run's throughput, as defined above.

    Args:
        records: of its metrics.jsonl.

    Returns:
        `images_per_second_per_card` and `images_per_second`; {} where nothing was logged.
    """
    stretches = [record for record in records if record["kind"] == "train"]
    stretches = stretches[1:] or stretches
    if not stretches:
        return {}
    names = ("images_per_second_per_card", "images_per_second")
    return {name: statistics.median(record[name] for record in stretches) for name in names}
