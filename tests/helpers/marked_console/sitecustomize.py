"""On PYTHONPATH, puts marks around what this project writes to the console.

What is written for it by the standard library or tqdm counts as its own. What stays outside of the
marks is from other packages, or from C++, which does not use Python's streams.
"""

import os
import stat
import sys
import sysconfig
from pathlib import Path

BEGIN, END = "\x02", "\x03"
ROOT = str(Path(__file__).resolve().parents[3])
OURS = tuple(f"{ROOT}/{name}" for name in ("fcos_recipe/", "tools/", "datasets/"))
PASSING = (f"{ROOT}/fcos_recipe/errors.py", __file__)  # `Escaped` passes on what anybody writes
STDLIB, SITE = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")


def is_ours() -> bool:
    """Whether the nearest caller but for the standard library and tqdm is the project."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        library = name.startswith(STDLIB) and not name.startswith(SITE)
        helping = name.startswith(f"{SITE}/tqdm/") or name.startswith("<frozen")
        if not (library or helping or name in PASSING):
            return name.startswith(OURS)
        frame = frame.f_back
    return False


class Marked:
    """A stream that marks what the project writes."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text):
        line = text.rstrip("\n")  # a line's end stays its end
        marked = f"{BEGIN}{line}{END}{text[len(line) :]}" if line and is_ours() else text
        self._stream.write(marked)
        return len(text)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def __iter__(self):
        return iter(self._stream)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def is_file(stream) -> bool:
    return stream is not None and stat.S_ISREG(os.fstat(stream.fileno()).st_mode)


sys.stdout, sys.stderr = (Marked(x) if is_file(x) else x for x in (sys.stdout, sys.stderr))
