"""Warn early if a run's loss differs from that of earlier runs of the same config.

`python -m fcos_recipe.runs.loss_band RUN_DIR...` computes a band from finished runs, for
configs/results.yml.
"""

import sys
from pathlib import Path

import yaml

from fcos_recipe.console import log, run_program
from fcos_recipe.errors import UserError
from fcos_recipe.runs.published_results import WINDOW, Band, load

STEPS = (100, 500, 1000)
# A band's half width is at least this share of the mean, else twice the range of the runs: a few
# runs underestimate the spread, and real faults (wrong LR, wrong weights) differ much more.
LEAST = 0.2


def watch(run, config, total_batch: int) -> None:
    """Compare a run with its config's loss band, if there is one and the run is comparable.

    Args:
        run: the RunDir, whose records are read.
        config: the run's resolved Config; with other settings or data there is no comparison.
        total_batch: images per optimizer step.
    """
    from fcos_recipe.runs.judgement import differing

    try:
        for band in load().loss_bands:
            if (band.config, band.total_batch) == (config.name, total_batch):
                if not differing(config.name, config.data):
                    run.add_sink(LossBand(band))
                return
    except UserError as error:  # results.yml is missing or wrong; the run can continue
        log.warning("warning: no loss band: %s", error)


def mean_before(step: int, stretches: list[tuple[int, int, float]]) -> float | None:
    """Mean loss of the `WINDOW` steps that end with `step`.

    Args:
        step: number of an optimizer step.
        stretches: (first step - 1, last step, mean loss) of each log line.

    Returns:
        The mean of the overlapping log lines, weighted by their steps in the window; None if they
        do not cover it.
    """
    start = step - WINDOW
    parts = [(min(b, step) - max(a, start), loss) for a, b, loss in stretches]
    parts = [(steps, loss) for steps, loss in parts if steps > 0]
    if sum(steps for steps, _ in parts) < WINDOW:
        return None
    return sum(steps * loss for steps, loss in parts) / WINDOW


class LossBand:
    """A sink of `RunDir` that warns at each step of the band at which the loss is outside."""

    def __init__(self, band: Band):
        self._band, self._due = band, sorted(band.steps)
        self._stretches: list[tuple[int, int, float]] = []
        self._last: int | None = None

    def __str__(self) -> str:
        return "loss band"

    def __call__(self, record: dict) -> None:
        if record["kind"] != "train":
            return
        step = record["step"]
        # a resumed run has no complete first stretch, so it starts with its second record
        if self._last is None and record["epoch"] == 1:
            self._last = 0 if step <= WINDOW else None
        if self._last is not None:
            self._stretches.append((self._last, step, record["loss"]))
        self._last = step
        while self._due and self._due[0] <= step:
            due = self._due.pop(0)
            loss = mean_before(due, self._stretches)
            low, high = self._band.steps[due]
            if loss is not None and not low <= loss <= high:
                log.warning(
                    "warning: loss %.3f around step %d; runs of %s had %.3f to %.3f there (%s). "
                    "Check data, weights and LR",
                    loss, due, self._band.config, low, high, self._band.source,
                )  # fmt: skip

    def forget(self) -> None:
        self._stretches, self._last = [], None


def stretches_of(records: list[dict]) -> list[tuple[int, int, float]]:
    """(first step - 1, last step, mean loss) of each of `Run.train`."""
    starts = [0, *(record["step"] for record in records)]
    return [(start, record["step"], record["loss"]) for start, record in zip(starts, records)]


def band_of(losses: list[float]) -> tuple[float, float]:
    """Lowest and highest usual loss, from the losses of several runs at one step."""
    middle = sum(losses) / len(losses)
    half = max(LEAST * middle, 2 * (max(losses) - min(losses)))
    return round(middle - half, 3), round(middle + half, 3)


def main(argv: list[str] | None = None) -> int:
    """Print the band of finished runs of one config as YAML.

    Args:
        argv: run directories.

    Raises:
        UserError: no runs, or they have different configs or batch sizes, or changed settings.
    """
    from fcos_recipe.runs.contents import read_run
    from fcos_recipe.runs.judgement import found_in

    runs = [read_run(Path(name)) for name in (sys.argv[1:] if argv is None else argv)]
    found = [found_in(run) for run in runs]
    if not runs or len({(one.name, one.total_batch) for one in found}) > 1:
        raise UserError("usage: python -m fcos_recipe.runs.loss_band RUN_DIR... (all of the same "
                        "config and batch size)")  # fmt: skip
    if changed := [f"{run.path}: {one.differences[0]}" for run, one in zip(runs, found)
                   if one.differences]:  # fmt: skip
        raise UserError(*changed)
    logged = [stretches_of(run.train) for run in runs]
    steps = {}
    for step in STEPS:
        losses = [mean_before(step, stretches) for stretches in logged]
        if None not in losses:
            steps[step] = list(band_of([x for x in losses if x is not None]))
    band = {"config": found[0].name, "total_batch": found[0].total_batch, "steps": steps}
    print(yaml.safe_dump([{**band, "source": f"{len(runs)} runs"}], sort_keys=False), end="")
    return 0


if __name__ == "__main__":
    run_program(main)
