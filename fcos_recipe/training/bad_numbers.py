"""Detect NaN and Inf before a step is applied; warn of losses that explode or train on no box."""

import statistics
from collections import deque

import numpy as np
import paddle
from paddle.nn.layer.norm import _BatchNormBase

from fcos_recipe.checkpoint import storage
from fcos_recipe.console import log
from fcos_recipe.errors import RunFailure
from fcos_recipe.evaluation.collectives import gather
from fcos_recipe.files.atomic import own_folder, write_json
from fcos_recipe.training.resume import scaler_state

FOLDER = "bad_steps"
# The loss of FCOS is 2 to 5 before the first step and then falls.
START, MOST_AT_START = "2 to 5", 1000.0
EXPLODED = 10.0  # warn above this multiple of the first step's loss
WITHOUT_BOXES = 50  # warn after so many batches, or an epoch, without a positive location


class Guard:
    """Checks losses and gradients of one run.

    Args:
        trainer: the Trainer, built for training.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.rules = trainer.config.data["bad_numbers"]
        self._one = paddle.ones([1])
        self._buffers: list[tuple] = []
        self._losses: deque[float] = deque(maxlen=50)  # of the last log lines
        self._first: float | None = None  # loss of the first step of this process
        self._without_boxes = 0  # batches
        self._told: set[str] = set()
        if not trainer.dataset.box_count:
            self._tell("boxes", f"none of the {len(trainer.dataset)} training images has a box: "
                       "the run only learns that there is nothing")  # fmt: skip

    def before_step(self) -> None:
        """Copy the statistics that a forward pass changes; policy `skip` restores them."""
        if self.rules["policy"] == "skip":
            self._buffers = [
                (value, value.clone())
                for layer in self.trainer.model.sublayers()
                if isinstance(layer, _BatchNormBase) and layer.training
                if not layer._use_global_stats
                for value in (layer._mean, layer._variance)
            ]

    @paddle.no_grad()
    def finite(self, window) -> paddle.Tensor:
        """Whether losses and gradients of the current step are finite: bool tensor on the device.

        GradScaler's operator checks all gradients at once; it divides them by 1, which changes no
        bit. If GradScaler is in use, it checks the gradients itself, skips the step and lowers the
        loss scale.
        """
        if self.trainer.scaler.is_enable():
            return window.finite
        kinds: dict = {}
        for parameter in self.trainer.model.parameters():
            if (gradient := parameter.grad) is not None:
                kinds.setdefault(gradient.dtype, []).append(gradient)
        good = window.finite
        for gradients in kinds.values():
            bad = paddle._C_ops.check_finite_and_unscale_(gradients, self._one)[1]
            good = paddle.logical_and(good, paddle.logical_not(bad))
        return good

    def refuse(self, window) -> bool:
        """Apply `bad_numbers.policy` to a step with NaN or Inf; every rank must call this.

        Args:
            window: has the step's losses and image ids.

        Returns:
            True: the step is skipped. False: the trainer was rolled back.

        Raises:
            RunFailure: the policy is `stop`, or `max_skips` is reached.
        """
        trainer, at = self.trainer, self.trainer.progress
        loss_is_bad = min(gather(bool(window.finite))) is False
        what = "the loss is" if loss_is_bad else "the gradients are"
        rate = trainer.optimizer.get_lr()
        ids = gather(window.ids())
        report = self._dump(window, ids, what.split()[1])
        gather(None)  # wait until the report is written
        place = f"epoch {at.epoch + 1} step {at.step + 1}: {what} not finite"
        policy = self.rules["policy"]
        if policy == "stop" or at.bad_steps >= self.rules["max_skips"]:
            often = f"; {at.bad_steps} earlier steps were not finite" if at.bad_steps else ""
            raise RunFailure(
                f"{place}; the step was not applied and nothing was saved{often}. LR {rate:.3g}, "
                f"image ids {ids}{report}. Lower the LR or lengthen the warm-up, and check these "
                "images' boxes"
            )
        trainer.optimizer.clear_grad(set_to_zero=False)
        if policy == "skip":
            for buffer, copy in self._buffers:
                buffer.set_value(copy)
            at.bad_steps += 1
            log.warning("%s: skipped (%d of %d)%s", place, at.bad_steps, self.rules["max_skips"],
                        report)  # fmt: skip
        else:
            trainer.roll_back(self.rules["lr_factor"])
            log.warning(
                "%s: back to epoch %d step %d with LR x %g (%d of %d)%s", place, at.epoch + 1,
                trainer.progress.step, trainer.progress.lr_factor, trainer.progress.bad_steps,
                self.rules["max_skips"], report,
            )  # fmt: skip
        trainer.run.record(
            kind="bad_step", epoch=trainer.progress.epoch + 1, step=trainer.progress.steps_done,
            policy=policy, what=what.split()[1], lr=rate,
        )  # fmt: skip
        return policy == "skip"

    def _dump(self, window, ids: list, what: str) -> str:
        """Write RUN_DIR/bad_steps/EPOCH-STEP.json on rank 0; return text that names the file."""
        trainer, at = self.trainer, self.trainer.progress
        losses = gather(window.last_losses())
        if not trainer.run.writer:
            return ""
        path = trainer.run.path / FOLDER / f"{at.epoch:04d}-{at.step + 1:06d}.json"
        content = {
            "epoch": at.epoch + 1, "step": at.step + 1, "steps_done": at.steps_done, "what": what,
            "lr": trainer.optimizer.get_lr(), "scaler": scaler_state(trainer.scaler),
            "image_ids": ids, "losses": losses, "layers": self._layers(),
        }  # fmt: skip
        try:
            own_folder(path.parent)
            write_json(path, content)
        except OSError as error:
            log.warning("%s: %s", path, storage.reason(error))
            return ""
        return f"; {path} has figures of every layer"

    def _layers(self) -> dict:
        """Largest absolute finite value and count of NaN and Inf of each weight and gradient."""

        def facts(tensor) -> dict:
            values = tensor.astype("float32").numpy()
            finite = np.isfinite(values)
            return {
                "max": float(np.abs(values[finite]).max(initial=0)),
                "not_finite": int(values.size - finite.sum()),
            }

        return {
            name: {
                "weight": facts(parameter),
                **({} if parameter.grad is None else {"gradient": facts(parameter.grad)}),
            }
            for name, parameter in self.trainer.model.named_parameters()
        }

    def logged(self, losses: dict, each: dict[str, np.ndarray], rate: float) -> None:
        """Check the losses of a log line; warn once of each thing that is wrong with them.

        Args:
            losses: their means.
            each: those of every batch, float32 [batches].
            rate: the LR.

        Raises:
            RunFailure: the loss scale is so low that no step is applied any more.
        """
        loss, limit = losses["loss"], self.rules["diverged"]
        if self._first is None:
            self._first = float(each["loss"][0])
        usual = statistics.median(self._losses) if len(self._losses) >= 5 else float("inf")
        known = self._first < MOST_AT_START
        against = ""
        if loss > EXPLODED * (self._first if known else MOST_AT_START):
            against = f"usual is {START} in the first steps" + (
                f", and it was {self._first:.4g} in the first one" if known else "")  # fmt: skip
        elif loss > limit * usual:
            against = f"over {limit:g} times its running median of {usual:.4g}"
        if limit > 0 and against:
            self._tell(
                "exploded",
                f"the loss is {loss:.4g}; {against}: the run is diverging at LR {rate:.3g}. "
                "Stop it and lower LearningRate.base_lr, lengthen the warm-up, or set "
                "OptimizerBuilder.clip_grad_by_norm",
            )
        self._losses.append(loss)
        self._count_boxes(each)
        scaler = self.trainer.scaler
        if scaler.is_enable() and scaler_state(scaler)["scale"] < 1:
            raise RunFailure(
                "amp: the loss scale has fallen below 1: gradients overflow at every step and none "
                "is applied; use amp_dtype: bfloat16, a lower LR, or train without --amp"
            )

    def _count_boxes(self, each: dict[str, np.ndarray]) -> None:
        """Without a positive location FCOSLoss has no loss of boxes and none of their quality."""
        if not {"loss_box", "loss_quality"} <= each.keys():
            return  # a loss of the user's
        trained = np.flatnonzero(each["loss_box"] + each["loss_quality"])
        batches = len(each["loss"])
        self._without_boxes = batches - 1 - trained[-1] if len(trained) else (
            self._without_boxes + batches)  # fmt: skip
        if self._without_boxes >= min(WITHOUT_BOXES, len(self.trainer.loader)):
            self._tell(
                "boxes",
                f"no box was trained on in the last {self._without_boxes} batches (loss_box and "
                "loss_quality are 0): none lies in the ranges of Gt2FCOSTarget, or TrainReader's "
                "transforms remove them; `python tools/dataset.py browse --network-input -c "
                f"{self.trainer.config.path} --output FILE.html` shows which and why",
            )

    def _tell(self, kind: str, text: str) -> None:
        if kind not in self._told:
            at = self.trainer.progress
            log.warning("warning: epoch %d step %d: %s", at.epoch + 1, at.step, text)
            self._told.add(kind)
