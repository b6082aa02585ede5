"""Whether a planned run would work on this machine: data, kernels, memory, disk, communication."""

import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fcos_recipe.config import eval_sets, scaling
from fcos_recipe.config.load import Config, data_paths
from fcos_recipe.console import plural
from fcos_recipe.launch import measured_steps
from fcos_recipe.model import memory
from fcos_recipe.places import PACKAGE
from fcos_recipe.system import compute, device
from fcos_recipe.system.machine_check import GREEN, INSTALL, RED, YELLOW, Finding


def communication(seconds: float = 120) -> Finding:
    """Two real processes that sum over Gloo on the CPU, through Paddle's launcher."""
    name = "communication"
    try:
        from fcos_recipe.launch.plan import plan_launch
        from fcos_recipe.launch.supervise import no_process_left, start_process
    except ImportError as error:
        return Finding(RED, name, f"{error}: several ranks cannot be supervised", INSTALL)
    script = PACKAGE / "system" / "comm_check.py"
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


def planned_run(
    config: Config, overrides: list[str], chosen: compute.Compute | None, measure: bool = False
) -> Iterator[Finding]:
    """What a config adds: its files, and what the run will take; `measure`: from real steps."""
    yield from (Finding(YELLOW, "config", line) for line in config.warnings)
    judged = eval_sets.sections(config.data).values() if config.data.get("EvalDataset") else []
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
    elif data["amp"]:
        yield _kernels(config, overrides, kind, cards)
    if chosen.facts:
        yield from _size(config, overrides, chosen)
    if not missing:
        images = _images(config)
        yield from _hours(config, cards, images, chosen.driver if kind != "cpu" else None)
        if measure:
            yield from measured_steps.findings(config, overrides, chosen, cards, images)


def _in_paddle(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a module of this package in a process of its own: this one never imports Paddle."""
    return subprocess.run(
        [sys.executable, "-m", f"fcos_recipe.{module}", *arguments],
        capture_output=True, text=True, env=device.child_environment(),
    )  # fmt: skip


def _kernels(config: Config, overrides: list[str], kind: str, cards: int) -> Finding:
    """Whether the cards have the kernels that the config's mixed precision needs."""
    done = _in_paddle("system.kernels", kind, str(cards), str(config.path), *overrides)
    if not done.returncode:
        return Finding(
            GREEN, "amp", f"no kernel is missing for {config.data['amp_dtype']} on {kind}"
        )
    said = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
    problem, _, remedy = said.rpartition("; ")
    return Finding(RED, "amp", problem or said, remedy if problem else "")


def _size(config: Config, overrides: list[str], chosen: compute.Compute) -> Iterator[Finding]:
    """Whether the model can be built and fits its head; disk of the run, and memory of one card."""
    done = _in_paddle("model.size", str(config.path), *overrides)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding(RED, "model", last.removeprefix("error: "), "correct the key that is named")
        return
    yield Finding(GREEN, "model", "builds; its levels have the strides of the head and targets")
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


def _images(config: Config) -> int:
    """Images of an epoch."""
    from fcos_recipe.data.dataset import COCODataSet
    from fcos_recipe.data.index import open_index

    data = config.data["TrainDataset"]
    indexes = [open_index(path) for path in data_paths(data, "anno_path")]
    boxes = sum(int((i.box_start[1:] > i.box_start[:-1]).sum()) for i in indexes)
    images = sum(map(len, indexes)) if data.get("allow_empty") else boxes
    if threshold := config.data["TrainReader"].get("repeat_threshold"):
        dataset = COCODataSet(**{k: v for k, v in data.items() if k != "name"})
        dataset.parse_dataset()
        images = math.ceil(dataset.repeat_factors(threshold).sum())
    return images


def _hours(
    config: Config, cards: int, images: int, driver: device.Driver | None
) -> Iterator[Finding]:
    from fcos_recipe.runs.published_results import published

    plan = scaling.plan_scaling(config, cards, images)
    yield from (Finding(YELLOW, "schedule", line) for line in plan.warnings)
    total_images = images * config.data["epoch"]
    text = f"{plural(images, 'image')} x {plural(config.data['epoch'], 'epoch')} = "
    text += f"{plan.max_steps} steps on {cards}; "
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
        text += "hours unknown, as no rate is published for this config on this machine: "
        text += "fcos doctor --measure times two steps"
    yield Finding(GREEN, "time", text)
