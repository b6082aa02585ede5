"""Report full card memory in one line that says what to reduce."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fcos_recipe.errors import RunFailure
from fcos_recipe.system.device import card_index

# Messages of Paddle when an allocation on a card fails. A plugin's allocation fails with error
# code 2, its collectives with 4.
_FULL = re.compile(
    r"out of memory error on|ResourceExhausted|CustomDevice error, the error code is : 2\b",
    re.IGNORECASE,
)


@contextmanager
def explained(device: str, advice: str) -> Iterator[None]:
    """Replace Paddle's error about full card memory by one line.

    Args:
        device: cpu, gpu or iluvatar_gpu.
        advice: what the user can reduce.

    Raises:
        RunFailure: the card has too little memory.
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
        data: values of the resolved config.
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
    """Advice for an evaluation; `data`: values of the resolved config."""
    batch = data["EvalReader"].get("batch_size", 1)
    return f"evaluation with {batch} images per batch does not fit; lower EvalReader.batch_size"
