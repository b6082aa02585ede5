"""Read pickles from untrusted sources that contain only arrays in plain containers."""

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

KINDS = "biuf"  # allowed NumPy types: bool, int, unsigned, float; no objects, no structures
DEPTH = 4  # allowed nesting of dicts; an optimizer's master weights need two
MOST_OPERATIONS = 1 << 19  #: of one pickle, and entries of all its dicts; 300 arrays need 10,000
MOST_NESTED = 32  #: containers inside containers; an array in an optimizer's state needs eight


class Refused(pickle.UnpicklingError):
    """A pickle contains more than a weights file needs."""


class _NdArray:
    """Replaces `numpy.ndarray` in a pickle, which could be called with any size."""


class _Type:
    """Replaces `numpy.dtype` in a pickle, whose state could refer to memory outside the data."""

    def __init__(self, spend: Callable, name: str, *_):
        if not isinstance(name, str) or len(name) > 16:
            raise Refused("a type without a name")
        self.spend = spend
        self.made = np.dtype(name)
        if self.made.kind not in KINDS:
            raise Refused(f"values of type {name!r}, which no weights file needs")

    def __setstate__(self, state):
        self.made = self.made.newbyteorder(state[1])

    def view(self, data, shape, order: str = "C") -> np.ndarray:
        """Return bytes as an array without a copy; ValueError if the sizes differ."""
        if isinstance(data, str):  # written by Python 2
            data = self.spend(data).encode("latin1")
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
            "numpy.dtype": lambda *arguments: _Type(self._spend, *arguments),
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
        if not all(isinstance(pair[0], str) for pair in self._spend(items)):
            raise Refused("a key that is not a name")
        return OrderedDict(items)

    def _encode(self, text, encoding):
        if encoding != "latin1":
            raise Refused(f"text in {encoding!r}, which no weights file needs")
        return self._spend(text).encode("latin1")


_MARK = object()  # on the stack of `scan`
_TEXT = -1  # on the stack of `scan`: a text; otherwise the number of nested containers


def scan(data: bytes) -> None:
    """Check the operations of a pickle, none of which is executed.

    An unpickler allocates as much memory as a memo index says, and computing the hash of a key that
    is not a text may take any time or overflow the stack of the process.

    Raises:
        pickle.UnpicklingError: too many or too deeply nested objects, a memo index above the number
            of objects that were stored, a key that is not a text, or an integer above 64 bits.
        ValueError: no pickle, or a truncated one.
    """
    stack: list = []
    memo: dict[int, int] = {}
    puts = 0
    for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name, before, after = operation.name, operation.stack_before, operation.stack_after
        if count >= MOST_OPERATIONS:
            raise Refused(f"more than {MOST_OPERATIONS} operations")
        if isinstance(argument, int) and argument.bit_length() > 64:
            raise Refused("an integer of more than 64 bits")
        if "PUT" in name or name == "MEMOIZE":
            index = len(memo) if argument is None else argument
            puts += 1
            if not 0 <= index <= puts:
                raise Refused(f"memo index {index} after {puts} objects")
            memo[index] = stack[-1]
            continue
        if "GET" in name:
            stack.append(memo[int(argument)])  # type: ignore[arg-type]
            continue
        popped: list = []
        if pickletools.markobject in before:
            while (top := stack.pop()) is not _MARK:
                popped.append(top)
            popped.reverse()
            below = before.index(pickletools.markobject)
        else:
            below = len(before)
        taken = [stack.pop() for _ in range(below)][::-1] + popped
        start = {"SETITEM": 1, "SETITEMS": 1, "DICT": 0}.get(name)
        if name in ("FROZENSET", "ADDITEMS") or (
            start is not None and any(key is not _TEXT for key in taken[start::2])
        ):
            raise Refused("a key that is not a name")
        if after == [pickletools.markobject]:
            stack.append(_MARK)
        elif name == "DUP":
            stack += taken * 2
        elif after:
            depth = 1 + max(taken, default=-1) if taken else 0
            if depth > MOST_NESTED:
                raise Refused("nested too deeply for a weights file")
            text = not before and after[0] in (pickletools.pyunicode,
                                               pickletools.pybytes_or_str)  # fmt: skip
            stack.append(_TEXT if text else depth)


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
    scan(data)
    state = _Reader(data).load()
    if not isinstance(state, dict):
        raise Refused(f"holds a {type(state).__name__}, not a dict of weights")
    state.pop("StructuredToParameterName@@", None)
    return _plain(state, DEPTH, [MOST_OPERATIONS])


def _plain(value, depth: int, left: list[int]):
    """Replace the stand-ins in dicts that contain at most `left[0]` entries together."""
    if not depth:
        raise Refused("nested too deeply for a weights file")
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array | np.ndarray):
        value = value[1]
    if isinstance(value, dict):
        left[0] -= len(value)
        if left[0] < 0:
            raise Refused("unpacks to far more than its size")
        return {k: _plain(v, depth - 1, left) for k, v in value.items()}
    return value.made if isinstance(value, _Array) else value
