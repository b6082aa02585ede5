"""The training run: PaddleDetection's builders, one readable loop."""

import contextlib
import functools
import logging
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from tqdm import tqdm

from fcos_recipe import compat
from fcos_recipe.compat import create
from fcos_recipe.config import Config, scaling
from fcos_recipe.config.commands import resolved
from fcos_recipe.engine import checkpoint, weights
from fcos_recipe.engine.analysis import finish_evaluation
from fcos_recipe.engine.coco_metric import table
from fcos_recipe.engine.distributed import all_true, gather, start
from fcos_recipe.engine.evaluate import build_loader, evaluate
from fcos_recipe.engine.meter import Window, hms, memory_mib, timed
from fcos_recipe.engine.run_dir import CONFIG, ENVIRONMENT, RunDir, environment, log, to_console
from fcos_recipe.errors import RunFailure, UserError
from fcos_recipe.runtime.device import amp_supported
from fcos_recipe.runtime.watchdog import Watchdog

compat.import_ppdet()
import ppdet.engine  # noqa: E402
from ppdet.optimizer import ModelEMA  # noqa: E402


class Trainer(ppdet.engine.Trainer):
    """PaddleDetection's Trainer with its data sets, readers, model, optimizer and LR builders.

    It does not call stock's constructor, which also builds for tracking, pruning and other
    models, and which fixes the LR before the number of cards is known.

    Args:
        config: from `load_config`.
        mode: "train" or "eval".
        device: as `runtime.device.resolve` gives it; Paddle is already set to it.
        watchdog: is told of progress.

    Raises:
        UserError: data, weights and config that do not go together.
    """

    def __init__(self, config: Config, mode: str, device: str, watchdog: Watchdog | None = None):
        self.config, self.mode, self.device = config, mode, device
        self._local_rank, self._nranks = start()
        to_console(self._local_rank)
        data = config.data
        self.watchdog = watchdog or Watchdog()
        self.cfg = compat.workspace(config.stock_data())
        paddle.seed(data["seed"])
        if any(data["autotune"].values()):
            paddle.incubate.autotune.set_config(
                {kind: {"enable": on} for kind, on in data["autotune"].items()}
            )
        # Optimizer states are stored by parameter names, which Paddle numbers per process.
        paddle.utils.unique_name.switch()
        if mode == "train":
            self.dataset = self.cfg["TrainDataset"] = create("TrainDataset")()
            self.loader = create("TrainReader")(self.dataset, data["worker_num"])
            if not len(self.loader):
                raise UserError(
                    f"{self.dataset.get_anno()}: {len(self.dataset)} images are fewer than the "
                    f"{self._nranks} cards x batch_size {self.loader.batch_size} of one step; "
                    "lower TrainReader.batch_size"
                )
            self._check_normalization()
        self.model = create(self.cfg["architecture"])
        self.model.load_meanstd(self.cfg["TestReader"]["sample_transforms"])
        self._init_amp()
        self.start_epoch, self.steps_done, self.history = 0, 0, []
        self.best = {"AP": -1.0, "epoch": 0}
        if mode == "train":
            self._init_schedule()

    def _check_normalization(self) -> None:
        """The model normalises, with one mean and deviation for training and prediction."""
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

    def _init_amp(self) -> None:
        data = self.config.data
        self.use_amp = data["amp"] and amp_supported(self.device, data["amp_dtype"])
        if data["amp"] and not self.use_amp:
            log.warning(
                "amp: off, Paddle has no automatic mixed precision in %s on %s",
                data["amp_dtype"], self.device,
            )  # fmt: skip
        self.autocast = functools.partial(
            paddle.amp.auto_cast,
            enable=self.use_amp,
            level=data["amp_level"],
            dtype=data["amp_dtype"],
            custom_white_list=data["custom_white_list"],
            custom_black_list=data["custom_black_list"],
        )
        # bfloat16 has float32's range: nothing to scale
        self.scaler = paddle.amp.GradScaler(
            enable=self.use_amp and data["amp_dtype"] == "float16",
            init_loss_scaling=data["init_loss_scaling"],
        )

    def _init_schedule(self) -> None:
        data = self.config.data
        self.accumulate = data["accumulate"]
        self.steps_per_epoch = len(self.loader) // self.accumulate
        if not self.steps_per_epoch:
            raise UserError(
                f"accumulate: {self.accumulate} steps are more than the {len(self.loader)} of an "
                "epoch; lower it"
            )
        self.plan = scaling.plan(self.config, self._nranks, len(self.dataset))
        self.cfg["LearningRate"].update(self.plan.learning_rate)
        self.lr = create("LearningRate")(self.steps_per_epoch)
        self.optimizer = create("OptimizerBuilder")(self.lr, self.model)
        if data.get("norm_type") == "sync_bn" and self._nranks > 1:
            if self.device == "cpu":
                log.warning("norm_type: sync_bn is plain bn here, Paddle has none on the CPU")
            else:
                self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        if self.use_amp and data["amp_level"] == "O2":
            self.model, self.optimizer = paddle.amp.decorate(
                models=self.model, optimizers=self.optimizer, level="O2", dtype=data["amp_dtype"]
            )
        self.ema = None
        if data["use_ema"]:
            self.ema = ModelEMA(
                self.model,
                data["ema_decay"],
                data["ema_decay_type"],
                data["cycle_epoch"],
                data["ema_black_list"],
                data["ema_filter_no_grad"],
            )

    @property
    def rank(self) -> int:
        """This process's number, 0 for the one that writes."""
        return self._local_rank

    @property
    def metric(self):
        """The last evaluation's `CocoMetric`, whole on rank 0."""
        return self._judge[1]

    def compile(self) -> None:
        """Let Paddle compile backbone and neck into one static graph each."""
        for part in ("backbone", "neck"):
            setattr(self.model, part, paddle.jit.to_static(getattr(self.model, part)))

    # ---- weights ---------------------------------------------------------------------------

    def load_weights(self, source: str, exact: bool = False) -> None:
        """Load weights by name and print what became of them.

        Args:
            source: path or URL.
            exact: every parameter must be set, as for evaluation.
        """
        log.info("weights: %s: %s", source, weights.load(self.model, source, exact))

    def resume_weights(self, source: str) -> None:
        """Go on from a checkpoint of this recipe or from PaddleDetection's .pdparams/.pdopt.

        Args:
            source: checkpoint folder, run directory, or a file's path with or without its ending.
        """
        path, state = Path(source), {}
        if (path / "checkpoints").is_dir():
            path, rejected = checkpoint.newest(path / "checkpoints")
            for line in rejected:
                log.warning("rejected: %s", line)
            if path is None:
                raise UserError(f"--resume {source}: no intact checkpoint in it")
        if (path / checkpoint.STATE).is_file():
            state = checkpoint.read_state(path)
            path = path / "model.pdparams"
        path = weights.resolve(str(path))
        trained = path.with_suffix(".pdema")
        if self.ema and trained.is_file():
            average = path.with_name("average.pdema")
            average = weights.read(average if average.is_file() else path)
            self.ema.resume({name: paddle.to_tensor(value) for name, value in average.items()})
            weights.load(self.model, str(trained), exact=True)
        else:
            weights.load(self.model, str(path), exact=True)
        if not path.with_suffix(".pdopt").is_file():
            raise UserError(
                f"--resume {source}: {path.with_suffix('.pdopt').name} is missing beside the "
                "weights, so there is no epoch to go on from; to start from these weights use "
                f"-o pretrain_weights={source}"
            )
        saved = weights.read(path.with_suffix(".pdopt"))
        self.start_epoch = int(saved.pop("last_epoch", 0))
        for name, value in self.optimizer.state_dict().items():
            saved.setdefault(name, value)
        if state.get("steps_per_epoch", self.steps_per_epoch) != self.steps_per_epoch:
            # another number of cards or images: epochs go on, steps are counted anew
            log.warning(
                "resume: %s steps per epoch became %s; LR follows the epochs",
                state["steps_per_epoch"], self.steps_per_epoch,
            )  # fmt: skip
        self.optimizer.set_state_dict(saved)
        self.steps_done = self._steps_before(self.start_epoch)
        self.lr.step(self.steps_done)
        if self.ema:
            self.ema.step = self.steps_done
        if "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])
        self.best, self.history = state.get("best", self.best), state.get("history", [])
        log.info("resume: %s, %d epochs done, best AP %.3f", path, self.start_epoch,
                 self.best["AP"])  # fmt: skip

    def _steps_before(self, epoch: int) -> int:
        """Optimizer steps of the epochs before this one."""
        steps = self.loader.sampler.steps
        return sum(steps(k) // self.accumulate for k in range(epoch))

    # ---- training --------------------------------------------------------------------------

    def train(self, run: RunDir, validate: bool = False) -> None:
        """Train to the config's last epoch.

        Args:
            run: where results go.
            validate: evaluate every `eval_interval` epochs and after the last.

        Raises:
            RunFailure: the loss is not finite.
        """
        data, self.run = self.config.data, run
        self._begin(validate)
        model = self.model
        if self._nranks > 1:
            model = paddle.DataParallel(
                model,
                comm_buffer_size=data["comm_buffer_mb"],
                find_unused_parameters=data["find_unused_parameters"],
            )
        patience = data["early_stop"]["patience"]
        if self.start_epoch >= data["epoch"]:
            log.warning("nothing to do: %d of %d epochs are done", self.start_epoch, data["epoch"])
        for epoch in range(self.start_epoch, data["epoch"]):
            last = epoch + 1 == data["epoch"]
            self._train_epoch(model, epoch)
            stop = False
            if validate and (last or (epoch + 1) % data["eval_interval"] == 0):
                self._validate(epoch + 1)
                since = [row for row in self.history if row["epoch"] > self.best["epoch"]]
                stop = 0 < patience <= len(since)
            if last or stop or (epoch + 1) % data["snapshot_epoch"] == 0:
                self._save(epoch + 1)
            if stop:
                log.info("early stop: no gain over AP %.4f of epoch %d in %d evaluations",
                         self.best["AP"], self.best["epoch"], patience)  # fmt: skip
                break
        if self.loader.bad_images:
            log.warning(
                "%d images could not be read and were skipped: %s",
                len(self.loader.bad_images), ", ".join(self.loader.bad_images),
            )  # fmt: skip
        if run.writer:
            with self._averaged() as state:
                checkpoint.save_weights(run.path / "model_final.pdparams", state, self._facts())
            if self.history:
                with self.watchdog.phase("eval"):
                    for line in finish_evaluation(self.metric, run.path):
                        log.info("%s", line)
            log.info("done: %s", run.path)
        if self._nranks > 1:
            dist.barrier()  # nobody leaves while rank 0 still writes

    def _begin(self, validate: bool) -> None:
        run, data = self.run, self.config.data
        if run.writer:
            (run.path / CONFIG).write_text(resolved(self.config))
            checkpoint.write_json(run.path / ENVIRONMENT, environment(self.device))
        run.forget_after(self.start_epoch)
        for line in self.plan.lines:
            log.info(line)
        for line in self.config.warnings + self.plan.warnings:
            log.warning("warning: %s", line)
        log.info("run directory: %s", run.path)
        if validate:
            self._judge = build_loader(self.cfg, self._local_rank, self._nranks)
            self._check_classes(list(self.metric.categories.values()))
        parameters = sum(int(np.prod(p.shape)) for p in self.model.parameters())
        log.info("model: %.2f M parameters on %s, %d images", parameters / 1e6, self.device,
                 len(self.dataset))  # fmt: skip
        self._log_iter = data["log_iter"]

    def _check_classes(self, names: list[str]) -> None:
        """Classes are numbered by each file's order of categories: the orders must agree."""
        if names != self.dataset.class_names:
            pair = next(
                ((a, b) for a, b in zip(self.dataset.class_names, names) if a != b),
                (f"{len(self.dataset.class_names)} classes", f"{len(names)}"),
            )
            raise UserError(
                f"{self.metric.source}: categories: not those of {self.dataset.get_anno()} in the "
                f"same order ({pair[0]} there, {pair[1]} here); make both lists equal"
            )

    def _train_epoch(self, model, epoch: int) -> None:
        model.train()
        self.loader.set_epoch(epoch)
        steps = len(self.loader) // self.accumulate  # grouped batches: may differ by one
        window = Window()
        bar = self._bar(epoch, steps)
        for step, (data_time, batch) in enumerate(timed(self.loader)):
            if step >= steps * self.accumulate:
                break  # an incomplete accumulation would be a step of another size
            update = (step + 1) % self.accumulate == 0
            losses = self._backward(model, batch, synchronise=update)
            window.add(losses, batch, data_time)
            if not update:
                continue
            if not all_true(window.finite):
                self._refuse_step(epoch, step, batch)
            rate = self.optimizer.get_lr()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.clear_grad(set_to_zero=False)  # freed, not filled with zeros
            self.lr.step()
            if self.ema:
                self.ema.update()
            self.steps_done += 1
            window.finite = None
            self.watchdog.beat(self.steps_done)
            done = (step + 1) // self.accumulate
            bar.update()
            if done % self._log_iter == 0 or done == steps:
                self._log_step(window, epoch, done, rate, bar)
                window = Window()
        bar.close()

    def _bar(self, epoch: int, steps: int) -> tqdm:
        """Progress of an epoch; shown on a terminal only, where it takes the lines' place."""
        return tqdm(
            total=steps,
            desc=f"epoch {epoch + 1}/{self.config.data['epoch']}",
            disable=self.rank > 0 or not sys.stdout.isatty(),
            unit="step",
            dynamic_ncols=True,
            file=sys.stdout,
        )

    def _backward(self, model, batch: dict, synchronise: bool) -> dict:
        """Forward and backward of one batch; gradients are averaged over ranks on the last."""
        parallel = isinstance(model, paddle.DataParallel)
        local = model.no_sync() if parallel and not synchronise else contextlib.nullcontext()
        with local:
            with self.autocast():
                losses = model(batch)
            loss = losses["loss"]
            if self.accumulate > 1:
                loss = loss / self.accumulate
            self.scaler.scale(loss).backward()
        return losses

    def _refuse_step(self, epoch: int, step: int, batch: dict) -> None:
        ids = gather(batch["im_id"].numpy().reshape(-1).tolist())
        raise RunFailure(
            f"epoch {epoch + 1} step {step + 1}: the loss is not finite; nothing was applied or "
            f"saved. LR {self.optimizer.get_lr():.3g}, image ids {ids}. Lower the LR or lengthen "
            "the warm-up, and check these images' boxes"
        )

    def _log_step(self, window: Window, epoch: int, done: int, rate: float, bar: tqdm) -> None:
        seconds = time.perf_counter() - window.start
        losses = window.means()
        per_card = window.images / seconds
        record = {
            "kind": "train", "epoch": epoch + 1, "step": self.steps_done, "lr": rate, **losses,
            "images_per_second_per_card": round(per_card, 3),
            "images_per_second": round(per_card * self._nranks, 3),
            "data_time": round(window.data_time / window.batches, 4),
            "memory_mib": memory_mib(self.device),
        }  # fmt: skip
        self.run.record(**record)
        left = (self.config.data["epoch"] * self.steps_per_epoch - self.steps_done) * (
            seconds * self.accumulate / window.batches
        )
        bar.set_postfix(
            loss=f"{losses['loss']:.3f}", lr=f"{rate:.2g}", images_per_s=f"{per_card:.1f}",
            run_ETA=hms(left),
        )  # fmt: skip
        log.log(
            logging.INFO if bar.disable else logging.DEBUG,
            "epoch %d/%d step %d/%d lr %.5f %s | %.2f images/s per card, %.2f total | data %.3f s "
            "| ETA %s", epoch + 1, self.config.data["epoch"], done, bar.total, rate,
            " ".join(f"{k} {v:.4f}" for k, v in losses.items()), per_card,
            per_card * self._nranks, record["data_time"], hms(left),
        )  # fmt: skip

    # ---- evaluation ------------------------------------------------------------------------

    def evaluate(self, **judging) -> dict:
        """Evaluate the loaded weights on EvalDataset, on all ranks.

        Args:
            judging: `score_threshold`, `max_dets` of `CocoMetric`.

        Returns:
            as `engine.evaluate.evaluate`.
        """
        self._judge = build_loader(self.cfg, self._local_rank, self._nranks, **judging)
        with self.watchdog.phase("eval"):
            return self._figures()

    def _figures(self) -> dict:
        return evaluate(self.model, *self._judge, self.autocast, self.watchdog.beat)

    def _validate(self, epoch: int) -> None:
        with self.watchdog.phase("eval"), self._averaged():
            result = self._figures()
            ap = result["stats"][0]
            improved = ap > self.best["AP"] + self.config.data["early_stop"]["min_delta"]
            if improved:
                self.best = {"AP": ap, "epoch": epoch}
            self.history.append({"epoch": epoch, "AP": ap})
            if self.run.writer:
                if improved:
                    path = self.run.path / "best_model.pdparams"
                    checkpoint.save_weights(path, self.model.state_dict(), self._facts(ap))
                checkpoint.write_json(self.run.path / "eval.json", {"epoch": epoch, **result})
        figures = dict(zip(result["names"], result["stats"]))
        self.run.record(
            kind="eval", epoch=epoch, step=self.steps_done, **figures,
            images_per_second=round(result["images_per_second"], 3),
            seconds=round(result["seconds"], 3),
        )  # fmt: skip
        log.info("%s", table(result))
        log.info("epoch %d: AP %.4f, best %.4f (epoch %d); %.2f images/s", epoch, ap,
                 self.best["AP"], self.best["epoch"], result["images_per_second"])  # fmt: skip

    # ---- saving ----------------------------------------------------------------------------

    @contextlib.contextmanager
    def _averaged(self):
        """The weights to judge and to keep, in the model for as long as the block lasts."""
        if not self.ema:
            yield self.model.state_dict()
            return
        trained = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.set_state_dict(self.ema.apply())
        try:
            yield self.model.state_dict()
        finally:
            self.model.set_state_dict(trained)

    def _save(self, epoch: int) -> None:
        with self.watchdog.phase("save"):
            if self.run.writer:
                optimizer = {**self.optimizer.state_dict(), "last_epoch": epoch}
                objects = {"model.pdparams": self.model.state_dict(), "model.pdopt": optimizer}
                if self.ema:
                    objects["model.pdema"] = objects["model.pdparams"]
                    objects["model.pdparams"] = self.ema.apply()
                    objects["average.pdema"] = self.ema.state_dict  # before bias correction
                state = {
                    **self._facts(), "epoch": epoch, "best": self.best, "history": self.history,
                    "steps_per_epoch": self.steps_per_epoch, "scaler": _plain(self.scaler),
                }  # fmt: skip
                try:
                    path = checkpoint.save(self.run.checkpoints, f"{epoch:04d}", objects, state)
                except OSError as error:  # a full disk: the earlier ones are still whole
                    log.error("epoch %d was not saved: %s; training goes on", epoch, error)
                    return
                checkpoint.prune(self.run.checkpoints, self.config.data["keep_checkpoints"])
                log.info("saved %s", path)

    def _facts(self, ap: float | None = None) -> dict:
        """What a weights file must not lose: where it came from and what its classes mean."""
        facts = {"config": self.config.name, "class_names": self.dataset.class_names}
        return facts if ap is None else {**facts, "AP": ap}


def _plain(scaler) -> dict:
    return {
        key: np.asarray(value).item() if isinstance(value, np.ndarray) else value
        for key, value in scaler.state_dict().items()
    }
