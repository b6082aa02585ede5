"""Check the machine for training: Python, Paddle, driver, cards, SDK, memory, disk, libraries."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from fcos_recipe.errors import UserError
from fcos_recipe.system import compute, cpu_math, device

GREEN, YELLOW, RED = "green", "yellow", "red"
INSTALL = "bash scripts/install.sh"
LIBRARIES = {"numpy": "numpy", "cv2": "cv2", "paddledet": "ppdet", "PyYAML": "yaml"}


@dataclass(frozen=True)
class Finding:
    """One line of the report: level (green, yellow, red), what was checked, result, remedy."""

    level: str
    name: str
    text: str
    remedy: str = ""


def python() -> Finding:
    version = platform.python_version()
    text = f"{version} ({sys.executable})"
    if sys.version_info >= (3, 14):
        return Finding(YELLOW, "Python", text, "tested with 3.10 to 3.13 only")
    return Finding(GREEN, "Python", text)


def look_at_paddle() -> tuple[Finding, compute.Found]:
    """Return Paddle's devices as a line of the report, and all devices that were found."""
    try:
        found = compute.look(lambda: device.ask_paddle_outside(120))
    except UserError as error:
        text, _, remedy = str(error).rpartition("; ")
        line = Finding(RED, "Paddle", text.removeprefix("Paddle "), remedy)
        return line, compute.Found(*device.find_driver(), None)
    facts = found.facts
    assert facts is not None
    kinds = ["cpu", *["gpu"] * facts.cuda, *facts.custom]
    text = f"{facts.version}, devices: {', '.join(kinds)}; {facts.count} card(s) visible to it"
    return Finding(GREEN, "Paddle", text), found


def decision(asked: str, found: compute.Found) -> tuple[Finding, compute.Compute | None]:
    """Choose the device as all commands do."""
    try:
        chosen = compute.choose(asked, found)
    except UserError as error:
        text, _, remedy = str(error).removeprefix("device: ").rpartition("; ")
        return Finding(RED, "device", text, remedy), None
    return Finding(GREEN, "device", chosen.line().removeprefix("device: ")), chosen


def cards(found: compute.Found, chosen: compute.Compute | None) -> Iterator[Finding]:
    """Check the driver's cards; for a run on the CPU, a broken driver or card is only a warning."""
    bad = YELLOW if chosen and chosen.device == "cpu" else RED
    driver = found.driver
    if found.trouble:
        yield Finding(bad, "driver", found.trouble, "load the driver, or set `device: cpu`")
        return
    if driver is None:
        count = found.facts.count if found.facts else 0
        if count:
            yield Finding(
                YELLOW, "driver", f"neither ixsmi nor nvidia-smi found, Paddle counts {count}",
                "put the driver's tool on PATH: faults and memory of the cards are unknown",
            )  # fmt: skip
        else:
            yield Finding(GREEN, "cards", "none: no ixsmi, no nvidia-smi, no device node")
        return
    release = f"{driver.tool} {driver.version}, driver {driver.driver}, CUDA {driver.cuda}; "
    text = release if driver.version else "device nodes without ixsmi or nvidia-smi; "
    yield Finding(GREEN, "driver", f"{text}{len(driver.cards)} card(s)")
    if not driver.cards:
        yield Finding(
            YELLOW, "cards", "the driver lists none", f"look at the output of {driver.tool}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    others = ",".join(str(c.index) for c in driver.cards if not c.fault)
    for card in driver.cards:
        memory = f"{card.memory_used} of {card.memory_total} MiB used" if card.memory_total else ""
        name = f"card {card.index}"
        text = ", ".join(filter(None, (card.name, memory, card.fault)))
        busy = card.memory_total and (card.memory_used or 0) / card.memory_total > 0.5
        if card.fault:
            hidden = visible is not None and str(card.index) not in visible.split(",")
            yield Finding(YELLOW if hidden else bad, name, text, "" if hidden else _leave(others))
        elif busy:
            yield Finding(YELLOW, name, text, "another process uses it: choose others by --gpus")
        else:
            yield Finding(GREEN, name, text)


def _leave(others: str) -> str:
    """Say how to exclude a faulty card, given the numbers of the healthy ones.

    CUDA_VISIBLE_DEVICES works for CUDA builds of Paddle and for Iluvatar's plugin, which both use
    the CUDA runtime; the plugin's own variable is read only by Paddle's launcher.
    """
    if not others:
        return f"no healthy card is left: reset or replace it, or {compute.CHOOSE_CPU}"
    return f"leave it out: export CUDA_VISIBLE_DEVICES={others}"


def sdk(driver: device.Driver | None) -> Iterator[Finding]:
    if driver is None or driver.tool != "ixsmi":
        return
    rows = device.sdk_rows(driver.version)
    text = f"IXUCA {driver.version}: " + (
        "; ".join(
            f"Paddle {row.paddle} on Python {row.python}, device {row.device}" for row in rows
        )
        or "older than every known release"
    )
    if driver.version != driver.driver:
        yield Finding(
            YELLOW, "SDK", f"IX-ML {driver.version}, driver {driver.driver}", "install one release"
        )
    runs = {row.runs for row in rows} or {"unknown"}
    if runs == {"no"}:
        yield Finding(RED, "SDK", text, "this project needs Python >= 3.10: update to SDK 4.1+")
    elif "yes" not in runs:
        yield Finding(YELLOW, "SDK", text, "not known to work: this project needs Python >= 3.10")
    elif driver.version not in {row.version for row in device.SDKS}:
        yield Finding(YELLOW, "SDK", text, "not in the known table: this is the nearest row")
    else:
        yield Finding(GREEN, "SDK", text + " (not verified on hardware)")


def resources(folder: Path) -> Iterator[Finding]:
    total, free = _memory()
    text = f"{free:.1f} of {total:.1f} GiB free"
    low = free < 4
    yield Finding(YELLOW if low else GREEN, "memory", text, "close other programs" * low)
    cores = cpu_math.cores()
    usable = f"{cores} usable of {os.cpu_count()}"
    few = "lift the container's limit, or lower worker_num" if cores < 2 else ""
    yield Finding(YELLOW if few else GREEN, "cores", usable, few)
    values = cpu_math.settings(cores)
    shown = [
        f"{k}={os.environ[k]} (yours)" if cpu_math.set_by_user(k) else f"{k}={v}"
        for k, v in values.items()
    ]
    yield Finding(GREEN, "CPU settings", "for one process: " + " ".join(shown))
    try:
        shared = shutil.disk_usage("/dev/shm").free / 2**30
        short = (
            "docker run --shm-size=8g: batches would go through slower pipes" if shared < 1 else ""
        )
        yield Finding(YELLOW if short else GREEN, "/dev/shm", f"{shared:.1f} GiB free", short)
    except OSError:
        yield Finding(YELLOW, "/dev/shm", "absent", "mount it: readers share batches there")
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free / 2**30
    level = RED if disk < 0.5 else YELLOW if disk < 5 else GREEN
    yield Finding(level, "disk", f"{disk:.1f} GiB free at {folder}", "make room" * (level != GREEN))


def _memory() -> tuple[float, float]:
    """Total and available memory, GiB."""
    text = Path("/proc/meminfo").read_text()
    sizes = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.M))
    total, free = (int(sizes[name]) for name in ("MemTotal", "MemAvailable"))
    return total / 2**20, free / 2**20


def libraries() -> Iterator[Finding]:
    found, evaluators = [], []
    for name, module in LIBRARIES.items():
        try:
            # importing ppdet would import Paddle: check only its version
            version = (
                metadata.version(name) if module == "ppdet" else import_module(module).__version__
            )
            found.append(f"{name} {version}")
        except Exception as error:  # a broken library can raise any exception on import
            reason = str(error).splitlines()[0]
            yield Finding(RED, name, f"cannot be imported: {reason}", INSTALL)
    for name in ("hotcoco", "pycocotools"):
        try:
            evaluators.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if not evaluators:
        yield Finding(RED, "COCO figures", "neither hotcoco nor pycocotools", INSTALL)
    yield Finding(GREEN, "libraries", ", ".join(found + evaluators))
