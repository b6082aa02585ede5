"""Several processes, one card each: start, agree, gather."""

import functools
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import paddle
import paddle.distributed as dist

from fcos_recipe import compat
from fcos_recipe.checkpoint.zoo import MOST_BYTES
from fcos_recipe.files.atomic import draft_folder
from fcos_recipe.files.reading import read_bytes
from fcos_recipe.system.stop_signals import joining


def join_ranks() -> tuple[int, int]:
    """Join the launcher's process group when there is one.

    Returns:
        (rank, number of ranks); (0, 1) without a launcher.
    """
    if dist.get_world_size() > 1 and not dist.is_initialized():
        with joining():
            compat.init_parallel_env()
    return dist.get_rank(), dist.get_world_size()


def agree(good: paddle.Tensor, *wishes: bool) -> list[bool]:
    """Agree on a step. One host read of the device, and one collective where there are ranks.

    Args:
        good: bool, 0-D or [1], on the device.
        wishes: what this rank wants.

    Returns:
        [good on every rank, the first wish on any rank, the second, ...].
    """
    if dist.get_world_size() == 1:
        return [bool(good), *wishes]
    flags = paddle.concat([good.astype("int32").reshape([1]), _refusals(wishes)])
    dist.all_reduce(flags, op=dist.ReduceOp.MIN)
    all_good, *refused = flags.numpy().tolist()
    return [bool(all_good), *(not every for every in refused)]


@functools.lru_cache
def _refusals(wishes: tuple[bool, ...]) -> paddle.Tensor:
    return paddle.to_tensor([not wish for wish in wishes], dtype="int32")


def gather(value) -> list:
    """What every rank holds, in rank order, on every rank.

    Args:
        value: anything that pickles.
    """
    if dist.get_world_size() == 1:
        return [value]
    values: list = []
    dist.all_gather_object(values, value)
    return values


def everywhere(folder: Path, mark: str) -> None:
    """Bring a folder of files from rank 0 to hosts without it; every rank must call it.

    Args:
        folder: the same path on all hosts.
        mark: name of a file in it that tells whether the folder is there.
    """
    if all(gather((folder / mark).is_file())):
        return
    names = gather([p.name for p in folder.glob("*") if p.is_file()])[0]
    takes = os.environ.get("PADDLE_RANK_IN_NODE") == "0" and not (folder / mark).is_file()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(folder) if takes else nullcontext() as part:
        for name in names:
            data: list[Any] = [None]
            if dist.get_rank() == 0:
                data[0] = read_bytes(folder / name, MOST_BYTES)
            dist.broadcast_object_list(data, src=0)
            if part:
                (part / Path(name).name).write_bytes(data[0])
    dist.barrier()
