"""Constant tensors that are copied to the device once, not in every step."""

import functools

import numpy as np
import paddle
from paddle import Tensor


def constant(values: tuple, dtype: str) -> Tensor:
    """Return a tensor of fixed values. It is shared by all callers: do not change it.

    Args:
        values: numbers, or tuples of numbers of equal length.
        dtype: of the tensor.
    """
    if not paddle.in_dynamic_mode():  # a static graph needs its own constants
        return paddle.to_tensor(values, dtype=dtype)
    return _constant(paddle.get_device(), values, dtype)


def count_up(count: int, dtype: str) -> Tensor:
    """Return 0 .. count - 1, [count]. It is a view of a shared tensor: do not change it."""
    capacity = 1 << max(count - 1, 0).bit_length()
    numbers = _numbers(paddle.get_device(), capacity, dtype)
    return numbers if capacity == count else numbers[:count]


@functools.lru_cache(maxsize=512)
def _constant(_device: str, values: tuple, dtype: str) -> Tensor:
    return paddle.to_tensor(values, dtype=dtype)


@functools.lru_cache(maxsize=64)
def _numbers(_device: str, count: int, dtype: str) -> Tensor:
    return paddle.to_tensor(np.arange(count, dtype=dtype))
