"""scripts/hw_check.sh: measure this recipe on a machine with cards; one JSON to send in.

Generated images of 800x1333 replace COCO, so no download is needed. Each step is a separate command
with a time limit; if it fails or takes too long, this is recorded and the next step runs. `--quick`
runs the same steps on small images, which also tests them without cards.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from fcos_recipe import __version__, exit_codes
from fcos_recipe.commands import options
from fcos_recipe.errors import UserError, printable
from fcos_recipe.files.atomic import write_json
from fcos_recipe.places import CONFIGS, TOOLS
from fcos_recipe.system import compute, device

HEADLINE = CONFIGS / "fcos" / "fcos_r50_fpn_1x_coco.yml"
BACKBONE = "ResNet50_cos_pretrained"
OK, FAILED, TIMEOUT, SKIPPED = "ok", "failed", "timeout", "skipped"
TAIL = 15  # last lines of a failed step's output, stored in the JSON
# Seconds that training leaves for evaluation, export and resume, and their largest share of all.
RESERVE, SHARE = 420, 0.4
GRACE = 60  # seconds that a run has to stop, since it may be saving
_EXAMPLE = """\
examples:
  bash scripts/hw_check.sh                   # all cards, at most 30 minutes
  DEVICE=cpu bash scripts/hw_check.sh --quick
Send output/hw_check/hw_check.json with an issue of the type "A result on your hardware".
"""
_CODES = {
    exit_codes.OK: "training was measured and no step failed",
    exit_codes.FAILED: "a step failed, or no training was measured",
    exit_codes.INTERRUPTED: "interrupted",
}


class Check:
    """Runs commands one after the other and records their results.

    Args:
        folder: receives the logs of the commands and hw_check.json.
        seconds: time for the whole check; steps after that are skipped.
        facts: top-level entries of the JSON.
    """

    def __init__(self, folder: Path, seconds: float, facts: dict):
        self.folder, self.facts = folder, facts
        self.steps: list = []
        self._end = time.monotonic() + seconds
        self.reserve = min(RESERVE, SHARE * seconds)
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def skip(self, name: str, reason: str) -> None:
        """Record a skipped step."""
        self._keep({"name": name, "status": SKIPPED, "reason": reason})

    def run(
        self,
        name: str,
        command: list[str],
        limit: float,
        read: Callable[[str], dict] = lambda _: {},
        good: tuple[int, ...] = (0,),
        reserve: float = 0,
    ) -> bool:
        """Run one command until it ends or reaches its time limit.

        Args:
            name: of the step.
            command: arguments of the Python interpreter.
            limit: seconds.
            read: returns figures for the JSON from the command's output; an exception in it fails
                the step.
            good: exit codes that mean success.
            reserve: seconds of the whole check that are kept for later steps.

        Returns:
            whether the step succeeded.
        """
        left = self._end - reserve - time.monotonic()
        if left < 10:
            self.skip(name, "the time for the whole check is over")
            return False
        print(f"== {name}", flush=True)
        start, path = time.monotonic(), self.folder / "logs" / f"{name}.log"
        with path.open("w") as log:
            child = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, env=device.child_environment(),
            )  # fmt: skip
            try:
                code = child.wait(min(limit, left))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(child)
        output = path.read_text(errors="replace")
        step = {"name": name, "status": OK, "seconds": round(time.monotonic() - start, 1)}
        try:
            if code in good:
                step.update(read(output))
        except Exception as error:  # the command's result is not as expected
            step.update(status=FAILED, reason=f"{type(error).__name__}: {error}")
        if code is None:
            step.update(status=TIMEOUT, reason=f"ended after {min(limit, left):.0f} s")
        elif code not in good:
            step.update(status=FAILED, reason=exit_codes.describe(code))
        if step["status"] != OK:
            step["output"] = [printable(line) for line in output.splitlines()[-TAIL:]]
        self._keep(step)
        return step["status"] == OK

    def _keep(self, step: dict) -> None:
        """Record a step and write the JSON, so that a later crash loses nothing."""
        self.steps.append(step)
        told = {k: v for k, v in step.items() if k not in ("name", "status", "output", "findings")}
        said = ", ".join(f"{key} {value}" for key, value in told.items())
        print(f"{step['status']:<8}{step['name']}: {said}", flush=True)
        self.write()

    def write(self) -> None:
        """Rewrite hw_check.json."""
        write_json(self.folder / "hw_check.json", {**self.facts, "steps": self.steps})


def _end(child: subprocess.Popen) -> None:
    """End a command and its child processes if it still runs."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 10)):
        if child.poll() is not None:
            return
        os.killpg(child.pid, number)
        try:
            child.wait(wait)
        except subprocess.TimeoutExpired:
            continue


def read_training(folder: Path, steps: int, before: int = 0) -> dict:
    """Figures of a training run.

    Args:
        folder: its run directory.
        steps: number of steps that it must have reached.
        before: steps done before it was resumed.

    Raises:
        ValueError: it did not reach `steps`, or a loss is not finite.
    """
    from fcos_recipe.runs.contents import read_run
    from fcos_recipe.runs.throughput import steady, throughput

    rows = [r for r in read_run(folder).train if r["step"] > before]
    if not rows or rows[-1]["step"] != steps:
        raise ValueError(f"expected {steps} steps, the last in metrics.jsonl is "
                         f"{rows[-1]['step'] if rows else 'missing'}")  # fmt: skip
    if not all(math.isfinite(row["loss"]) for row in rows):
        raise ValueError("the loss is not finite")
    return {
        "steps": steps - before,
        **{name: round(value, 3) for name, value in throughput(rows).items()},
        "data_time": steady([row["data_time"] for row in rows]),
        "memory_mib": max(row["memory_mib"] for row in rows),
        "first_loss": rows[0]["loss"], "last_loss": rows[-1]["loss"],
    }  # fmt: skip


def draw_data(folder: Path, size: tuple[int, int], images: int, entries: int) -> None:
    """Draw images to train and evaluate on.

    Args:
        folder: output folder.
        size: height and width in pixels.
        images: number of images to draw.
        entries: number of entries in the training annotations, repeated.json. They list the images
            repeatedly, so an epoch of any length needs few images.
    """
    from fcos_recipe.datasets.drawn_shapes import make_shapes

    make_shapes(folder, train=images, val=max(4, images // 4), size=size)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    boxes: dict[int, list[dict]] = {}
    for box in content["annotations"]:
        boxes.setdefault(box["image_id"], []).append(box)
    many: list = []
    found: list = []
    for k in range(entries):
        image = content["images"][k % images]
        many.append({**image, "id": k + 1})
        for box in boxes.get(image["id"], []):
            found.append({**box, "id": len(found) + 1, "image_id": k + 1})
    content.update(images=many, annotations=found)
    (folder / "repeated.json").write_text(json.dumps(content))


def write_config(path: Path, data: Path, size: tuple[int, int], backbone: bool, log: int) -> None:
    """Write the headline config for the drawn images.

    Args:
        path: file to write.
        data: from `draw_data`.
        size: height and width of the images, pixels.
        backbone: start from the published ImageNet weights; otherwise from random weights, whose
            BatchNorm must train because frozen it lets activations grow beyond float16.
        log: steps between two log lines.
    """
    data = data.resolve()
    sections: dict = {
        "_BASE_": [str(HEADLINE)], "num_classes": 4, "epoch": 1, "log_iter": log,
        "snapshot_minutes": 0,
        # after few steps, the model must still find boxes to compare an export on
        "FCOSHead": {"nms": {"score_threshold": 0.001}},
        "TrainDataset": {"dataset_dir": str(data), "image_dir": "train",
                         "anno_path": "repeated.json", "allow_empty": True},
        "EvalDataset": {"dataset_dir": str(data), "image_dir": "val",
                        "anno_path": "annotations/instances_val.json"},
        "TestDataset": {"dataset_dir": str(data), "anno_path": "annotations/instances_val.json"},
    }  # fmt: skip
    if not backbone:
        sections["pretrain_weights"] = ""
        sections["ResNet"] = {"freeze_norm": False, "freeze_at": -1}
    if size != (800, 1333):
        usual = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "is_scale": True}
        read = [{"Decode": {}}, {"Resize": {"target_size": list(size), "keep_ratio": True}},
                {"NormalizeImage": usual}]  # fmt: skip
        sections["TrainReader"] = {"sample_transforms": [*read, {"RandomFlip": {}}]}
        for part in ("EvalReader", "TestReader"):
            sections[part] = {"sample_transforms": [*read, {"Permute": {}}]}
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")


def counts(available: int, asked: list[int] | None) -> list[int]:
    """Numbers of cards to try: 1, 2, 4, 8 as far as available, or those asked for.

    Raises:
        UserError: more cards were asked for than there are.
    """
    if asked:
        if not 1 <= min(asked) <= max(asked) <= available:
            raise UserError(f"--cards {' '.join(map(str, asked))}: only {available} are visible")
        return sorted(set(asked))
    return [n for n in (1, 2, 4, 8) if n <= available]


def main(argv: list[str] | None = None) -> int:
    """`python -m fcos_recipe.lab.hw_check`: see `--help`."""
    text = __doc__.split("\n\n")[0]
    ask = options.parser("", text, _EXAMPLE, _CODES, prog="scripts/hw_check.sh")
    add = ask.add_argument
    add("--output", type=Path, default=Path("output/hw_check"), metavar="DIR",
        help="default: %(default)s")  # fmt: skip
    add(
        "--cards",
        type=int,
        nargs="+",
        metavar="N",
        help="numbers of cards to try (default: 1 2 4 8 as available)",
    )
    add("--steps", type=int, help="training steps of each run (default: 200; --quick: 3)")
    add("--minutes", type=float, default=30, help="time for the whole check (default: %(default)s)")
    add("--quick", action="store_true", help="images of 96x128 and few steps, to try this script")
    args = ask.parse_args(argv)
    found = compute.decide(compute.requested(None), device.ask_paddle_outside)
    kind, driver = found.device, found.driver
    print(found.line(), flush=True)
    if kind == "cpu" and not args.quick:
        raise UserError("no cards found; 800x1333 would take hours on a CPU, so try --quick")
    available = len(found.cards) or 2
    wanted = counts(available, args.cards)
    size, steps = ((96, 128), 3) if args.quick else ((800, 1333), 200)
    if (args.steps is not None and args.steps < 1) or args.minutes <= 0:
        raise UserError("--steps and --minutes must be positive")
    steps = args.steps or steps
    check = Check(args.output, 60 * args.minutes, {
        "format": 1, "recipe": __version__, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": kind, "quick": args.quick, "image_size": size, "images_per_card": 2,
        "cards": [card.name for card in driver.cards] if driver else [],
        "driver": f"{driver.tool} {driver.version}, driver {driver.driver}" if driver else None,
        "compute": found.line(),
        "throughput": "as runs/throughput.py defines it",
    })  # fmt: skip
    check_all(check, kind, wanted, steps, size)
    line, good = summary(check.steps)
    print(f"\n{args.output / 'hw_check.json'}: {line}")
    return exit_codes.OK if good else exit_codes.FAILED


def summary(steps: list[dict]) -> tuple[str, bool]:
    """One line about the steps, and whether the check succeeded.

    It succeeded if no step failed and at least one training run was measured.
    """
    named = {
        status: [step["name"] for step in steps if step["status"] in members]
        for status, members in (
            ("done", (OK,)), ("failed", (FAILED, TIMEOUT)), ("skipped", (SKIPPED,))
        )
    }  # fmt: skip
    line = f"{len(steps)} steps: {len(named['done'])} done"
    for status in ("failed", "skipped"):
        names = named[status]
        line += f", {len(names)} {status}" + (f" ({', '.join(names)})" if names else "")
    trained = any(name.startswith("train-") for name in named["done"])
    if not trained:
        line += "; no training run succeeded, so nothing was measured"
    return line, trained and not named["failed"]


def check_all(check: Check, kind: str, cards: list[int], steps: int, size: tuple[int, int]) -> None:
    """Run all steps in order.

    Args:
        check: runs and records them.
        kind: "cpu", "gpu" or "iluvatar_gpu".
        cards: numbers of cards to train on.
        steps: of each training run.
        size: height and width of the images.
    """
    folder, quick = check.folder, size != (800, 1333)
    data, config = folder / "data", folder / "hw_check.yml"
    on = ["-o", f"device={kind}"]

    def findings(output: str) -> dict:
        found = json.loads(output[output.index("{") :])["findings"]
        return {"findings": [f for f in found if f["level"] != "green"],
                "green": sum(f["level"] == "green" for f in found)}  # fmt: skip

    check.run("doctor", [str(TOOLS / "doctor.py"), "--json", *["--no-comm"] * quick], 180,
              findings, good=(0, 1))  # fmt: skip
    backbone = not quick and check.run(
        "weights", [str(TOOLS / "weights.py"), "get", BACKBONE], 180,
        lambda _: {"backbone": BACKBONE},
    )  # fmt: skip
    print("== drawing images", flush=True)
    draw_data(data, size, 8 if quick else 64, 2 * steps * max(cards))
    write_config(config, data, size, backbone, max(1, min(20, steps // 10)))
    check.facts["backbone"] = BACKBONE if backbone else "random, BatchNorm trains"

    trained = None
    for count in cards:
        for precision in ("fp32", "amp"):
            name = f"train-{count}-{precision}"
            if precision == "amp" and kind == "cpu":
                check.skip(name, "AMP is not measured on a CPU")
                continue
            run = folder / name
            options = [f"TrainDataset.sample_num={2 * count * steps}", f"device={kind}"]
            command = [
                "-m",
                "fcos_recipe.commands.launch",
                "-c",
                str(config),
                "--gpus",
                str(count),
            ]
            command += ["--output", str(run), *(["--amp"] if precision == "amp" else [])]
            reads = lambda _, run=run: read_training(run, steps)  # noqa: E731
            done = check.run(name, [*command, "-o", *options], 240, reads, reserve=check.reserve)
            if done and precision == "fp32":
                trained = run, command, options
    if trained is None:
        for name in ("evaluate", "resume", "export"):
            check.skip(name, "no run in fp32 succeeded")
        return
    run, command, options = trained
    weights = ["-c", str(config), "--weights", str(run / "model_final.pdparams")]

    def evaluated(_: str) -> dict:
        result = json.loads((folder / "eval" / "eval.json").read_text())
        return {"images": result["images"], "AP": result["stats"][0],
                "images_per_second": round(result["images_per_second"], 3)}  # fmt: skip

    arguments = ["--output", str(folder / "eval"), "--no-plots", *on]
    check.run("evaluate", [str(TOOLS / "eval.py"), *weights, *arguments], 240, evaluated)
    check.run("export", [str(TOOLS / "export_model.py"), *weights, "--output",
              str(folder / "export"), *on], 300)  # fmt: skip
    check.run("resume", [*command, "--resume", "auto", "-o", *options, "epoch=2"], 240,
              lambda _: read_training(run, 2 * steps, steps))  # fmt: skip
    environment = json.loads((run / "environment.json").read_text())
    kept = ("packages", "python", "platform", "cpu", "cores", "git")
    check.facts["environment"] = {key: environment.get(key) for key in kept}
    check.write()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, OSError) as error:  # OSError: --output can't be written
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_codes.BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; hw_check.json has the results so far", file=sys.stderr)
        sys.exit(exit_codes.INTERRUPTED)
