"""Write a run's metrics and images for VisualDL, TensorBoard, Weights & Biases and as CSV.

All are sinks of `RunDir`: they get the records of metrics.jsonl, and a sink that fails is removed
with a warning. Training needs none of their packages, and this project installs none of them.

A class of the user is named on the command line as MODULE:CLASS. It is created on rank 0 as
`CLASS(folder, config)`: the run directory, and the config's values as a dict without secrets. It
has three methods:

- `__call__(record)`: a dict of metrics.jsonl; `numbers(record)` gives what can be plotted;
- `show(step, images)`: after an evaluation, a list of (image id, uint8 [H, W, 3] RGB with boxes);
- `close()`: the run has ended.
"""

import csv
import io
import json
import netrc
import os
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlparse

import numpy as np

from fcos_recipe.config.schema import LOGGERS
from fcos_recipe.console import log
from fcos_recipe.errors import UserError, cell, one_line, without_secrets
from fcos_recipe.files.atomic import open_own, own_folder, replace_file
from fcos_recipe.files.reading import read_records, read_text

KINDS = ("train", "eval", "eval_set", "bad_step")  #: of the records of metrics.jsonl
THRESHOLD = 0.3  #: detections with a lower score are not drawn
LONGEST = 640  #: pixels of the longer side of a drawn image
_PACKAGES = {"visualdl": "visualdl", "tensorboard": "tensorboardX", "wandb": "wandb", "csv": "csv"}


def chosen(names: list[str], data: dict) -> list[str]:
    """Return the names of a run's loggers.

    Args:
        names: from the command line or the caller; also MODULE:CLASS.
        data: values of the resolved config, with `loggers` and PaddleDetection's `use_vdl`.

    Raises:
        UserError: there is no such logger, or its package is missing; the message says how to
            install it.
    """
    vdl = ["visualdl"] if data["use_vdl"] else []
    found = list(dict.fromkeys([*data["loggers"], *names, *vdl]))
    for name in found:
        if ":" in name:
            _class_of(name)
        elif name not in LOGGERS:
            raise UserError(f"--logger {name}: choose from {', '.join(LOGGERS)}, or name a "
                            "class as MODULE:CLASS")  # fmt: skip
        elif find_spec(_PACKAGES[name]) is None:
            more = " tensorboard" if name == "tensorboard" else ""  # the viewer
            raise UserError(
                f"loggers: {name}: the package {_PACKAGES[name]} is missing; run: pip install "
                f"{_PACKAGES[name]}{more}; or omit this logger, metrics.jsonl is always written"
            )
    return found


def attach(run, names: list[str], config, vdl_folder: str | None = None) -> None:
    """Add loggers to a run.

    Args:
        run: the RunDir, below which loggers write.
        names: from `chosen`.
        config: the run's resolved Config.
        vdl_folder: folder for VisualDL instead of RUN_DIR/vdl.
    """
    vdl = vdl_folder or config.data.get("vdl_log_dir")
    make = {
        "visualdl": lambda: VisualDL(Path(vdl or run.path / "vdl"), own=not vdl),
        "tensorboard": lambda: TensorBoard(run.path / "tensorboard"),
        "wandb": lambda: WandB(run.path, config),
        "csv": lambda: Csv(run.path / "csv", run.path / "metrics.jsonl"),
    }
    for name in LOGGERS:
        if name in names:
            run.add_sink(make[name]())
    for name in names:
        if ":" in name and run.writer:
            values = json.loads(without_secrets(json.dumps(config.data, default=str)))
            try:
                run.add_sink(_class_of(name)(run.path, values))
            except Exception as error:  # a logger must never stop a training run
                log.warning("logger %s stopped: %s", name, error)


def _class_of(name: str) -> Any:
    """Import a class that was named as MODULE:CLASS."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"--logger {name}: {type(error).__name__}: {one_line(error)}; the module must be "
            "importable, for example through PYTHONPATH"
        ) from None
    missing = [
        one
        for one in ("__call__", "show", "close")
        if not any(one in vars(c) for c in getattr(found, "__mro__", ()))
    ]
    if not isinstance(found, type) or missing:
        what = f"has no {', '.join(missing)}" if isinstance(found, type) else "not a class"
        raise UserError(f"--logger {name}: {what}; see docs/training.md, section Your own logger")
    return found


def numbers(record: dict) -> dict[str, float]:
    """Values of a record to plot: "train/loss", "eval/AP", "eval/night/AP" of a named data set."""
    kind = f"eval/{record['set']}" if record["kind"] == "eval_set" else record["kind"]
    return {
        f"{kind}/{name}": value
        for name, value in record.items()
        if isinstance(value, int | float) and name not in ("time", "step", "epoch")
    }


def pictures(metric, dataset, count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Draw the detections on the first images of an evaluation.

    Args:
        metric: `CocoMetric` after the evaluation.
        dataset: of the evaluation.
        count: number of images.

    Yields:
        (image id, uint8 [H, W, 3] RGB, at most `LONGEST` pixels wide and high).
    """
    import cv2

    from fcos_recipe.data.images import read_image
    from fcos_recipe.drawing import draw

    found = metric.detections()
    ids = list(metric.category_ids)
    names = [metric.categories[i] for i in ids]
    for k in range(min(count, len(dataset))):
        info = dataset.image_info(k)
        image = read_image(info["im_file"])
        scale = min(1.0, LONGEST / max(image.shape))
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        rows = found["image_id"] == info["im_id"]
        boxes = found["bbox"][rows] * scale
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([ids.index(i) for i in found["category_id"][rows]], int)
        yield (
            str(info["im_id"]),
            draw(image, boxes, found["score"][rows], labels, names, THRESHOLD),
        )


class VisualDL:
    """Writes metrics and images to a folder for `visualdl --logdir`.

    Args:
        folder: is made.
        own: its name is of this project, not of the user, and is not followed if it is a link.
    """

    def __init__(self, folder: Path, own: bool):
        self._folder, self._own, self._writer = folder, own, None

    def __str__(self) -> str:
        return "visualdl"

    def _open(self):
        if self._writer is None:
            if self._own:
                own_folder(self._folder)
            from visualdl import LogWriter

            self._writer = LogWriter(str(self._folder))
        return self._writer

    def __call__(self, record: dict) -> None:
        for name, value in numbers(record).items():
            self._open().add_scalar(name, value, record["step"])

    def show(self, step: int, images: list[tuple[str, np.ndarray]]) -> None:
        for name, image in images:
            self._open().add_image(f"eval/{name}", image, step)

    def close(self) -> None:
        if self._writer:
            self._writer.close()


class TensorBoard:
    """Writes the same for `tensorboard --logdir`; tensorboardX needs neither torch nor grpc."""

    def __init__(self, folder: Path):
        self._folder, self._files = folder, 0
        self._writer: Any = None

    def __str__(self) -> str:
        return "tensorboard"

    def _open(self, step: int):
        if self._writer is None:
            own_folder(self._folder)
            from tensorboardX import SummaryWriter

            # purge_step hides earlier records of steps that a resumed run repeats
            self._files += 1  # file names contain the time only in seconds
            self._writer = SummaryWriter(
                str(self._folder), purge_step=step, filename_suffix=f".{self._files}"
            )
        return self._writer

    def __call__(self, record: dict) -> None:
        for name, value in numbers(record).items():
            self._open(record["step"]).add_scalar(name, value, record["step"])
        self._writer.flush()

    def show(self, step: int, images: list[tuple[str, np.ndarray]]) -> None:
        for name, image in images:
            self._open(step).add_image(f"eval/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer:
            self._writer.close()
            self._writer = None

    forget = close  # the next record is of an earlier step and needs a new file


class WandB:
    """The same for Weights & Biases; the user's WANDB_* variables apply.

    Without credentials, or with WANDB_MODE=offline, it writes to RUN_DIR/wandb without network
    access. Command line, environment, console output and source code are not uploaded, because they
    may contain secrets; secrets in the config's URLs are removed.
    """

    def __init__(self, folder: Path, config):
        self._folder, self._config = folder, config
        self._run: Any = None

    def __str__(self) -> str:
        return "wandb"

    def _open(self):
        if self._run is None:
            import wandb

            config = json.loads(without_secrets(json.dumps(self._config.data, default=str)))
            note = self._folder / "wandb" / "run_id"  # a resumed run continues its curves
            own_folder(note.parent)
            if not note.is_file():
                replace_file(note, token_hex(4) + "\n")
            quiet = dict(
                console="off", silent=True, disable_git=True, disable_code=True, save_code=False,
                x_disable_meta=True, x_disable_stats=True, x_save_requirements=False,
                init_timeout=30,
            )  # fmt: skip
            if "finish_timeout" in wandb.Settings.model_fields:  # only in newer versions
                quiet.update(finish_timeout=300, finish_timeout_raises=False)
            mode = os.environ.get("WANDB_MODE") or (None if _credentials() else "offline")
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fcos"), name=self._folder.name,
                dir=str(self._folder), config=config, id=read_text(note, 1 << 10).strip(),
                resume="allow", mode=mode,
                settings=wandb.Settings(**quiet),
            )  # fmt: skip
            self._run.define_metric("*", step_metric="step")
            offline = f"offline; upload with: wandb sync {Path(self._run.dir).parent}"
            log.info("wandb: %s", without_secrets(self._run.url or offline))
        return self._run

    def __call__(self, record: dict) -> None:
        self._open().log({**numbers(record), "step": record["step"]})

    def show(self, step: int, images: list[tuple[str, np.ndarray]]) -> None:
        from wandb import Image

        drawn = [Image(image, caption=name) for name, image in images]
        self._open().log({"eval/detections": drawn, "step": step})

    def close(self) -> None:
        if self._run:
            self._run.finish()


def _credentials() -> bool:
    """Whether Weights & Biases has an API key in the environment or in .netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


class Csv:
    """Writes a CSV file of each kind of record with the values of its first one as columns.

    Records of unknown kinds, which another program wrote, are left out with a warning.

    Args:
        folder: of the CSV files.
        metrics: the run's metrics.jsonl, from which both files are rewritten at the first record
            and when steps are repeated.
    """

    def __init__(self, folder: Path, metrics: Path):
        self._folder, self._metrics = folder, metrics
        self._columns: dict[str, list[str]] = {}
        self._foreign: set[str] = set()

    def __str__(self) -> str:
        return "csv"

    def __call__(self, record: dict) -> None:
        if self._columns:
            return self._append(record)
        own_folder(self._folder)
        for kind in KINDS:
            (self._folder / f"{kind}.csv").unlink(missing_ok=True)
        for one in read_records(self._metrics):
            self._append(one)  # the last one is the current record

    def _append(self, record: dict) -> None:
        kind = record.get("kind")
        if kind not in KINDS:  # it becomes a file's name
            name = repr(kind)[:50]
            if name not in self._foreign:
                self._foreign.add(name)
                log.warning("%s: records of the unknown kind %s are not in the CSV files",
                            self._metrics, name)  # fmt: skip
            return
        new = kind not in self._columns
        columns = self._columns.setdefault(kind, [key for key in record if key != "kind"])
        binary = open_own(self._folder / f"{kind}.csv", os.O_WRONLY | os.O_APPEND)
        with io.TextIOWrapper(binary, newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(map(cell, columns))
            row = [record.get(name, "") for name in columns]
            writer.writerow([v if isinstance(v, int | float) else cell(v) for v in row])

    def forget(self) -> None:
        self._columns.clear()
