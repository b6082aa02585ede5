"""The processes of a launch, watched from outside."""

import os
import select
import signal
from pathlib import Path

import psutil


class Ranks:
    """The launcher's training processes: who died, in which order, with which code.

    The launcher looks once a second and names the lowest rank, which is often one that only
    lost its peer. A pidfd tells each death at once.

    Ranks are numbered as on this host, as their logs are; `name` gives a rank's number in the run.
    """

    def __init__(self, launcher_pid: int, expected: int):
        self._launcher = psutil.Process(launcher_pid)
        self._expected = expected
        self._poll = select.poll()
        self._ranks: dict[int, tuple[int, int]] = {}  # pidfd -> rank, pid
        self._seen: set[int] = set()
        self._ended: set[int] = set()
        self._codes: dict[int, int] = {}
        self._offset = 0

    @property
    def complete(self) -> bool:
        """Whether all ranks of this host have been started."""
        return len(self._seen) == self._expected

    @property
    def finished(self) -> bool:
        """Whether all of them have ended."""
        return len(self._ended) == self._expected

    def name(self, rank: int) -> int:
        """The global number of a rank of this host."""
        return rank + self._offset

    def wait(self) -> None:
        """Look for ranks while some are missing; then wait up to 0.2 s for deaths."""
        if not self.complete:
            self._find()
        seconds = 0.2 if self.complete else 0.05
        for fd, _ in self._poll.poll(seconds * 1000):
            rank, pid = self._ranks[fd]
            code = _zombie_code(pid)
            self._poll.unregister(fd)
            os.close(fd)
            self._ended.add(rank)
            if code is not None:
                self._codes[rank] = code

    def terminate(self) -> bool:
        """Send SIGTERM to every rank; False while not all of them are known.

        Asked to stop, the launcher would take their exit codes with it.
        """
        if not self.complete:
            return False
        for fd, (rank, _) in self._ranks.items():
            if rank not in self._ended:
                signal.pidfd_send_signal(fd, signal.SIGTERM)
        return True

    def failed(self) -> dict[int, int]:
        return {rank: code for rank, code in self._codes.items() if code}

    def _find(self) -> None:
        try:
            for child in self._launcher.children():
                if child.pid in self._seen:
                    continue
                environment = child.environ()
                rank = environment.get("PADDLE_TRAINER_ID")
                if rank is not None:
                    local = int(environment.get("PADDLE_RANK_IN_NODE", rank))
                    self._offset = int(rank) - local
                    fd = os.pidfd_open(child.pid)
                    self._ranks[fd] = (local, child.pid)
                    self._poll.register(fd, select.POLLIN)
                    self._seen.add(child.pid)
        except (psutil.Error, OSError):
            return  # gone in between: the launcher's log names it


def _zombie_code(pid: int) -> int | None:
    """Exit code (signal: negative) of a process that its parent has not yet waited for."""
    try:
        status = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[-1])
    except (OSError, IndexError, ValueError):
        return None
    return os.waitstatus_to_exitcode(status)
