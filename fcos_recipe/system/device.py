"""Accelerator cards: what the driver's tool shows, what Paddle can use, which ones a run gets.

The first half needs no Paddle. The second asks Paddle, through `ask_paddle` alone, so that
tests and the launcher can put another answer in its place. Nothing about Iluvatar cards was
verified on hardware: it follows public samples and documents.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from fcos_recipe.compat import before_paddle
from fcos_recipe.errors import UserError
from fcos_recipe.places import ROOT

PLUGIN = "iluvatar_gpu"  # the custom device type of Iluvatar's Paddle plugin
DEVICES = ("auto", "cpu", "gpu", PLUGIN)
TOOLS = ("ixsmi", "nvidia-smi")
# Labels for Paddle's launcher; no driver reads this variable.
PLUGIN_VISIBLE = "ILUVATAR_GPU_VISIBLE_DEVICES"
VISIBILITY = (PLUGIN_VISIBLE, "CUDA_VISIBLE_DEVICES")


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
    for tool in TOOLS:
        if not shutil.which(tool):
            continue
        try:
            done = subprocess.run([tool], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{tool}: {error}; is the driver loaded?") from None
        if done.returncode and "No devices were found" not in done.stdout:  # nvidia-smi's code 6
            said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"{tool}: exit code {done.returncode}: {said[0]}")
        return parse_smi(done.stdout, tool)
    return None


def find_driver() -> tuple[Driver | None, str]:
    """The cards that the driver lists, and why its tool failed ("" where it did not).

    Where no tool lists a card, the device nodes count: a container may have them without the tool.
    """
    driver, trouble = None, ""
    try:
        driver = read_driver()
    except UserError as error:
        trouble = str(error)
    nodes = _nodes()
    if nodes and not (driver and driver.cards):
        cards = tuple(Card(number, f"/dev/{name}", None, None, "") for name, number in nodes)
        driver = Driver("/dev", "", "", "", cards)
    return driver, trouble


def _nodes() -> list[tuple[str, int]]:
    """Device nodes of cards, /dev/nvidiaN and /dev/iluvatarN, with their numbers."""
    found = [re.fullmatch(r"(?:nvidia|iluvatar)(\d+)", name) for name in os.listdir("/dev")]
    return sorted(((m[0], int(m[1])) for m in found if m), key=lambda node: node[1])


def may_have_cards() -> bool:
    """Whether anything hints at a card, so that Paddle has to be asked; imports nothing.

    Hints are a driver's tool, a device node, a plugin for Paddle, or a Paddle built for CUDA.
    """
    if any(map(shutil.which, TOOLS)) or _nodes():
        return True
    spec = importlib.util.find_spec("paddle")
    if spec is None or spec.origin is None:
        return False
    package = Path(spec.origin).parent
    plugins = Path(os.environ.get("CUSTOM_DEVICE_ROOT") or package.parent / "paddle_custom_device")
    if plugins.is_dir():
        return True
    version = package / "version" / "__init__.py"
    return not re.search(r"^cuda_version\s*= 'False'", version.read_text(), re.M)


@dataclass(frozen=True)
class PaddleFacts:
    """What Paddle says about itself.

    cuda: built for CUDA (NVIDIA, or Iluvatar's corex builds). custom: types of the plugins
    that loaded. count: visible devices of `cuda`, else of our plugin's type, else of the first.
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
        kind = PLUGIN if PLUGIN in custom else (custom or ("",))[0]
        count = sum(str(d).split(":")[0] == kind for d in devices)
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


def _listed(name: str) -> list[str] | None:
    """The entries of a visibility variable; None where it is unset or says `all`."""
    value = os.environ.get(name)
    if value is None or value == "all":
        return None
    return [label.strip() for label in value.split(",") if label.strip()]


def card_labels(kind: str, count: int) -> tuple[list[str], list[str]]:
    """Labels of the cards that Paddle counts, and of those among them that a run may use.

    The driver of either kind reads CUDA_VISIBLE_DEVICES and renumbers the cards from 0, so its
    entries are the labels. Without it the labels are 0 to count - 1. Only Paddle's launcher reads
    ILUVATAR_GPU_VISIBLE_DEVICES, and it hides nothing: here it chooses from these labels.

    Args:
        kind: gpu or iluvatar_gpu.
        count: of the cards, as Paddle says.

    Raises:
        UserError: ILUVATAR_GPU_VISIBLE_DEVICES names a card that Paddle does not count.
    """
    named = _listed("CUDA_VISIBLE_DEVICES")
    if named is None or len(named) < count:  # a driver that does not read the variable
        every = [str(i) for i in range(count)]
        cards = every if named is None else [label for label in every if label in named]
    else:
        every = cards = named[:count]
    chosen = _listed(PLUGIN_VISIBLE) if kind == PLUGIN else None
    if chosen is not None:
        unknown = [label for label in chosen if label not in cards]
        if unknown:
            raise UserError(
                f"{PLUGIN_VISIBLE}: no card {unknown[0]}: Paddle can use "
                f"{','.join(cards) or 'none'}; name cards of these, or unset the variable"
            )
        cards = chosen
    return every, cards


def select_card() -> None:
    """Make this process's choice of a plugin's card one that Paddle and the driver agree on.

    Paddle's own launcher gives a rank the position of its card in ILUVATAR_GPU_VISIBLE_DEVICES.
    Paddle takes that for the number of the card, while the driver, which does not read the
    variable, numbers all cards: `2,3` would compute on 0 and 1. This puts the card's number into
    FLAGS_selected_iluvatar_gpus and removes the other variable. It must precede Paddle's import,
    which opens the selected cards alone.

    Raises:
        UserError: the variable names a card that CUDA_VISIBLE_DEVICES leaves out.
    """
    names = _listed(PLUGIN_VISIBLE)
    os.environ.pop(PLUGIN_VISIBLE, None)
    if not names:
        return
    try:
        name = names[card_index(PLUGIN)]
        shown = _listed("CUDA_VISIBLE_DEVICES")
        number = shown.index(name) if shown else int(name)
    except (ValueError, IndexError):
        raise UserError(
            f"{PLUGIN_VISIBLE}={','.join(names)}: not the labels of cards that "
            "CUDA_VISIBLE_DEVICES shows; name cards of these, or unset the variable"
        ) from None
    os.environ[f"FLAGS_selected_{PLUGIN}s"] = str(number)


def card_index(kind: str) -> int:
    """Paddle's number of this process's card: the launcher's choice for a rank, else 0.

    For every interface that wants a number beside a device type, after `set_device`.
    """
    return int(os.environ.get(f"FLAGS_selected_{kind}s", "0").split(",")[0])


def amp_supported(kind: str, dtype: str = "float16") -> bool:
    """Whether auto_cast changes anything on this device, to which the process is bound.

    On the CPU Paddle ignores it; on a card Paddle is asked.
    """
    from fcos_recipe.compat import autocasts

    return kind != "cpu" and autocasts(dtype)


def set_device(kind: str) -> str:
    """Bind this process to its device: the one that the launcher chose, or the first.

    Args:
        kind: cpu, gpu or iluvatar_gpu.

    Returns:
        The place, such as "gpu:3" or "cpu".
    """
    from fcos_recipe.compat import import_paddle

    if kind == PLUGIN:
        select_card()
    paddle = import_paddle()
    if kind == "cpu":
        # A build for cards would otherwise look for NCCL when the ranks meet.
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        place = "cpu"
    else:
        place = f"{kind}:{card_index(kind)}"
    paddle.set_device(place)
    return place


if __name__ == "__main__":
    before_paddle()
    print(json.dumps(asdict(ask_paddle())))
