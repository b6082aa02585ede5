"""`python -m fcos_recipe.model.size CONFIG [KEY=VALUE ...]`: build a model, print its size as JSON.

The model's levels are compared with the head's strides as at the start of a run, see
`model.build.build_model`; a config that cannot be built is one line and exit code 2.

`numbers`: count of its parameters and statistics. `kept_per_pixel`: bytes per image pixel that a
training step in float32 keeps for its backward pass.

`fcos doctor`, which does not import Paddle itself, runs this as a subprocess. It uses the CPU.
"""

import json
import sys

import numpy as np

from fcos_recipe.config import load_config
from fcos_recipe.console import run_program
from fcos_recipe.data.targets import Targets, collate
from fcos_recipe.exit_codes import OK

SIDE = 128  # pixels; the largest stride, so that every level has locations


def kept(model, strides: list[int], images: int) -> int:
    """Bytes that a forward pass allocates and keeps.

    Args:
        model: an `FCOS` on the CPU in training mode.
        strides: of its levels, pixels.
        images: batch size; images have SIDE x SIDE pixels.
    """
    import paddle

    def allocated() -> int:
        return paddle.framework.core.host_memory_stat_current_value("Allocated", 0)

    one = np.zeros(1, np.int64)
    target = Targets(one, one, one, np.ones((1, 4), np.float32), np.ones(1, np.float32))
    grids = [(-(-SIDE // stride),) * 2 for stride in strides]
    batch = {
        "image": np.zeros((images, SIDE, SIDE, 3), np.uint8),
        "im_shape": np.full((images, 2), SIDE, np.float32),
        **collate([target] * images, grids),
    }
    tensors = {name: paddle.to_tensor(value) for name, value in batch.items()}
    before = allocated()
    losses = model(tensors)
    after = allocated()
    del losses
    return after - before


def main(path: str, *overrides: str) -> int:
    import paddle

    from fcos_recipe.model.build import build_model, registry

    config = load_config(path, list(overrides))
    paddle.set_device("cpu")
    model = build_model(registry(config))
    model.train()
    strides = config.data["FCOSHead"]["fpn_stride"]
    one, two = (kept(model, strides, images) for images in (1, 2))
    numbers = sum(value.size for value in model.state_dict().values())
    print(json.dumps({"numbers": numbers, "kept_per_pixel": (two - one) / SIDE**2}))
    return OK


if __name__ == "__main__":
    run_program(lambda: main(*sys.argv[1:]))
