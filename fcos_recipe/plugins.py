"""Python files of the user with transforms, backbones and losses, named by a config's `plugins`.

A config alone can run no code: each file must be permitted by whoever starts the process, with
`--allow-code FILE` or the environment variable `FCOS_ALLOW_CODE`.
"""

import hashlib
import os
import sys
import traceback
import types
from typing import NamedTuple

from fcos_recipe.errors import RunFailure, Stopped, UserError, one_line

ENVIRONMENT = "FCOS_ALLOW_CODE"  # permitted files, separated as in PATH


class Plugin(NamedTuple):
    """One file: its absolute path, its text, and the SHA-256 of that."""

    path: str
    sha256: str
    text: str

    @property
    def module(self) -> str:
        """Name of the module that the file becomes; another path or content is another module."""
        return f"fcos_plugin_{hashlib.sha256(self.path.encode()).hexdigest()[:8]}_{self.sha256}"


_executed: dict[str, str] = {}  # path -> module


def allow(path: str | os.PathLike) -> None:
    """Permit a file in this process and in those that it starts."""
    known = os.environ.get(ENVIRONMENT)
    path = os.path.abspath(path)
    os.environ[ENVIRONMENT] = f"{known}{os.pathsep}{path}" if known else path


def allowed(path: str | os.PathLike) -> bool:
    """Whether the user permitted this very file; links are followed on both sides."""
    permitted = os.environ.get(ENVIRONMENT, "").split(os.pathsep)
    return os.path.realpath(path) in {os.path.realpath(one) for one in permitted if one}


def execute(plugin: Plugin) -> None:
    """Run a file as a module; does nothing if its content ran before.

    Raises:
        UserError: it is not permitted, or fails; the message names the line.
    """
    if plugin.module in sys.modules:
        return
    if not allowed(plugin.path):
        raise UserError(refusal(plugin.path))
    module = types.ModuleType(plugin.module)
    module.__file__ = plugin.path
    sys.modules[plugin.module] = module
    _executed[plugin.path] = plugin.module
    try:
        exec(compile(plugin.text, plugin.path, "exec"), vars(module))  # `load_config` parsed it
    except (Exception, SystemExit) as error:
        del sys.modules[plugin.module]
        raise UserError(fault(error) or f"{plugin.path}: {error}") from error


def refusal(path: str) -> str:
    """Say that a file is not permitted, and how to permit it."""
    return (
        f"{one_line(path)} is Python code, which runs with all your rights: read it, then "
        f"permit it with --allow-code {one_line(path)}, or in the environment ({ENVIRONMENT})"
    )


def fault(error: BaseException) -> str | None:
    """One line about an error in a user's file, "FILE:LINE: what"; None if it is not in one.

    Errors of this project, which say where they are, are never in one.
    """
    if isinstance(error, (UserError, RunFailure, Stopped)):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename in _executed]
    if not inside:
        return None
    what = one_line(" ".join(str(error).split())[-300:])
    return f"{one_line(inside[-1].filename)}:{inside[-1].lineno}: {type(error).__name__}: {what}"
