"""Read pickles from untrusted sources that contain only arrays in plain containers."""

import io
import pickle
from collections import OrderedDict

import numpy as np

KINDS = "biuf"  # allowed NumPy types: bool, int, unsigned, float; no objects, no structures
DEPTH = 4  # allowed nesting of dicts; an optimizer's master weights need two


class Refused(pickle.UnpicklingError):
    """A pickle contains more than a weights file needs."""


class _NdArray:
    """Replaces `numpy.ndarray` in a pickle, which could be called with any size."""


class _Type:
    """Replaces `numpy.dtype` in a pickle, whose state could refer to memory outside the data."""

    def __init__(self, name, *_):
        self.made = np.dtype(name)
        if self.made.kind not in KINDS:
            raise Refused(f"values of type {name!r}, which no weights file needs")

    def __setstate__(self, state):
        self.made = self.made.newbyteorder(state[1])

    def view(self, data, shape, order: str = "C") -> np.ndarray:
        """Return bytes as an array without a copy; ValueError if the sizes differ."""
        data = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
        return np.frombuffer(data, self.made).reshape(shape, order=order)


class _Array:
    """Replaces an array until its state (type, shape and bytes) has been read."""

    def __setstate__(self, state):
        _, shape, kind, fortran, data = state
        self.made = kind.view(data, shape, "F" if fortran else "C")


class _Reader(pickle.Unpickler):
    """Calls only the functions in `_known`; the results cannot be much larger than the file.

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
            "__builtin__.bytes": lambda: b"",  # an empty array in old pickle protocols
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
            raise Refused(f"uses {module}.{name}, which no weights file needs") from None

    def _spend(self, items):
        """Limit the total size of copies: a malicious pickle can repeat one object many times."""
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
    """Read the dict in a pickle.

    Args:
        data: from `paddle.save`, or from PaddleDetection's converters under Python 2.

    Returns:
        names to np.ndarray, plain values, and dicts of them. (name, array) pairs of `paddle.save`
        become the array; its table of parameter names is left out.

    Raises:
        pickle.UnpicklingError: not a dict, or it contains something else. Damaged data can raise
            any exception.
    """
    state = _Reader(data).load()
    if not isinstance(state, dict):
        raise Refused(f"holds a {type(state).__name__}, not a dict of weights")
    state.pop("StructuredToParameterName@@", None)
    return _plain(state, DEPTH)


def _plain(value, depth: int):
    if not depth:
        raise Refused("nested too deeply for a weights file")
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array | np.ndarray):
        value = value[1]
    if isinstance(value, dict):
        return {str(k): _plain(v, depth - 1) for k, v in value.items()}
    return value.made if isinstance(value, _Array) else value
