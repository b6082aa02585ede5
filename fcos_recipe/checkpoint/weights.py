"""Weights files: find, read, and load them into a model with a report of what fitted."""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from fcos_recipe.checkpoint.safe_pickle import loads
from fcos_recipe.checkpoint.zoo import cached
from fcos_recipe.console import log
from fcos_recipe.errors import UserError
from fcos_recipe.files.download import digest

MOST_BYTES = 16 << 30  # of a weights file; the largest known detector has a tenth


def read(path: str | Path, sha256: str | None = None) -> dict:
    """Read a .pdparams, .pdopt or .safetensors file without running code that it may hold.

    Args:
        path: the file.
        sha256: what its bytes must hash to; by default what `facts` says, if anything.

    Returns:
        names to np.ndarray (or plain values), as `paddle.save` wrote them. bfloat16, which NumPy
        lacks, is uint16.

    Raises:
        UserError: missing, damaged, or something else than arrays in plain containers.
    """
    path = Path(path)
    try:
        if not path.is_file() and path.exists():
            raise UserError(f"{path}: not a file")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: larger than {MOST_BYTES >> 30} GiB; not a weights file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    note = {"sha256": sha256} if sha256 else facts(path)
    wanted = [note[key] for key in ("sha256", "replaces") if key in note]
    if wanted and hashlib.sha256(data).hexdigest() not in wanted:
        raise UserError(
            f"{path}: damaged, its SHA-256 is not the one recorded beside it; take another file, "
            f"or, if you put it there yourself, delete {path.with_suffix('.json')}"
        )
    try:
        return (_safetensors(path).load if path.suffix == ".safetensors" else loads)(data)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        why = str(error) or type(error).__name__
        raise UserError(
            f"{path}: not a readable weights file ({why}); truncated? fetch it again"
        ) from None


def _safetensors(path: Path):
    """The part of the package safetensors that yields NumPy arrays.

    Raises:
        UserError: it is not installed.
    """
    try:
        import safetensors.numpy
    except ImportError:
        raise UserError(
            f"{path}: needs the package safetensors; run: pip install safetensors"
        ) from None
    return safetensors.numpy


def facts(path: Path) -> dict:
    """What stands beside or in a weights file about it: `class_names`, `config`, `sha256`, ...

    Args:
        path: the file; it is described by NAME.json or, in a checkpoint, by state.json.

    Returns:
        {} where nothing is known, as for PaddleDetection's zoo files.
    """
    for note in (path.with_suffix(".json"), path.with_name("state.json")):
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            if note.stem == path.stem:
                if found.get("ending", path.suffix) == path.suffix:  # or a sister's
                    return dict(found)
                continue
            return {**found, "sha256": found["files"][path.name]}
        except (OSError, ValueError, KeyError, TypeError):
            continue
    if path.suffix == ".safetensors":
        try:
            with _safetensors(path).safe_open(path, framework="np") as file:
                stored = file.metadata() or {}
            return {key: json.loads(value) for key, value in stored.items()}
        except Exception:  # the package's own class; `read` tells what is wrong with the file
            return {}
    return {}


def write_safetensors(path: Path, state: dict, notes: dict) -> None:
    """Write arrays in the safetensors format.

    Args:
        path: the new file.
        state: names to np.ndarray; other values are left out.
        notes: JSON values, stored as the file's metadata and found again by `facts`.
    """
    arrays = {k: np.ascontiguousarray(v) for k, v in state.items() if isinstance(v, np.ndarray)}
    kept = {key: json.dumps(value) for key, value in notes.items()}
    _safetensors(path).save_file(arrays, path, metadata=kept)


def resolve(source: str) -> Path:
    """Local file of a path or URL; a path may lack its ending as PaddleDetection's do.

    A URL is fetched once into the cache and found there afterwards without a network call. Its
    SHA-256 is written beside it at the first download and compared at every later use.

    Raises:
        UserError: no such file, or the download failed.
    """
    if re.match(r"https?://|ppdet://", source):
        return cached(source.replace("ppdet://", "https://paddledet.bj.bcebos.com/"))
    given = Path(source).expanduser()
    named = [given.with_name(given.name + end) for end in (".pdparams", ".safetensors")]
    for path in (given, *named, given / "model.pdparams"):
        if path.is_file():
            return path
    raise UserError(
        f"{source}: no such weights file (looked for it, for {given.name}.pdparams and for "
        "model.pdparams inside it)"
    )


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    return digest(path, "sha256")


class LoadReport(NamedTuple):
    """What became of a weights file's entries. All names are the model's, but for `unused`."""

    loaded: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} loaded"
        for label, names in (
            ("not in the file", self.missing),
            ("of another shape, kept as initialised", self.reshaped),
            ("in the file but not in the model", self.unused),
        ):
            if names:
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {label} ({', '.join(names[:3])}{more})"
        return text


def load(model: paddle.nn.Layer, source: str, exact: bool = False) -> LoadReport:
    """Load a weights file into a model, by name, as PaddleDetection matches names.

    A backbone's file fits too: `conv.weight` in the file serves `backbone.conv.weight`.

    Args:
        model: receives the weights.
        source: path or URL.
        exact: refuse a file that leaves a parameter of the model unset.

    Returns:
        what loaded and what did not.

    Raises:
        UserError: unreadable, nothing fits, or (`exact`) not everything fits.
    """
    path = resolve(source)
    return fit(model, read(path), path, exact)


def fit(model: paddle.nn.Layer, state: dict, path: Path, exact: bool = False) -> LoadReport:
    """As `load`, of arrays that were read from `path`."""
    own = model.state_dict()
    names = _match(list(own), [k for k, v in state.items() if isinstance(v, np.ndarray)])
    fits = {m: w for m, w in names.items() if list(state[w].shape) == list(own[m].shape)}
    report = LoadReport(
        loaded=sorted(fits),
        missing=sorted(set(own) - set(names)),
        reshaped=sorted(set(names) - set(fits)),
        unused=sorted(set(state) - set(names.values())),
    )
    if not fits:
        raise UserError(f"{path}: none of its {len(state)} entries fits the model")
    if exact and (report.missing or report.reshaped):
        raise UserError(f"{path}: does not fit the model: {report}")
    for name, source_name in fits.items():
        own[name].set_value(tensor(state[source_name], own[name].dtype))
    return report


def listed(names: list[str], most: int = 20) -> str:
    """Class names for a line of the log: how many, and the first of them."""
    return f"{len(names)} ({', '.join(names[:most])}{', ...' * (len(names) > most)})"


def compare_classes(trained_on: list[str] | None, names: list[str]) -> None:
    """Warn where loaded weights were trained on other classes than those of the data.

    Args:
        trained_on: class names that are stored with the weights; None: unknown.
        names: class names of the data.
    """
    if not trained_on or trained_on == names:
        return
    if len(trained_on) != len(names):
        then = "the classifier starts anew"
    else:
        then = "classes are matched by number, not by name"
    log.warning("weights: trained on %s; this data set has %s: %s",
                listed(trained_on), listed(names), then)  # fmt: skip


def tensor(array: np.ndarray, dtype=None) -> paddle.Tensor:
    """A tensor of an array that `read` gave.

    Args:
        array: uint16 holds the bits of bfloat16, of which no weights file has another use.
        dtype: of the tensor; default the array's own.
    """
    if array.dtype != np.uint16:
        made = paddle.to_tensor(array)
        return made if dtype is None else made.astype(dtype)
    wide = (array.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is float32 cut short
    return paddle.to_tensor(wide).astype(dtype or "bfloat16")


def _match(model_names: list[str], file_names: list[str]) -> dict[str, str]:
    """Model name -> the file's longest name that equals it or ends it after a dot."""
    known = set(file_names)
    matches = {}
    for name in model_names:
        parts = name.split(".")
        tails = (".".join(parts[start:]) for start in range(len(parts)))
        found = next((tail for tail in tails if tail in known), None)
        if found is not None:
            matches[name] = found
    return matches
