"""Every way in which memory runs out is one line that names the place and the remedy."""

import pytest

from fcos_recipe.errors import RunFailure
from fcos_recipe.system.out_of_memory import explained, readers

RESUME = "python tools/train.py -c c.yml --output RUN --resume auto"
DATA = {"worker_num": 3, "TrainReader": {"batch_size": 5}}
HOST = "worker_num or batch_size"
# device, error, what the line names
ERRORS = [
    ("cpu", MemoryError(), ["host memory is full", HOST]),
    ("gpu", MemoryError("Unable to allocate 2 GiB for an array"), ["host memory is full", HOST]),
    ("cpu", MemoryError("(ResourceExhausted) Fail to alloc memory of 9 size, error code is 12."),
     ["host memory is full", HOST]),
    ("gpu", SystemError("(ResourceExhausted) Fail to alloc memory of 9 size"),
     ["host memory is full", HOST]),
    ("cpu", RuntimeError("std::bad_alloc"), ["host memory is full", HOST]),
    ("cpu", OSError(12, "Cannot allocate memory"), ["host memory is full", HOST]),
    ("cpu", ImportError("libphi_core.so: failed to map segment from shared object"),
     ["host memory is full", HOST]),
    ("cpu", RuntimeError("can't start new thread"), ["host memory is full", "ulimit -u", HOST]),
    ("gpu", RuntimeError("Resource temporarily unavailable"), ["ulimit -u", HOST]),
    ("gpu", MemoryError("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate "
                        "2MB memory on GPU 0"), ["card gpu:0", "out of memory", "LESS"]),
    ("gpu", SystemError("(ResourceExhausted) 3"), ["card gpu:0", "out of memory", "LESS"]),
    ("cpu", SystemError("(Fatal) DataLoader process (pid   41) exited is killed by signal: "
                        "Killed. (at data_loader.cc:185)"), ["process 41", "Killed", HOST]),
    ("gpu", SystemError("(Fatal) DataLoader process (pid 41) exited unexpectedly with code 1."),
     ["process 41", "with code 1", HOST]),
    ("cpu", RuntimeError("DataLoader 1 workers exit unexpectedly, pids: 41"),
     ["process 41", "exit unexpectedly", HOST]),
    ("cpu", MemoryError("DataLoader worker(1) caught MemoryError with message:\nTraceback"),
     ["data worker 1", HOST]),
]  # fmt: skip


@pytest.mark.parametrize("rank", ["", "3"])
@pytest.mark.parametrize("device, error, names", ERRORS)
def test_one_line_with_advice(device, error, names, rank, monkeypatch):
    if rank:
        monkeypatch.setenv("PADDLE_TRAINER_ID", rank)
    with (
        pytest.raises(RunFailure) as raised,
        explained(device, "use LESS", RESUME, readers(DATA, "TrainReader")),
    ):
        raise error
    line = str(raised.value)
    assert "\n" not in line and ("of rank 3" in line) == bool(rank)
    present = ["worker_num is 3, TrainReader.batch_size 5, ", "GB of host memory are free now"]
    for words in (*names, RESUME, *(present if HOST in names else [])):
        assert words in line, line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("x"),
        SystemError("y"),
        OSError(28, "No space"),
        ImportError("No module named 'z'"),
        OSError(11, "Resource temporarily unavailable"),
        ImportError("l.so: failed to map segment from shared object: Operation not permitted"),
    ],
)
def test_other_errors_stay(error):
    with pytest.raises(type(error)) as raised, explained("gpu", ""):
        raise error
    assert raised.value is error
