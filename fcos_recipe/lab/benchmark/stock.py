"""Stock's side of the benchmark: paddledet 2.6.0 with PaddleDetection's FCOS config.

It runs in its own process as `python -m fcos_recipe.lab.benchmark.stock` and imports nothing of
this recipe that could change stock paddledet.
"""

import inspect
import os
import time

import numpy as np

from fcos_recipe.compat import before_paddle, missing_stand_ins
from fcos_recipe.lab.benchmark.side_process import Line


def mend_reshape() -> None:
    """Restore np.reshape(newshape=), which Gt2FCOSTarget needs and NumPy 2.4 removed."""
    if "newshape" in inspect.signature(np.reshape).parameters:
        return
    reshape = np.reshape

    def compatible(array, shape=None, order="C", *, newshape=None, **rest):
        return reshape(array, newshape if shape is None else shape, order, **rest)

    np.reshape = compatible


def configure(setup: dict):
    """Load PaddleDetection's config with the overrides of the benchmark.

    Args:
        setup: `config` path; `overrides`, pairs of dotted key and value; `device`.
    """
    from ppdet.core.workspace import load_config, merge_config

    cfg = load_config(setup["config"])
    for key, value in setup["overrides"]:
        for part in reversed(key.split(".")):
            value = {part: value}
        merge_config(value)
    cfg.use_gpu = setup["device"] == "gpu"
    return cfg


def train(line: Line) -> None:
    """Run stock's training loop, one step per request."""
    import paddle
    from ppdet.engine import Trainer
    from ppdet.engine.callbacks import Callback

    from fcos_recipe.lab.benchmark.measured_step import Gate

    setup = line.setup
    paddle.set_device(setup["device"])
    paddle.seed(0)
    trainer = Trainer(configure(setup), mode="train")
    trainer.load_weights(setup["weights"])
    gate = Gate(line, trainer.model)

    class Steps(Callback):
        def on_step_end(self, status):
            gate.done()

    trainer.register_callbacks([Steps(trainer)])
    trainer.train(False)


def reader(setup: dict):
    """Data set and reader as stock's Trainer makes them."""
    from ppdet.core.workspace import create

    cfg = configure(setup)
    return create("TrainReader")(create("TrainDataset")(), cfg.worker_num)


def data(line: Line) -> None:
    """Prepare batches as a data worker does, in this process."""
    from ppdet.core.workspace import global_config

    from fcos_recipe.lab.benchmark.data_timing import Batches

    loader = reader(line.setup).dataloader
    dataset, sampler = loader.dataset, loader.batch_sampler

    def epoch(number: int) -> list:
        sampler.set_epoch(number)
        return list(sampler)

    sizes = [(record["h"], record["w"]) for record in dataset.roidbs]
    config = global_config["TrainReader"]
    line.serve(Batches(dataset.__getitem__, loader.collate_fn, epoch, sizes, config))


def targets(line: Line) -> None:
    """Time Gt2FCOSTarget on one image."""
    from ppdet.data.transform import Gt2FCOSTarget

    from fcos_recipe.lab.benchmark.data_timing import timed

    operator = Gt2FCOSTarget(**line.setup["arguments"])
    height, width = line.setup["size"]
    image = np.zeros([3, height, width], np.float32)

    def work(boxes: list, classes: list, repeat: int) -> dict:
        boxes = np.array(boxes, np.float32)
        classes = np.array(classes, np.int32).reshape(-1, 1)

        def once():
            operator([{"image": image, "gt_bbox": boxes, "gt_class": classes}])

        return {"samples": timed(once, repeat)}

    line.serve(work)


def startup(line: Line) -> None:
    """Time from creating the data set to the first batch from the loader."""
    start = time.perf_counter()
    first = next(reader(line.setup))
    line.send(data=time.perf_counter() - start, images=int(first["image"].shape[0]))


def memory(line: Line) -> None:
    """Memory of the parsed annotations in one process."""
    from ppdet.core.workspace import create

    from fcos_recipe.lab.benchmark.data_timing import proportional_mib

    configure(line.setup)
    before = proportional_mib()
    dataset = create("TrainDataset")()
    dataset.parse_dataset()
    line.serve(lambda: {"mib": proportional_mib() - before, "images": len(dataset)})


def detector(setup: dict):
    """Stock's model in evaluation mode, and a function from our batches to its inputs."""
    import paddle
    from ppdet.core.workspace import create
    from ppdet.utils.checkpoint import load_pretrain_weight

    paddle.set_device(setup["device"])
    cfg = configure(setup)
    model = create(cfg.architecture)
    load_pretrain_weight(model, setup["weights"] + ".pdparams")
    model.eval()

    def inputs(batch: dict) -> dict:
        height, width = batch["im_shape"][0].astype(int)
        image = batch["image"].astype(np.float32) / 255
        image -= np.array([0.485, 0.456, 0.406], np.float32)
        image /= np.array([0.229, 0.224, 0.225], np.float32)
        image[:, height:], image[:, :, width:] = 0, 0
        values = {**batch, "image": np.ascontiguousarray(image.transpose(0, 3, 1, 2))}
        return {key: paddle.to_tensor(value) for key, value in values.items()}

    return model, inputs


def infer(line: Line) -> None:
    """Time detection on prepared images; normalisation is not timed."""
    import paddle

    from fcos_recipe.lab.benchmark.prepared_images import batch_of, timed

    model, inputs = detector(line.setup)
    batches = {}

    def work(batch: int) -> dict:
        if batch not in batches:
            batches[batch] = inputs(batch_of(line.setup["images"], batch))

        def once() -> int:
            with paddle.no_grad():
                return len(model(batches[batch])["bbox"].numpy())

        return timed(once)

    line.serve(work)


def nms(line: Line) -> None:
    """Time the steps from the head's outputs on prepared images to detections."""
    import paddle

    from fcos_recipe.lab.benchmark.prepared_images import batch_of, timed

    model, inputs = detector(line.setup)
    batch = inputs(batch_of(line.setup["images"], 1))
    with paddle.no_grad():
        outputs = model.fcos_head(model.neck(model.backbone(batch)))

    def work(shift: float) -> dict:
        locations, logits, *rest = outputs
        raw = (locations, [level + shift for level in logits], *rest)

        def once() -> int:
            with paddle.no_grad():
                found = model.fcos_head.post_process(raw, batch["scale_factor"])
            return len(found[0].numpy())

        return timed(once)

    line.serve(work)


TASKS = {f.__name__: f for f in (train, data, targets, startup, memory, infer, nms)}

if __name__ == "__main__":
    channel = Line()
    task = TASKS[channel.setup["task"]]
    before_paddle()
    mend_reshape()
    with missing_stand_ins():
        import ppdet.engine  # noqa: F401
    task(channel)
    os._exit(0)  # data workers still run
