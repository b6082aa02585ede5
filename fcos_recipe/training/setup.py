"""Build the parts of a training run with PaddleDetection's builders."""

import json
from pathlib import Path
from typing import Any

import paddle

from fcos_recipe import compat
from fcos_recipe.checkpoint import weights
from fcos_recipe.compat import create
from fcos_recipe.config import Config, scaling
from fcos_recipe.console import log
from fcos_recipe.errors import UserError
from fcos_recipe.evaluation.collectives import join_ranks
from fcos_recipe.model import build
from fcos_recipe.system.watchdog import Watchdog
from fcos_recipe.training import resume
from fcos_recipe.training.ema import Average
from fcos_recipe.training.freeze import Frozen


class Setup:
    """Model, data, optimizer and LR schedule of a run.

    It replaces the set-up of PaddleDetection's Trainer, which computes the LR before the number of
    cards is known and also supports tracking, pruning and other models.

    Args:
        config: from `load_config`.
        device: cpu, gpu or iluvatar_gpu; Paddle is already set to it.
        watchdog: to report progress to. None: the process also does other work, as in a notebook;
            it is then never ended, and no progress bar is drawn.

    Raises:
        UserError: data, weights and config do not match.
    """

    def __init__(self, config: Config, device: str, watchdog: Watchdog | None = None):
        self.config, self.device = config, device
        self._local_rank, self._nranks = join_ranks()
        data = config.data
        self.own_process, self.watchdog = watchdog is not None, watchdog or Watchdog()
        self.cfg = build.prepare(config, device, self._nranks, train=True)
        self.dataset = create("TrainDataset")()
        self.loader = create("TrainReader")(self.dataset, data["worker_num"])
        if not len(self.loader):
            raise UserError(
                f"{self.dataset.get_anno()}: {len(self.dataset)} images are fewer than the "
                f"{self._nranks} cards x batch_size {self.loader.batch_size} of one step; "
                "lower TrainReader.batch_size"
            )
        self._check_normalization()
        self.model = build.build_model(self.cfg)
        self.frozen = Frozen(self.model, config)
        self.use_amp, self.autocast = build.autocast(data, device)
        # bfloat16 has the range of float32 and needs no loss scaling
        self.scaler = compat.grad_scaler(
            enable=self.use_amp and data["amp_dtype"] == "float16",
            init_loss_scaling=data["init_loss_scaling"],
        )
        self.progress = resume.Progress()
        self._resumed_from: Path | None = None
        self._cut_window: Any = None
        self._init_schedule()

    def _check_normalization(self) -> None:
        """Check that training and prediction use the same mean and standard deviation."""
        usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}
        found = [
            next(({**usual, **(t["NormalizeImage"] or {})}
                  for t in self.cfg[f"{part}Reader"]["sample_transforms"]
                  if "NormalizeImage" in t), None)
            for part in ("Train", "Test")
        ]  # fmt: skip
        if found[0] is not None and found[0] != found[1]:
            raise UserError(
                f"{self.config.path}: TrainReader's NormalizeImage {found[0]} differs from "
                f"TestReader's {found[1]}; make them equal"
            )

    def _init_schedule(self) -> None:
        data = self.config.data
        self.accumulate = data["accumulate"]
        self.steps_per_epoch = len(self.loader) // self.accumulate
        if not self.steps_per_epoch:
            raise UserError(
                f"accumulate: {self.accumulate} is more than the {len(self.loader)} batches of an "
                "epoch; lower it"
            )
        self.plan = scaling.plan_scaling(self.config, self._nranks, self.loader.sampler.length)
        self.optimizer: Any = None
        self.set_schedule(1.0)
        kind = self.cfg["OptimizerBuilder"]["optimizer"]
        if kind["type"] == "Momentum" and "param_groups" not in kind:
            kind.setdefault("use_multi_tensor", True)  # one operator for all weights, same result
        self.optimizer = create("OptimizerBuilder")(self.lr, self.model)
        if data.get("norm_type") == "sync_bn" and self._nranks > 1:
            if self.device == "cpu":
                log.warning("norm_type: bn is used, Paddle does not support sync_bn on the CPU")
            else:
                self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if self.use_amp and data["amp_level"] == "O2":
            self.model, self.optimizer = paddle.amp.decorate(
                models=self.model, optimizers=self.optimizer, level="O2", dtype=data["amp_dtype"]
            )
        self.ema = Average(self.model, data, self.frozen.names) if data["use_ema"] else None

    def set_schedule(self, factor: float) -> None:
        """Create a new LR schedule with all LRs multiplied by a factor."""
        self.cfg = build.registry(self.config)
        self._schedule = json.loads(json.dumps(self.plan.learning_rate))
        self._schedule["base_lr"] *= factor
        for part in self._schedule["schedulers"]:
            if part.get("values"):
                part["values"] = [value * factor for value in part["values"]]
        self.cfg["LearningRate"].update(self._schedule)
        self.lr = create("LearningRate")(self.steps_per_epoch)
        if self.optimizer:
            compat.set_lr_scheduler(self.optimizer, self.lr)

    def schedule(self) -> dict:
        """Return the values that determine the LR of every step; JSON."""
        return {"steps_per_epoch": self.steps_per_epoch, **self._schedule}

    @property
    def rank(self) -> int:
        """This process's rank; rank 0 writes the run directory."""
        return self._local_rank

    def compile(self) -> None:
        """Compile backbone and neck to one static graph each."""
        for part in ("backbone", "neck"):
            setattr(self.model, part, paddle.jit.to_static(getattr(self.model, part)))

    # ---- weights ---------------------------------------------------------------------------

    def load_weights(self, source: str) -> None:
        """Load weights by name and log which entries were loaded.

        Args:
            source: path or URL.
        """
        log.info("weights: %s: %s", source, weights.load(self.model, source))
        trained_on = weights.description(weights.resolve(source)).get("class_names")
        weights.compare_classes(trained_on, self.dataset.class_names)

    def resume_weights(self, source: str, force: bool = False) -> None:
        """Continue from a checkpoint of this recipe or from PaddleDetection's .pdparams/.pdopt.

        Args:
            source: checkpoint folder, run directory, or a file's path with or without its ending.
            force: continue even if the config changes what the steps compute.

        Raises:
            UserError: there is no checkpoint, it is damaged, or it belongs to another config.
        """
        path, state = resume.find(source)
        if "settings" in state:
            for line in resume.compare(state, self.config, force):
                log.warning("%s", line)
        before, now = state.get("threads"), resume.threads(self.device)
        if before and now and before != now:
            log.warning("resume: the number of math threads changed from %d to %d: results will "
                        "differ in the last bits", before, now)  # fmt: skip
        resume.restore(self, path, state)
        self._resumed_from, self._cut_window = path, state.get("window")
        at = self.progress
        log.info("resume: %s, %d epochs and %d steps done%s", path, at.epoch, at.step,
                 f", best AP {at.best['AP']:.3f}" if at.best["epoch"] else "")  # fmt: skip

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of an epoch; with `group_by_aspect` epochs may differ by one step."""
        return self.loader.sampler.steps(epoch) // self.accumulate

    def steps_before(self, epoch: int) -> int:
        """Optimizer steps of all earlier epochs."""
        return sum(self.steps_in(k) for k in range(epoch))
