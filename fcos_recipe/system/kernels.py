"""Check that Paddle has the kernels that mixed precision needs, before any data is read.

Paddle looks for a kernel when it launches an operator. A missing one would end the run in its first
step with an error that names neither the config's key nor a remedy. Operators in float32 need no
check here: tests/operators compares all of them with the kernels that cards have.
"""

import sys

from fcos_recipe import compat
from fcos_recipe.config import load_config
from fcos_recipe.console import run_program
from fcos_recipe.errors import UserError
from fcos_recipe.system.device import PLUGIN, amp_supported, set_device

# If the plugin has no kernel, Paddle uses its CPU kernel.
_BACKENDS = {"gpu": {"GPU", "GPUDNN"}, PLUGIN: {PLUGIN, "CPU"}}


def check(data: dict, kind: str, ranks: int, train: bool) -> None:
    """Check that the device has all kernels that a config's mixed precision needs.

    Args:
        data: values of a resolved config.
        kind: cpu, gpu or iluvatar_gpu, the device of this process.
        ranks: world size.
        train: False for an evaluation, which needs no gradients and no optimizer.

    Raises:
        UserError: a kernel is missing; the message has the remedy.
    """
    dtype = data["amp_dtype"]
    if not data["amp"] or not amp_supported(kind, dtype):
        return
    registered = compat.registered_kernels()
    for operators, asks, remedy in _needs(data, ranks, train):
        for operator in operators:
            found = registered.get(operator)
            if found and not {(backend, dtype) for backend in _BACKENDS[kind]} & found:
                version = compat.import_paddle().__version__
                raise UserError(
                    f"amp_level: {data['amp_level']} with amp_dtype: {dtype}: {asks} needs the "
                    f"operator {operator} in {dtype}, which Paddle {version} does not support on "
                    f"{kind}; set {remedy}"
                )


def _needs(data: dict, ranks: int, train: bool) -> list[tuple[list[str], str, str]]:
    """List half-precision operators that some devices lack, what needs them, and the remedy."""
    needs = []
    head = (data.get("FCOSHead") or {}).get("fcos_feat") or {}
    backbone = data.get("ResNet") or {}
    dcn = head.get("use_dcn") or backbone.get("dcn_v2_stages", -1) not in (-1, [-1], [])
    if data["amp_level"] == "O2":  # in O1, parameters and these operators stay in float32
        if dcn and "deformable_conv" not in (data["custom_black_list"] or []):
            operators = ["deformable_conv", *["deformable_conv_grad"] * train]
            needs.append((operators, "a deformable convolution", "amp_level: O1"))
        if train:
            optimizer = (data.get("OptimizerBuilder") or {}).get("optimizer") or {}
            name = optimizer.get("type", "Momentum")
            merged = name == "Momentum" and optimizer.get("use_multi_tensor", True)
            operators = ["merged_momentum" if merged else name.lower()]
            needs.append((operators, f"the optimizer {name}",
                          "amp_level: O1, or the other amp_dtype"))  # fmt: skip
    if train and ranks > 1 and data.get("norm_type") == "sync_bn":
        needs.append((["sync_batch_norm", "sync_batch_norm_grad"], "norm_type: sync_bn",
                      "norm_type: bn, or the other amp_dtype"))  # fmt: skip
    return needs


def main(kind: str, ranks: str, path: str, *overrides: str) -> int:
    """A process of its own for the doctor: it binds itself to the device and checks a config."""
    set_device(kind)
    check(load_config(path, list(overrides)).data, kind, int(ranks), train=True)
    return 0


if __name__ == "__main__":
    run_program(lambda: main(*sys.argv[1:]))
