"""Read a run directory, whether the run is finished, running, interrupted or damaged.

Only the run directory is read: no data set, no other config, no model. Missing or damaged files are
listed in `Run.notes`; their part of the report stays empty.
"""

import fcntl
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fcos_recipe.errors import UserError
from fcos_recipe.files.reading import decode_json, open_regular, read_bytes
from fcos_recipe.runs.throughput import throughput

MOST_BYTES = 1 << 28  #: largest file that is read
MOST_PICTURE = 400_000  #: bytes; larger example images are left out
MOST_PICTURES = 1_900_000  #: bytes of all example images; base64 makes them a third larger
_LOCK = "hhqqi"  # struct flock of Linux: type, whence, start, length, pid


class ClassRow(msgspec.Struct):
    name: str
    AP: float
    AP50: float
    instances: int = 0
    detections: int = 0
    AP_small: float = -1.0
    AP_medium: float = -1.0
    AP_large: float = -1.0


class Evaluation(msgspec.Struct):
    """eval.json, see `CocoMetric.result`."""

    stats: list[float]
    names: list[str]
    per_class: list[ClassRow] = []
    images: int = 0
    instances: int = 0
    detections: int = 0
    max_dets: int = 100
    score_threshold: float = 0.0
    epoch: int | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    reason: str | None = None
    notes: list[str] = []
    weights: str | None = None
    predictions: str | None = None
    config: str | None = None
    tta: dict[str, Any] | None = None
    eval_set: str | None = None
    sets: dict[str, "Evaluation"] = {}

    def __post_init__(self):
        if len(self.stats) != len(self.names):
            raise ValueError("stats and names differ in length")

    def figure(self, name: str) -> float | None:
        """One of COCO's twelve figures, in [0, 1]; None if it is undefined."""
        value = dict(zip(self.names, self.stats)).get(name, -1.0)
        return value if value >= 0 else None


class Curves(msgspec.Struct):
    recall: list[float]
    precision: dict[str, list[float]]


class CurveOfClass(msgspec.Struct):
    name: str
    pr50: list[float] | None = None
    best_f1: float | None = None
    score: float | None = None


class Confusion(msgspec.Struct):
    names: list[str]
    matrix: list[list[int]]

    def __post_init__(self):
        if {len(self.names)} != {len(self.matrix), *map(len, self.matrix)}:
            raise ValueError("confusion is not square")


class Analysis(msgspec.Struct):
    """analysis.json, see `evaluation.analysis.analyse`."""

    score_threshold: float
    pr: Curves | None = None
    per_class: list[CurveOfClass] = []
    confusion: Confusion | None = None
    errors: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    absent: dict[str, str] = {}


class Example(msgspec.Struct):
    kind: str
    image_id: int
    file: str
    right: int
    false: int
    missed: int
    truth: str
    found: str
    width: int = 0
    height: int = 0


class Examples(msgspec.Struct):
    score_threshold: float
    images: list[Example]


class ConfigFacts(msgspec.Struct):
    name: str
    path: str = ""
    based: bool = False
    changes: list[tuple[str, str, str, str]] = []


class DatasetClass(msgspec.Struct):
    name: str
    boxes: int
    images: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0


class Dataset(msgspec.Struct):
    annotations: str
    images: int
    used: int
    boxes: int
    without_boxes: int = 0
    width_height: list[tuple[int, int, int]] = []
    sizes: int = 0
    crowd: int = 0
    left_out: dict[str, int] = {}
    by_size: dict[str, int] = {}
    boxes_per_image: dict[str, float | None] = {}
    classes: list[DatasetClass] = []


class Facts(msgspec.Struct):
    """facts.json, see `runs.facts`."""

    config: ConfigFacts
    device: str
    cards: int
    total_batch: int
    batch: int = 0
    lr: float | None = None
    epochs: int | None = None
    steps: int | None = None
    seed: int | None = None
    amp: str | None = None
    ema: bool = False
    validating: bool = False
    parameters: int | None = None
    data: dict[str, Dataset] = {}


class Environment(msgspec.Struct):
    """environment.json, see `runs.environment.environment`."""

    fcos_recipe: str = ""
    python: str = ""
    packages: dict[str, str] = {}
    platform: str = ""
    cpu: str = ""
    cores: int | None = None
    device: str = ""
    cards: list[str] = []
    git: str | None = None
    command: list[str] = []
    started: str = ""
    config: str | None = None
    ranks: int | None = None


@dataclass
class Run:
    """Contents of a run directory.

    Args:
        path: the directory.
        train, evals, set_evals, bad_steps: records of metrics.jsonl in their order, see `value`;
            set_evals are those of the named sets of `eval_sets`.
        config: text of config.yml; "" if it is missing.
        facts, environment, evaluation, analysis, examples: the JSON files; None: missing, damaged.
        state: "finished", "running", "stopped" (before its end), "evaluation" (of `fcos eval`) or
            "empty".
        notes: missing and damaged files, one sentence each.
        warnings: log lines of level WARNING and above.
    """

    path: Path
    train: list[dict] = field(default_factory=list)
    evals: list[dict] = field(default_factory=list)
    set_evals: list[dict] = field(default_factory=list)
    bad_steps: list[dict] = field(default_factory=list)
    config: str = ""
    facts: Facts | None = None
    environment: Environment | None = None
    evaluation: Evaluation | None = None
    analysis: Analysis | None = None
    examples: Examples | None = None
    state: str = "empty"
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def config_name(self) -> str | None:
        """Name of the config; None if no file states it."""
        if self.facts:
            return self.facts.config.name
        if self.evaluation and self.evaluation.config:
            return self.evaluation.config
        if self.environment and self.environment.config:
            return self.environment.config
        command = self.environment.command if self.environment else []
        for option, given in zip(command, command[1:]):
            if option in ("-c", "--config"):
                return Path(given).stem
        return None

    @property
    def ap(self) -> float | None:
        """Box AP of the last evaluation, in [0, 1]."""
        if self.evaluation:
            return self.evaluation.figure("AP")
        found = [v for v in (value(r, "AP") for r in self.evals) if v is not None and v >= 0]
        return found[-1] if found else None

    @property
    def best(self) -> tuple[float, int] | None:
        """Best AP and its epoch."""
        rows = [(value(r, "AP"), value(r, "epoch")) for r in self.evals]
        rows = [(ap, int(epoch)) for ap, epoch in rows if ap is not None and epoch is not None]
        best = max(rows, key=lambda row: row[0], default=None)
        return best if best and best[0] >= 0 else None

    @property
    def epochs(self) -> int | None:
        """Number of epochs in the config."""
        if self.facts and self.facts.epochs:
            return self.facts.epochs
        found = re.search(r"^epoch: (\d{1,9})\b", self.config, re.M)
        return int(found[1]) if found else None

    @property
    def epoch(self) -> int | None:
        """Epoch of the last record, counted from 1."""
        last = [value(r, "epoch") for r in (self.train or self.evals)[-1:]]
        return int(last[0]) if last and last[0] is not None else None

    @property
    def cards(self) -> int | None:
        """World size of the run: as recorded, else the ratio of total and per-card throughput."""
        if self.facts:
            return self.facts.cards
        if self.environment and self.environment.ranks:
            return self.environment.ranks
        for record in reversed(self.train):
            one, total = (value(record, f"images_per_second{k}") for k in ("_per_card", ""))
            if one and total:
                return round(total / one)
        return None

    @property
    def device(self) -> str | None:
        """Name of the card or CPU."""
        env = self.environment
        if env is None:
            return self.facts.device if self.facts else None
        if env.cards:
            return env.cards[0]
        return f"CPU ({env.cpu})" if env.device == "cpu" and env.cpu else env.device or None

    @property
    def speed(self) -> tuple[float, float] | None:
        """Training throughput, see `runs.throughput`: images/s per card and in total."""
        names = ("images_per_second_per_card", "images_per_second")
        whole = [r for r in self.train if None not in [value(r, name) for name in names]]
        speed = tuple(throughput(whole).values())
        return (speed[0], speed[1]) if speed else None

    @property
    def hours(self) -> tuple[float, float] | None:
        """Hours of training steps and of evaluations.

        Sums of the logged times, without start-up, saving and interruptions.
        """
        seconds, seen = 0.0, 0.0
        for record in self.train:
            images, speed = value(record, "images_seen"), value(record, "images_per_second")
            if images is None or not speed or images <= seen:
                continue
            seconds, seen = seconds + (images - seen) / speed, images
        evaluating = sum(value(r, "seconds") or 0 for r in [*self.evals, *self.set_evals])
        return (seconds / 3600, evaluating / 3600) if self.train else None


def value(record: dict, key: str) -> float | None:
    """Return a finite number from a record of metrics.jsonl; None for anything else."""
    found = record.get(key)
    good = isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e300
    return found if good else None


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: the directory does not exist or contains no run.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory; use the one that the training printed")
    run = Run(path)
    _metrics(run)
    if text := _text(run, "config.yml", "the config"):
        run.config = text
    run.facts = _typed(run, "facts.json", Facts, "data and config changes")
    run.environment = _typed(run, "environment.json", Environment, "machine and command")
    run.evaluation = _typed(run, "eval.json", Evaluation, "COCO figures")
    run.analysis = _typed(run, "analysis.json", Analysis, "curves, confusions and errors")
    run.examples = _typed(run, "examples/index.json", Examples, "example images")
    if not (run.train or run.evals or run.config or run.facts or run.environment
            or run.evaluation):  # fmt: skip
        raise UserError(f"{path}: not a run: it has no metrics.jsonl, config.yml or eval.json")
    run.state = _state(run)
    if run.state == "running":
        late = re.compile("(eval|analysis|examples/index).json is missing: ")
        run.notes = [late.sub(r"\1.json is not written yet: ", note) for note in run.notes]
    _log(run)
    if run.state == "evaluation":  # which has no training files
        names = ("metrics.jsonl", "config.yml", "facts.json", "environment.json", "log.txt")
        run.notes = [n for n in run.notes if not n.startswith(names)]
    return run


def _state(run: Run) -> str:
    if _locked(run.path / ".lock"):
        return "running"
    if run.evaluation and (run.evaluation.weights or run.evaluation.predictions):
        return "evaluation"
    try:
        done = (run.path / "model_final.pdparams").stat().st_mtime
    except OSError:
        return "stopped" if run.train or run.evals else "empty"
    last = value(run.train[-1], "time") if run.train else None
    # if there are newer records, the run was continued after model_final was written
    return "finished" if last is None or done >= last - 1 else "stopped"


def _locked(path: Path) -> bool:
    """Whether another process holds the run's lock; the lock is not taken."""
    try:
        with open(open_regular(path), "rb") as file:
            query = struct.pack(_LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_GETLK, query)
            return struct.unpack(_LOCK, answer)[0] != fcntl.F_UNLCK
    except (OSError, struct.error, UserError):
        return False


def _read(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(2, "is missing")
    return read_bytes(path, MOST_BYTES)


def _text(run: Run, name: str, what: str) -> str | None:
    try:
        return _read(run.path / name).decode("utf-8", "replace")
    except UserError as error:
        why = str(error).removeprefix(f"{run.path / name}: ")
        run.notes.append(f"{name}: {why}: {what} cannot be shown.")
        return None
    except OSError as error:
        run.notes.append(f"{name} {error.strerror}: {what} cannot be shown.")
        return None


def _typed(run: Run, name: str, kind: type, what: str):
    text = _text(run, name, what)
    if text is None:
        return None
    try:
        return decode_json(text, kind)
    except ValueError as error:
        run.notes.append(f"{name} is damaged ({error}): {what} cannot be shown.")
        return None


def _metrics(run: Run) -> None:
    text = _text(run, "metrics.jsonl", "curves")
    lines = (text or "").split("\n")
    whole, tail = lines[:-1], lines[-1]  # text after the last line feed is not yet complete
    damaged = 0
    kinds = {"train": run.train, "eval": run.evals, "eval_set": run.set_evals,
             "bad_step": run.bad_steps}  # fmt: skip
    for line in whole:
        try:
            record = decode_json(line)
            kinds.setdefault(str(record["kind"]), []).append(record)
        except (ValueError, KeyError):
            damaged += 1
    if damaged:
        lines = "1 line is" if damaged == 1 else f"{damaged} lines are"
        run.notes.append(f"metrics.jsonl: {lines} damaged and ignored.")
    if tail:
        run.notes.append("metrics.jsonl: the last line is incomplete and ignored.")
    strange = sum("loss" in r and value(r, "loss") is None for r in run.train)
    if strange:
        run.notes.append(f"metrics.jsonl: {strange} records have a loss that is not finite.")


def _log(run: Run) -> None:
    text = _text(run, "log.txt", "warnings")
    found = re.findall(r"^\S+ \S+ ((?:WARNING|ERROR|CRITICAL) .*)$", text or "", re.M)
    run.warnings = [line[:500] for line in dict.fromkeys(found)]
