"""`fcos doctor`: whether a training run would work on this machine, on one screen."""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path

from fcos_recipe.config import load_config, scaling
from fcos_recipe.config.load import Config, data_paths
from fcos_recipe.errors import UserError
from fcos_recipe.places import ROOT
from fcos_recipe.system import cpu_math, device

GREEN, YELLOW, RED = "green", "yellow", "red"
_COLOURS = {GREEN: "32", YELLOW: "33", RED: "31"}
_MARKS = {GREEN: "ok  ", YELLOW: "warn", RED: "FAIL"}

INSTALL = "bash scripts/install.sh"
LIBRARIES = {"numpy": "numpy", "cv2": "cv2", "paddledet": "ppdet", "PyYAML": "yaml"}
# Measured with Paddle's allocator on a CPU, R50, one and two images of 640x640: peak less the
# parameters, their gradients and momenta. cuDNN's workspaces come on top on a card.
BYTES_PER_PIXEL = 1600


@dataclass(frozen=True)
class Finding:
    """One line of the report: level (green, yellow, red), what was looked at, what was found."""

    level: str
    name: str
    text: str
    remedy: str = ""


def _python() -> Finding:
    version = platform.python_version()
    text = f"{version} ({sys.executable})"
    if sys.version_info >= (3, 13):
        return Finding(YELLOW, "Python", text, "tested with 3.10 to 3.12 only")
    return Finding(GREEN, "Python", text)


def _paddle(driver: device.Driver | None) -> tuple[Finding, device.PaddleFacts | None]:
    try:
        facts = device.ask_paddle_outside(120)
    except UserError as error:
        text, _, remedy = str(error).rpartition("; ")
        return Finding(RED, "Paddle", text.removeprefix("Paddle "), remedy), None
    kinds = ["cpu", *["gpu"] * facts.cuda, *facts.custom]
    text = f"{facts.version}, devices: {', '.join(kinds)}; {facts.count} card(s) visible to it"
    if driver and driver.cards and not facts.count:
        hidden = [n for n in ("CUDA_VISIBLE_DEVICES", "IX_VISIBLE_DEVICES") if os.environ.get(n)]
        remedy = f"{hidden[0]} may hide them" if hidden else "install the Paddle of your cards"
        text += f", {len(driver.cards)} to the driver: runs would use the CPU"
        return Finding(YELLOW, "Paddle", text, remedy), facts
    return Finding(GREEN, "Paddle", text), facts


def _cards(driver: device.Driver | None, error: str) -> Iterator[Finding]:
    if error:
        yield Finding(RED, "driver", error, "load the driver, or set `device: cpu`")
        return
    if driver is None:
        yield Finding(GREEN, "cards", "none: neither ixsmi nor nvidia-smi; runs use the CPU")
        return
    yield Finding(
        GREEN,
        "driver",
        f"{driver.tool} {driver.version}, driver {driver.driver}, CUDA {driver.cuda}; "
        f"{len(driver.cards)} card(s)",
    )
    if not driver.cards:
        yield Finding(
            YELLOW, "cards", "the driver lists none", f"look at the output of {driver.tool}"
        )
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    for card in driver.cards:
        memory = f"{card.memory_used} of {card.memory_total} MiB used" if card.memory_total else ""
        name = f"card {card.index}"
        text = ", ".join(filter(None, (card.name, memory, card.fault)))
        busy = card.memory_total and (card.memory_used or 0) / card.memory_total > 0.5
        if card.fault:
            hidden = chosen is not None and str(card.index) not in chosen.split(",")
            others = ",".join(str(c.index) for c in driver.cards if not c.fault)
            remedy = f"leave it out: export CUDA_VISIBLE_DEVICES={others}"
            yield Finding(YELLOW if hidden else RED, name, text, "" if hidden else remedy)
        elif busy:
            yield Finding(YELLOW, name, text, "another process uses it: choose others by --gpus")
        else:
            yield Finding(GREEN, name, text)


def _sdk(driver: device.Driver | None) -> Iterator[Finding]:
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


def _machine(folder: Path) -> Iterator[Finding]:
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


def _libraries() -> Iterator[Finding]:
    found, judge = [], []
    for name, module in LIBRARIES.items():
        try:
            # ppdet drags in Paddle: its version is enough
            version = (
                metadata.version(name) if module == "ppdet" else import_module(module).__version__
            )
            found.append(f"{name} {version}")
        except Exception as error:  # a broken library can raise anything when imported
            said = str(error).splitlines()[0]
            yield Finding(RED, name, f"cannot be imported: {said}", INSTALL)
    for name in ("hotcoco", "pycocotools"):
        try:
            judge.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if not judge:
        yield Finding(RED, "COCO figures", "neither hotcoco nor pycocotools", INSTALL)
    yield Finding(GREEN, "libraries", ", ".join(found + judge))


def _communication(seconds: float = 120) -> Finding:
    """Two real processes that sum over Gloo on the CPU, through Paddle's launcher."""
    name = "communication"
    try:
        from fcos_recipe.launch import supervise
    except ImportError as error:
        return Finding(RED, name, f"{error}: several ranks cannot be supervised", INSTALL)
    script = ROOT / "fcos_recipe" / "system" / "comm_check.py"
    with tempfile.TemporaryDirectory() as folder, supervise.no_process_left():
        log = Path(folder)
        run = supervise.plan("cpu", ["0", "1"], [], [], log, script)
        try:
            code = supervise.start(run, log / "launcher.log").wait(seconds)
        except subprocess.TimeoutExpired:
            return Finding(
                RED, name, f"2 CPU processes did not meet in {seconds:.0f} s",
                "check that this host may connect to its own address (firewall, /etc/hosts)",
            )  # fmt: skip
        ranks = [log / f"workerlog.{i}" for i in range(2)]
        lines = "\n".join(f.read_text(errors="replace") for f in ranks if f.is_file())
    if code == 0 and lines.count("sum over 2 ranks is right") == 2:
        return Finding(GREEN, name, "2 CPU processes over Gloo; cards: not verified on hardware")
    last = [line for line in lines.splitlines() if line.strip()][-1:] or ["no output"]
    return Finding(RED, name, f"failed: {last[0]}", "run one process: --gpus 1")


def _run(
    config: Config, overrides: list[str], driver: device.Driver | None, facts
) -> Iterator[Finding]:
    """What a config adds: its files, and what the run will take."""
    yield from (Finding(YELLOW, "config", line) for line in config.warnings)
    judged = ["EvalDataset"] if config.data.get("EvalDataset") else []
    missing = config.missing_files("TrainDataset", *judged)
    for line in missing:
        problem, remedy = line.split("; ", 1)
        yield Finding(RED, "data", problem, remedy)
    data = config.data
    kind = "cpu"
    if facts:
        try:
            kind = device.resolve(device.requested(data), facts)
        except UserError as error:
            text, _, remedy = str(error).rpartition("; ")
            yield Finding(RED, "device", text, remedy)
            return
    cards = data["launch"]["cards"]
    visible = len(device.visible_cards(kind, facts))
    if kind != "cpu" and cards > visible:
        remedy = f"--gpus {visible}, or launch.cards: {visible}"
        yield Finding(RED, "launch.cards", f"{cards}, but {visible} visible", remedy)
        cards = visible
    if data["amp"] and kind == "cpu":
        yield Finding(YELLOW, "amp", "is off on the CPU: Paddle has none there", "amp: false")
    if facts:
        yield _size(config, overrides, cards)
    if not missing:
        yield from _hours(config, cards, driver if kind != "cpu" else None)


def _size(config: Config, overrides: list[str], cards: int) -> Finding:
    """Memory of one card and disk of the run."""
    command = [sys.executable, "-m", "fcos_recipe.system.model_size", str(config.path)]
    done = subprocess.run(
        [*command, *overrides],
        capture_output=True,
        text=True,
        env=device.child_environment(),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(RED, "model", f"cannot be built: {last}", "python tools/config.py validate")
    weights = int(done.stdout.split()[-1]) * 4
    data = config.data
    batch = data["TrainReader"]["batch_size"]
    ema = 1 if data["use_ema"] else 0
    # a checkpoint: weights and momenta (and their average); beside them best and final weights
    disk = weights * ((2 + ema) * data["keep_checkpoints"] + 2)
    text = f"{weights / 4e6:.1f} M parameters; disk {disk / 1e9:.1f} GB for "
    text += f"{data['keep_checkpoints']} checkpoints and 2 weights"
    pixels = _pixels(data["TrainReader"])
    if pixels:
        memory = weights * (3 + ema) + batch * pixels * BYTES_PER_PIXEL
        text += f"; at least {memory / 2**30:.1f} GiB per card at batch {batch} (float32; measured "
        text += "with R50 on a CPU)"
    save = Path(data["save_dir"])
    while not save.exists():
        save = save.absolute().parent
    if shutil.disk_usage(save).free < disk:
        return Finding(RED, "size", text, f"{save} is too full: lower keep_checkpoints")
    return Finding(GREEN, "size", text)


def _pixels(reader: dict) -> int | None:
    """Pixels of the largest image that the reader's own resize lets through."""
    for transform in reader["sample_transforms"]:
        for name, arguments in transform.items():
            if name in ("Resize", "RandomResize", "BatchRandomResize"):
                size = arguments["target_size"]
                sizes = size if isinstance(size[0], list) else [size]
                return max(height * width for height, width in sizes)
    return None


def _hours(config: Config, cards: int, driver: device.Driver | None) -> Iterator[Finding]:
    data = config.data["TrainDataset"]
    from fcos_recipe.data.index import open_index
    from fcos_recipe.runs.published_results import published

    indexes = [open_index(path) for path in data_paths(data, "anno_path")]
    boxes = sum(int((i.box_start[1:] > i.box_start[:-1]).sum()) for i in indexes)
    images = sum(map(len, indexes)) if data.get("allow_empty") else boxes
    plan = scaling.plan(config, cards, images)
    yield from (Finding(YELLOW, "schedule", line) for line in plan.warnings)
    total_images = images * config.data["epoch"]
    text = f"{images} images x {config.data['epoch']} epochs = {plan.max_steps} steps on {cards}; "
    names = {c.name for c in driver.cards} if driver else set()
    rows = [row for row in published(config.name) if row.device and row.images_per_second
            and names and all(row.device in name for name in names)]  # fmt: skip
    if rows:
        # "unstated" is most likely per card, see runs.throughput
        rate = rows[0].images_per_second or 0.0
        of_one = rate / rows[0].cards if rows[0].throughput_of == "total" else rate
        hours = total_images / (of_one * cards) / 3600
        text += f"{hours:.1f} h at the published {of_one:g} images/s per {rows[0].device} "
        text += "(not verified here)"
    else:
        text += "hours unknown: no rate is published for this config on this machine"
    yield Finding(GREEN, "time", text)


def examine(config_path: str | None, overrides: list[str], communication: bool) -> list[Finding]:
    """All findings, in the order of the report.

    Raises:
        UserError: the config cannot be loaded.
    """
    config = load_config(config_path, overrides) if config_path else None
    driver, error = None, ""
    try:
        driver = device.read_driver()
    except UserError as failure:
        error = str(failure)
    paddle, facts = _paddle(driver)
    found = [_python(), paddle, *_cards(driver, error), *_sdk(driver)]
    found += _machine(Path(config.data["save_dir"] if config else ".").absolute())
    found += _libraries()
    if communication and facts:
        found.append(_communication())
    if config:
        found += _run(config, overrides, driver, facts)
    return found


def _show(found: list[Finding]) -> str:
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = []
    for item in found:
        mark = _MARKS[item.level]
        if colour:
            mark = f"\033[{_COLOURS[item.level]}m{mark}\033[0m"
        lines.append(f"{mark} {item.name:<14} {item.text}")
        if item.remedy:
            lines.append(f"{'':<19} -> {item.remedy}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Entry of `fcos doctor`. Returns 1 when training would fail, else 0."""
    parser = argparse.ArgumentParser(
        prog="fcos doctor",
        description="Check this machine, and with -c the run that is planned on it.",
        epilog="example: python tools/doctor.py -c configs/fcos/fcos_r18_fpn_demo.yml",
    )
    parser.add_argument("-c", "--config", help="also check this run: data, memory, disk, hours")
    parser.add_argument("-o", "--opt", nargs="*", action="extend", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.add_argument(
        "--no-comm", action="store_true", help="skip the communication check (some seconds)"
    )
    args = parser.parse_args(argv)
    found = examine(args.config, args.opt, not args.no_comm)
    failed = any(item.level == RED for item in found)
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(f) for f in found]}, indent=1))
    else:
        print(_show(found))
        print("training would fail" if failed else "ready to train")
    return 1 if failed else 0
