"""Accelerator cards: what the driver's tool shows, what Paddle can use, which ones a run gets.

The first half needs no Paddle. The second asks Paddle, through `ask_paddle` alone, so that
tests and the launcher can put another answer in its place. Nothing about Iluvatar cards was
verified on hardware: it follows public samples and documents.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from fcos_recipe.compat import before_paddle
from fcos_recipe.errors import UserError
from fcos_recipe.places import ROOT

PLUGIN = "iluvatar_gpu"  # the custom device type of Iluvatar's Paddle plugin
DEVICES = ("auto", "cpu", "gpu", PLUGIN)


@dataclass(frozen=True)
class Card:
    """One row of `ixsmi` or `nvidia-smi`; memory in MiB, None where the row has none."""

    index: int
    name: str
    memory_total: int | None
    memory_used: int | None
    fault: str  # "" for a healthy card


@dataclass(frozen=True)
class Driver:
    """What the tool printed. `version` is IX-ML's on Iluvatar, nvidia-smi's on NVIDIA."""

    tool: str
    version: str
    driver: str
    cuda: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Sdk:
    """One row of the table of IXUCA releases.

    `runs`: whether this project (Python >= 3.10) can run on it: yes, no, or unknown.
    `sure`: how well the row is known: H primary source, M indirect, L inference.
    """

    version: str
    paddle: str
    python: str
    device: str
    sure: str
    runs: str


SDKS = (
    Sdk("3.0.0", "none found; recipes of its time name 2.2-2.4", "3.7", "gpu", "L", "no"),
    Sdk("3.1.0", "2.4.1+corex.3.1.0", "?", "gpu", "H", "unknown"),
    Sdk("4.1", "2.5.2+corex", "3.10", "gpu", "M", "yes"),
    Sdk("4.2.0", "none found; recipes use the device gpu", "3.10", "gpu", "M", "yes"),
    Sdk("4.3.0", "3.0.0+corex.4.3.0", "3.10", "gpu", "H", "yes"),
    Sdk("4.3.0", "3.1.0 + paddle-iluvatar-gpu 3.1.x", "3.10", PLUGIN, "H", "yes"),
    Sdk("4.3.8", "3.3.0 + paddle-iluvatar-gpu 3.3.0", "3.10", PLUGIN, "H", "yes"),
)

_BUS = r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]"
_ROW = re.compile(rf"^\|?\s*(\d+)\s+(\S.*?)[\s|]+{_BUS}")


def sdk_rows(version: str) -> list[Sdk]:
    """Rows of `SDKS` for an SDK version, else for the newest one that is not newer; may be []."""

    def key(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in (re.findall(r"\d+", text) + ["0", "0"])[:3])

    known = [row for row in SDKS if key(row.version) <= key(version)]
    return [row for row in known if row.version == known[-1].version]


def parse_smi(text: str, tool: str = "ixsmi") -> Driver:
    """Read the default table of `ixsmi` or `nvidia-smi`.

    A card starts at the line with its index, name and bus id and lasts until the next rule
    or card. Nothing depends on the position of a column: widths change between versions, and
    the values of a faulty card overflow theirs.
    """

    def first(pattern: str) -> str:
        found = re.search(pattern, text)
        return found.group(1) if found else ""

    blocks: list[tuple[re.Match, list[str]]] = []
    open_block = False
    for line in text.splitlines():
        row = _ROW.match(line)
        if row:
            blocks.append((row, []))
        open_block = bool(row) or (open_block and not line.startswith("+"))
        if open_block:
            blocks[-1][1].append(line)
    return Driver(
        tool,
        first(r"(?:IX-ML|NVIDIA-SMI):?\s+([\w.]+)"),
        first(r"Driver Version:\s*([\w.]+)"),
        first(r"CUDA Version:\s*([\w.]+)"),
        tuple(_card(row, "\n".join(lines)) for row, lines in blocks),
    )


def _card(row: re.Match, text: str) -> Card:
    memory = re.search(r"(\d+)\s*MiB\s*/\s*(\d+)\s*MiB", text)
    power = re.search(r"\b(\d+)W\b", text)
    if power and int(power.group(1)) >= 0xFFFF:
        fault = f"reports {power.group(1)} W, the value of a sensor that cannot be read"
    elif re.search(r"ERR!|Unknown Error|GPU is lost", text):
        fault = "reports an error instead of its state"
    elif not memory:
        fault = "reports no memory"
    else:
        fault = ""
    name = re.sub(r"\s+(On|Off|N/A)$", "", row.group(2))  # nvidia-smi: persistence mode
    used, total = (int(n) for n in memory.groups()) if memory else (None, None)
    return Card(int(row.group(1)), name, total, used, fault)


def read_driver() -> Driver | None:
    """Run `ixsmi`, else `nvidia-smi`; None without either.

    Raises:
        UserError: the tool is there but fails or hangs, as it does with a broken driver.
    """
    for tool in ("ixsmi", "nvidia-smi"):
        if not shutil.which(tool):
            continue
        try:
            done = subprocess.run([tool], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{tool}: {error}; is the driver loaded?") from None
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"{tool}: exit code {done.returncode}: {said[0]}")
        return parse_smi(done.stdout, tool)
    return None


def has_card_hardware() -> bool:
    """Whether anything on this machine hints at a card: a driver's tool or a device node."""
    return any(map(shutil.which, ("ixsmi", "nvidia-smi"))) or any(
        re.fullmatch(r"(nvidia|iluvatar)\d+", name) for name in os.listdir("/dev")
    )


@dataclass(frozen=True)
class PaddleFacts:
    """What Paddle says about itself.

    cuda: built for CUDA (NVIDIA, or Iluvatar's corex builds). custom: types of the plugins
    that loaded. count: visible devices of `cuda`, else of the first custom type.
    """

    version: str
    cuda: bool
    custom: tuple[str, ...]
    count: int


def ask_paddle() -> PaddleFacts:
    """Import Paddle and ask it. A `+corex` in the version proves nothing, so it is not read."""
    from fcos_recipe.compat import import_paddle

    paddle = import_paddle()

    cuda = paddle.is_compiled_with_cuda()
    custom = tuple(paddle.device.get_all_custom_device_type() or ())
    if cuda:
        count = paddle.device.cuda.device_count()
    else:
        devices = paddle.device.get_available_custom_device() or () if custom else ()
        count = sum(str(d).split(":")[0] == custom[0] for d in devices)
    return PaddleFacts(paddle.__version__, cuda, custom, count)


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a process that imports this package, installed or not."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        paths.insert(0, str(ROOT))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def ask_paddle_outside(seconds: float = 180) -> PaddleFacts:
    """`ask_paddle` in another process: this one stays free of Paddle and of the cards.

    Raises:
        UserError: Paddle is missing, broken, or does not answer (a card that hangs).
    """
    command = [sys.executable, "-m", "fcos_recipe.system.device"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=child_environment()
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Paddle: no answer about its devices in {seconds:.0f} s; look at a faulty card with "
            "`python tools/doctor.py` and leave it out by CUDA_VISIBLE_DEVICES"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"Paddle cannot be imported: {last}; install it: bash scripts/install.sh")
    facts = json.loads(done.stdout.splitlines()[-1])
    return PaddleFacts(facts["version"], facts["cuda"], tuple(facts["custom"]), facts["count"])


def requested(data: Mapping) -> str:
    """The device that a resolved config asks for; `use_gpu: false` is PaddleDetection's `cpu`."""
    return "cpu" if data["device"] == "auto" and data.get("use_gpu") is False else data["device"]


def resolve(requested: str, facts: PaddleFacts | None = None) -> str:
    """The device a run uses.

    Args:
        requested: auto, cpu, gpu or iluvatar_gpu.
        facts: Paddle's answer; asked here by default.

    Returns:
        cpu, gpu or iluvatar_gpu. `auto` takes a card where Paddle sees one, else cpu.

    Raises:
        UserError: no such device, or this Paddle cannot use it.
    """
    if requested not in DEVICES:
        raise UserError(f"device: {requested!r} is unknown; choose from {', '.join(DEVICES)}")
    if requested == "cpu":
        return "cpu"
    facts = facts or ask_paddle()
    kinds = ["gpu"] * facts.cuda + [PLUGIN] * (PLUGIN in facts.custom)
    if requested == "auto":
        return kinds[0] if kinds and facts.count else "cpu"
    if requested not in kinds:
        offered = " and ".join([*kinds, "cpu"])
        raise UserError(
            f"device: {requested}: the installed Paddle {facts.version} offers {offered}; "
            "set `device: auto` or install the Paddle of your cards (README, Install)"
        )
    if not facts.count:
        raise UserError(
            f"device: {requested}: Paddle sees no card; check CUDA_VISIBLE_DEVICES and "
            "`python tools/doctor.py`, or set `device: cpu`"
        )
    return requested


def visible_cards(device: str, facts: PaddleFacts | None = None) -> list[str]:
    """Labels of the cards a run may use, as the user's visibility variable spells them.

    Without such a variable the labels are 0..n-1. For the plugin ILUVATAR_GPU_VISIBLE_DEVICES
    comes first, because Paddle's launcher reads its labels there, then CUDA_VISIBLE_DEVICES,
    which the driver reads. [] for the CPU.
    """
    if device == "cpu":
        return []
    count = (facts or ask_paddle()).count
    names = ["ILUVATAR_GPU_VISIBLE_DEVICES"] * (device == PLUGIN) + ["CUDA_VISIBLE_DEVICES"]
    for name in names:
        value = os.environ.get(name)
        if value is not None and value != "all":
            return [label.strip() for label in value.split(",") if label.strip()][:count]
    return [str(i) for i in range(count)]


def amp_supported(device: str, dtype: str = "float16") -> bool:
    """Whether auto_cast changes anything on this device. On the CPU Paddle ignores it.

    float16 is taken for granted on every card (not verified on hardware for Iluvatar);
    for bfloat16 Paddle is asked.
    """
    if device == "cpu" or dtype == "float16":
        return device != "cpu"
    import paddle

    return bool(paddle.amp.is_bfloat16_supported(device))


def set_device(device: str) -> str:
    """Bind this process to its device: the one that the launcher chose, or the first.

    Args:
        device: an answer of `resolve`.

    Returns:
        The place, such as "gpu:3" or "cpu".
    """
    from fcos_recipe.compat import import_paddle

    paddle = import_paddle()

    if device == "cpu":
        # A build for cards would otherwise look for NCCL when the ranks meet.
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        place = "cpu"
    else:
        # Paddle 3 reads only the first digit of this variable for a custom device.
        selected = os.environ.get(f"FLAGS_selected_{device}s", "0")
        place = f"{device}:{selected.split(',')[0]}"
    paddle.set_device(place)
    return place


if __name__ == "__main__":
    before_paddle()
    print(json.dumps(asdict(ask_paddle())))
