"""The training loop with its evaluations and checkpoints."""

import contextlib
import json
import logging
import signal
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from tqdm import tqdm

from fcos_recipe.checkpoint import storage
from fcos_recipe.checkpoint.weights import listed, read
from fcos_recipe.config import eval_sets
from fcos_recipe.config.resolved import resolved
from fcos_recipe.console import bar_text, log, plural
from fcos_recipe.errors import RunFailure, Stopped, not_written, refuse_incomplete, without_secrets
from fcos_recipe.evaluation.analysis import ANALYSIS, PLOTS, finish_evaluation
from fcos_recipe.evaluation.collectives import agree, everywhere, gather
from fcos_recipe.evaluation.detections_file import JUDGED
from fcos_recipe.evaluation.examples import EXAMPLES
from fcos_recipe.evaluation.loop import build_evaluation_sets, evaluate_sets, same_classes
from fcos_recipe.evaluation.metric import table
from fcos_recipe.files.atomic import replace_file, write_json
from fcos_recipe.model import build
from fcos_recipe.runs.directory import CONFIG, ENVIRONMENT, RunDir
from fcos_recipe.runs.environment import environment
from fcos_recipe.runs.facts import write_facts
from fcos_recipe.runs.loggers import pictures
from fcos_recipe.system.stop_signals import StopRequest
from fcos_recipe.training import resume
from fcos_recipe.training.bad_numbers import Guard
from fcos_recipe.training.setup import Setup
from fcos_recipe.training.window import Window, hms, memory_mib, timed

BEST = "best_model.pdparams"
REMEDY = "make room, then `--resume auto` completes the run"
# What a finished run has made from its last evaluation.
RESULTS = ("eval.json", JUDGED, ANALYSIS, PLOTS, EXAMPLES)


class Trainer(Setup):
    """Trains and evaluates; used in place of PaddleDetection's Trainer."""

    @property
    def metric(self):
        """The last evaluation's `CocoMetric`; only rank 0 has all detections."""
        return self.evaluation_sets[eval_sets.MAIN].metric

    def train(self, run: RunDir, validate: bool = False) -> None:
        """Train to the config's last epoch.

        Args:
            run: the run directory for the results.
            validate: evaluate every `eval_interval` epochs and after the last.

        Raises:
            RunFailure: NaN or Inf, or failed saves, beyond the limits in the config.
            Stopped: SIGTERM was received; a checkpoint is saved.
            KeyboardInterrupt: Ctrl-C was received; a checkpoint is saved.
        """
        data, self.run, self.validating = self.config.data, run, validate
        self._begin()
        model = self.model
        if self._nranks > 1:
            model = paddle.DataParallel(
                model,
                comm_buffer_size=data["comm_buffer_mb"],
                find_unused_parameters=data["find_unused_parameters"],
            )
        at = self.progress
        if at.epoch >= data["epoch"] and not at.pending_eval:
            log.warning("nothing to train: %d of %d epochs are done", at.epoch, data["epoch"])
        with StopRequest(self.own_process) as self.stop:
            try:
                self._run_epochs(model)
                self._finish()
            finally:
                with self.watchdog.phase("save"):
                    self.loader.close()
                    self.saver.close()
        if self._nranks > 1:
            with self.watchdog.phase("eval"):  # rank 0 may still evaluate and write: wait for it
                dist.barrier()

    def _run_epochs(self, model) -> None:
        last = self.config.data["epoch"]
        while True:
            if self.progress.pending_eval:
                self._evaluate_epoch()
            if self.progress.epoch >= last or self._had_enough():
                return
            if self._train_epoch(model):
                self._end_epoch()

    def _had_enough(self) -> bool:
        """Early stopping: save and return True if it is due."""
        at, patience = self.progress, self.config.data["early_stop"]["patience"]
        if not self._stopped_early():
            return False
        if self._saved_at != (at.epoch, 0):
            self._save()
        best = f"AP {at.best['AP']:.4f} of epoch {at.best['epoch']} was not exceeded"
        log.info(
            "early stop: %s in %d evaluations", best if at.best["epoch"] else "no AP", patience
        )
        return True

    def _stopped_early(self) -> bool:
        """Whether AP has not improved in the last `patience` evaluations."""
        at, patience = self.progress, self.config.data["early_stop"]["patience"]
        since = [row for row in at.history if row["epoch"] > at.best["epoch"]]
        return self.validating and 0 < patience <= len(since)

    def _complete_results(self) -> None:
        """Evaluate again if a run that was killed at its end left less than a finished one."""
        at, data = self.progress, self.config.data
        over = at.epoch >= data["epoch"] or self._stopped_early()
        judged = [row["epoch"] for row in at.history][-1:] == [at.epoch] and not at.step
        if not (self.validating and self._resumed_from and over and judged):
            return
        path, best = self.run.path, BEST if at.best["epoch"] == at.epoch else "eval.json"
        names = None if at.results is None else {*at.results, best}
        if gather(names is None or not all((path / name).exists() for name in names))[0]:
            log.warning("results of the last evaluation are missing: epoch %d is evaluated again",
                        at.epoch)  # fmt: skip
            at.evaluate_again(data["early_stop"]["min_delta"])

    def _complete_best(self) -> None:
        """Write the best weights again, from the checkpoint of their epoch, if a save had failed.

        Without this checkpoint the best of the evaluations that follow, at least one, is kept.
        """
        at, data, path = self.progress, self.config.data, self.run.path / BEST
        if not (self.validating and self._resumed_from and at.best["epoch"]):
            return
        ap = at.best["AP"]
        known = storage.ap_of(path, ap) if self.run.writer else None
        # a kill between an evaluation and its record leaves weights that it will write again
        if gather(known is not None and (known == ap or (at.pending_eval and known > ap)))[0]:
            return
        source = self._resumed_from.parent / storage.name(at.best["epoch"])
        if not gather(self.run.writer and storage.intact(source))[0]:
            log.warning("%s, of epoch %d, is not on disk and its checkpoint was removed: the best "
                        "of the following evaluations is kept", path, at.best["epoch"])  # fmt: skip
            if not at.pending_eval and (at.epoch >= data["epoch"] or self._stopped_early()):
                at.evaluate_again(data["early_stop"]["min_delta"])
            at.best = {**at.best, "AP": -1.0}
        elif self.run.writer:
            log.warning("%s is not that of epoch %d: written again from %s", path,
                        at.best["epoch"], source)  # fmt: skip
            best = read(source / "model.pdparams")
            self.saver.submit(
                BEST, lambda: storage.save_weights(path, best, self.weights_description(ap))
            )

    def _finish(self) -> None:
        run = self.run
        readers = [self.loader, *(one.loader for one in self.evaluation_sets.values())]
        bad = dict.fromkeys(m for of_rank in gather([[*r.bad_images] for r in readers])
                            for one in of_rank for m in one)  # fmt: skip
        if bad:
            log.warning("%s could not be read and %s skipped: %s",
                        plural(len(bad), "image"), "was" if len(bad) == 1 else "were",
                        ", ".join(bad))  # fmt: skip
        if not run.writer:
            return
        with self.watchdog.phase("save"):
            path = run.path / "model_final.pdparams"
            with self._averaged():
                final = storage.host(self.model.state_dict())
            self.saver.submit(
                path.name, lambda: storage.save_weights(path, final, self.weights_description())
            )
            self.saver.wait()
            refuse_incomplete(run.path, self.saver.unsaved, REMEDY)
        if self._evaluated:
            with self.watchdog.phase("eval"):
                for line in finish_evaluation(self.metric, run.path, self.missing):
                    log.info("%s", line)
                at = self.progress
                if not not_written(self.missing):  # else a resumed run makes them
                    at.results = [name for name in RESULTS if (run.path / name).exists()]
                path, results = run.checkpoints / storage.name(at.epoch), {"progress": vars(at)}
                self.saver.submit(
                    f"{path} with its results", lambda: storage.amend(path, **results)
                )
                self.saver.wait()
        log.info("done: %s", run.path)

    def _begin(self) -> None:
        run, data = self.run, self.config.data
        at = self.progress
        at.pending_eval &= self.validating
        self.saver = storage.Saver(data["max_failed_saves"])
        self._complete_results()
        self._complete_best()
        self.guard = Guard(self)
        self._evaluated = False
        self.missing: dict[str, Exception] = {}  # results that could not be made
        self._saved_at: tuple[int, int] | None = None
        if self._resumed_from:
            self._saved_at = (at.epoch, at.step)
        self._saved_time = time.monotonic()
        if run.writer:
            replace_file(run.path / CONFIG, without_secrets(resolved(self.config)))
            write_json(run.path / ENVIRONMENT, {
                **environment(self.device), "config": self.config.name, "ranks": self._nranks,
                "plugins": resume.hashes(self.config),
            })  # fmt: skip
        run.forget_after(at.steps_done, at.epoch - at.pending_eval)
        self._set_aside_after(self._resumed_from)
        for line in self.plan.lines:
            log.info(line)
        for line in self.config.warnings + self.plan.warnings:
            log.warning("warning: %s", line)
        log.info("run directory: %s", run.path)
        self.evaluation_sets = {}
        if self.validating:
            self.cfg = build.registry(self.config)
            self.evaluation_sets = build_evaluation_sets(self.cfg, self.rank, self._nranks)
            same_classes(self.metric, self.dataset.class_names, self.dataset.get_anno())
        if run.writer:
            write_facts(self)
        log.info("classes: %s", listed(self.dataset.class_names))
        parameters = sum(int(np.prod(p.shape)) for p in self.model.parameters())
        log.info("model: %.2f M parameters on %s, %s", parameters / 1e6, self.device,
                 plural(len(self.dataset), "image"))  # fmt: skip
        if self.frozen.line:
            log.info(self.frozen.line)

    def _train_epoch(self, model) -> bool:
        """Train to the end of the current epoch; return False if the trainer was rolled back."""
        at = self.progress
        model.train()
        self.frozen.keep_statistics(self.model)
        if self.ema and not at.step:
            self.ema.begin_epoch(at.epoch)
        self.loader.set_epoch(at.epoch, at.step * self.accumulate)
        steps = self.steps_in(at.epoch)
        window, self._cut_window = Window(self._cut_window), None
        with self._bar(at.epoch, steps) as bar:
            return self._steps(model, bar, steps, window)

    def _steps(self, model, bar: tqdm, steps: int, window: Window) -> bool:
        at, data = self.progress, self.config.data
        bar.update(at.step)
        batches = 0
        for data_time, batch in timed(self.loader):
            if at.step == steps:
                break  # the last batches do not fill a step
            if not batches:
                self._seed_step()
                self.guard.before_step()
            batches += 1
            losses = self._backward(model, batch, synchronise=batches == self.accumulate)
            window.add(losses, batch, data_time)
            if batches < self.accumulate:
                continue
            batches = 0
            good, self._stopping, due = agree(
                self.guard.finite(window), self.stop.signal is not None, self._save_is_due()
            )
            rate = self.optimizer.get_lr()
            if not good and not self.guard.refuse(window):
                return False
            if good:
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.clear_grad(set_to_zero=False)  # frees the gradients
                if self.ema:
                    self.ema.update()
            window.end_step(good)
            self.lr.step()
            at.step += 1
            at.steps_done += 1
            at.images_seen += self.plan.total_batch
            self.watchdog.beat(at.steps_done)
            bar.update()
            if at.step % data["log_iter"] == 0 or at.step == steps:
                self._log_step(window, rate, bar)
                window = Window()
            if at.step < steps and (
                due or self._stopping
                or (data["snapshot_steps"] and at.steps_done % data["snapshot_steps"] == 0)
            ):  # fmt: skip
                before = time.perf_counter()
                self._save(window=window)
                window.start += time.perf_counter() - before  # saving does not count as training
                if self._stopping:
                    self._leave()
        return True

    def _seed_step(self) -> None:
        """Seed Paddle's random generators for the next step from seed, rank and step number."""
        key = (self.config.data["seed"], self.rank, self.progress.steps_done)
        paddle.seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def _save_is_due(self) -> bool:
        """Whether `snapshot_minutes` have passed since the last checkpoint; only rank 0 decides."""
        minutes = self.config.data["snapshot_minutes"]
        return self.rank == 0 and 0 < minutes * 60 < time.monotonic() - self._saved_time

    def _end_epoch(self) -> None:
        """Save a checkpoint if due; a later evaluation is then added to it."""
        at, data = self.progress, self.config.data
        at.epoch, at.step = at.epoch + 1, 0
        last = at.epoch == data["epoch"]
        at.pending_eval = self.validating and (last or at.epoch % data["eval_interval"] == 0)
        if last or self._stopping or at.epoch % data["snapshot_epoch"] == 0:
            self._save()
        elif at.pending_eval:
            self._ranks = resume.of_ranks(self.loader)  # needed if the evaluation is interrupted
        if self._stopping:
            self._leave()

    def _bar(self, epoch: int, steps: int) -> tqdm:
        """Progress bar of an epoch; on a terminal it replaces the log lines."""
        return tqdm(
            total=steps,
            desc=f"epoch {epoch + 1}/{self.config.data['epoch']}",
            disable=self.rank > 0 or not (self.own_process and sys.stdout.isatty()),
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
            dynamic_ncols=True,
            file=sys.stdout,
        )

    def _backward(self, model, batch: dict, synchronise: bool) -> dict:
        """Forward and backward pass of a batch; `synchronise`: average gradients over ranks."""
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

    def _log_step(self, window: Window, rate: float, bar: tqdm) -> None:
        seconds = time.perf_counter() - window.start
        losses = window.means()
        if not losses:
            return  # every step was skipped
        at, epochs = self.progress, self.config.data["epoch"]
        self.guard.logged(losses, window.each(), rate)
        per_card = window.images / seconds
        record = {
            "kind": "train", "epoch": at.epoch + 1, "step": at.steps_done, "lr": rate, **losses,
            "images_per_second_per_card": round(per_card, 3),
            "images_per_second": round(per_card * self._nranks, 3),
            "data_time": round(window.data_time / window.batches, 4),
            "memory_mib": memory_mib(self.device), "images_seen": at.images_seen,
        }  # fmt: skip
        self.run.record(**record)
        left = (epochs * self.steps_per_epoch - at.steps_done) * (
            seconds * self.accumulate / window.batches
        )
        parts = (f"ETA {hms(left)}", f"loss {losses['loss']:.3f}", f"{per_card:.1f} images/s",
                 f"lr {rate:.2g}")  # fmt: skip
        bar.set_postfix_str(bar_text(parts))
        log.log(
            logging.INFO if bar.disable else logging.DEBUG,
            "epoch %d/%d step %d/%d lr %.5f %s | %.2f images/s per card, %.2f total | data %.3f s "
            "| ETA %s", at.epoch + 1, epochs, at.step, bar.total, rate,
            " ".join(f"{k} {v:.4f}" for k, v in losses.items()), per_card,
            per_card * self._nranks, record["data_time"], hms(left),
        )  # fmt: skip

    # ---- evaluation ------------------------------------------------------------------------

    def _between_batches(self) -> None:
        self.watchdog.beat()
        if self.stop.signal is not None:
            raise _CutShort

    def _evaluate_epoch(self) -> None:
        """Evaluate; if asked to stop, end the run with this evaluation pending."""
        at = self.progress
        try:
            self._validate()
        except _CutShort:
            if self._saved_at != (at.epoch, at.step):
                self._save(self._ranks)
            self._leave(together=False)
        at.pending_eval = False
        path = self.run.checkpoints / storage.name(at.epoch)
        if self.run.writer and self._saved_at == (at.epoch, 0):
            done = {"progress": {**json.loads(json.dumps(vars(at)))}}

            def amend():
                # after a failed save, which was logged, a resumed run evaluates again
                if not self.saver.unsaved:
                    storage.amend(path, **done)

            self.saver.submit(f"{path} with its evaluation", amend, kind="its evaluation")

    def _validate(self) -> None:
        at, run = self.progress, self.run
        with self.watchdog.phase("eval"), self._averaged():
            result = evaluate_sets(
                self.model, self.evaluation_sets, self.autocast, self._between_batches
            )
            ap = result["stats"][0]
            improved = ap > at.best["AP"] + self.config.data["early_stop"]["min_delta"]
            if improved:
                at.best = {"AP": ap, "epoch": at.epoch}
                best = storage.host(self.model.state_dict()) if run.writer else {}
            at.history.append({"epoch": at.epoch, "AP": ap})
        self._evaluated, at.results = True, None
        content = {"epoch": at.epoch, **result}
        if run.writer:

            def write():
                write_json(run.path / "eval.json", content)
                if improved:
                    path = run.path / BEST
                    storage.save_weights(path, best, self.weights_description(ap))

            self.saver.submit(BEST if improved else "eval.json", write)
        named = result.get("sets", {})
        for name, one in {None: result, **named}.items():
            run.record(
                kind="eval_set" if name else "eval", **({"set": name} if name else {}),
                epoch=at.epoch, step=at.steps_done, **dict(zip(one["names"], one["stats"])),
                images_per_second=round(one["images_per_second"], 3),
                seconds=round(one["seconds"], 3),
            )  # fmt: skip
        run.show(at.steps_done, pictures(self.metric, self.metric.dataset,
                                         self.config.data["logger_images"]))  # fmt: skip
        log.info("%s", table(result, self.config.data["classwise"]))
        for name, one in named.items():
            figures = "AP {:.4f}, AP50 {:.4f} on {} images".format(*one["stats"][:2], one["images"])
            if one["stats"][0] < 0:
                figures = f"no AP, {one['reason']}"
            log.info("epoch %d: %s: %s", at.epoch, name, figures)
        figures = f"AP {ap:.4f}, best {at.best['AP']:.4f} (epoch {at.best['epoch']})"
        if ap < 0:  # as pycocotools says that there was nothing to find
            figures = "no AP and no best weights, because EvalDataset has no annotation to find"
        log.info("epoch %d: %s; %.2f images/s", at.epoch, figures, result["images_per_second"])

    # ---- saving ----------------------------------------------------------------------------

    def _averaged(self):
        """Use the weights to evaluate and save (the average with EMA) inside this context."""
        return self.ema.applied() if self.ema else contextlib.nullcontext()

    def _save(self, ranks: list[dict] | None = None, window: Window | None = None) -> None:
        """Start writing a checkpoint; every rank must call this, unless `ranks` is given."""
        at, run = self.progress, self.run
        self._saved_at, self._saved_time = (at.epoch, at.step), time.monotonic()
        # gathered before phase "save", under the watchdog's time limit for a step
        ranks = ranks or resume.of_ranks(self.loader)
        if not run.writer:
            return
        with self.watchdog.phase("save"):
            before = time.perf_counter()
            self.saver.wait()
            objects, state = resume.collect(self, ranks, window)
            name = storage.name(at.epoch, at.step)

            def write():
                storage.save(run.checkpoints, name, objects, state)
                storage.prune(run.checkpoints, self.config.data["keep_checkpoints"])

            stood = time.perf_counter() - before
            self.saver.submit(str(run.checkpoints / name), write, stood, storage.CHECKPOINT)

    def _leave(self, together: bool = True) -> None:
        """End the run after a request to stop.

        Args:
            together: all ranks call this at the same step; else they do not wait for each other.
        """
        with self.watchdog.phase("save"):
            self.saver.wait()
            if self._nranks > 1 and together:
                dist.barrier()
            elif self.rank:
                time.sleep(10)
        at = self.progress
        if self.saver.failures:
            raise RunFailure("asked to stop, but the checkpoint could not be saved; see above")
        where = self.run.checkpoints / storage.name(at.epoch, at.step)
        message = (
            f"stopped after epoch {at.epoch} and {at.step} steps; saved {where}: "
            "`--resume auto` continues"
        )
        if self.stop.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise Stopped(message)

    def roll_back(self, factor: float) -> None:
        """Return to the newest intact checkpoint of this run; every rank must call this.

        Args:
            factor: on the LR of all following steps.

        Raises:
            RunFailure: there is no checkpoint.
        """
        bad, lowered = self.progress.bad_steps + 1, self.progress.lr_factor * factor
        with self.watchdog.phase("save"):
            self.saver.wait()
            path, _ = gather(storage.newest(self.run.checkpoints))[0]
            if path is None:
                raise RunFailure(
                    "bad_numbers.policy: rollback: there is no checkpoint yet; lower the LR, or "
                    "save more often (snapshot_steps)"
                )
            everywhere(path, storage.STATE)
            state = storage.read_state(path)
            state["progress"].update(bad_steps=bad, lr_factor=lowered)
            resume.restore(self, path, state)
            at = self.progress
            if self.run.writer:  # so that a run killed after this resumes with the lower LR
                done = {"progress": state["progress"]}
                self.saver.submit(f"{path} with its LR", lambda: storage.amend(path, **done))
                self.saver.wait()
        self._cut_window, self._saved_at = state["window"], (at.epoch, at.step)
        self.run.forget_after(at.steps_done, at.epoch - at.pending_eval)
        self._set_aside_after(path)

    def _set_aside_after(self, path: Path | None) -> None:
        """Rename this run's checkpoints that are newer than the one at `path`, if it is one."""
        folder = self.run.checkpoints
        if self.run.writer and path and path.resolve().parent == folder.resolve():
            storage.set_aside_newer(folder / path.name)

    def weights_description(self, ap: float | None = None) -> dict:
        """Description to store with weights: config, class names and, if known, AP."""
        facts = {"config": self.config.name, "class_names": self.dataset.class_names}
        return facts if ap is None else {**facts, "AP": ap}


class _CutShort(Exception):
    """The evaluation was interrupted because the run was asked to stop."""
