"""Read a pickle of arrays in plain containers, and nothing else, whoever wrote it."""

import io
import pickle
from collections import OrderedDict

import numpy as np

KINDS = "biuf"  # of NumPy's types: bool, int, unsigned, float. No objects, no structures
DEPTH = 4  # of dicts in dicts: an optimizer's master weights need two


class Refused(pickle.UnpicklingError):
    """A pickle that wants more than a weights file needs."""


class _NdArray:
    """Stands where a pickle names `numpy.ndarray`, which could be called with any size."""


class _Type:
    """Stands for a `numpy.dtype`, whose own state could describe memory that is not there."""

    def __init__(self, name, *_):
        self.made = np.dtype(name)
        if self.made.kind not in KINDS:
            raise Refused(f"values of type {name!r}, which no weights file needs")

    def __setstate__(self, state):
        self.made = self.made.newbyteorder(state[1])

    def view(self, data, shape, order: str = "C") -> np.ndarray:
        """Bytes as an array, without a copy; ValueError where the sizes disagree."""
        data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        return np.frombuffer(data, self.made).reshape(shape, order=order)


class _Array:
    """Stands for an array until its state, that is type, shape and bytes, has been read."""

    def __setstate__(self, state):
        _, shape, kind, fortran, data = state
        self.made = kind.view(data, shape, "F" if fortran else "C")


class _Reader(pickle.Unpickler):
    """Calls only what is in `_known`, each with arguments in proportion to the file.

    Args:
        data: the file's bytes.
    """

    def __init__(self, data: bytes):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._left = len(data)
        core = {
            "_reconstruct": lambda *_: _Array(),
            "scalar": lambda kind, data: kind.view(data, ()),
            "_frombuffer": lambda data, kind, shape, order: kind.view(data, shape, order),
        }
        self._known = {
            "collections.OrderedDict": self._ordered,
            "builtins.tuple": lambda items: tuple(self._spend(items)),
            "_codecs.encode": self._encode,
            "__builtin__.bytes": lambda: b"",  # of an empty array, in old protocols
            "numpy.dtype": _Type,
            "numpy.ndarray": _NdArray,
            **{
                f"numpy.{package}.{module}.{name}": function
                for package in ("core", "_core")
                for module in ("multiarray", "numeric")
                for name, function in core.items()
            },
        }

    def find_class(self, module, name):
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise Refused(f"names {module}.{name}, which no weights file needs") from None

    def _spend(self, items):
        """Copies of what a pickle holds once are made again and again by a bomb."""
        self._left -= len(items)
        if self._left < 0:
            raise Refused("unpacks to far more than its size")
        return items

    def _ordered(self, items=()):
        return OrderedDict(self._spend(items))

    def _encode(self, text, encoding):
        if encoding != "latin1":
            raise Refused(f"text in {encoding!r}, which no weights file needs")
        return self._spend(text).encode("latin1")


def loads(data: bytes) -> dict:
    """The dict in a pickle.

    Args:
        data: as `paddle.save` writes it, or PaddleDetection's converters did with Python 2.

    Returns:
        names to np.ndarray, plain values, and dicts of them. What `paddle.save` stores as (name,
        array) is the array; its table of parameter names is left out.

    Raises:
        pickle.UnpicklingError: not a dict, or of something else; other errors if damaged.
    """
    state = _Reader(data).load()
    if not isinstance(state, dict):
        raise Refused(f"holds a {type(state).__name__}, not a dict of weights")
    state.pop("StructuredToParameterName@@", None)
    return _plain(state, DEPTH)


def _plain(value, depth: int):
    if not depth:
        raise Refused("nested deeper than any weights file")
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array | np.ndarray):
        value = value[1]
    if isinstance(value, dict):
        return {str(k): _plain(v, depth - 1) for k, v in value.items()}
    return value.made if isinstance(value, _Array) else value
