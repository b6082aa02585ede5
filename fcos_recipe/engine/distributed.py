"""Several processes, one card each: start, agree, gather."""

import paddle
import paddle.distributed as dist


def start() -> tuple[int, int]:
    """Join the launcher's process group when there is one.

    Returns:
        (rank, number of ranks); (0, 1) without a launcher.
    """
    if dist.get_world_size() > 1 and not dist.is_initialized():
        dist.init_parallel_env()
    return dist.get_rank(), dist.get_world_size()


def all_true(flag: paddle.Tensor) -> bool:
    """Whether a boolean scalar holds on every rank. One collective and one host read.

    Args:
        flag: bool, 0-D or [1].
    """
    if dist.get_world_size() > 1:
        flag = flag.astype("int32").reshape([1])
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


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
