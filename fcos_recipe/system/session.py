"""Use a device inside a context, then restore the state of the process."""

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
    """Choose a device and use it inside this context.

    Afterwards these are restored: environment variables, warning filters, Paddle's device, its
    random state and its names for new parameters. These are not restored: imported modules, the
    process group of several ranks, autotuning enabled by a config and, after work on the CPU,
    glibc's thresholds for returning memory to the system.

    Args:
        requested: as for `compute.decide`.

    Yields:
        the chosen device and the cards found.

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
