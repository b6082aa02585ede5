"""Command and environment of a training run: one process, or Paddle's launcher for several."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fcos_recipe.errors import UserError
from fcos_recipe.launch.heartbeats import Heartbeats
from fcos_recipe.launch.hosts import Cluster
from fcos_recipe.places import TOOLS
from fcos_recipe.system import compute, cpu_math, device

TRAIN = TOOLS / "train.py"


@dataclass
class Plan:
    """What will be run: `command` with `env` on top of the present environment (None: unset)."""

    command: list[str]
    env: dict[str, str | None]
    ranks: int
    log_dir: Path
    notes: list[str]
    restarts: int = 0
    run_dir: Path | None = None
    cluster: Cluster | None = None
    heartbeats: Heartbeats | None = None
    earlier_logs: Sequence[Path] = ()  # folders of earlier launches with this output folder
    logs_below: Path | None = None  # folder of the user's above `log_dir`; None: it is named itself

    def environment(self) -> dict[str, str]:
        """The whole environment of the command."""
        merged = {**os.environ, **self.env}
        return {name: value for name, value in merged.items() if value is not None}

    def shell(self) -> str:
        """The plan as a command that a shell takes."""
        unset = [f"-u {k}" for k, v in self.env.items() if v is None]
        put = [f"{k}={shlex.quote(v)}" for k, v in self.env.items() if v is not None]
        lines = [" ".join(["env", *unset]), *put, shlex.join(self.command)]
        return " \\\n  ".join(lines)


def choose_cards(asked: str | None, configured: int, visible: list[str] | None) -> list[str]:
    """The labels of the cards of a run.

    Args:
        asked: `--gpus`: a number of cards, a list of labels ("0,1"; one card: "3,"), or None.
        configured: launch.cards of the config; 0: all that are visible.
        visible: labels of the visible cards; None on the CPU, where any number of ranks runs.

    Raises:
        UserError: not a number or list, or more or other cards than there are.
    """
    source = f"--gpus {asked}" if asked else f"launch.cards: {configured}"
    remedy = "choose fewer with --gpus N (or `launch.cards` in the config), or DEVICE=cpu"
    if asked and "," in asked:
        labels = [label.strip() for label in asked.split(",") if label.strip()]
        unknown = [label for label in labels if visible is not None and label not in visible]
        if unknown or not labels or len(set(labels)) < len(labels):
            raise UserError(
                f"{source}: {f'no card {unknown[0]}' if unknown else 'not a list of cards'}; "
                f"visible are {','.join(visible or []) or 'none'}"
            )
        return labels
    if asked and not re.fullmatch(r"[1-9]\d*", asked):
        raise UserError(
            f"{source}: neither a number of cards (1 or more) nor a list of them; "
            "for card 0 alone write `--gpus 0,`"
        )
    count = int(asked or configured) or len(visible or ["cpu"])
    if visible is None:
        return [str(i) for i in range(count)]
    if count > len(visible):
        raise UserError(f"{source}: {len(visible)} visible ({','.join(visible)}); {remedy}")
    return visible[:count]


def plan_launch(
    kind: str,
    labels: list[str],
    visible: list[str],
    arguments: list[str],
    log_dir: Path,
    script: Path = TRAIN,
    hosts: Cluster | None = None,
    every: list[str] | None = None,
) -> Plan:
    """Command and environment of a run.

    Args:
        kind: cpu, gpu or iluvatar_gpu.
        labels: the chosen cards; on the CPU one entry per rank.
        visible: labels of the cards that the run may use.
        arguments: of the script.
        log_dir: where the launcher puts workerlog.N.
        script: what each rank runs.
        hosts: where this one is one of several.
        every: labels of all cards in Paddle's order; default: `visible`.
    """
    env: dict[str, str | None] = {"PYTHONPATH": device.child_environment()["PYTHONPATH"]}
    env[compute.DECIDED] = kind
    count = len(labels)
    if kind == "cpu":
        env.update(cpu_math.missing(max(1, cpu_math.cores() // count)))
        env["PADDLE_DISTRI_BACKEND"] = "gloo"
        # The launcher deals out what these name, even on a CPU build. On a machine with cards
        # it wants one entry per rank; -1 is no card.
        cards = device.may_have_cards()
        if cards or "CUDA_VISIBLE_DEVICES" in os.environ:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(["-1"] * count) if cards else None
        if cards:  # no plugin: with one, a rank's import of Paddle opens the card of its number
            env["CUSTOM_DEVICE_ROOT"] = ""
        for name in (device.PLUGIN_VISIBLE, "PADDLE_XCCL_BACKEND"):
            if name in os.environ:
                env[name] = None
    elif kind == device.PLUGIN:
        # before 3.1 Paddle and its launcher know a plugin's device by this variable alone
        env["PADDLE_XCCL_BACKEND"] = kind
        # without it the launcher's labels are the numbers that Paddle and the driver use
        if device.PLUGIN_VISIBLE in os.environ:
            env[device.PLUGIN_VISIBLE] = None
    numbers = [str((every or visible).index(label)) for label in labels] if visible else []
    idle = [label for label in visible if label not in labels]
    notes = [f"{count} x {kind}" + (f": cards {','.join(labels)}" if visible else " processes")]
    if idle:
        notes.append(f"visible but idle: cards {','.join(idle)}")
    program = [str(script), *arguments]
    if hosts:
        env.update(hosts.environment(os.environ))
        notes[0] += f" on this host, number {hosts.node} of {hosts.nodes}; 0 is {hosts.master}"
    elif count == 1:
        if visible:
            env[f"FLAGS_selected_{kind}s"] = numbers[0]
        return Plan([sys.executable, *program], env, 1, log_dir, notes)
    dealt = numbers if kind == device.PLUGIN else labels
    which = ["--gpus", ",".join(dealt)] if visible else ["--nproc_per_node", str(count)]
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--log_dir", str(log_dir)]
    if hosts:
        launcher += hosts.launcher_arguments()
    notes.append(f"the log of each rank: {log_dir}/workerlog.N")
    return Plan([*launcher, *which, *program], env, count, log_dir, notes, cluster=hosts)
