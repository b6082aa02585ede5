"""What goes wrong by the user's input, told in words instead of a traceback."""


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
