"""The head's convolutions over all levels, with work common to all levels done once."""

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn


@paddle.jit.not_to_static  # branches stay Python code in a static graph
def run_towers(feat: nn.Layer, levels: list[Tensor]) -> tuple[Sequence[Tensor], ...]:
    """Run both towers of an `FCOSFeat`, their channels joined in one tensor per level.

    Two convolutions become one grouped convolution, two GroupNorms one with twice the groups: half
    the operators, results equal to the last bit. (The speed of the grouped convolution on a card
    is not verified on hardware.) Deformable convolutions, other norms and graphs for export run
    layer by layer.

    Args:
        feat: the towers.
        levels: [N, feat_in, H_l, W_l] each.

    Returns:
        Class features and box features, [N, feat_out, H_l, W_l] for each level.
    """
    layers = [x for pair in zip(feat.cls_subnet_convs, feat.reg_subnet_convs) for x in pair]  # noqa: B905
    plain = all(isinstance(x.conv, nn.Conv2D) and isinstance(x.norm, nn.GroupNorm) for x in layers)
    if not (layers and plain and paddle.in_dynamic_mode()):
        return tuple(zip(*[feat(level) for level in levels], strict=True))
    depth, norm = feat.num_convs, layers[0].norm
    biases = _pack([x.conv.bias for x in layers], [depth, 1, -1, 1, 1])
    affine = [x.norm.weight for x in layers] + [x.norm.bias for x in layers]
    affine = _pack(affine, [2 * depth, -1])
    first = [x.conv.weight for x in layers[:2]]
    levels = [paddle.concat([F.conv2d(x, w, padding=1) for w in first], axis=1) for x in levels]
    for i in range(depth):
        if i > 0:
            weight = paddle.concat([x.conv.weight for x in layers[2 * i : 2 * i + 2]])
            levels = [F.conv2d(x, weight, padding=1, groups=2) for x in levels]
        # Paddle before 3.0 has no F.group_norm
        args = affine[i], affine[depth + i], norm._epsilon, 2 * norm._num_groups, "NCHW"
        levels = [F.relu(paddle._C_ops.group_norm(x + biases[i], *args)) for x in levels]
    return tuple(zip(*[x.split(2, axis=1) for x in levels], strict=True))


def _pack(parameters: list[Tensor], shape: list[int]) -> list[Tensor]:
    """Join parameters, reshape them to `shape`, and split them along its first dimension."""
    return paddle.concat(parameters).reshape(shape).unbind()


@paddle.jit.not_to_static  # branches stay Python code in a static graph
def predict(levels: list[Tensor], *layers: nn.Conv2D) -> Tensor:
    """Apply 3x3 convolutions to the same input and join their output channels.

    On the CPU they run as transposed convolutions with the flipped kernel, equal up to float32
    rounding. Paddle's CPU kernels are im2col + sgemm, and the single-threaded im2col takes longer
    than the sgemm. The transposed form applies im2col to the few output channels instead of the
    256 input channels, in the forward and the backward pass.

    Args:
        levels: [N, C, H_l, W_l] each.
        layers: the convolutions; O is the sum of their output channels.

    Returns:
        [N, O, S], S the locations of all levels.
    """
    weight, bias = layers[0].weight, layers[0].bias
    if len(layers) > 1:
        weight = paddle.concat([layer.weight for layer in layers])
        bias = paddle.concat([layer.bias for layer in layers])
    convolution = F.conv2d
    # not in a graph for export: inference engines have faster convolutions
    if paddle.in_dynamic_mode() and levels[0].place.is_cpu_place():
        weight, convolution = weight.flip([2, 3]).transpose([1, 0, 2, 3]), F.conv2d_transpose
    outputs = [convolution(x, weight, padding=1).flatten(2) for x in levels]
    return paddle.concat(outputs, axis=2) + bias.unsqueeze(1)
