"""Accelerator cards: those the driver lists, those Paddle can use, and those a run gets.

The first half of this module needs no Paddle. The second half asks Paddle only through
`ask_paddle`, so that tests and the launcher can replace it. Nothing about Iluvatar cards was
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
# Card labels for Paddle's launcher; no driver reads this variable.
PLUGIN_VISIBLE = "ILUVATAR_GPU_VISIBLE_DEVICES"
VISIBILITY = (PLUGIN_VISIBLE, "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Card:
    """One card in the output of `ixsmi` or `nvidia-smi`; memory in MiB, None if not shown."""

    index: int
    name: str
    memory_total: int | None
    memory_used: int | None
    fault: str  # "" for a healthy card


@dataclass(frozen=True)
class Driver:
    """Output of the driver's tool; `version` is that of IX-ML (Iluvatar) or nvidia-smi."""

    tool: str
    version: str
    driver: str
    cuda: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Sdk:
    """One release of the IXUCA SDK.

    `runs`: whether this project (Python >= 3.10) can run on it: yes, no, or unknown.
    `sure`: kind of evidence: H primary source, M indirect source, L inference.
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
    """Rows of `SDKS` for an SDK version or, without any, for the nearest older one; may be []."""

    def key(text: str) -> tuple[int, ...]:
        return tuple(int(n) for n in (re.findall(r"\d+", text) + ["0", "0"])[:3])

    known = [row for row in SDKS if key(row.version) <= key(version)]
    return [row for row in known if row.version == known[-1].version]


def parse_smi(text: str, tool: str = "ixsmi") -> Driver:
    """Read the default table of `ixsmi` or `nvidia-smi`.

    A card starts at the line with its index, name and bus id and ends at the next separator line or
    card. Column positions are not used: widths change between versions, and values of a faulty card
    can be too wide.
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
        fault = f"reports {power.group(1)} W, which means that its power sensor cannot be read"
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
    """Run `ixsmi`, else `nvidia-smi`; return None if neither is installed.

    Raises:
        UserError: the tool fails or hangs, as it does with a broken driver.
    """
    for tool in TOOLS:
        if not shutil.which(tool):
            continue
        try:
            done = subprocess.run([tool], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"{tool}: {error}; is the driver loaded?") from None
        if done.returncode and "No devices were found" not in done.stdout:  # nvidia-smi's code 6
            message = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
            raise UserError(f"{tool}: exit code {done.returncode}: {message[0]}")
        return parse_smi(done.stdout, tool)
    return None


def find_driver() -> tuple[Driver | None, str]:
    """Return the cards that the driver lists, and why its tool failed ("" if it did not).

    If no tool lists a card, device nodes are used: a container may have them without the tool.
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
    """List the device nodes of cards, /dev/nvidiaN and /dev/iluvatarN, with their numbers."""
    found = [re.fullmatch(r"(?:nvidia|iluvatar)(\d+)", name) for name in os.listdir("/dev")]
    return sorted(((m[0], int(m[1])) for m in found if m), key=lambda node: node[1])


def may_have_cards() -> bool:
    """Whether the machine may have cards, so that Paddle must be asked; does not import Paddle.

    Signs of cards: a driver's tool, a device node, a Paddle plugin, or a Paddle built for CUDA.
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
    """Properties of the installed Paddle.

    cuda: built for CUDA (NVIDIA, or Iluvatar's corex builds). custom: device types of the loaded
    plugins. count: visible CUDA devices, else devices of Iluvatar's plugin, else of the first one.
    """

    version: str
    cuda: bool
    custom: tuple[str, ...]
    count: int


def ask_paddle() -> PaddleFacts:
    """Import Paddle and ask for its devices; a `+corex` in the version is no proof of cards."""
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
    """Environment with which a child process can import this package, installed or not."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(ROOT) not in paths:
        paths.insert(0, str(ROOT))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def ask_paddle_outside(seconds: float = 180) -> PaddleFacts:
    """Run `ask_paddle` in another process, so that this one does not import Paddle or open cards.

    Raises:
        UserError: Paddle is missing, cannot be imported, or does not answer (a card that hangs).
    """
    command = [sys.executable, "-m", "fcos_recipe.system.device"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=child_environment()
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Paddle: no answer about its devices in {seconds:.0f} s; find the faulty card with "
            "`python tools/doctor.py` and exclude it with CUDA_VISIBLE_DEVICES"
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"Paddle cannot be imported: {last}; install it: bash scripts/install.sh")
    facts = json.loads(done.stdout.splitlines()[-1])
    return PaddleFacts(facts["version"], facts["cuda"], tuple(facts["custom"]), facts["count"])


def _listed(name: str) -> list[str] | None:
    """Entries of a visibility variable; None if it is unset or `all`."""
    value = os.environ.get(name)
    if value is None or value == "all":
        return None
    return [label.strip() for label in value.split(",") if label.strip()]


def card_labels(kind: str, count: int) -> tuple[list[str], list[str]]:
    """Labels of all cards that Paddle counts, and of the cards that a run may use.

    Both drivers read CUDA_VISIBLE_DEVICES and renumber the cards from 0, so its entries are the
    labels. Without it the labels are 0 to count - 1. ILUVATAR_GPU_VISIBLE_DEVICES is read only by
    Paddle's launcher and hides no cards: it selects from these labels.

    Args:
        kind: gpu or iluvatar_gpu.
        count: number of cards that Paddle reports.

    Raises:
        UserError: ILUVATAR_GPU_VISIBLE_DEVICES names a card that Paddle does not count.
    """
    named = _listed("CUDA_VISIBLE_DEVICES")
    if named is None or len(named) < count:  # the driver does not read the variable
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
                f"{','.join(cards) or 'none'}; choose from these, or unset the variable"
            )
        cards = chosen
    return every, cards


def select_card() -> None:
    """Select this process's plugin card by the number that the driver uses.

    Paddle's own launcher gives a rank the position of its card in ILUVATAR_GPU_VISIBLE_DEVICES, and
    Paddle uses this as the card's number. The driver does not read the variable and numbers all
    cards, so that `2,3` would use cards 0 and 1. This function sets FLAGS_selected_iluvatar_gpus to
    the card's number and removes the other variable. Call it before Paddle's import, which opens
    only the selected cards.

    Raises:
        UserError: the variable names a card that CUDA_VISIBLE_DEVICES hides.
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
            f"{PLUGIN_VISIBLE}={','.join(names)}: not all of these cards are in "
            "CUDA_VISIBLE_DEVICES; choose from its cards, or unset the variable"
        ) from None
    os.environ[f"FLAGS_selected_{PLUGIN}s"] = str(number)


def card_index(kind: str) -> int:
    """Paddle's number of this process's card: the launcher's choice for a rank, else 0.

    Use it after `set_device`, wherever Paddle needs a number besides the device type.
    """
    return int(os.environ.get(f"FLAGS_selected_{kind}s", "0").split(",")[0])


def amp_supported(kind: str, dtype: str = "float16") -> bool:
    """Whether auto_cast takes effect on this process's device; on the CPU it does not."""
    from fcos_recipe.compat import autocasts

    return kind != "cpu" and autocasts(dtype)


def set_device(kind: str) -> str:
    """Set this process's device: the card that the launcher chose, or the first.

    Args:
        kind: cpu, gpu or iluvatar_gpu.

    Returns:
        Paddle's name of the device, such as "gpu:3" or "cpu".
    """
    from fcos_recipe.compat import import_paddle

    if kind == PLUGIN:
        select_card()
    paddle = import_paddle()
    if kind == "cpu":
        # a Paddle built for cards would otherwise use NCCL between ranks
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"
        place = "cpu"
    else:
        place = f"{kind}:{card_index(kind)}"
    paddle.set_device(place)
    return place


if __name__ == "__main__":
    before_paddle()
    print(json.dumps(asdict(ask_paddle())))
