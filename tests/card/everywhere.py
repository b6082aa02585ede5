"""A folder of rank 0 is copied to the other ranks, each of which stands for a host of its own.

Run by test_ranks under Paddle's launcher, in an empty folder.
"""

import os
from pathlib import Path

import paddle.distributed as dist

from fcos_recipe.evaluation.collectives import everywhere
from fcos_recipe.system import compute


def main() -> None:
    compute.start("iluvatar_gpu")
    dist.init_parallel_env()
    host = Path(f"host-{dist.get_rank()}")
    host.mkdir()
    os.chdir(host)
    os.environ["PADDLE_RANK_IN_NODE"] = "0"
    folder = Path("checkpoints") / "0001"
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(b"epoch 1")
        (folder / "model").write_bytes(bytes(range(256)) * 20_000)
    for _ in range(2):  # the second time it is there already
        everywhere(folder, "state")


if __name__ == "__main__":
    main()
