"""One rank of the communication check of `fcos doctor`: an all-reduce on the CPU."""

from fcos_recipe.compat import import_paddle, init_parallel_env
from fcos_recipe.system.device import set_device

if __name__ == "__main__":
    paddle = import_paddle()
    dist = paddle.distributed
    set_device("cpu")
    init_parallel_env()
    value = paddle.full([1000], dist.get_rank() + 1.0)
    dist.all_reduce(value)
    ranks = dist.get_world_size()
    assert float(value.sum()) == 1000 * ranks * (ranks + 1) / 2, f"wrong sum: {value[0].item()}"
    print("sum over", ranks, "ranks is right")
