"""A card whose memory is full ends a command with one line that says what to lower."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fcos_recipe.errors import RunFailure
from fcos_recipe.system.device import card_index

# What Paddle raises when an allocation on a card fails. A plugin's functions have one code for
# "failed", which Paddle passes on: its allocation returns 2, its collectives 4.
_FULL = re.compile(
    r"out of memory error on|ResourceExhausted|CustomDevice error, the error code is : 2\b",
    re.IGNORECASE,
)


@contextmanager
def explained(device: str, advice: str) -> Iterator[None]:
    """Replace Paddle's error about a full card by one line.

    Args:
        device: cpu, gpu or iluvatar_gpu.
        advice: what the user can lower.

    Raises:
        RunFailure: the memory of the card did not suffice.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SystemError) as error:
        if device == "cpu" or not _FULL.search(str(error)):
            raise
        rank = os.environ.get("PADDLE_TRAINER_ID")
        which = f"card {device}:{card_index(device)}" + (f" of rank {rank}" if rank else "")
        reason = " ".join(str(error).split())[:200]
        raise RunFailure(f"{which}: out of memory: {advice} (Paddle: {reason})") from None


def training(data: dict) -> str:
    """Advice for a training run.

    Args:
        data: the resolved config.
    """
    batch = data["TrainReader"]["batch_size"]
    precision = f"amp {data['amp_level']} in {data['amp_dtype']}" if data["amp"] else "float32"
    ways = []
    if batch > 1:
        ways.append("lower TrainReader.batch_size (`accumulate` keeps the total batch)")
    if not data["amp"]:
        ways.append("use --amp")
    ways.append("train on smaller images, or end other processes on the card")
    return (
        f"training with {batch} images per card in {precision} does not fit; {', '.join(ways)}; "
        "`python tools/doctor.py -c CONFIG` estimates how many images fit"
    )


def evaluation(data: dict) -> str:
    """Advice for an evaluation; `data` is the resolved config."""
    batch = data["EvalReader"].get("batch_size", 1)
    return f"evaluation with {batch} images per batch does not fit; lower EvalReader.batch_size"
