"""python checks.py NAME: run one check of the stand-in card in a separate process."""

import ctypes
import functools
import operator
import os
import signal
import sys

import numpy as np

DTYPES = ["float32", "float64", "int32", "int64", "uint8", "float16", "bfloat16"]
WIDE = 1_200_000  # elements, more than one piece of collectives.cc in every dtype


def values(rank: int, dtype: str, count: int) -> np.ndarray:
    """Random numbers of a rank; those of bfloat16 are held as float32."""
    random = np.random.default_rng(rank)
    if "float" in dtype:
        return rounded(random.random(count), dtype)
    return random.integers(0, 9, count).astype(dtype)


def tensor(array: np.ndarray, dtype: str):
    import paddle

    return paddle.to_tensor(array).astype(dtype) if dtype == "bfloat16" else paddle.to_tensor(array)


def numpy(value) -> np.ndarray:
    import paddle

    return (value.astype("float32") if value.dtype == paddle.bfloat16 else value).numpy()


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of `dtype`, ties to even; those of bfloat16 as float32."""
    if dtype != "bfloat16":
        return array.astype(dtype)
    bits = array.astype("float32").view("uint32")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view("float32")


def combined(every: list[np.ndarray], fold, dtype: str) -> np.ndarray:
    """Reduce in rank order; half precision is computed in float32 and rounded once."""
    if dtype in ("float16", "bfloat16"):
        every = [x.astype("float32") for x in every]
    return rounded(functools.reduce(fold, every), dtype)


def copies() -> None:
    """Copy to a card, between cards and back; make a view; query the memory."""
    import paddle

    for dtype in [*DTYPES, "bool"]:
        array = values(1, dtype, 1000).reshape(20, 50)
        there = paddle.to_tensor(array, place=paddle.CustomPlace("iluvatar_gpu", 2))
        other = there._copy_to(paddle.CustomPlace("iluvatar_gpu", 1), True)
        assert (str(there.place), str(other.place)) == (
            "Place(iluvatar_gpu:2)",
            "Place(iluvatar_gpu:1)",
        )
        np.testing.assert_array_equal(other.numpy(), array)
        np.testing.assert_array_equal(there.transpose([1, 0]).numpy(), array.T)
    if not hasattr(paddle.device, "max_memory_allocated"):  # before Paddle 3.1
        return
    before = paddle.device.memory_allocated("iluvatar_gpu:1")
    peak = paddle.device.max_memory_allocated("iluvatar_gpu:1")
    big = paddle.to_tensor(np.zeros(1 << 22, "uint8"), place=other.place)
    assert paddle.device.memory_allocated("iluvatar_gpu:1") == before + (1 << 22)
    assert paddle.device.max_memory_allocated("iluvatar_gpu:1") == max(peak, before + (1 << 22))
    del big
    assert paddle.device.memory_allocated("iluvatar_gpu:1") == before


def touch() -> None:
    """Compute on the card, then read its memory from the host, which is an error."""
    import paddle

    there = paddle.to_tensor(np.arange(5, dtype="float32"))
    np.testing.assert_array_equal((there * 2).numpy(), [0, 2, 4, 6, 8])
    print("computed", flush=True)
    ctypes.string_at((there * 2).data_ptr(), 4)


def late() -> None:
    """Print whether the data of an asynchronous copy are there without waiting for it."""
    import paddle

    array = np.random.default_rng(0).random(1 << 16)
    there = paddle.to_tensor(array)
    here = there._copy_to(paddle.CPUPlace(), False)
    print("at once:", bool((here.numpy() == array).all()))
    paddle.device.synchronize("iluvatar_gpu:0")
    print("waited for:", bool((here.numpy() == array).all()))


def fill() -> None:
    """Allocate memory until it is exhausted."""
    import paddle

    kept = []
    while True:
        kept.append(paddle.to_tensor(np.zeros(1 << 20, "uint8")))
        print("allocated", flush=True)


def collectives() -> None:
    """Compare every collective with NumPy for all dtypes and operations, on each rank."""
    import paddle
    import paddle.distributed as dist

    signal.alarm(120)  # ends a rank that waits for ever, which Paddle's launcher would leave behind
    paddle.set_device(f"iluvatar_gpu:{os.environ['FLAGS_selected_iluvatar_gpus']}")
    dist.init_parallel_env()
    me, ranks = dist.get_rank(), dist.get_world_size()
    folds = {
        dist.ReduceOp.SUM: operator.add, dist.ReduceOp.MAX: np.maximum,
        dist.ReduceOp.MIN: np.minimum, dist.ReduceOp.PROD: operator.mul,
    }  # fmt: skip
    for dtype in DTYPES:
        every = [values(r, dtype, WIDE) for r in range(ranks)]
        for op, fold in folds.items():
            mine = tensor(every[me], dtype)
            dist.all_reduce(mine, op)
            expected = combined(every, fold, dtype)
            np.testing.assert_array_equal(numpy(mine), expected, f"all_reduce {dtype} {op}")
        total = combined(every, operator.add, dtype)
        mine = tensor(every[me], dtype)
        dist.reduce(mine, ranks - 1)
        if me == ranks - 1:
            np.testing.assert_array_equal(numpy(mine), total, f"reduce {dtype}")
        share = tensor(every[me][: WIDE // ranks], dtype)
        dist.reduce_scatter(share, list(paddle.split(tensor(every[me], dtype), ranks)))
        np.testing.assert_array_equal(numpy(share), np.split(total, ranks)[me], dtype)
        mine = tensor(every[me], dtype)
        dist.broadcast(mine, 1)
        np.testing.assert_array_equal(numpy(mine), every[1], f"broadcast {dtype}")
        gathered: list = []
        dist.all_gather(gathered, tensor(every[me], dtype))
        np.testing.assert_array_equal([numpy(x) for x in gathered], every, f"all_gather {dtype}")
        # Around a ring. Paddle's batch_isend_irecv does not group calls on a plugin's device, and a
        # send waits for its receiver: rank 0 starts.
        got = tensor(np.zeros_like(every[me]), dtype)
        if me == 0:
            dist.send(tensor(every[me], dtype), 1)
        dist.recv(got, (me - 1) % ranks)
        if me != 0:
            dist.send(tensor(every[me], dtype), (me + 1) % ranks)
        np.testing.assert_array_equal(numpy(got), every[me - 1], f"send and receive {dtype}")
    with open("/proc/self/maps") as file:
        shared = [line for line in file if "/dev/shm/stand-in-card" in line]
    # nothing is left in the machine's shared memory, however this process ends
    assert shared and all(line.rstrip().endswith("(deleted)") for line in shared), shared


if __name__ == "__main__":
    globals()[sys.argv[1]]()
