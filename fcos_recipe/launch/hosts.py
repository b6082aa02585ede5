"""The hosts of a run: their addresses, and what `--nnodes` and its companions ask for."""

import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from fcos_recipe.errors import UserError


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


def find_cluster(
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
