"""What a run costs on this machine, from steps that are really trained.

`fcos train` runs twice in a temporary folder on a few images of the run's own data: three steps
with the config's batch, of which the last two are timed, and one step with another batch. The peaks
of memory of both give the memory of one more image.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fcos_recipe.config.load import Config
from fcos_recipe.files.reading import read_records
from fcos_recipe.system import compute, device
from fcos_recipe.system.machine_check import GREEN, RED, YELLOW, Finding

ESTIMATE = "an estimate from 2 batch sizes"
UNVERIFIED = "; not verified on hardware"


@dataclass(frozen=True)
class Measured:
    """Two batch sizes of one card, their peaks of memory in bytes, and seconds per image."""

    batches: tuple[int, int]
    peaks: tuple[int, int]
    seconds_per_image: float

    def images(self, memory: int) -> int:
        """The largest batch whose peak stays within this many bytes."""
        (one, other), (low, high) = self.batches, self.peaks
        of_one = max((high - low) / (other - one), 1 << 20)  # peaks are known to one MiB
        return max(0, int(one + (memory - low) / of_one))


def _train(config: Config, overrides: list[str], batch: int, steps: int) -> list[dict]:
    """Train a few steps in a process of their own; the records of their log lines.

    Raises:
        ValueError: the training failed; the text is its last message.
    """
    images = steps * batch * config.data["accumulate"]
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *overrides, f"TrainReader.batch_size={batch}", f"TrainDataset.sample_num={images}",
            "epoch=1", "log_iter=1", "loggers=[]",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "fcos_recipe", "train", "-c", str(config.path), "--output",
             f"{folder}/run", "-o", *settings],
            capture_output=True, text=True, env=device.child_environment(),
        )  # fmt: skip
        if done.returncode:
            raise ValueError((done.stderr.strip().splitlines() or ["no message"])[-1])
        records = read_records(Path(folder) / "run" / "metrics.jsonl")
    return [record for record in records if record["kind"] == "train"]


def measure(config: Config, overrides: list[str]) -> Measured:
    """Train a few real steps with two batch sizes.

    Raises:
        ValueError: a training failed, or no step of it was applied.
    """
    batch = config.data["TrainReader"]["batch_size"]
    other = batch // 2 or 2
    rows, more = _train(config, overrides, batch, 3), _train(config, overrides, other, 1)
    if not rows or not more:
        raise ValueError("no step was applied")
    speeds = [row["images_per_second_per_card"] for row in rows[1:] or rows]
    peaks = [part[-1]["memory_mib"] << 20 for part in (rows, more)]
    return Measured((batch, other), (peaks[0], peaks[1]), sum(1 / v for v in speeds) / len(speeds))


def findings(
    config: Config, overrides: list[str], chosen: compute.Compute, cards: int, images: int
) -> Iterator[Finding]:
    """Images per card that fit, and time per epoch.

    Args:
        config, overrides: of the planned run.
        chosen: the device that the run would use.
        cards: number of cards of the planned run.
        images: per epoch.
    """
    try:
        found = measure(config, overrides)
    except ValueError as error:
        text = str(error).removeprefix("error: ")
        yield Finding(RED, "measured", text, "correct what the training says")
        return
    on_cpu, driver = chosen.device == "cpu", chosen.driver
    totals = [card.memory_total for card in driver.cards if card.memory_total] if driver else []
    if on_cpu:
        rooms = [psutil.virtual_memory().available // cards]
    else:
        rooms = [min(totals) << 20] if totals else [16 << 30, 32 << 30]
    fits = found.images(rooms[0]) if on_cpu or totals else None
    each = [f"{found.images(room)} in {room / 2**30:.0f} GiB" for room in rooms]
    text = (
        f"{found.peaks[0] / 2**30:.2f} GiB at batch {found.batches[0]}; images per card that fit: "
    )
    text += f"{', '.join(each)}{' that are free here' * on_cpu} ({ESTIMATE})"
    level = GREEN if fits is None or fits >= found.batches[0] else YELLOW
    remedy = "" if level == GREEN else f"TrainReader.batch_size: {fits}"
    yield Finding(level, "step memory", text + UNVERIFIED * (not on_cpu), remedy)
    hours = images * found.seconds_per_image / cards / 3600
    text = (
        f"{1 / found.seconds_per_image:.2f} images/s per card in 2 steps: {_time(hours)} per epoch "
    )
    text += f"of {images} images, {_time(hours * config.data['epoch'])} for {config.data['epoch']}"
    text += f" on {cards} cards that do not slow each other down" * (cards > 1)
    text += "; without evaluation and saving"
    yield Finding(GREEN, "step time", text + UNVERIFIED * (not on_cpu))


def _time(hours: float) -> str:
    for size, unit in ((1.0, "h"), (1 / 60, "min")):
        if hours >= size:
            return f"{hours / size:.1f} {unit}"
    return f"{hours * 3600:.0f} s"
