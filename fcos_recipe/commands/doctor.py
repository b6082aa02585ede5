"""`fcos doctor`: whether a training run would work on this machine, on one screen."""

import json
import math
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

from fcos_recipe.commands import options
from fcos_recipe.config import load_config, scaling
from fcos_recipe.config.load import Config, data_paths
from fcos_recipe.errors import UserError
from fcos_recipe.exit_codes import FAILED, OK
from fcos_recipe.model import memory
from fcos_recipe.places import ROOT
from fcos_recipe.system import compute, cpu_math, device

GREEN, YELLOW, RED = "green", "yellow", "red"
_COLOURS = {GREEN: "32", YELLOW: "33", RED: "31"}
_MARKS = {GREEN: "ok  ", YELLOW: "warn", RED: "FAIL"}

_EXAMPLE = "example: python tools/doctor.py -c configs/fcos/fcos_r18_fpn_demo.yml\n"
_CODES = {OK: "ready to train", FAILED: "training would fail"}
INSTALL = "bash scripts/install.sh"
LIBRARIES = {"numpy": "numpy", "cv2": "cv2", "paddledet": "ppdet", "PyYAML": "yaml"}


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


def _look() -> tuple[Finding, compute.Found]:
    """What Paddle says in one line, and what was found of driver and Paddle together."""
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


def _device(asked: str, found: compute.Found) -> tuple[Finding, compute.Compute | None]:
    """The decision that every command would take here."""
    try:
        chosen = compute.choose(asked, found)
    except UserError as error:
        text, _, remedy = str(error).removeprefix("device: ").rpartition("; ")
        return Finding(RED, "device", text, remedy), None
    return Finding(GREEN, "device", chosen.line().removeprefix("device: ")), chosen


def _cards(found: compute.Found, chosen: compute.Compute | None) -> Iterator[Finding]:
    """The driver's cards. For a run on the CPU a broken driver or card is worth a warning only."""
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
    """What to do about a faulty card, given the numbers of the healthy ones.

    The CUDA runtime, which a Paddle for CUDA and Iluvatar's plugin both ask for their cards, reads
    CUDA_VISIBLE_DEVICES; nothing but Paddle's launcher reads the plugin's own variable.
    """
    if not others:
        return f"no healthy card is left: reset or replace it, or {compute.CHOOSE_CPU}"
    return f"leave it out: export CUDA_VISIBLE_DEVICES={others}"


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
        from fcos_recipe.launch.plan import plan_launch
        from fcos_recipe.launch.supervise import no_process_left, start_process
    except ImportError as error:
        return Finding(RED, name, f"{error}: several ranks cannot be supervised", INSTALL)
    script = ROOT / "fcos_recipe" / "system" / "comm_check.py"
    with tempfile.TemporaryDirectory() as folder, no_process_left():
        log = Path(folder)
        run = plan_launch("cpu", ["0", "1"], [], [], log, script)
        try:
            code = start_process(run, log / "launcher.log").wait(seconds)
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


def _run(config: Config, overrides: list[str], chosen: compute.Compute | None) -> Iterator[Finding]:
    """What a config adds: its files, and what the run will take."""
    yield from (Finding(YELLOW, "config", line) for line in config.warnings)
    judged = ["EvalDataset"] if config.data.get("EvalDataset") else []
    missing = config.missing_files("TrainDataset", *judged)
    for line in missing:
        problem, remedy = line.split("; ", 1)
        yield Finding(RED, "data", problem, remedy)
    data = config.data
    if chosen is None:
        return
    kind, visible = chosen.device, len(chosen.cards)
    cards = data["launch"]["cards"] or visible or 1
    if kind != "cpu" and cards > visible:
        remedy = f"--gpus {visible}, or launch.cards: {visible}"
        yield Finding(RED, "launch.cards", f"{cards}, but {visible} visible", remedy)
        cards = visible
    elif cards > 1 and chosen.requested != "cpu" and kind == "cpu":
        remedy = "DEVICE=cpu for as many processes, or --gpus 1: scripts/train.sh refuses otherwise"
        yield Finding(YELLOW, "launch.cards", f"{cards}, but no card here", remedy)
    if data["amp"] and kind == "cpu":
        yield Finding(YELLOW, "amp", "is off on the CPU: Paddle has none there", "amp: false")
    if chosen.facts:
        yield from _size(config, overrides, chosen)
    if not missing:
        yield from _hours(config, cards, chosen.driver if kind != "cpu" else None)


def _size(config: Config, overrides: list[str], chosen: compute.Compute) -> Iterator[Finding]:
    """Disk of the run, and memory of one card."""
    command = [sys.executable, "-m", "fcos_recipe.model.size", str(config.path)]
    done = subprocess.run(
        [*command, *overrides],
        capture_output=True,
        text=True,
        env=device.child_environment(),
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(RED, "model", f"cannot be built: {last}", "python tools/config.py validate")
        return
    facts, data = json.loads(done.stdout.splitlines()[-1]), config.data
    numbers = facts["numbers"]
    # a checkpoint: weights and momenta (and their average); beside them best and final weights
    disk = 4 * numbers * ((2 + bool(data["use_ema"])) * data["keep_checkpoints"] + 2)
    text = f"{numbers / 1e6:.1f} M parameters; disk {disk / 1e9:.1f} GB for "
    text += f"{data['keep_checkpoints']} checkpoints and 2 weights"
    save = Path(data["save_dir"])
    while not save.exists():
        save = save.absolute().parent
    if shutil.disk_usage(save).free < disk:
        yield Finding(RED, "size", text, f"{save} is too full: lower keep_checkpoints")
    else:
        yield Finding(GREEN, "size", text)
    if pixels := _pixels(data["TrainReader"]):
        kind = data["OptimizerBuilder"]["optimizer"]["type"]
        need = memory.Training(**facts, pixels=pixels, optimizer=kind, ema=bool(data["use_ema"]))
        yield _card_memory(need, data, chosen)


def _card_memory(need: memory.Training, data: dict, chosen: compute.Compute) -> Finding:
    """Whether the batch fits in the memory of the smallest card that the run may use."""
    batch = data["TrainReader"]["batch_size"]
    text = f"about {need.bytes(batch) / 2**30:.1f} GiB per card at batch {batch} in float32"
    fit = ", ".join(f"{need.images(size << 30)} in {size} GiB" for size in (16, 32))
    text += f"; images per card that fit: {fit}"
    sizes = []
    if chosen.device != "cpu" and chosen.driver:
        sizes = [c.memory_total for c in chosen.driver.cards
                 if c.memory_total and (str(c.index) in chosen.cards or len(chosen.cards)
                                        == len(chosen.driver.cards))]  # fmt: skip
    if not sizes:
        return Finding(GREEN, "card memory", text)
    have, fits = min(sizes) << 20, need.images(min(sizes) << 20)
    text += f", {fits} in the {min(sizes) / 1024:.0f} GiB here"
    if need.bytes(batch) > have:
        remedy = f"TrainReader.batch_size: {fits}" if fits else "smaller images or a smaller model"
        return Finding(RED, "card memory", text, f"lower it: {remedy} (the LR follows), or use amp")
    if need.bytes(batch) > 0.9 * have:
        return Finding(YELLOW, "card memory", text, "cuDNN's workspace may not fit beside it")
    return Finding(GREEN, "card memory", text)


def _pixels(reader: dict) -> int | None:
    """Pixels of the largest image that the reader's own resize lets through, padding included."""
    pads = [t["PadBatch"] or {} for t in reader.get("batch_transforms") or () if "PadBatch" in t]
    stride = max([pad.get("pad_to_stride") or 1 for pad in pads], default=1)
    for transform in reader["sample_transforms"]:
        for name, arguments in transform.items():
            if name in ("Resize", "RandomResize", "BatchRandomResize"):
                size = arguments["target_size"]
                sizes = size if isinstance(size[0], list) else [size]
                return max(math.prod(-(-side // stride) * stride for side in one) for one in sizes)
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
    paddle, found = _look()
    lines = [_python(), paddle]
    asked, chosen = compute.requested(config), None
    if found.facts:
        decision, chosen = _device(asked, found)
        lines.append(decision)
    lines += [*_cards(found, chosen), *_sdk(found.driver)]
    lines += _machine(Path(config.data["save_dir"] if config else ".").absolute())
    lines += _libraries()
    if communication and found.facts:
        lines.append(_communication())
    if config:
        lines += _run(config, overrides, chosen)
    return lines


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
    text = "Check this machine, and with -c the run that is planned on it."
    ask = options.parser("doctor", text, _EXAMPLE, _CODES)
    options.add_config(ask, "also check this run: data, memory, disk, hours")
    options.add_overrides(ask, None)
    ask.add_argument("--json", action="store_true", help="the findings as JSON")
    ask.add_argument(
        "--no-comm", action="store_true", help="skip the communication check (some seconds)"
    )
    args = ask.parse_args(argv)
    found = examine(args.config, args.opt, not args.no_comm)
    failed = any(item.level == RED for item in found)
    if args.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(f) for f in found]}, indent=1))
    else:
        print(_show(found))
        print("training would fail" if failed else "ready to train")
    return FAILED if failed else OK
