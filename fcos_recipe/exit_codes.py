"""Exit codes of `tools/*.py`, of a rank and of `scripts/train*.sh`: the only table of them.

| code    | meaning                                                                     |
|---------|-----------------------------------------------------------------------------|
| 0       | done                                                                        |
| 1       | failed: the log ends with the error                                         |
| 2       | bad input: one line says what is wrong and how to correct it                |
| 75      | SIGTERM, after a checkpoint was saved; `--resume auto` continues from it    |
| 124     | hung: the watchdog ended the process; the log has the stacks of all threads |
| 128 + N | ended by signal N: 130 Ctrl-C, 137 SIGKILL (often out of memory), 143 SIGTERM |
"""

import os
import signal

OK, FAILED, BAD_INPUT, HUNG = 0, 1, 2, 124
SAVED = os.EX_TEMPFAIL  # 75, "try again later" in sysexits.h
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


def describe(code: int) -> str:
    """Describe an exit code in words; a negative code is a signal, as in `subprocess`."""
    if code < 0:
        code = 128 - code
    if code > 128 and code - 128 in map(int, signal.Signals):
        name = signal.Signals(code - 128).name
        return f"killed by {name}" + (" (out of memory? see `dmesg`)" if name == "SIGKILL" else "")
    known = {
        OK: "done", BAD_INPUT: "bad input", HUNG: "hung, ended by its watchdog",
        SAVED: "ended by SIGTERM after a checkpoint was saved",
    }  # fmt: skip
    return known.get(code, f"exit code {code}")
