"""Our side of the benchmark, run as `python -m fcos_recipe.lab.benchmark.ours`."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from fcos_recipe.config import load_config
from fcos_recipe.lab.benchmark.side_process import Line
from fcos_recipe.system.compute import start


def configure(setup: dict):
    """Load the config of `setup` with its overrides, pairs of dotted key and value."""
    overrides = [f"{key}={json.dumps(value)}" for key, value in setup["overrides"]]
    return load_config(setup["config"], overrides, strict=False)


def train(line: Line) -> None:
    """Run the Trainer's training loop, one step per request."""
    setup = line.setup
    device = start(setup["device"]).device

    from fcos_recipe.lab.benchmark.measured_step import Gate
    from fcos_recipe.runs.directory import RunDir
    from fcos_recipe.training.trainer import Trainer

    trainer = Trainer(configure(setup), device)
    trainer.load_weights(setup["weights"])
    if setup["to_static"]:
        trainer.compile()
    trainer.watchdog = _Steps(Gate(line, trainer.model))  # type: ignore[assignment]  # stands in
    with tempfile.TemporaryDirectory() as folder:
        trainer.train(RunDir(Path(folder) / "run", writer=True, resume=False))


class _Steps:
    """Replaces the watchdog, which is notified of every step."""

    def __init__(self, gate):
        self.gate = gate

    def beat(self, _step: int) -> None:
        self.gate.done()

    def phase(self, _name: str):
        return contextlib.nullcontext()


def reader(setup: dict):
    """Data set and reader as the Trainer makes them."""
    from fcos_recipe.compat import create, workspace

    config = configure(setup)
    workspace(config.stock_data())
    return create("TrainReader")(create("TrainDataset")(), config.data["worker_num"])


def data(line: Line) -> None:
    """Prepare batches as a data worker does, in this process."""
    from fcos_recipe.data.reader import Pipeline, _one_thread
    from fcos_recipe.lab.benchmark.data_timing import Batches

    made, config = reader(line.setup), configure(line.setup).data["TrainReader"]
    _one_thread(0)
    work = Pipeline(made.dataset, made.chain, made.target, made.seed, True, made.max_bad_images)

    def collate(items: list) -> dict:
        batch = work.collate(items)
        batch.pop("bad")
        return batch

    sizes = made.dataset.image_sizes()
    line.serve(Batches(work.__getitem__, collate, made.sampler.batches, sizes, config))


def targets(line: Line) -> None:
    """Time Gt2FCOSTarget on one image."""
    import numpy as np

    from fcos_recipe.data.targets import Gt2FCOSTarget
    from fcos_recipe.lab.benchmark.data_timing import timed

    operator = Gt2FCOSTarget(**line.setup["arguments"])
    height, width = line.setup["size"]

    def work(boxes: list, classes: list, repeat: int) -> dict:
        boxes, classes = np.array(boxes, np.float32), np.array(classes, np.int32)
        return {"samples": timed(lambda: operator([boxes], [classes], height, width), repeat)}

    line.serve(work)


def startup(line: Line) -> None:
    """Time from creating the data set to the first batch from the loader."""
    import fcos_recipe.training.trainer  # noqa: F401 (what `fcos train` imports)

    begin = time.perf_counter()
    first = next(iter(reader(line.setup)))
    line.send(data=time.perf_counter() - begin, images=int(first["image"].shape[0]))


def memory(line: Line) -> None:
    """Memory of the indexed annotations in one process, after reading every record."""
    from fcos_recipe.data.dataset import COCODataSet
    from fcos_recipe.lab.benchmark.data_timing import proportional_mib

    config = configure(line.setup).data["TrainDataset"]
    before = proportional_mib()
    dataset = COCODataSet(**{k: v for k, v in config.items() if k != "name"})
    dataset.parse_dataset()
    for i in range(len(dataset)):
        dataset.record(i)
    line.serve(lambda: {"mib": proportional_mib() - before, "images": len(dataset)})


def weights(line: Line) -> None:
    """Write initial weights: random, with fitted statistics of the frozen BatchNorms.

    With random convolutions and frozen BatchNorm, activations grow to thousands and the loss to
    infinity; statistics measured on the benchmark's images prevent that.
    """
    setup = line.setup
    device = start(setup["device"]).device
    import paddle

    from fcos_recipe.training.trainer import Trainer

    trainer = Trainer(configure(setup), device)
    fit_norms(trainer.model, next(iter(trainer.loader)))
    if "class_bias" in setup:
        head = trainer.model.fcos_head
        head.fcos_head_cls.bias.set_value(paddle.full([head.num_classes], setup["class_bias"]))
        # boxes need an area, because NMS engines differ for boxes without
        head.fcos_head_reg.bias.set_value(paddle.full([4], 2.0))
    paddle.save(trainer.model.state_dict(), setup["path"])
    line.send(done=True)


def export(line: Line) -> None:
    """Export weights to a folder, with the checks of `fcos export_model`."""
    setup = line.setup
    start(setup["device"])
    from fcos_recipe.predict import Predictor
    from fcos_recipe.predict.export import export as checked

    predictor = Predictor(setup["weights"] + ".pdparams", configure(setup))
    checked(predictor, Path(setup["target"]), setup["format"])
    line.send(done=True)


def infer(line: Line) -> None:
    """Time detection on prepared images, with the model or an export of it."""
    setup = line.setup
    device = start(setup["device"]).device
    from fcos_recipe.lab.benchmark.prepared_images import batch_of, timed
    from fcos_recipe.predict import backends

    if "export" in setup:
        facts = backends.export_facts(setup["export"]) or {}
        engine = backends.open_export(setup["export"], facts, device, setup["precision"])
    else:
        engine = backends.Eager(setup["weights"] + ".pdparams", configure(setup), device)
    batches = {}

    def work(batch: int) -> dict:
        if batch not in batches:
            batches[batch] = batch_of(setup["images"], batch)
        return timed(lambda: len(engine.run(batches[batch])[0]))

    line.serve(work)


def nms(line: Line) -> None:
    """Time the steps from the head's outputs on prepared images to detections."""
    setup = line.setup
    device = start(setup["device"]).device
    import paddle

    from fcos_recipe.lab.benchmark.prepared_images import batch_of, timed
    from fcos_recipe.predict import backends

    model = backends.Eager(setup["weights"] + ".pdparams", configure(setup), device).model
    batch = {k: paddle.to_tensor(v) for k, v in batch_of(setup["images"], 1).items()}
    with paddle.no_grad():
        outputs = model.fcos_head(model._features(batch))

    def work(shift: float) -> dict:
        raw = (outputs[0] + shift, *outputs[1:])

        def once() -> int:
            with paddle.no_grad():
                found = model.fcos_head.post_process(raw, batch["im_shape"], batch["scale_factor"])
            return len(found[0].numpy())

        return timed(once)

    line.serve(work)


def fit_norms(model, batch: dict) -> None:
    """Set every BatchNorm's mean and variance to those of its input on this batch, in one pass."""
    import paddle
    from paddle.nn import BatchNorm2D

    def fit(layer, inputs):
        layer._mean.set_value(inputs[0].mean([0, 2, 3]))
        layer._variance.set_value(inputs[0].var([0, 2, 3]))

    hooks = [
        layer.register_forward_pre_hook(fit)
        for layer in model.sublayers()
        if isinstance(layer, BatchNorm2D)
    ]
    with paddle.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()


_TASKS = (train, data, targets, startup, memory, weights, export, infer, nms)
TASKS = {f.__name__: f for f in _TASKS}

if __name__ == "__main__":
    channel = Line()
    TASKS[channel.setup["task"]](channel)
    os._exit(0)  # data workers still run
