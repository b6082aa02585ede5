"""The run directory, to which a run writes all its results."""

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from fcos_recipe.console import Plain, log
from fcos_recipe.errors import UserError, path_reason
from fcos_recipe.files.atomic import (
    open_own,
    own_folder,
    remove_drafts,
    replace_file,
    set_aside,
)
from fcos_recipe.files.reading import json_lines, read_bytes

CONFIG, ENVIRONMENT, LOG, METRICS = "config.yml", "environment.json", "log.txt", "metrics.jsonl"


class RunDir:
    """A run directory, locked by rank 0 for the duration of its `with` block.

    Args:
        path: the directory. That of an earlier run is renamed to PATH.1, PATH.2, ...
        writer: whether this rank writes; False: nothing is written.
        resume: keep the existing directory and continue in it.

    Attributes:
        on_record: called with each record of metrics.jsonl; unlike a sink's, its exceptions end
            the run.

    Raises:
        UserError: another process is writing to the directory, or it cannot be created.
    """

    def __init__(self, path: Path, writer: bool, resume: bool):
        self.path, self.writer = path, writer
        self.checkpoints = path / "checkpoints"
        self._sinks: list = []
        self.on_record: Callable[[dict], None] | None = None
        if not writer:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not resume and (path / METRICS).exists():
                _refuse_if_locked(path)
                set_aside(path)
            path.mkdir(exist_ok=True)
            own_folder(self.checkpoints)
            self._lock = _refuse_if_locked(path)
            for folder in (path, self.checkpoints):
                remove_drafts(folder)
            self._metrics = _Appender(path / METRICS)
            handler = logging.StreamHandler(_Appender(path / LOG))
        except OSError as error:
            raise UserError(
                f"{path}: {path_reason(error)}; choose another folder with --output"
            ) from None
        handler.setFormatter(Plain("%(asctime)s %(levelname)s %(message)s"))
        handler.setLevel(logging.DEBUG)
        log.addHandler(handler)
        self._log_handler = handler

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, *_) -> None:
        self.close_sinks()
        if self.writer:
            log.removeHandler(self._log_handler)
            self._log_handler.stream.close()
            self._lock.close()
            self._metrics.close()

    def add_sink(self, sink) -> None:
        """Also pass each record to `sink(record)`; a sink that fails is removed with a warning.

        These methods are called if the sink has them: `show(step, images)` after an evaluation,
        `forget()` when the following records repeat earlier steps, `close()` at the end.
        """
        if self.writer:
            self._sinks.append(sink)

    def close_sinks(self) -> None:
        """Close all sinks; this may take time if one has data to upload."""
        self._tell("close")
        self._sinks.clear()

    def show(self, step: int, images) -> None:
        """Pass images of an evaluation to the sinks that show images.

        Args:
            step: optimizer steps done.
            images: yields (name, uint8 [H, W, 3] RGB); not used if no sink shows images.
        """
        if any(hasattr(sink, "show") for sink in self._sinks):
            try:
                if drawn := list(images):
                    self._tell("show", step, drawn)
            except Exception as error:  # for example an image that cannot be read
                log.warning("loggers get no images: %s", error)

    def _tell(self, what: str, *arguments) -> None:
        for sink in list(self._sinks):
            try:
                if hasattr(sink, what):
                    getattr(sink, what)(*arguments)
            except Exception as error:  # a logger must never stop a training run
                log.warning("logger %s stopped: %s", sink, error)
                self._sinks.remove(sink)

    def record(self, **values) -> None:
        """Append one JSON object to metrics.jsonl.

        Args:
            values: JSON values; `time` (seconds since the epoch) is added.
        """
        if not self.writer:
            return
        record = {"time": round(time.time(), 3), **values}
        if error := self._metrics.write(json.dumps(record) + "\n"):
            log.warning("%s: %s; lines are kept in memory until they can be written",
                        self.path / METRICS, error.strerror)  # fmt: skip
        self._tell("__call__", record)
        if self.on_record:
            self.on_record(record)

    def unwritten(self) -> dict[str, Exception]:
        """metrics.jsonl, and why, if the last records cannot be written even now."""
        self._metrics.write("")
        return {METRICS: self._metrics.error} if self._metrics.error else {}

    def forget_after(self, step: int, epoch: int) -> None:
        """Remove records of steps that a resumed run will repeat, and incomplete lines.

        Args:
            step: the last step to keep.
            epoch: evaluations after later epochs are removed.
        """
        if not self.writer:
            return

        def stays(record: dict | None) -> bool:
            try:
                judged = record is not None and record["kind"] in ("eval", "eval_set")
                if record is None or (judged and record["epoch"] > epoch):
                    return False
                return record["step"] <= step
            except (TypeError, KeyError):
                return False

        path = self.path / METRICS
        kept = [line for line, record in json_lines(read_bytes(path)) if stays(record)]
        self._metrics.close()
        replace_file(path, b"".join(line + b"\n" for line in kept))
        self._metrics = _Appender(path)
        self._tell("forget")


class _Appender:
    """Appends to a file; text that a full disk does not accept is written with the next text."""

    def __init__(self, path: Path):
        self._file = open_own(path, os.O_WRONLY | os.O_APPEND)
        self._left = b""
        self.error: OSError | None = None  #: why the last text is not in the file yet

    def write(self, text: str) -> OSError | None:
        """Write pending text, then this one; return an error if the previous write had none."""
        first, self.error = not self._left, None
        self._left += text.encode(errors="backslashreplace")
        try:
            while self._left:
                self._left = self._left[self._file.write(self._left) :]
        except OSError as error:
            self.error = error
            return error if first else None
        return None

    def close(self) -> None:
        self._file.close()


def _refuse_if_locked(path: Path):
    lock = open_own(path / ".lock", os.O_RDWR)
    try:
        # lockf: data workers, which may live longer than this process, do not inherit the lock
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise UserError(
            f"{path}: another run is writing there; wait for it or choose another folder with "
            "--output"
        ) from None
    return lock
