"""Word between the supervisors of a run on several hosts: who failed first, who is gone.

Paddle's launchers meet once, at the start, and then know nothing of each other: a host whose peer
died only sees a connection that closed. So each host sends its state twice a second to that of rank
0, in a UDP datagram to the port number of `--master`, and gets everybody's in return. Nothing that
arrives can do more than end the run: see SECURITY.md.
"""

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec
import psutil

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


class Peers:
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
        threading.Thread(target=self._run, name="peers", daemon=True).start()

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


# ---- addresses ----------------------------------------------------------------------------------


def address(name: str, patience: float = 0) -> str:
    """IPv4 address of a host: Paddle's launcher compares it with its own, letter by letter.

    Args:
        name: or the address itself.
        patience: seconds to go on asking: the name of a pod appears when it runs.

    Raises:
        UserError: unknown.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
        except OSError as error:
            if time.monotonic() >= end:
                raise UserError(
                    f"--master {name}: {error.strerror or error}; give an IPv4 address, or a name "
                    "that this host knows"
                ) from None
            time.sleep(1)


def own_address(master: str) -> str:
    """The address under which the host at `master` sees this one: that of the route there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((master, 9))  # sends nothing
        except OSError as error:
            raise UserError(f"--master {master}: {error.strerror}") from None
        return probe.getsockname()[0]


def interface(own: str) -> str | None:
    """Name of the network interface with this address."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            return name
    return "lo" if own.startswith("127.") else None


# ---- the command line ---------------------------------------------------------------------------

_ELASTIC = (
    "a number of hosts that changes during a run is not supported: give one number; with "
    "--max-restarts all hosts start again from the newest checkpoint, and a restart with another "
    "--nnodes goes on from it as well"
)


@dataclass(frozen=True)
class Cluster:
    """Several hosts of one run, as this one sees them.

    Args:
        nodes, node: how many, and which one this is.
        master, port: IPv4 address of host 0, and its TCP and UDP port.
        own: IPv4 address of this host.
        wait: seconds to wait for all hosts at a start.
    """

    nodes: int
    node: int
    master: str
    port: int
    own: str
    wait: float

    @property
    def name(self) -> str:
        """This host, for people."""
        return f"{socket.gethostname()} ({self.own}, --node-rank {self.node})"

    def launcher_arguments(self) -> list[str]:
        """For `paddle.distributed.launch`."""
        return ["--nnodes", str(self.nodes), "--master", f"{self.master}:{self.port}",
                "--rank", str(self.node), "--host", self.own]  # fmt: skip

    def environment(self, present: Mapping[str, str]) -> dict[str, str | None]:
        """Variables that would overrule those arguments go; Gloo is told its interface.

        Gloo takes the address of the host's name, on many systems one of 127.0.0.0/8.
        """
        names = ("PADDLE_MASTER", "PADDLE_NNODES", "PADDLE_RANK", "PADDLE_TRAINER_ID", "POD_IP",
                 "PADDLE_TRAINER_ENDPOINTS", "DISTRIBUTED_TRAINER_ENDPOINTS", "MASTER_ADDR",
                 "MASTER_PORT")  # fmt: skip
        env: dict[str, str | None] = {name: None for name in names if name in present}
        if "GLOO_SOCKET_IFNAME" not in present and (found := interface(self.own)):
            env["GLOO_SOCKET_IFNAME"] = found
        return env


def cluster(
    nnodes: str | None, master: str | None, node_rank: int | None, host: str | None, wait: float
) -> Cluster | None:
    """What `--nnodes` and its companions ask for; None: one host.

    `PADDLE_NNODES` and `PADDLE_MASTER` of the environment, which the Kubernetes operator sets,
    stand for the first two.

    Raises:
        UserError: incomplete or impossible.
    """
    nnodes = nnodes or os.environ.get("PADDLE_NNODES") or "1"
    master = master or os.environ.get("PADDLE_MASTER")
    if ":" in nnodes or (master or "").startswith("etcd:"):
        raise UserError(f"--nnodes {nnodes} --master {master}: {_ELASTIC}")
    if not re.fullmatch(r"[1-9]\d{0,4}", nnodes):
        raise UserError(f"--nnodes {nnodes}: not a number of hosts, 1 or more")
    nodes = int(nnodes)
    if nodes == 1:
        if node_rank:
            raise UserError(f"--node-rank {node_rank}: needs --nnodes of 2 or more")
        return None
    found = re.fullmatch(r"([\w.-]+):(\d{1,5})", master or "")
    if not found or not 1 <= int(found[2]) <= 65535:
        raise UserError(
            f"--master {master or 'is missing'}: want HOST:PORT of the host with --node-rank 0, "
            "the same on all hosts"
        )
    if node_rank is None or not 0 <= node_rank < nodes:
        raise UserError(
            f"--node-rank {'is missing' if node_rank is None else node_rank}: number the hosts 0 "
            f"to {nodes - 1}, the same way at each start; --master is number 0"
        )
    remote = address(found[1], wait if node_rank else 0)
    own = host or os.environ.get("POD_IP") or (own_address(remote) if node_rank else remote)
    if node_rank == 0 and interface(own) is None:
        raise UserError(f"--master {master}: {own} is no address of this host, --node-rank 0")
    return Cluster(nodes, node_rank, remote, int(found[2]), own, wait)
