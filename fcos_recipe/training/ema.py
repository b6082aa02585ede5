"""PaddleDetection's exponential moving average of the weights, with complete state."""

from collections.abc import Iterator
from contextlib import contextmanager

from fcos_recipe import compat
from fcos_recipe.checkpoint import weights

compat.import_ppdet()
from ppdet.optimizer import ModelEMA  # noqa: E402


class Average(ModelEMA):
    """A ModelEMA whose `apply` has no side effects.

    PaddleDetection's `apply` counts its calls as epochs, so that with mid-epoch checkpoints the
    average would restart too early. Here `begin_epoch` restarts it.

    Args:
        model: the model being trained.
        data: values of a resolved config.
        frozen: names in the model's state dict that are left out of the average.
    """

    def __init__(self, model, data: dict, frozen: set[str]):
        super().__init__(
            model,
            data["ema_decay"],
            data["ema_decay_type"],
            -1,
            data["ema_black_list"],
        )
        self._every, self._model = data["cycle_epoch"], model
        if data["ema_filter_no_grad"]:  # fails in PaddleDetection: an error, or an average of zeros
            frozen = frozen | {n for n, p in model.named_parameters() if p.stop_gradient}
        self.ema_black_list |= frozen
        self.state_dict.update({n: v for n, v in model.state_dict().items() if n in frozen})

    def apply(self) -> dict:
        """Return the bias-corrected average, names to tensors; without average the model's tensor.

        PaddleDetection's method disables the gradients of the latter, which would then no longer be
        trained after the first save or evaluation.
        """
        own = [v for k, v in self.state_dict.items() if k in self.ema_black_list]
        frozen = [value.stop_gradient for value in own]
        averaged = super().apply()
        for value, was in zip(own, frozen):
            value.stop_gradient = was
        return averaged

    def begin_epoch(self, epoch: int) -> None:
        """Restart the average every `cycle_epoch` epochs.

        Args:
            epoch: number of finished epochs.
        """
        if self._every > 0 and epoch and epoch % self._every == 0:
            self.reset()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averaged weights in the model inside this context."""
        trained = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.set_state_dict(self.apply())
        try:
            yield
        finally:
            self._model.set_state_dict(trained)

    def counters(self) -> dict:
        """State of the average besides its arrays; JSON."""
        return {"step": self.step, "decay": getattr(self, "_decay", None)}

    def restore(self, arrays: dict, counters: dict) -> None:
        """Restore a saved average.

        Args:
            arrays: names to np.ndarray, before bias correction.
            counters: from `counters`; `decay` may be missing.
        """
        own = {k: v for k, v in arrays.items() if k not in self.ema_black_list}
        self.resume({k: weights.tensor(v) for k, v in own.items()}, counters["step"])
        self._decay = counters.get("decay") or self.decay
