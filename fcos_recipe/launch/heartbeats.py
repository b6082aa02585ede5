"""Messages between the supervisors of a run on several hosts: who failed first, who is gone.

Paddle's launchers meet once, at the start, and then know nothing of each other: a host whose peer
died only sees a connection that closed. So each host sends its state twice a second to that of rank
0, in a UDP datagram to the port number of `--master`, and gets everybody's in return. Nothing that
arrives can do more than end the run: see SECURITY.md.
"""

import secrets
import socket
import threading
import time
from collections.abc import Iterable

import msgspec

from fcos_recipe.errors import UserError, printable

PERIOD = 0.5  # seconds between two datagrams
SILENCE = 20.0  # seconds without a word after which a host counts as gone
SHORT_SILENCE = 3.0  # the same where a rank here has already lost its connection
DEAF = 10.0  # seconds in which a host that runs must have been heard
_LONGEST = 300  # characters of a text in a datagram


class Failure(msgspec.Struct):
    """Why a host's ranks ended.

    Args:
        rank: global number of the rank; -1: the host itself is gone.
        code: exit code of the rank, signals negative.
        why: a reason in words.
        waited: it hung in a collective operation, so it may only have waited for another.
        step: where `waited`, the training steps that it had done.
        order: of arrival at the host of rank 0; 0: not there yet.
    """

    rank: int
    code: int
    why: str
    waited: bool = False
    step: int = 0
    order: int = 0

    def key(self) -> tuple:
        """Sorts causes before consequences: a lost host, the rank behind, then what came first."""
        return self.rank >= 0, self.waited, self.step, self.order or float("inf")


class Beat(msgspec.Struct):
    """A host's state, as it is sent.

    Args:
        node: number of the host, `--node-rank`.
        host: its name and address, for people.
        session: of this attempt; a new start has a new one.
        failure: what went wrong there, if anything did.
        age: seconds since it was last heard, by the host of rank 0.
    """

    node: int
    host: str
    session: str
    failure: Failure | None = None
    age: float = 0.0


class Heartbeats:
    """This host's end of the exchange.

    Args:
        node, nodes: number of this host, and how many there are.
        endpoint: address and port of the host of rank 0.
        host: this host's name, for people.

    Raises:
        UserError: host 0 cannot listen there.
    """

    def __init__(self, node: int, nodes: int, endpoint: tuple[str, int], host: str):
        self.node, self.nodes, self._endpoint = node, nodes, endpoint
        self._own = Beat(node, printable(host)[:_LONGEST], "")
        self._lock = threading.Lock()
        self._heard: dict[int, tuple[Beat, float]] = {}  # node -> its beat, when it was heard
        self._present: dict[int, str] | None = None  # sessions of the hosts that we run with
        self._met_at = float("inf")
        self._reports = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(PERIOD)
        try:
            if not node:
                self._socket.bind(endpoint)
        except OSError as error:
            raise UserError(
                f"--master {endpoint[0]}:{endpoint[1]}: UDP: {error.strerror}; want a free port "
                "of an address of this host"
            ) from None
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="heartbeats", daemon=True).start()

    def begin(self) -> None:
        """A new attempt starts."""
        with self._lock:
            self._own.session, self._own.failure = secrets.token_hex(8), None
            self._present = None
        self._send()

    def met(self) -> None:
        """All ranks of this host run, so every host is there: from now on it must stay."""
        with self._lock:
            if self._present is None:
                self._present, self._met_at = {}, time.monotonic()

    def report(self, failure: Failure) -> None:
        """Tell the others what failed here; only the first report of an attempt counts."""
        with self._lock:
            if self._own.failure is not None:
                return
            failure.why = printable(failure.why)[:_LONGEST]
            self._own.failure = failure
            if not self.node:
                self._number(failure)
        self._send()

    def failures(self, silence: float = SILENCE) -> list[tuple[Beat, Failure]]:
        """What went wrong on other hosts since `met`, causes first.

        Args:
            silence: seconds without a word after which a host counts as gone.
        """
        found = []
        with self._lock:
            if self._present is None:
                return []
            for beat, age in self._others():
                known = self._present.setdefault(beat.node, beat.session)
                failure = beat.failure if beat.session == known else None
                if beat.session != known:
                    failure = Failure(-1, 1, "its launcher was started anew")
                elif failure is None and age > silence:
                    failure = Failure(-1, 1, f"no word for {age:.0f} s")
                if failure:
                    found.append((beat, failure))
        return sorted(found, key=lambda pair: pair[1].key())

    def own_failure(self) -> Failure | None:
        """The report of this host, with its place in the order once that is known."""
        with self._lock:
            beat, _ = self._heard.get(self.node, (self._own, 0))
            told = beat.failure if beat.session == self._own.session else None
            return told or self._own.failure

    def unheard(self) -> list[int]:
        """Numbers of the hosts that are silent at the moment."""
        with self._lock:
            present = {beat.node for beat, age in self._others() if age < SILENCE}
        return [n for n in range(self.nodes) if n != self.node and n not in present]

    def never_heard(self) -> list[int]:
        """Once, some time after `met`: hosts that run but do not get through to us."""
        if time.monotonic() - self._met_at < DEAF:
            return []
        self._met_at = float("inf")
        return self.unheard()

    def close(self) -> None:
        """Stop to send and to listen."""
        self._closed.set()
        self._socket.close()

    def _others(self) -> Iterable[tuple[Beat, float]]:
        now = time.monotonic()
        silent = now - self._heard[0][1] if self.node and 0 in self._heard else 0
        for node, (beat, heard) in self._heard.items():
            if node == self.node:
                continue
            # through a silent host 0 we hear of nobody: that is not the others' fault
            yield beat, (now - heard if not (self.node and node) else now - heard - silent)

    def _number(self, failure: Failure) -> None:
        self._reports += 1
        failure.order = self._reports

    def _send(self) -> None:
        if not self.node or not self._own.session:
            return
        with self._lock:
            data = msgspec.json.encode(self._own)
        try:
            self._socket.sendto(data, self._endpoint)
        except OSError:
            return  # the network is away: that shows as silence

    def _run(self) -> None:
        sent = 0.0
        while not self._closed.is_set():
            if time.monotonic() - sent >= PERIOD:
                sent = time.monotonic()
                self._send()
            try:
                data, sender = self._socket.recvfrom(1 << 16)
            except OSError:
                self._closed.wait(0.05)
                continue
            try:
                if self.node:
                    self._take(msgspec.json.decode(data, type=list[Beat]))
                else:
                    answer = self._answer(msgspec.json.decode(data, type=Beat))
                    self._socket.sendto(answer, sender)
            except (msgspec.MsgspecError, OSError, ValueError):
                continue  # not one of ours

    def _answer(self, beat: Beat) -> bytes:
        """Host 0: note a host's state; returns everybody's."""
        if not 0 < beat.node < self.nodes:
            raise ValueError("no such host")
        now = time.monotonic()
        with self._lock:
            old = self._heard.get(beat.node, (None, 0))[0]
            if beat.failure:
                if old and old.session == beat.session and old.failure:
                    beat.failure = old.failure
                else:
                    self._number(beat.failure)
            self._heard[beat.node] = _readable(beat), now
            told = [msgspec.structs.replace(b, age=now - t) for b, t in self._heard.values()]
            return msgspec.json.encode([self._own, *told])

    def _take(self, beats: list[Beat]) -> None:
        """Other hosts: everybody's state, from host 0."""
        now = time.monotonic()
        with self._lock:
            self._heard.update({b.node: (_readable(b), now - b.age) for b in beats})


def _readable(beat: Beat) -> Beat:
    """With texts that a terminal can show: they come from the network."""
    beat.host = printable(beat.host)[:_LONGEST]
    if beat.failure:
        beat.failure.why = printable(beat.failure.why)[:_LONGEST]
    return beat
