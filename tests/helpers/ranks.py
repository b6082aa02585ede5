"""Programs that ranks run with a launcher; they can use `os`, `time` and `rank`."""

# Rank 1 stays away from the fourth collective, for which rank 0 waits.
RANK_1_HANGS = """
from fcos_recipe.compat import before_paddle
before_paddle()
import paddle
import paddle.distributed as dist
from fcos_recipe.system import device
from fcos_recipe.system.watchdog import Watchdog
def read_next_batch():
    time.sleep(300)
device.set_device("cpu")
dist.init_parallel_env()
with Watchdog({"step": 3 if rank else 2}, rank) as watchdog:
    for step in range(100):
        if rank == 1 and step == 3:
            read_next_batch()
        dist.all_reduce(paddle.ones([1]))
        watchdog.beat()
"""
