"""Report full memory and dead data workers in one line that says what to reduce."""

import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from fcos_recipe.console import amount
from fcos_recipe.errors import RunFailure
from fcos_recipe.system.device import card_index

# Messages of Paddle when an allocation on a card fails. A plugin's allocation fails with error
# code 2, its collectives with 4.
_FULL = re.compile(
    r"out of memory error on|ResourceExhausted|CustomDevice error, the error code is : 2\b",
    re.IGNORECASE,
)

# Messages of Python and C++ if no thread can be started, mostly for want of memory for its stack.
THREADS = "can't start new thread|^Resource temporarily unavailable$"
# Messages of Paddle, NumPy, the C library and its loader when an allocation on the host fails.
_HOST = re.compile(
    "Fail to alloc memory|Cannot allocate memory|bad_alloc|Unable to allocate|"
    "failed to map segment from shared object(?!: Operation not permitted)|" + THREADS
)
# Paddle's two messages about a data worker that died, and its message about one that raised.
_WORKER = re.compile(
    r"DataLoader process \(pid:? *(?P<pid>\d+)\) (?P<how>[^.]*)|"
    r"DataLoader \d+ workers (?P<end>exit unexpectedly), pids: (?P<pids>[\d, ]+)|"
    r"DataLoader worker\((?P<number>\d+)\) caught MemoryError"
)


@contextmanager
def explained(device: str, advice: str, resume: str = "", readers: str = "") -> Iterator[None]:
    """Replace errors about full memory and dead data workers by one line.

    Args:
        device: cpu, gpu or iluvatar_gpu.
        advice: what the user can reduce if the memory of a card is full.
        resume: the command that continues the run, if there is one.
        readers: from the function of this name, if a config is known.

    Raises:
        RunFailure: a card or the host has too little memory, or a data worker died.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SystemError, ImportError) as error:
        text = " ".join(str(error).split())
        number = os.environ.get("PADDLE_TRAINER_ID")
        rank = f" of rank {number}" if number else ""
        if worker := _WORKER.search(text):
            what = f"{_which(worker)}{rank} died, usually because host memory ran out (see `dmesg`)"
            advice = _host_advice(readers)
        elif _HOST.search(text) or (
            isinstance(error, MemoryError) and (device == "cpu" or not _FULL.search(text))
        ):
            limit = ", or the limit of threads (`ulimit -u`)" * bool(re.search(THREADS, text))
            what, advice = f"host memory is full{limit}{rank}", _host_advice(readers)
        elif _FULL.search(text):
            card = "host" if device == "cpu" else f"card {device}:{card_index(device)}"
            what = f"{card}{rank}: out of memory"
        else:
            raise
        reason = f" ({type(error).__name__}: {text[:200]})"
        then = f"; `{resume}` continues" if resume else ""
        raise RunFailure(f"{what}: {advice}{then}{reason}") from None


def _which(worker: re.Match) -> str:
    if worker["number"]:
        return f"data worker {worker['number']}"
    how = worker["how"] or worker["end"]
    return f"data worker (process {worker['pid'] or worker['pids'].strip()}, {how.strip()})"


def _host_advice(readers: str) -> str:
    import psutil  # COCO is downloaded with plain Python

    memory = psutil.virtual_memory()
    now = f"{amount(memory.available)} of {amount(memory.total)} of host memory are free now"
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    own = "" if most < 0 else f"this process may have {amount(most)} (`ulimit -v`)"
    return (
        "lower worker_num or batch_size, or end other processes on this machine "
        f"({', '.join(filter(None, (readers, now, own)))})"
    )


def readers(data: dict, section: str) -> str:
    """Present values of what takes host memory.

    Args:
        data: values of the resolved config.
        section: TrainReader or EvalReader.
    """
    batch = data[section].get("batch_size", 1)
    return f"worker_num is {data['worker_num']}, {section}.batch_size {batch}"


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
