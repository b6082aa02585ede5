"""Two hosts on one machine: network namespaces with own host names, connected by a veth pair."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

ADDRESSES = ["10.213.77.1", "10.213.77.2"]
PORT = 29571


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


class Hosts:
    """Makes the namespaces; `remove` them afterwards.

    Raises:
        PermissionError: this machine does not allow it.
    """

    def __init__(self):
        self.names = [f"fcos-{os.getpid()}-{k}" for k in "ab"]
        if shutil.which("ip") is None or shutil.which("unshare") is None:
            raise PermissionError("no iproute2 or unshare")
        ends = [f"fc{os.getpid() % 100000}{k}" for k in "ab"]
        steps = [("netns", "add", name) for name in self.names]
        steps.append(("link", "add", ends[0], "type", "veth", "peer", "name", ends[1]))
        for name, end, address in zip(self.names, ends, ADDRESSES, strict=True):
            steps.append(("link", "set", end, "netns", name))
            steps.append(("-n", name, "address", "add", f"{address}/24", "dev", end))
            steps += [("-n", name, "link", "set", device, "up") for device in ("lo", end)]
        self.ends = ends
        for step in steps:
            done = _ip(*step)
            if done.returncode:
                self.remove()
                raise PermissionError(f"ip {' '.join(step)}: {done.stderr.strip()}")

    def popen(self, node: int, command: list[str], own: Path | None = None, **more):
        """Start a command on a host; `own` is a folder private to each host."""
        setup = f"hostname host-{'ab'[node]}"
        if own and node:  # kept in a folder beside it, so that it outlives the processes
            setup += f" && mkdir -p {own} {own}-b && mount --bind {own}-b {own}"
        inside = ["ip", "netns", "exec", self.names[node], "unshare", "--uts", "--mount", "sh",
                  "-c", f'{setup} && exec "$@"', "sh", *command]  # fmt: skip
        return subprocess.Popen(
            inside, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more
        )

    def kill(self, node: int) -> None:
        """Kill all processes of a host at once."""
        for _ in range(3):  # what was being forked
            for pid in _ip("netns", "pids", self.names[node]).stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def unplug(self, node: int) -> None:
        """Cut the connection: no packet arrives, and no connection is closed."""
        _ip("-n", self.names[node], "link", "set", self.ends[node], "down")

    def slow_down(self, megabits: float) -> None:
        """Limit what each host sends, in Mbit/s."""
        for name, end in zip(self.names, self.ends, strict=True):
            done = _ip("netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root", "tbf",
                       "rate", f"{megabits}mbit", "burst", "256kb", "latency", "100ms")  # fmt: skip
            if done.returncode:
                raise PermissionError(f"tc: {done.stderr.strip()}")

    def remove(self) -> None:
        for node, name in enumerate(self.names):
            self.kill(node)
            _ip("netns", "del", name)


def train(hosts, node: int, config: Path, folder: Path, *words, gpus=1, own=None):
    """Run `scripts/train.sh` on a host; with `hosts` None on a loopback address."""
    address = ADDRESSES[node] if hosts else f"127.0.0.{node + 1}"
    master = ADDRESSES[0] if hosts else "127.0.0.1"
    command = [
        "bash", str(ROOT / "scripts" / "train.sh"), str(config), "--gpus", str(gpus),
        "--nnodes", "2", "--master", f"{master}:{PORT}", "--node-rank", str(node),
        "--host", address, "--output", str(folder / "run"), "--log_dir", str(folder / "log"),
        *words,
    ]  # fmt: skip
    environment = {"DEVICE": "cpu", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    more = {"cwd": folder, "env": {**os.environ, **environment}}
    if hosts:
        return hosts.popen(node, command, own, **more)
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **more
    )
