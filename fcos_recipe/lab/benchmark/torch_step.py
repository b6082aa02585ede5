"""torchvision's side of the benchmark: its fcos_resnet50_fpn, frozen like ours.

It runs with any Python that has torch and torchvision, and needs only NumPy of our dependencies.
"""

import time

import numpy as np

from fcos_recipe.lab.benchmark.side_process import Line


def build(sides: tuple[int, int]):
    """FCOS with a ResNet-50 whose BatchNorms, stem and first stage are frozen; 80 classes."""
    from torchvision.models import resnet50
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    backbone = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=FrozenBatchNorm2d),
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return FCOS(backbone, num_classes=80, min_size=min(sides), max_size=max(sides))


def fit_norms(model, images: list) -> None:
    """Set every frozen BatchNorm's statistics to those of its input, as our side does."""
    import torch
    from torchvision.ops.misc import FrozenBatchNorm2d

    def fit(layer, inputs):
        layer.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        layer.running_var.copy_(inputs[0].var((0, 2, 3)))

    hooks = [
        layer.register_forward_pre_hook(fit)
        for layer in model.modules()
        if isinstance(layer, FrozenBatchNorm2d)
    ]
    with torch.no_grad():
        model.backbone(model.transform(images)[0].tensors)
    for hook in hooks:
        hook.remove()


def detection(model, pictures):
    """The work of a request: time detection on float images in memory."""
    import torch

    from fcos_recipe.lab.benchmark.prepared_images import timed

    model.eval()
    model.score_thresh = 0.025

    def work(batch: int) -> dict:
        images = [pictures[row % len(pictures)].float().div(255) for row in range(batch)]

        def once() -> int:
            with torch.no_grad():
                return sum(len(found["boxes"]) for found in model(images))

        return timed(once)

    return work


def main(line: Line) -> None:
    import torch

    setup = line.setup
    arrays = np.load(setup["batches"])
    pictures = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    batch = setup["batch"]

    def load(step: int):
        rows = [(step * batch + i) % len(pictures) for i in range(batch)]
        images = [pictures[row].float().div_(255) for row in rows]
        targets = [
            {
                "boxes": torch.from_numpy(arrays[f"boxes{row}"]),
                "labels": torch.from_numpy(arrays[f"labels{row}"]),
            }
            for row in rows
        ]
        return images, targets

    torch.manual_seed(0)
    model = build(arrays["images"].shape[1:3])
    if setup["task"] == "infer":
        model.load_state_dict(torch.load(setup["weights"]))
        line.serve(detection(model, pictures))
        return
    fit_norms(model, load(0)[0])
    if setup["task"] == "weights":
        bias = model.head.classification_head.cls_logits.bias
        torch.nn.init.constant_(bias, setup["class_bias"])
        torch.save(model.state_dict(), setup["weights"])
        line.send(done=True)
        return
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    step = 0

    def work(do: str) -> dict:
        nonlocal step
        start, cpu = time.perf_counter(), time.process_time()
        losses = model(*load(step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        step += 1
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "images": batch}

    work("step")
    line.serve(work)


if __name__ == "__main__":
    main(Line())
