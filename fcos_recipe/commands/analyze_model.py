"""`fcos analyze_model`: parameters, multiply-adds, activations and time of each model part."""

import json
import statistics
import time

from fcos_recipe.commands.options import add_config, add_json, add_overrides, finite, parser, write
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError, path_reason
from fcos_recipe.model import allreduce_cost
from fcos_recipe.system import compute

PARTS = ("backbone", "neck", "head")
_EXAMPLE = """\
columns:
  parameters   in millions; trained parameters in brackets
  GMACs        10^9 multiply-adds of convolutions for the whole batch (FLOPs: twice that); norms,
               activations and additions, together a few per cent, are not counted
  activations  MiB of outputs of convolutions and norms in float32, which training stores
  forward, +backward  median milliseconds on this device
examples:
  python tools/analyze_model.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml
  python tools/analyze_model.py -c configs/fcos/fcos_r18_fpn_demo.yml --size 160x224 --batch 4
  python tools/analyze_model.py -c configs/fcos/fcos_r50_fpn_1x_coco.yml --scaling --step-ms 243
--scaling estimates the fraction of time in which cards compute, from the size of the gradients and
the time of a step on one card, without overlap of communication and with the best overlap.
"worth it" means at least half of the time without overlap. docs/cluster.md explains it.
"""


def main(argv: list[str]) -> int:
    """Print size, cost and time of a config's model."""
    ask = parser("analyze_model", "Print size, cost and time of a model by part.", _EXAMPLE, {})
    add = ask.add_argument
    add_config(ask, required=True)
    add_overrides(ask)
    add("--size", default="800x1344", metavar="HxW",
        help="size of the padded image in pixels (default: %(default)s)")  # fmt: skip
    add("--batch", type=int, default=1, help="images per batch (default: %(default)s)")
    add("--repeat", type=int, default=3, help="timed calls; 0: no timing (default: %(default)s)")
    add_json(ask)
    add("--scaling", action="store_true", help="instead estimate efficiency by cards and network")
    add(
        "--step-ms",
        type=float,
        metavar="MS",
        help="with --scaling: time of a training step on one card, which you measured",
    )
    add(
        "--network",
        type=numbers,
        default=[1, 10, 25, 100, 200],
        metavar="GBIT,...",
        help="with --scaling: Gbit/s of the slowest link (default: 1,10,25,100,200)",
    )
    add(
        "--latency-us",
        type=float,
        default=20,
        metavar="US",
        help="with --scaling: latency of one message round (default: %(default)g)",
    )
    args = ask.parse_args(argv)
    if args.scaling and not (args.step_ms and args.step_ms > 0 and args.latency_us >= 0):
        raise UserError("--scaling: needs --step-ms MS, the time of a training step on one card")
    try:
        height, width = (int(x) for x in args.size.lower().split("x"))
    except ValueError:
        raise UserError(f"--size {args.size}: expected HEIGHTxWIDTH, such as 800x1344") from None
    if height < 1 or width < 1 or height % 32 or width % 32 or args.batch < 1:
        raise UserError(f"--size {args.size}, --batch {args.batch}: want multiples of 32, and >= 1")
    config = load_config(args.config, args.opt)

    device = compute.start(compute.requested(config), show=False).device
    from fcos_recipe import compat

    compat.workspace(config.stock_data(), config.plugins)
    model = compat.create(config.data["architecture"])
    if not hasattr(model, "fcos_head"):
        raise UserError(f"{args.config}: architecture: {config.data['architecture']} is not FCOS")
    if args.scaling:
        print(scaling(model, config, args.step_ms / 1e3, args.network, args.latency_us / 1e6))
        return 0
    result = analyze(model, (height, width), args.batch, args.repeat)
    result = {"config": config.name, "device": device, **result}
    print(_table(result))
    if args.json:
        try:
            write(args.json, json.dumps(result, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--json {args.json}: {path_reason(error)}") from None
    return 0


def analyze(model, size: tuple[int, int], batch: int = 1, repeat: int = 3) -> dict:
    """Size, cost and time of an FCOS model.

    Args:
        model: `model.fcos.FCOS`.
        size: height and width of the padded image, pixels, multiples of 32.
        batch: images per batch.
        repeat: repetitions of the timing; 0: no timing.

    Returns:
        JSON-ready: `size`, `batch`, `parts`: backbone, neck, head and total, each with
        `parameters`, `trained` (numbers), `macs` (multiply-adds of convolutions),
        `activation_mib`, and if timed `forward_ms`, `forward_backward_ms` (medians).
    """
    import paddle

    image = paddle.randn([batch, 3, *size])
    parts = {
        name: {
            "parameters": sum(p.size for p in layer.parameters()),
            "trained": sum(p.size for p in layer.parameters() if not p.stop_gradient),
        }
        for name, layer in zip(PARTS, (model.backbone, model.neck, model.fcos_head), strict=True)
    }
    model.eval()
    with paddle.no_grad():
        feats, parts["backbone"]["macs"], parts["backbone"]["activation_mib"] = _count(
            model.backbone, lambda: model.backbone({"image": image})
        )
        levels, parts["neck"]["macs"], parts["neck"]["activation_mib"] = _count(
            model.neck, lambda: model.neck(feats)
        )
        _, parts["head"]["macs"], parts["head"]["activation_mib"] = _count(
            model.fcos_head, lambda: _layer_by_layer(model.fcos_head, levels)
        )
    if repeat:
        steps = {
            "backbone": (lambda x: model.backbone({"image": x[0]}), [image]),
            "neck": (model.neck, feats),
            "head": (lambda x: model.fcos_head(x)[:2], levels),
        }
        for name, (call, inputs) in steps.items():
            parts[name] |= _time(call, inputs, repeat)
    total = {key: sum(part[key] for part in parts.values()) for key in parts["backbone"]}
    return {"size": list(size), "batch": batch, "parts": {**parts, "total": total}}


def numbers(text: str) -> list[float]:
    numbers = [finite(part) for part in text.split(",")]
    if min(numbers) <= 0:
        raise ValueError
    return numbers


def scaling(model, config, step: float, networks: list[float], latency: float) -> str:
    """Estimate the efficiency by cards and network; returns a table.

    Args:
        model: ranks exchange the gradients of its trained parameters.
        config: its `comm_buffer_mb` is the size of a message.
        step: seconds of a training step on one card.
        networks: bandwidths of the slowest link, Gbit/s.
        latency: seconds per round of a message.
    """
    size = sum(p.size * p.element_size() for p in model.parameters() if not p.stop_gradient)
    messages = -(-size // (config.data["comm_buffer_mb"] * 2**20))
    load = allreduce_cost.Load(size, messages, step, latency)
    rows = allreduce_cost.table(load, [2, 4, 8, 16, 32, 64], networks)
    return f"{config.name}, calculated, not measured\n{rows}"


def _layer_by_layer(head, levels: list) -> None:
    """Run the head layer by layer; `FCOSHead` itself merges layers and bypasses hooks."""
    for level in levels:
        cls_feat, reg_feat = head.fcos_feat(level)
        head.fcos_head_cls(cls_feat)
        head.fcos_head_reg(reg_feat)
        head.fcos_head_centerness(reg_feat if head.centerness_on_reg else cls_feat)


def _count(part, call) -> tuple:
    """The result of `call()`, its convolutions' multiply-adds, and MiB of layer outputs."""
    from paddle import nn
    from paddle.vision.ops import DeformConv2D

    counted = {"macs": 0, "bytes": 0}

    def hook(layer, _, out):
        counted["bytes"] += out.size * out.element_size()
        if isinstance(layer, nn.Conv2D | DeformConv2D):
            # weight [out, in / groups, kh, kw] is applied at each output location
            counted["macs"] += layer.weight.size * out.shape[0] * out.shape[2] * out.shape[3]

    kinds = (nn.Conv2D, DeformConv2D, nn.GroupNorm, nn.layer.norm._BatchNormBase)
    hooks = [
        layer.register_forward_post_hook(hook)
        for layer in part.sublayers()
        if isinstance(layer, kinds)
    ]
    try:
        return call(), counted["macs"], round(counted["bytes"] / 2**20, 1)
    finally:
        for one in hooks:
            one.remove()


def _time(call, inputs: list, repeat: int) -> dict:
    """Median milliseconds of `call(inputs)`, alone and with the backward pass."""
    import paddle

    on_card = not inputs[0].place.is_cpu_place()
    wait = paddle.device.synchronize if on_card else lambda: None

    def run(backward: bool) -> float:
        given = [x.detach() for x in inputs]
        for x in given:
            x.stop_gradient = not backward
        wait()
        start = time.perf_counter()
        with paddle.set_grad_enabled(backward):
            outputs = call(given)
            if backward:
                paddle.autograd.backward([x for x in outputs if not x.stop_gradient])
        wait()
        return 1000 * (time.perf_counter() - start)

    run(True)  # warm-up: allocates buffers, chooses kernels
    return {
        name: round(statistics.median(run(backward) for _ in range(repeat)), 1)
        for name, backward in (("forward_ms", False), ("forward_backward_ms", True))
    }


def _table(result: dict) -> str:
    size = "x".join(map(str, result["size"]))
    timed = "forward_ms" in result["parts"]["total"]
    rows = [
        f"{result['config']} on {result['device']}, batch {result['batch']} at {size}",
        f"{'part':<10}{'parameters':>18}{'GMACs':>9}{'activations':>13}"
        + (f"{'forward':>11}{'+backward':>11}" if timed else ""),
    ]
    for name, part in result["parts"].items():
        parameters = f"{part['parameters'] / 1e6:.2f} ({part['trained'] / 1e6:.2f})"
        row = f"{name:<10}{parameters:>18}{part['macs'] / 1e9:>9.2f}{part['activation_mib']:>13.1f}"
        if timed:
            row += f"{part['forward_ms']:>11.1f}{part['forward_backward_ms']:>11.1f}"
        rows.append(row)
    return "\n".join(rows)
