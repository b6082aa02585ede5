"""Constant tensors, copied to the device once instead of in every step."""

import functools

import numpy as np
import paddle
from paddle import Tensor


def constant(values: tuple, dtype: str) -> Tensor:
    """A tensor of fixed values. Do not write into it: it is shared by all callers.

    Args:
        values: numbers, or tuples of numbers of equal length.
        dtype: of the tensor.
    """
    if not paddle.in_dynamic_mode():  # a traced program has constants of its own
        return paddle.to_tensor(values, dtype=dtype)
    return _constant(paddle.get_device(), values, dtype)


def count_up(count: int, dtype: str) -> Tensor:
    """0 .. count - 1, [count]. Do not write into it: it is a view of a shared tensor."""
    capacity = 1 << max(count - 1, 0).bit_length()
    numbers = _numbers(paddle.get_device(), capacity, dtype)
    return numbers if capacity == count else numbers[:count]


@functools.lru_cache(maxsize=512)
def _constant(_device: str, values: tuple, dtype: str) -> Tensor:
    return paddle.to_tensor(values, dtype=dtype)


@functools.lru_cache(maxsize=64)
def _numbers(_device: str, count: int, dtype: str) -> Tensor:
    return paddle.to_tensor(np.arange(count, dtype=dtype))
