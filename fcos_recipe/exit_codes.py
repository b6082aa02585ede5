"""The only table of exit codes: those of `fcos`, `tools/*.py`, `scripts/*.sh` and each rank."""

import os
import signal
import textwrap
from collections.abc import Mapping

OK, FAILED, BAD_INPUT, DAMAGED, DISK_FULL, HUNG = 0, 1, 2, 3, 4, 124
SAVED = os.EX_TEMPFAIL  # 75 of sysexits.h: try again later
HUNG_UP, INTERRUPTED, TERMINATED = (
    128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
)

# docs/reliability.md has the same rows. Every other code above 128 is 128 + the signal's number.
MEANINGS = {
    OK: "done",
    FAILED: "failed: the log ends with the error",
    BAD_INPUT: "bad input: one line says what is wrong and how to correct it",
    DAMAGED: "a file is not the expected one: checksum, length or contents differ",
    DISK_FULL: "the disk is full or has too little space",
    SAVED: "SIGTERM or SIGHUP, after a checkpoint was saved; `--resume auto` continues from it",
    HUNG: "hung: the watchdog ended the process; the log has the stacks of all threads",
    HUNG_UP: "SIGHUP outside of training",
    INTERRUPTED: "Ctrl-C",
    TERMINATED: "SIGTERM outside of training",
    128 + signal.SIGKILL: "SIGKILL, often because memory ran out",
}


def help_text(meanings: Mapping[int, str]) -> str:
    """Write the exit codes for the end of a command's `--help`.

    Args:
        meanings: code -> its meaning for this command; 0 and 2 are included by default.
    """
    known = {OK: "done", BAD_INPUT: "bad input", **meanings}
    text = "exit codes: " + "; ".join(f"{code} {known[code]}" for code in sorted(known))
    return textwrap.fill(text, 100, break_on_hyphens=False) + "\n"


def of_shell(code: int) -> int:
    """The code that a shell reports: 128 + N for signal N, which `subprocess` gives as -N."""
    return 128 - code if code < 0 else code


def describe(code: int) -> str:
    """Describe an exit code in words; a negative code is a signal, as in `subprocess`."""
    code = of_shell(code)
    if code > 128 and code - 128 in map(int, signal.Signals):
        name = signal.Signals(code - 128).name
        return f"killed by {name}" + (" (out of memory? see `dmesg`)" if name == "SIGKILL" else "")
    known = {
        OK: "done", BAD_INPUT: "bad input", HUNG: "hung, ended by its watchdog",
        SAVED: "ended by a signal after a checkpoint was saved",
    }  # fmt: skip
    return known.get(code, f"exit code {code}")
