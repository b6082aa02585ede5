"""Keep chosen parameters at the values that they start with, as in fine-tuning."""

from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np
import paddle
from paddle.nn.layer.norm import _BatchNormBase

from fcos_recipe.config import Config
from fcos_recipe.errors import UserError


class Frozen:
    """Freezes the parameters whose names match a pattern of the key `freeze`.

    They get no gradient, no weight decay and no moving average, so that they keep every bit. A
    BatchNorm layer whose weight and bias are both frozen keeps its mean and variance too, and
    normalises with them.

    Args:
        model: the model; must be frozen before its optimizer is built.
        config: has `freeze`, patterns as of `fnmatch`, in which `*` also stands for dots.

    Attributes:
        names: entries of the model's state dict that do not change.
        line: text to print at start; "" if nothing is frozen.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """

    def __init__(self, model: paddle.nn.Layer, config: Config):
        patterns = config.data["freeze"]
        norms = {n: x for n, x in model.named_sublayers() if isinstance(x, _BatchNormBase)}
        statistics = {name: {f"{name}._mean", f"{name}._variance"} for name in norms}
        all_statistics = set().union(*statistics.values())  # Paddle counts them as parameters
        parameters = {n: p for n, p in model.named_parameters() if n not in all_statistics}
        where = config.origin("freeze")
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise UserError(
                    f"{where}: freeze: {pattern!r} matches no parameter; the nearest: "
                    f"{', '.join(_nearest(pattern, list(parameters)))}"
                )
        self.names = {n for n in parameters if any(fnmatchcase(n, p) for p in patterns)}
        for name in self.names:
            parameters[name].trainable = False
        if self.names and not any(p.trainable for p in parameters.values()):
            raise UserError(f"{where}: freeze: every parameter is frozen; leave some to train")
        self._norms = [n for n in norms if {f"{n}.weight", f"{n}.bias"} <= self.names]
        self.names = self.names.union(*(statistics[name] for name in self._norms))
        values = {name: int(np.prod(p.shape)) for name, p in parameters.items()}
        still = self.names & values.keys()
        self.line = "" if not patterns else (
            f"freeze: {len(still)} of {len(values)} parameters are not trained "
            f"({sum(values[n] for n in still) / 1e6:.2f} of {sum(values.values()) / 1e6:.2f} M "
            f"values); {len(self._norms)} BatchNorm layers keep their statistics"
        )  # fmt: skip

    def keep_statistics(self, model: paddle.nn.Layer) -> None:
        """Set the frozen BatchNorm layers back to evaluation mode after `model.train()`."""
        for prefix, layer in model.named_sublayers() if self._norms else ():
            if prefix in self._norms:
                layer.training = False


def _nearest(pattern: str, names: list[str]) -> list[str]:
    """Names of parameters, and patterns for all parameters of a part, that are similar."""
    parts = {".".join(name.split(".")[:k]) + ".*" for name in names for k in (1, 2, 3)}
    return get_close_matches(pattern, sorted({*names, *parts}), n=3, cutoff=0.3) or names[:3]
