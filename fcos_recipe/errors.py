"""What goes wrong by the user's input, told in words instead of a traceback."""

import re
import sys

# All but tab and line feed, and what turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SECRET = re.compile(
    r"(://)[^/@\s]+(?=@)|([?&][\w.-]*(?:token|key|sign|secret|passw|credential)[\w.-]*=)[^&\s\"']+",
    re.IGNORECASE,
)


def printable(text: str) -> str:
    """Text as it may be shown and kept, whoever chose the names in it.

    Control characters, with which a class or file name could take over a terminal, are shown as
    escapes. Passwords and keys in URLs become stars.
    """
    return without_secrets(_CONTROL.sub(lambda found: repr(found[0])[1:-1], text))


def without_secrets(text: str) -> str:
    """Text whose URLs have stars for passwords, tokens and keys."""
    return _SECRET.sub(lambda found: (found[1] or found[2]) + "***", text)


def tell(error: Exception) -> None:
    """An error on the console, each of its lines as `error: ...`."""
    for line in str(error).split("\n"):
        print(f"error: {printable(line)}", file=sys.stderr)


class UserError(Exception):
    """Bad input. The message is one line: file, field, what is wrong, remedy. Exit code 2."""


class UserErrors(UserError):
    """Several findings of one check, told together: one line each.

    Args:
        messages: the lines, in the order in which they are to be read.
    """

    def __init__(self, messages: list[str]):
        super().__init__("\n".join(messages))
        self.messages = messages


class RunFailure(Exception):
    """A run that can't go on for a reason other than its input. One line; exit code 1."""


class Stopped(Exception):
    """SIGTERM asked for the end and a checkpoint was saved first. Exit code 75."""
