"""A model and its mixed precision, built for one config by PaddleDetection's registry."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import paddle

from fcos_recipe import compat
from fcos_recipe.config import Config
from fcos_recipe.console import log
from fcos_recipe.system import kernels
from fcos_recipe.system.device import amp_supported


def registry(config: Config):
    """PaddleDetection's process-wide registry, filled with this config.

    Another model of this process may have filled it in the meantime, so call this before each use.

    Returns:
        ppdet's global config, an AttrDict.
    """
    return compat.workspace(config.stock_data())


def prepare(config: Config, device: str, ranks: int, train: bool):
    """Set up Paddle and the registry for a model: kernels checked, seed set, autotune chosen.

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
    """The model that the registry describes, with random weights.

    Args:
        cfg: from `registry` or `prepare`.
    """
    model = compat.create(cfg["architecture"])
    model.load_meanstd(cfg["TestReader"]["sample_transforms"])
    return model


def autocast(data: dict, device: str) -> tuple[bool, Callable[[], AbstractContextManager]]:
    """Automatic mixed precision as the config asks for it.

    Args:
        data: the resolved config.
        device: cpu, gpu or iluvatar_gpu.

    Returns:
        whether it takes effect, and what makes the context of a forward pass.
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
