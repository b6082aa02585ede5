"""Build a config's model and mixed precision with PaddleDetection's registry."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import paddle

from fcos_recipe import compat
from fcos_recipe.config import Config
from fcos_recipe.console import log
from fcos_recipe.data.transforms import named
from fcos_recipe.errors import UserError
from fcos_recipe.plugins import fault
from fcos_recipe.system import kernels
from fcos_recipe.system.device import amp_supported


def registry(config: Config):
    """Fill PaddleDetection's process-wide registry with this config.

    Call this before each use, because another model in this process may have changed the registry.

    Returns:
        ppdet's global config, an AttrDict.
    """
    return compat.workspace(config.stock_data(), config.plugins)


def prepare(config: Config, device: str, ranks: int, train: bool):
    """Check kernels, set the seed and autotuning, and fill the registry for a model.

    Args:
        config: the resolved config.
        device: cpu, gpu or iluvatar_gpu; Paddle is already set to it.
        ranks: world size.
        train: whether the model will be trained.

    Returns:
        as `registry`.

    Raises:
        UserError: the device lacks a kernel that the config needs.
    """
    data = config.data
    kernels.check(data, device, ranks, train)
    cfg = registry(config)
    paddle.seed(data["seed"])
    if any(data["autotune"].values()):
        paddle.incubate.autotune.set_config(
            {kind: {"enable": on} for kind, on in data["autotune"].items()}
        )
    # optimizer states are stored by parameter name: restart Paddle's numbering of names
    paddle.utils.unique_name.switch()
    return cfg


def build_model(cfg) -> paddle.nn.Layer:
    """Build the model that the registry describes, with random weights, and check its levels.

    Args:
        cfg: from `registry` or `prepare`.

    Raises:
        UserError: a part does not accept its arguments, or see `check_levels`.
    """
    model = compat.create(cfg["architecture"])
    model.load_meanstd(cfg["TestReader"]["sample_transforms"])
    check_levels(model)
    _check_padding(model, cfg)
    return model


def check_levels(model: paddle.nn.Layer) -> None:
    """Send one small image through backbone, neck and head, and compare the levels' strides.

    Takes 0.4 s with ResNet-50 on one CPU core; weights and random state stay as they are.

    Raises:
        UserError: the parts do not fit together, or the head's strides are not the levels'.
    """
    from fcos_recipe.model.fcos import WRONG_ARGUMENTS  # ppdet must have been imported by `compat`

    head = model.fcos_head
    side = 2 * max(head.fpn_stride)
    training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            levels = model.neck(model.backbone({"image": paddle.zeros([1, 3, side, side])}))
            strides = [side // level.shape[2] for level in levels]
            if strides != list(head.fpn_stride):
                raise UserError(
                    f"FCOSHead.fpn_stride: {head.fpn_stride}, but the levels of this backbone and "
                    f"neck have strides {strides}; boxes would be decoded with wrong strides"
                )
            head(levels)
    except WRONG_ARGUMENTS as error:
        reason = " ".join(str(error).split())[-200:]
        why = f"{type(error).__name__}: {reason}"
        raise UserError(
            fault(error) or f"FCOS: backbone, neck and head do not fit together: {why}"
        ) from None
    finally:
        model.train() if training else model.eval()


def _check_padding(model: paddle.nn.Layer, cfg) -> None:
    """Check that the neck can add a level to the next coarser one on every padded image.

    Raises:
        UserError: images are padded to sizes that the backbone's coarsest stride does not divide.
    """
    maps = len(model.backbone.out_shape)
    coarsest = model.fcos_head.fpn_stride[maps - 1]
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        for name, arguments in named(cfg[reader].get("batch_transforms") or ()):
            multiple = arguments.get("pad_to_stride", 0) if name == "PadBatch" else 0
            if multiple > 0 and multiple % coarsest and maps > 1:
                kind = type(model.backbone).__name__
                raise UserError(
                    f"{reader}.batch_transforms: PadBatch.pad_to_stride: {multiple} is not a "
                    f"multiple of {coarsest}, the coarsest stride of {kind}"
                )


def autocast(data: dict, device: str) -> tuple[bool, Callable[[], AbstractContextManager]]:
    """Set up automatic mixed precision according to the config.

    Args:
        data: values of the resolved config.
        device: cpu, gpu or iluvatar_gpu.

    Returns:
        whether it takes effect, and a function that creates the context for a forward pass.
    """
    on = data["amp"] and amp_supported(device, data["amp_dtype"])
    if data["amp"] and not on:
        log.warning("amp: off, Paddle does not support automatic mixed precision with %s on %s",
                    data["amp_dtype"], device)  # fmt: skip
    return on, functools.partial(
        paddle.amp.auto_cast,
        enable=on,
        level=data["amp_level"],
        dtype=data["amp_dtype"],
        custom_white_list=data["custom_white_list"],
        custom_black_list=data["custom_black_list"],
    )
