"""Find and read weights files, load them into a model, and report which entries matched."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import paddle

from fcos_recipe.checkpoint.safe_pickle import Refused, loads
from fcos_recipe.checkpoint.zoo import MOST_BYTES, cached
from fcos_recipe.console import log
from fcos_recipe.errors import UserError
from fcos_recipe.files.download import digest
from fcos_recipe.files.reading import decode_json, given_path, read_bytes, read_json

_CONVERT = (
    "{}; convert it where {} is installed and give the new file: python -c '{}'; the names in it "
    "must be PaddleDetection's"
)
_PYTORCH = _CONVERT.format(
    "a PyTorch file",
    "PyTorch",
    "import torch, safetensors.torch as s; "
    's.save_file(torch.load("FILE", map_location="cpu", weights_only=True), "FILE.safetensors")',
)
_NPZ = _CONVERT.format(
    "a NumPy archive (npz)",
    "safetensors",
    "import numpy, safetensors.numpy as s; "
    's.save_file(dict(numpy.load("FILE")), "FILE.safetensors")',
)


OF_FOLDERS = ("model", "best_model", "model_final")  # of a checkpoint; of a run directory


class Note(TypedDict, total=False):
    """What is known about weights: of NAME.json, of state.json, or of a .safetensors file."""

    class_names: list[str] | None
    category_ids: list[int] | None
    config: str
    AP: float | None
    sha256: str
    replaces: str  #: SHA-256 of the file before, while the new one is being written
    ending: str  #: of the weights file; the JSON file may belong to one of another format
    files: dict[str, str]  #: of a checkpoint: name -> SHA-256


def read(path: str | Path, sha256: str | None = None) -> dict:
    """Read a .pdparams, .pdopt or .safetensors file without executing code in it.

    Args:
        path: the file.
        sha256: expected hash of the file; default: the one in `description`, if any.

    Returns:
        names to np.ndarray (or plain values), as `paddle.save` wrote them. bfloat16, which NumPy
        does not have, is returned as uint16.

    Raises:
        UserError: missing, damaged, or it contains something other than arrays in plain containers.
    """
    path = Path(path)
    data = read_bytes(path, MOST_BYTES)
    note = {"sha256": sha256} if sha256 else description(path)
    wanted = [note[key] for key in ("sha256", "replaces") if key in note]
    if wanted and hashlib.sha256(data).hexdigest() not in wanted:
        raise UserError(
            f"{path}: damaged, its SHA-256 differs from the recorded one; use another file or, if "
            f"you replaced it yourself, delete {path.with_suffix('.json')}"
        )
    if form := _foreign(data):
        raise UserError(f"{path}: {form}")
    try:
        return (_safetensors(path).load if path.suffix == ".safetensors" else loads)(data)
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path}: not a readable weights file: {error}") from None
    except Exception as error:  # a damaged pickle can raise any exception
        why = str(error) or type(error).__name__
        raise UserError(
            f"{path}: not a readable weights file ({why}); truncated? download it again"
        ) from None


def _foreign(data: bytes) -> str | None:
    """Name another program's format and how to convert it; None for any other content."""
    if data[:4] != b"PK\x03\x04":
        return _PYTORCH if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in data[:32] else None
    name = data[30 : 30 + int.from_bytes(data[26:28], "little")]  # of the archive's first entry
    if name.endswith(b".npy"):
        return _NPZ
    return _PYTORCH if name.endswith((b"data.pkl", b"version")) else "a zip archive; unpack it"


def _safetensors(path: Path):
    """Import safetensors' NumPy interface.

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


def description(path: Path) -> dict:
    """Read the description of a weights file.

    Args:
        path: the file. Its description is in NAME.json, in a checkpoint in state.json, and for
            safetensors in the file itself.

    Returns:
        the entries of `Note` that exist; {} for files of PaddleDetection's model zoo.

    Raises:
        UserError: the JSON file is damaged, or an entry is not of its type.
    """
    for note in (path.with_suffix(".json"), path.with_name("state.json")):
        if not os.path.lexists(note):
            continue
        found = read_json(note, Note)
        if note.stem == path.stem:
            if found.get("ending", path.suffix) == path.suffix:
                return found
        elif path.name in found.get("files", {}):
            return {**found, "sha256": found["files"][path.name]}
    if path.suffix == ".safetensors":
        try:
            with _safetensors(path).safe_open(path, framework="np") as file:
                stored = file.metadata() or {}
        except Exception:  # safetensors' own class; `read` reports what is wrong with the file
            return {}
        return _note(path, stored)
    return {}


def _note(path: Path, stored: dict[str, str]) -> dict:
    """The entries of a .safetensors file's metadata that this project wrote; others have no use."""
    note = {}
    for key in Note.__annotations__.keys() & stored.keys():
        try:
            note.update(decode_json(f'{{"{key}":{stored[key]}}}', Note))
        except ValueError as error:
            log.warning("%s: metadata %s is not used: %s", path, key, error)
    return note


def write_safetensors(path: Path, state: dict, notes: dict) -> None:
    """Write arrays in the safetensors format.

    Args:
        path: the new file.
        state: names to np.ndarray; other values are left out.
        notes: JSON values, stored as the file's metadata, which `description` reads.
    """
    arrays = {k: np.ascontiguousarray(v) for k, v in state.items() if isinstance(v, np.ndarray)}
    kept = {key: json.dumps(value) for key, value in notes.items()}
    _safetensors(path).save_file(arrays, path, metadata=kept)


def resolve(source: str) -> Path:
    """Return the local file for a path or URL.

    A path may omit its ending, as in PaddleDetection. Of a run directory, the best weights are
    meant, or the final ones if it was not evaluated. A URL is downloaded once, see `zoo.cached`.

    Raises:
        UserError: the file does not exist, or the download failed.
    """
    if re.match(r"https?://|ppdet://", source):
        return cached(source.replace("ppdet://", "https://paddledet.bj.bcebos.com/"))
    given = given_path(source)
    named = [given.with_name(given.name + end) for end in (".pdparams", ".safetensors")]
    for path in (given, *named, *(given / f"{name}.pdparams" for name in OF_FOLDERS)):
        if path.is_file():
            return path
    if saved := sorted(given.glob("checkpoints/*/model.pdparams")):
        raise UserError(
            f"{source}: this run has not ended and has no {OF_FOLDERS[1]}.pdparams; name one of "
            f"its checkpoints, such as {saved[-1].parent}"
        )
    others = f"a folder with {' or '.join(OF_FOLDERS)}.pdparams"
    if not given.suffix:
        others = f"{given.name}.pdparams, nor {others}"
    raise UserError(f"{source}: no such weights file (nor {others})")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return digest(path, "sha256")


class LoadReport(NamedTuple):
    """Which entries of a weights file matched; names are the model's, in `unused` the file's."""

    loaded: list[str]
    missing: list[str]
    reshaped: list[str]
    unused: list[str]

    def __str__(self) -> str:
        text = f"{len(self.loaded)} loaded"
        for label, names in (
            ("not in the file", self.missing),
            ("with another shape, not loaded", self.reshaped),
            ("in the file but not in the model", self.unused),
        ):
            if names:
                more = ", ..." if len(names) > 3 else ""
                text += f"; {len(names)} {label} ({', '.join(names[:3])}{more})"
        return text


def load(model: paddle.nn.Layer, source: str, exact: bool = False) -> LoadReport:
    """Load a weights file into a model; names are matched as in PaddleDetection.

    A backbone's weights can be loaded as well: `conv.weight` in the file matches
    `backbone.conv.weight`.

    Args:
        model: receives the weights.
        source: path or URL.
        exact: require that the file sets every parameter of the model.

    Returns:
        which entries were loaded.

    Raises:
        UserError: the file cannot be read, nothing matches, or (`exact`) not everything matches.
    """
    path = resolve(source)
    return fit(model, read(path), path, exact)


def fit(model: paddle.nn.Layer, state: dict, path: Path, exact: bool = False) -> LoadReport:
    """As `load`, for arrays that were read from `path`."""
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
        raise UserError(f"{path}: none of its {len(state)} entries matches the model")
    if exact and (report.missing or report.reshaped):
        raise UserError(f"{path}: does not match the model: {report}")
    for name, source_name in fits.items():
        own[name].set_value(tensor(state[source_name], own[name].dtype))
    return report


def listed(names: list[str], most: int = 20) -> str:
    """Number of class names and the first of them, for a log line."""
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
        then = "the classifier is trained from scratch"
    else:
        then = "classes are matched by index, not by name"
    log.warning("weights: trained on %s; this data set has %s: %s",
                listed(trained_on), listed(names), then)  # fmt: skip


def tensor(array: np.ndarray, dtype=None) -> paddle.Tensor:
    """Convert an array from `read` to a tensor.

    Args:
        array: uint16 is taken as the bits of bfloat16, its only use in weights files.
        dtype: of the tensor; default: that of the array.
    """
    if array.dtype != np.uint16:
        made = paddle.to_tensor(array)
        return made if dtype is None else made.astype(dtype)
    wide = (array.astype(np.uint32) << 16).view(np.float32)  # upper half of a float32
    return paddle.to_tensor(wide).astype(dtype or "bfloat16")


def _match(model_names: list[str], file_names: list[str]) -> dict[str, str]:
    """Model name -> the longest name in the file that equals it or its end after a dot."""
    known = set(file_names)
    matches = {}
    for name in model_names:
        parts = name.split(".")
        tails = (".".join(parts[start:]) for start in range(len(parts)))
        found = next((tail for tail in tails if tail in known), None)
        if found is not None:
            matches[name] = found
    return matches
