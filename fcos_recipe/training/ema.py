"""The exponential moving average of the weights: PaddleDetection's, with its state made whole."""

from collections.abc import Iterator
from contextlib import contextmanager

from fcos_recipe import compat
from fcos_recipe.checkpoint import weights

compat.import_ppdet()
from ppdet.optimizer import ModelEMA  # noqa: E402


class Average(ModelEMA):
    """ModelEMA whose weights can be looked at without side effects.

    Stock's `apply` counts its own calls as epochs: with saves inside an epoch the average would
    start anew too early. Here `begin_epoch` does that.

    Args:
        model: the model that is trained.
        data: a resolved config.
    """

    def __init__(self, model, data: dict):
        super().__init__(
            model,
            data["ema_decay"],
            data["ema_decay_type"],
            -1,
            data["ema_black_list"],
        )
        self._every, self._model = data["cycle_epoch"], model
        if data["ema_filter_no_grad"]:  # stock's own way ends in an error, its average in zeros
            for name, parameter in model.named_parameters():
                if parameter.stop_gradient:
                    self.ema_black_list.add(name)
                    self.state_dict[name] = parameter

    def apply(self) -> dict:
        """The average without its bias: names to tensors; those not averaged are the model's own.

        Stock's switches off the gradients of the latter: they would stop to learn at the first
        save or evaluation.
        """
        own = [v for k, v in self.state_dict.items() if k in self.ema_black_list]
        frozen = [value.stop_gradient for value in own]
        averaged = super().apply()
        for value, was in zip(own, frozen):
            value.stop_gradient = was
        return averaged

    def begin_epoch(self, epoch: int) -> None:
        """Start the average anew every `cycle_epoch` epochs.

        Args:
            epoch: number of finished epochs.
        """
        if self._every > 0 and epoch and epoch % self._every == 0:
            self.reset()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights are in the model for as long as the block lasts."""
        trained = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.set_state_dict(self.apply())
        try:
            yield
        finally:
            self._model.set_state_dict(trained)

    def facts(self) -> dict:
        """What belongs to the average besides its arrays; JSON."""
        return {"step": self.step, "decay": getattr(self, "_decay", None)}

    def restore(self, arrays: dict, facts: dict) -> None:
        """Go on from an average.

        Args:
            arrays: names to np.ndarray, before the bias is corrected.
            facts: of `facts`; `decay` may be missing.
        """
        own = {k: v for k, v in arrays.items() if k not in self.ema_black_list}
        self.resume({k: weights.tensor(v) for k, v in own.items()}, facts["step"])
        self._decay = facts.get("decay") or self.decay
