"""One side of the parity tests in a separate process: stock's Trainer or ours.

usage: side.py stock|ours SETUP.json; SETUP has
  config      YAML
  overrides   pairs of dotted key and value
  start       weights to start from, path without ending; null: fitted to the first batch (ours)
  resume      checkpoint to resume from, or null
  steps       optimizer steps to take
  out         .npz for the results: losses [steps, 4] of each step, with `gradients` also those of
              the first batch before any step, weights and velocities at the end
  save        checkpoint to write at the end, or null: path without ending (stock), folder (ours)
"""

import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np

LOSSES = ("loss_cls", "loss_box", "loss_quality", "loss")


def stock_trainer(setup: dict):
    from fcos_recipe.compat import before_paddle, missing_stand_ins
    from fcos_recipe.lab.benchmark import stock

    before_paddle()
    stock.mend_reshape()
    with missing_stand_ins():
        from ppdet.engine import Trainer
    import paddle

    paddle.set_device("cpu")
    paddle.seed(0)
    trainer = Trainer(stock.configure({**setup, "device": "cpu"}), mode="train")
    if setup["start"]:
        trainer.load_weights(setup["start"])
    if setup["resume"]:
        trainer.resume_weights(setup["resume"])
    return trainer


def our_trainer(setup: dict):
    from fcos_recipe.lab.benchmark import ours

    device = ours.start("cpu")
    from fcos_recipe.training.trainer import Trainer

    trainer = Trainer(ours.configure(setup), device)
    if setup["start"]:
        trainer.load_weights(setup["start"])
    elif not setup["resume"]:
        ours.fit_norms(trainer.model, next(iter(trainer.loader)))
        # distances pass a ReLU: let none start dead, too few steps follow to revive it
        bias = trainer.model.fcos_head.fcos_head_reg.bias
        bias.set_value(np.full(bias.shape, 2.0, "float32"))
    if setup["resume"]:
        trainer.resume_weights(setup["resume"])
    return trainer


def main(side: str, setup: dict) -> None:
    trainer = (stock_trainer if side == "stock" else our_trainer)(setup)
    model, optimizer, results = trainer.model, trainer.optimizer, {}
    model.train()
    (trainer.loader if side == "ours" else trainer.loader.dataset).set_epoch(0)
    losses = []
    # both trainers' own loops do just this on one process without AMP
    for step, batch in enumerate(islice(trainer.loader, setup["steps"])):
        batch["epoch_id"] = 0  # stock's model asks for it
        found = model(batch)
        found["loss"].backward()
        if step == 0 and setup.get("gradients"):
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    results[f"gradient/{name}"] = parameter.grad.numpy()
            results["im_id"] = batch["im_id"].numpy()
        losses.append([float(found[name]) for name in LOSSES])
        optimizer.step()
        trainer.lr.step()
        optimizer.clear_grad()
    results["losses"] = np.array(losses)
    for name, value in model.state_dict().items():
        results[f"weight/{name}"] = value.numpy()
    state = optimizer.state_dict()
    for name, parameter in model.named_parameters():
        if f"{parameter.name}_velocity_0" in state:
            results[f"velocity/{name}"] = state[f"{parameter.name}_velocity_0"].numpy()
    results["epoch"] = trainer.start_epoch if side == "stock" else trainer.progress.epoch
    np.savez(setup["out"], **results)
    if setup["save"] and side == "stock":
        from ppdet.utils.checkpoint import save_model

        target = Path(setup["save"])
        save_model(model.state_dict(), optimizer, str(target.parent), target.name, 1)
    elif setup["save"]:
        from fcos_recipe.checkpoint import storage
        from fcos_recipe.training import resume

        folder = Path(setup["save"], "checkpoints")
        folder.mkdir(parents=True)
        trainer.progress.epoch, trainer.progress.steps_done = 1, trainer.steps_before(1)
        ranks = resume.of_ranks(trainer.loader)
        storage.save(folder, storage.name(1), *resume.collect(trainer, ranks))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))
