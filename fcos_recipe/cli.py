"""The table of commands; `fcos NAME ...` and `python tools/NAME.py ...` both call `run`."""

import atexit
import ctypes
import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from typing import Any, NoReturn

from fcos_recipe import __version__
from fcos_recipe.console import exit_code
from fcos_recipe.errors import Escaped, UserError, is_text
from fcos_recipe.exit_codes import BAD_INPUT, FAILED, OK
from fcos_recipe.system.stop_signals import TRAINING, ending_at_once
from fcos_recipe.system.watchdog import announce_failure, rank

# name: (module:function, one line for `fcos --help`). Modules are imported only when called, so
# that `--help` and commands without a model do not import Paddle.
COMMANDS = {
    "train": ("fcos_recipe.commands.train:train", "train a model, with --eval after each epoch"),
    "eval": ("fcos_recipe.commands.eval:evaluate", "evaluate a weights file with COCO's metrics"),
    "infer": ("fcos_recipe.commands.infer:main", "draw boxes on images, write COCO results"),
    "export_model": (
        "fcos_recipe.commands.export_model:main",
        "export to Paddle Inference or ONNX and check it",
    ),
    "dataset": ("fcos_recipe.commands.dataset:main", "download COCO; check, convert and view data"),
    "weights": (
        "fcos_recipe.commands.weights:main",
        "download published weights; convert formats",
    ),
    "config": ("fcos_recipe.commands.config:main", "print, validate or compare configs"),
    "analyze_model": (
        "fcos_recipe.commands.analyze_model:main",
        "parameters, multiply-adds, memory, time",
    ),
    "benchmark": (
        "fcos_recipe.lab.benchmark.commands:main",
        "compare the speed with stock paddledet",
    ),
    "report": ("fcos_recipe.commands.report:main", "show a run as one page; compare runs"),
    "verify_result": (
        "fcos_recipe.commands.verify_result:main",
        "compare a run with the published AP",
    ),
    "doctor": ("fcos_recipe.commands.doctor:main", "check this machine before a long run"),
}


def run(name: str, argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        name: a key of `COMMANDS`.
        argv: arguments after the command's name; default `sys.argv[1:]`.

    Returns:
        The process's exit code: the command's own, or one of `exit_codes`.
    """
    module, function = COMMANDS[name][0].split(":")

    def call() -> int:
        given = sys.argv[1:] if argv is None else argv
        for text in given:
            if "\0" in text or not is_text(text):
                raise UserError(f"{text[:200]!a}: not text; an argument must be UTF-8")
        try:
            return getattr(import_module(module), function)(given)
        except (MemoryError, OSError, RuntimeError, SystemError, ImportError):
            from fcos_recipe.system.out_of_memory import explained

            with explained("cpu", ""):  # also before a command knows its config
                raise

    def announce(error: Exception) -> None:
        if rank():  # Paddle's launcher only shows the log of rank 0
            announce_failure(rank(), error)

    try:
        with (
            redirect_stdout(Escaped(sys.stdout)),
            redirect_stderr(Escaped(sys.stderr)),
            ending_at_once(TRAINING if name == "train" else f"{name}: ended before it was done"),
        ):
            return exit_code(call, announce)
    except Exception as error:
        if "PADDLE_TRAINER_ID" in os.environ:  # one of several ranks: name it first
            announce_failure(rank(), error)
        sys.excepthook = _excepthook
        raise


def _excepthook(*error: Any) -> None:
    """Print the traceback and leave: Paddle aborts if Python ends during a collective."""
    sys.__excepthook__(*error)
    leave(FAILED)


def leave(code: int) -> NoReturn:
    """Run Python's exit handlers and end the process with this code.

    Native exit handlers are skipped, because they can crash and replace the exit code by a signal:
    the Iluvatar plugin was reported to crash while it unloads, and Paddle 2.6 aborts if a reader's
    thread is still alive.
    """
    if "paddle" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(MemoryError):
            end = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os._exit(code))
            for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE):
                ctypes.CDLL(None).signal(number, end)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def usage() -> str:
    rows = "\n".join(f"  {name:<15}{text}" for name, (_, text) in COMMANDS.items())
    return (
        f"fcos {__version__}: FCOS on PaddlePaddle\n\nusage: fcos COMMAND [options]\n\n{rows}\n\n"
        "`fcos COMMAND --help` shows the options and an example.\n"
        "example: fcos train -c fcos_r18_fpn_demo --eval"
    )


def main() -> NoReturn:
    """Console entry point `fcos`."""
    argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        leave(OK)
    if argv[0] == "--version":
        print(__version__)
        leave(OK)
    if argv[0] not in COMMANDS:
        print(f"error: no command {argv[0]!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        leave(BAD_INPUT)
    leave(run(argv[0], argv[1:]))
