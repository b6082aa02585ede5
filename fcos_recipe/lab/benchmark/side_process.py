"""Communication between the benchmark and the processes it measures: JSON lines."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time

from fcos_recipe.errors import RunFailure
from fcos_recipe.places import ROOT


class Child:
    """One side of a comparison, in its own process; used by the benchmark.

    Args:
        module: run as `python -m MODULE`; it creates a `Line`.
        setup: what to do; the first message that the process reads.
        environment: variables to set; None removes a variable.
        python: interpreter.
    """

    def __init__(
        self,
        module: str,
        setup: dict,
        environment: dict[str, str | None],
        python: str = sys.executable,
    ):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
        for name, value in environment.items():
            env.pop(name, None)
            if value is not None:
                env[name] = value
        self.module = module
        self.log = tempfile.TemporaryFile("w+")
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=env,
            start_new_session=True,  # so that its data workers end with it
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.send(**setup)

    def send(self, **request) -> None:
        """Send a request without waiting for the answer."""
        with contextlib.suppress(BrokenPipeError):  # `receive` reports what happened
            self.stdin.write(json.dumps(request) + "\n")
            self.stdin.flush()

    def receive(self) -> dict:
        """The next answer.

        Raises:
            RunFailure: the process ended; the message has the last lines of its log.
        """
        # Its data workers hold the pipe as well, so the pipe stays open when only the process dies.
        while not (ready := select.select([self.stdout], [], [], 1.0)[0]):
            if self._end():
                break
        line = self.stdout.readline() if ready else ""
        if not line:
            end = self._end()
            killed = end is not None and end.si_status == signal.SIGKILL
            self.close()
            self.log.seek(0)
            tail = [text for text in self.log.read().splitlines() if text.strip()][-8:]
            what = "was killed, perhaps because memory ran out" if killed else "ended"
            raise RunFailure(f"benchmark: {self.module} {what}:", *tail)
        return json.loads(line)

    def _end(self):
        """Exit status, None while it runs; it is not reaped, so that its pid is not reused."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def ask(self, **request) -> dict:
        """Send a request and wait for the answer."""
        self.send(**request)
        return self.receive()

    def close(self) -> None:
        """End the process and everything it started."""
        if self.process.returncode is not None:
            return  # its pid may be reused by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stdin.close()
        self.stdout.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self.close()
        self.log.close()


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


class Line:
    """The measured process's side of the communication; what it prints goes to its log."""

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.setup = self.receive()
        if "core" in self.setup:
            os.sched_setaffinity(0, [self.setup["core"]])

    def receive(self) -> dict:
        """The next request; ends the process if the benchmark has ended."""
        request = sys.stdin.readline()
        if not request:
            os._exit(0)
        return json.loads(request)

    def send(self, **answer) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()

    def serve(self, work) -> None:
        """Answer every request with the dict `work(**request)`."""
        self.send(ready=True)
        while True:
            self.send(**work(**self.receive()))
