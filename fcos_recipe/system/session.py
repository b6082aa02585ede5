"""A device for a piece of work, after which the process is as it was before."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fcos_recipe import compat
from fcos_recipe.system import compute, device
from fcos_recipe.system.compute import Compute


@contextmanager
def same_environment() -> Iterator[None]:
    """Restore the environment variables of this process after the block."""
    environment = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def session(requested: str) -> Iterator[Compute]:
    """Decide on a device and use it while the block lasts.

    Afterwards these are what they were: environment variables, warning filters, Paddle's device,
    its random state and its names for new parameters. What stays: imported modules, the process
    group of several ranks, autotuning that a config has switched on, and, after work on the CPU,
    glibc's thresholds for returning memory to the system.

    Args:
        requested: as for `compute.decide`.

    Yields:
        the decision.

    Raises:
        UserError: see `compute.decide`.
    """
    with same_environment(), warnings.catch_warnings():
        compat.before_paddle()
        found = compute.prepare(requested)
        paddle = compat.import_paddle()
        before, state = paddle.get_device(), paddle.get_rng_state()
        with paddle.utils.unique_name.guard():
            try:
                device.set_device(found.device)
                yield found
            finally:
                paddle.set_device(before)
                paddle.set_rng_state(state)
