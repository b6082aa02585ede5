"""Weights files: find, read, and load them into a model with a report of what fitted."""

import io
import pickle
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from fcos_recipe.data.download import digest
from fcos_recipe.engine.zoo import cached
from fcos_recipe.errors import UserError

# A weights file is a pickle. Only these may be named in it: arrays and plain containers.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
    ("builtins", "tuple"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"names {module}.{name}, which no weights file needs")


def read(path: str | Path) -> dict:
    """Read a .pdparams or .pdopt file without running code that it may hold.

    Args:
        path: the file.

    Returns:
        names to np.ndarray (or plain values), as `paddle.save` wrote them.

    Raises:
        UserError: missing, truncated, or something else than arrays in plain containers.
    """
    try:
        data = Path(path).read_bytes()
        state = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{path}: not a readable weights file ({reason}); truncated? fetch it again"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, not a dict of weights")
    state.pop("StructuredToParameterName@@", None)
    return {key: _plain(value) for key, value in state.items()}


def _plain(value):
    # paddle.save stores a tensor outside a state dict as (name, array)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], np.ndarray):
        return value[1]
    return value


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
    for path in (given, given.with_name(given.name + ".pdparams"), given / "model.pdparams"):
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
    state = read(path)
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
        dtype = str(own[name].dtype).rsplit(".", 1)[-1]
        own[name].set_value(state[source_name].astype(dtype))
    return report


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
