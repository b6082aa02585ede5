"""Several hosts: what the supervisors tell each other, and real runs of two hosts that get hurt.

The consoles of the real runs are kept in output/test_hosts/.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fcos_recipe import exit_codes
from fcos_recipe.commands.launch import prepare
from fcos_recipe.errors import UserError
from fcos_recipe.launch import heartbeats, hosts, supervise
from fcos_recipe.launch.heartbeats import Failure, Heartbeats
from tests.conftest import ROOT
from tests.helpers.hosts import PORT, Hosts, train
from tests.helpers.ranks import RANK_1_HANGS
from tests.launch.test_restart import children, wait_for

KEPT = ROOT / "output" / "test_hosts"

# ---- the exchange -------------------------------------------------------------------------------


@pytest.fixture
def three():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = probe.getsockname()
    hosts = [Heartbeats(node, 3, endpoint, f"name-{node}") for node in range(3)]
    yield hosts
    for host in hosts:
        host.close()


def until(condition, seconds=15):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.02)


def meet(hosts):
    for host in hosts:
        host.begin()
    until(lambda: not any(host.unheard() for host in hosts))
    for host in hosts:
        host.met()
        assert host.failures() == []


def told(host, **silence):
    return [(beat.node, failure.rank, failure.why) for beat, failure in host.failures(**silence)]


def test_all_hosts_name_the_same_cause(three):
    meet(three)
    three[1].report(Failure(5, 124, "hung in all_reduce", waited=True))
    until(lambda: told(three[2]))
    three[2].report(Failure(9, 1, "\x1b[2Jno such picture"))
    three[2].report(Failure(8, 1, "what follows does not count"))
    until(lambda: len(told(three[0])) == 2 and len(told(three[1])) == 1)
    # the one that only waited comes last, though it spoke first
    assert told(three[0]) == [(2, 9, "\\x1b[2Jno such picture"), (1, 5, "hung in all_reduce")]
    until(lambda: three[1].own_failure().order)
    assert three[1].failures()[0][1].key() < three[1].own_failure().key()


def test_a_host_that_falls_silent_or_starts_anew_is_gone(three):
    meet(three)
    three[2].close()
    until(lambda: told(three[0], silence=1.5) and told(three[1], silence=1.5))
    for host in three[:2]:
        assert told(host, silence=1.5)[0][:2] == (2, -1) and host.failures() == []
    three[1].begin()
    until(lambda: (1, -1, "its launcher was started anew") in told(three[0]))
    three[0].begin()  # the next attempt starts with a clean slate
    assert told(three[0]) == []


def test_a_host_that_does_not_get_through_is_told_once(three, monkeypatch):
    monkeypatch.setattr(heartbeats, "DEAF", 0.2)
    three[0].begin()
    three[1].begin()
    until(lambda: three[0].unheard() == [2])  # it has not begun
    three[2].close()
    three[0].met()
    assert three[0].never_heard() == []
    time.sleep(0.3)
    assert three[0].never_heard() == [2] and three[0].never_heard() == []


def test_silence_of_host_0_is_not_blamed_on_the_others(three):
    meet(three)
    three[0].close()
    until(lambda: told(three[1], silence=1.5))
    assert [node for node, _, _ in told(three[1], silence=1.5)] == [0]


def test_strangers_datagrams_change_nothing(three):
    meet(three)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        beats = [b'{"node":%d,"host":"x","session":"y"}' % node for node in (-1, 0, 7)]
        for data in (b"", b"\xff" * 2000, b"[]", b'{"node": 1}', b"[" * 60000, *beats):
            stranger.sendto(data, three[0]._endpoint)
    three[1].report(Failure(5, -9, "killed"))
    until(lambda: told(three[0]) == [(1, 5, "killed")])
    assert three[0].failures()[0][0].host == "name-1"


def test_the_port_is_taken():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="want a free port"):
            Heartbeats(0, 2, taken.getsockname(), "a")


# ---- the command line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ("--nnodes 2:4 --master a:1", "changes during a run is not supported"),
        ("--nnodes 2 --master etcd://a:1", "changes during a run is not supported"),
        ("--nnodes two", "not a number of hosts"),
        ("--nnodes 2", "--master is missing: want HOST:PORT"),
        ("--nnodes 2 --master localhost:0", "want HOST:PORT"),
        ("--nnodes 2 --master localhost:1", "--node-rank is missing: number the hosts 0 to 1"),
        ("--nnodes 2 --master localhost:1 --node-rank 2", "--node-rank 2"),
        ("--node-rank 1", "needs --nnodes"),
        ("--nnodes 2 --master no.such.host.invalid:1 --node-rank 0", "no.such.host.invalid"),
        ("--nnodes 2 --master 198.51.100.7:1 --node-rank 0", "no address of this host"),
    ],
)
def test_refused(words, message, monkeypatch):
    monkeypatch.setenv("DEVICE", "cpu")
    with pytest.raises(UserError, match=message):
        prepare(["configs/fcos/fcos_r18_fpn_demo.yml", *words.split()])


def test_what_the_operator_of_kubernetes_sets(monkeypatch, tmp_path):
    """PADDLE_NNODES and PADDLE_MASTER count, and do not overrule the launcher's arguments."""
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("PADDLE_NNODES", "3")
    monkeypatch.setenv("PADDLE_MASTER", f"localhost:{PORT}")
    monkeypatch.setenv("MASTER_ADDR", "somewhere.else")
    run, _ = prepare(["configs/fcos/fcos_r18_fpn_demo.yml", "--node-rank", "1"])
    command = " ".join(run.command)
    assert f"--nnodes 3 --master 127.0.0.1:{PORT} --rank 1 --host 127.0.0.1" in command
    assert run.log_dir.name == "host-1" and run.env["GLOO_SOCKET_IFNAME"] == "lo"
    assert not {"PADDLE_MASTER", "PADDLE_NNODES", "MASTER_ADDR"} & set(run.environment())


def test_a_host_that_waits_in_vain_says_for_whom(tmp_path):
    command = [sys.executable, "-m", "fcos_recipe.commands.launch", "--nnodes", "3", "--master",
               f"127.0.0.1:{PORT + 1}", "--node-rank", "0", "--wait", "4", "--log_dir",
               str(tmp_path), "configs/fcos/fcos_r18_fpn_demo.yml"]  # fmt: skip
    environment = {**os.environ, "DEVICE": "cpu"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == exit_codes.FAILED, done.stderr
    assert "waited 4 s (--wait) for all 3 hosts; missing: 1, 2." in done.stderr


def test_addresses(monkeypatch):
    assert hosts.address("localhost") == "127.0.0.1"
    assert hosts.own_address("127.0.0.1") == "127.0.0.1" and hosts.interface("127.0.0.1") == "lo"
    answers = iter([OSError("not yet"), [(0, 0, 0, "", ("192.0.2.7", 0))]])

    def ask(*_):
        if isinstance(answer := next(answers), OSError):
            raise answer
        return answer

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert hosts.address("worker-0", patience=5) == "192.0.2.7"


# ---- two hosts that train -----------------------------------------------------------------------


@pytest.fixture
def netns():
    try:
        hosts = Hosts()
    except PermissionError as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield hosts
    hosts.remove()


class Two:
    """`scripts/train.sh` on two hosts; what they say is kept."""

    def __init__(self, hosts, name, *start):
        self.hosts, self.start, self.said = hosts, start, ["", ""]
        self.file = KEPT / f"{name}.log"
        self.runs = [train(hosts, node, *start[:2], *start[2:-1], **start[-1]) for node in (0, 1)]

    def until(self, words):
        self.said[0] += "".join(wait_for(self.runs[0], words))

    def again(self, node):
        self.said[node] += self.runs[node].communicate(timeout=60)[0] + "(started again)\n"
        self.runs[node] = train(self.hosts, node, *self.start[:-1], **self.start[-1])

    def end(self, seconds=180):
        """Exit codes of both hosts."""
        try:
            for node, run in enumerate(self.runs):
                self.said[node] += run.communicate(timeout=seconds)[0]
        finally:
            for run in self.runs:
                run.kill()
            KEPT.mkdir(parents=True, exist_ok=True)
            self.file.write_text("".join(f"=== host {n}\n{s}\n" for n, s in enumerate(self.said)))
        return [run.returncode for run in self.runs]


def records(run: Path) -> list[dict]:
    """What metrics.jsonl says, without times, speeds and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("time", "data_time", "seconds", "memory_mib")
    return [
        {k: v for k, v in line.items() if k not in timed and "per_second" not in k}
        for line in lines
    ]


@pytest.mark.e2e
@pytest.mark.slow
def test_two_hosts_do_what_two_ranks_do(tiny, tmp_path, netns, request):
    """Train, evaluate, lose a host, go on from the newest checkpoint: figures stay the same."""
    words = ["--eval", "--max-restarts", "1", "--resume", "auto", "-o", "epoch=4",
             "snapshot_steps=1"]  # fmt: skip
    folder = tmp_path / "two"
    folder.mkdir()
    two = Two(netns, request.node.name, tiny, folder, *words, {})
    two.until("epoch 2/4 step 1/3")
    began = time.monotonic()
    netns.kill(1)
    two.until("launch: all of host host-b (10.213.77.2, --node-rank 1) failed first: no word for")
    lost = time.monotonic() - began
    two.again(1)
    assert two.end() == [0, 0], two.said
    assert lost < 60 and "restart 1 of 1" in two.said[0]
    assert "batch    2 cards x 4 images x 1 accumulated = 8 per step" in two.said[0]
    assert "epoch 1/4" not in two.said[1]  # only rank 0 tells

    one = tmp_path / "one"
    command = ["bash", str(ROOT / "scripts" / "train.sh"), str(tiny), "--gpus", "2", *words]
    environment = {"DEVICE": "cpu", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(one)], cwd=tmp_path, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert records(folder / "run") == records(one)
    assert len(records(one)) == 16  # 12 steps, 4 evaluations


@pytest.mark.e2e
@pytest.mark.slow
def test_the_host_of_rank_0_comes_back_and_the_other_has_its_own_disk(
    tiny, tmp_path, netns, request
):
    """Host 1 does not see the run directory: it gets the checkpoint from rank 0."""
    words = ["--max-restarts", "1", "--resume", "auto", "-o", "epoch=3", "snapshot_steps=1"]
    run = tmp_path / "run"
    two = Two(netns, request.node.name, tiny, tmp_path, *words, {"own": run})
    two.until("epoch 2/3 step 1/3")
    netns.kill(0)
    two.again(0)
    assert two.end() == [0, 0], two.said
    assert "launch: all of host host-a (10.213.77.1, --node-rank 0) failed first" in two.said[1]
    assert "resume: " in two.said[0]
    assert len(records(run)) == 9  # every step once
    own = tmp_path / "run-b"
    assert not (own / "metrics.jsonl").exists() and list((own / "checkpoints").glob("0*"))


@pytest.mark.e2e
@pytest.mark.slow
def test_a_pulled_cable_ends_both_hosts(tiny, tmp_path, netns, request):
    """No connection is closed; the silence is what tells, long before the watchdog."""
    two = Two(netns, request.node.name, tiny, tmp_path, "-o", "epoch=500", {})
    two.until("epoch 2/500")
    began = time.monotonic()
    netns.unplug(1)
    assert two.end() == [exit_codes.FAILED, exit_codes.FAILED], two.said
    assert time.monotonic() - began < heartbeats.SILENCE + supervise.GRACE + 45
    for node, other in ((0, "host-b (10.213.77.2"), (1, "host-a (10.213.77.1")):
        assert f"launch: all of host {other}" in two.said[node]


@pytest.mark.e2e
@pytest.mark.slow
def test_loopback_names_the_rank_and_sigterm_on_one_host_saves_on_all(tiny, tmp_path, request):
    name = request.node.name
    two = Two(None, f"{name}-kill", tiny, tmp_path, "-o", "epoch=500", {"gpus": 2})
    two.until("epoch 2/500")
    os.kill(children(two.runs[1].pid)["3"], signal.SIGKILL)
    assert two.end() == [128 + signal.SIGKILL] * 2, two.said
    for said in two.said:
        assert f"rank 3 on host {socket.gethostname()} (127.0.0.2, --node-rank 1) failed f" in said
    two = Two(None, f"{name}-term", tiny, tmp_path, "-o", "epoch=500", {})
    two.until("epoch 2/500")
    two.runs[1].send_signal(signal.SIGTERM)
    assert two.end() == [exit_codes.SAVED] * 2, two.said
    assert "launch: SIGTERM on another host: a checkpoint was saved" in two.said[0]


@pytest.mark.slow
def test_the_rank_that_hangs_is_named_on_both_hosts(tmp_path, request):
    """Rank 0 hangs as well, and is the first to say so, but only waits in all_reduce."""
    script = tmp_path / "rank.py"
    start = 'import os, time\nrank = int(os.environ["PADDLE_TRAINER_ID"])\n'
    script.write_text(start + RANK_1_HANGS)
    program = """
import sys; from pathlib import Path
from fcos_recipe.launch.hosts import Cluster
from fcos_recipe.launch.plan import plan_launch
from fcos_recipe.launch.supervise import supervise
node, folder = int(sys.argv[1]), Path(sys.argv[2])
hosts = Cluster(2, node, "127.0.0.1", int(sys.argv[3]), f"127.0.0.{node + 1}", 60)
sys.exit(supervise(
    plan_launch("cpu", ["0"], [], [], folder / f"log-{node}", folder / "rank.py", hosts)))
"""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(node), str(tmp_path), str(PORT + 2)], cwd=ROOT,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for node in (0, 1)
    ]  # fmt: skip
    said = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [exit_codes.HUNG] * 2, said
    first = [next(x for x in text.splitlines() if "failed first" in x) for text in said]
    for line in first:
        assert "launch: rank 1 on host" in line and "in read_next_batch" in line, said
    assert "launch: then rank 0 on this host: hung" in said[0]
