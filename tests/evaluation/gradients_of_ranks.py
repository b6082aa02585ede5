"""Run by test_collectives under Paddle's launcher: each rank's own batch, one backward pass.

usage: gradients_of_ranks.py CONFIG OUT.npz BATCH_INDEX...
Rank r takes the batches of its share of the indices, accumulates over them, and rank 0 writes the
gradients that DataParallel left.
"""

import os
import sys

import numpy as np
import paddle

from fcos_recipe import compat
from fcos_recipe.config import load_config
from fcos_recipe.system import compute
from fcos_recipe.training.trainer import Trainer


def main(config: str, out: str, *indices: str) -> None:
    device = compute.start(os.environ.get("DEVICE", "cpu")).device
    trainer = Trainer(load_config(config), device)
    for layer in trainer.model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer.eval()  # frozen: its statistics would differ between the ranks
    # every rank builds the whole list of batches, so that they do not depend on the ranks
    size = trainer.cfg["TrainReader"]["batch_size"]
    fixed = [list(range(k * size, (k + 1) * size)) for k in map(int, indices)]
    fixed = fixed[trainer.rank :: trainer._nranks]
    loader = compat.create("TrainReader")(trainer.dataset, 0, batch_sampler=fixed)
    model = paddle.DataParallel(trainer.model) if trainer._nranks > 1 else trainer.model
    trainer.accumulate = len(fixed)
    for _ in range(2):  # the second time over what a step leaves behind
        trainer.optimizer.clear_grad(set_to_zero=False)
        for number, batch in enumerate(loader, start=1):
            trainer._backward(model, batch, synchronise=number == len(fixed))
    if trainer.rank == 0:
        named = trainer.model.named_parameters()
        np.savez(out, **{n: p.grad.numpy() for n, p in named if p.grad is not None})


if __name__ == "__main__":
    main(*sys.argv[1:])
