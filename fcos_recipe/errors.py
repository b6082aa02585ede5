"""Exceptions that the commands report in one line instead of a traceback."""

import errno
import re
import sys
from collections.abc import Mapping
from typing import Any

# Control characters except tab and line feed, the marks that reverse the direction of text, and
# what Python makes of bytes in file names that are not UTF-8, which can't be printed.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# A URL after its scheme ends at white space or a quote; a quote before an `@` is in a password.
_URL = re.compile(r"""(?<=://)[^\s"'<>]+(?:["'<>][^\s"'<>]*@[^\s"'<>]*)*""")
MOST = 2000  #: characters of a line about what a file contains; names in files may be endless
_AFTER_PATH = re.compile(r"([?&;](?:[^=&;#]*=)?)[^&;#]+|(#).+")


def is_text(text: str) -> bool:
    """Whether there are no lone surrogates, which stand for bytes that are not UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def printable(text: str) -> str:
    """Make text from an untrusted source safe to print and to log.

    Control characters, with which a class or file name could manipulate a terminal, become escape
    sequences. Passwords and keys in URLs become `***`.
    """
    return without_secrets(_CONTROL.sub(lambda found: repr(found[0])[1:-1], text))


class Escaped:
    """A text stream that passes control characters on as escape sequences.

    What a command prints may contain names of files and classes from elsewhere, with which they
    could manipulate a terminal. Characters that the stream's encoding does not have are escaped as
    well. A carriage return at the beginning or end of a text, as progress bars write it, is kept.

    Args:
        stream: such as sys.stdout.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        coding = self._stream.encoding or "utf-8"
        inner = text.strip("\r")
        safe = _CONTROL.sub(lambda found: repr(found[0])[1:-1], inner)
        safe = safe.encode(coding, "backslashreplace").decode(coding)
        self._stream.write(text.replace(inner, safe, 1) if inner else text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def shortened(text: str, most: int = MOST) -> str:
    """Cut a text of more than `most` characters in its middle.

    The beginning names the file and the end the remedy.
    """
    if len(text) <= most:
        return text
    cut = f" ... ({len(text)} characters) ... "
    end = (most - len(cut)) // 3
    return text[: most - len(cut) - end] + cut + text[-end:]


def one_line(text: object, most: int | None = MOST) -> str:
    """Make text from an untrusted source safe, and free of line feeds and tabs.

    Args:
        text: converted with `str`.
        most: characters to which it is shortened; None: all are kept.
    """
    line = printable(str(text)).replace("\n", "\\n").replace("\t", "\\t")
    return line if most is None else shortened(line, most)


def cell(text: object) -> str:
    """Make text from an untrusted source safe for a cell of a CSV file.

    Spreadsheets run text as a formula if it begins with one of these characters; an apostrophe
    makes them show it.
    """
    safe = one_line(text, None)
    return f"'{safe}" if safe.startswith(("=", "+", "-", "@")) else safe


def without_secrets(text: str) -> str:
    """Replace what may be secret in URLs by `***`.

    That is user and password (all before the last `@`), each value of the query, also after `;`,
    and the fragment. Names are no help: each service has its own for a token.
    """
    return _URL.sub(_masked, text)


def _masked(url: re.Match) -> str:
    user, at, rest = url[0].rpartition("@")
    if re.search("[?#;]", user):  # of a password, or before an `@` of the query: not known
        return "***"
    return ("***@" if at else "") + _AFTER_PATH.sub(lambda part: (part[1] or part[2]) + "***", rest)


def path_reason(error: OSError) -> str:
    """Why a path cannot be written, in words that say what is in the way."""
    words = {
        errno.EEXIST: "a file is where a folder must be",
        errno.ENOTDIR: "a part of this path is a file, not a folder",
        errno.EISDIR: "a folder is where a file must be",
    }
    return words.get(error.errno or 0, error.strerror or str(error))


def tell(error: Exception) -> None:
    """Print an error to standard error, each of its lines as `error: ...`."""
    for line in str(error).split("\n"):
        print(f"error: {one_line(line)}", file=sys.stderr)


class _Told(Exception):
    """An error of which a command prints only the text.

    Args:
        lines: each becomes one line of at most `MOST` characters, whatever names it contains.
    """

    def __init__(self, *lines: str):
        super().__init__("\n".join(one_line(line) for line in lines))


class UserError(_Told):
    """Bad input. The message is one line: file, field, what is wrong, remedy. Exit code 2."""


class UserErrors(UserError):
    """Several errors found by one check, reported together.

    Args:
        messages: one line per error, in the order of printing.
    """

    def __init__(self, messages: list[str]):
        super().__init__(*messages)
        self.messages = str(self).split("\n")


class RunFailure(_Told):
    """A run cannot continue for a reason other than bad input. One line; exit code 1."""


def not_written(missing: Mapping[str, Exception]) -> dict[str, str]:
    """Of results that are missing, those that could not be written, and why.

    What could not be made for another reason, such as a picture, is no failure: the log says it.
    """
    return {
        what: path_reason(error) if isinstance(error, OSError) else str(error) or "no memory"
        for what, error in missing.items()
        if isinstance(error, (OSError, MemoryError, UserError))
    }


def refuse_incomplete(place: object, lost: Mapping[str, str], remedy: str) -> None:
    """End what is otherwise done if files of it could not be written.

    Args:
        place: folder of the results.
        lost: what is not on disk, and why.
        remedy: ends the message.

    Raises:
        RunFailure: `lost` is not empty.
    """
    if lost:
        text = "; ".join(f"{what}: {why}" for what, why in lost.items())
        raise RunFailure(f"{place}: these are not on disk: {text}; {remedy}")


class Stopped(Exception):
    """The run ended because of SIGTERM, after it saved a checkpoint. Exit code 75."""
