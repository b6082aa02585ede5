"""`fcos config new`: write a short config for your own data, with the reason for every value.

The schedule is a rule of thumb, as the comments in the config say: a small data set gets enough
epochs for `FINE_TUNING` steps of the base config's batch, or `SCRATCH` times as many from random
weights; a large data set keeps the base's number of epochs.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcos_recipe.config import scaling
from fcos_recipe.config.load import Config, load_config, yaml_text
from fcos_recipe.data.transforms import named
from fcos_recipe.datasets.chosen_splits import ChosenSplit, DataRequest, Sources, open_split
from fcos_recipe.datasets.fpn_levels import Rules
from fcos_recipe.datasets.verify.findings import by
from fcos_recipe.errors import UserError, UserErrors, path_reason
from fcos_recipe.files.atomic import draft
from fcos_recipe.files.reading import given_path
from fcos_recipe.places import CHECKOUT, CONFIGS, FILES, ROOT, display

FINE_TUNING = 500  # fewest steps of `base_batch` images when starting from a detector's weights
SCRATCH = 3  # factor for steps and epochs from scratch: He et al. 2019, arXiv 1811.08883
MOST_EPOCHS = 100
WARM_UP = 10  # warm-up takes at most 1/WARM_UP of the run
EVALUATIONS = 12  # per run, as in the published schedule
MOST_NAMES = 20  # classes listed in the header
ENLARGED = 4  # times as many pixels as the images have, from which on that is said


@dataclass(kw_only=True)
class Request(DataRequest):
    """The arguments of `new`, besides those about the data.

    Args:
        output: the config to write.
        base: name of a config in configs/fcos, or a file.
        cards: number of cards.
        batch_size: images per card; None: as in the base.
        size: short and long side in pixels to which images are resized; None: as in the base.
        weights: file, URL or zoo name of initial weights; None: as in the base.
        from_scratch: start from random weights.
        force: replace an existing `output`.
    """

    output: Path
    base: str = "fcos_r50_fpn_1x_coco"
    cards: int = 1
    batch_size: int | None = None
    size: tuple[int, int] | None = None
    weights: str | None = None
    from_scratch: bool = False
    force: bool = False


@dataclass
class Written:
    """The splits that `new` found, how the config scales the learning rate, and remarks."""

    train: ChosenSplit
    val: ChosenSplit | None
    plan: scaling.ScalePlan
    notes: list[str]


def new(args: Request) -> Written:
    """Write the config, and annotations in COCO format where the data has others.

    Raises:
        UserError: the folder is missing, annotations or images are missing or ambiguous, something
            can't be converted, or `output` exists.
    """
    if args.output.exists() and not args.force:
        raise UserError(f"{args.output}: exists; choose another name, or --force to replace it")
    if not args.data.is_dir():
        why = "not a folder; unpack an archive first" if args.data.exists() else "no such folder"
        raise UserError(f"--data {args.data}: {why}")
    if args.images and not args.images.is_dir():
        raise UserError(f"--images {args.images}: no such folder")
    data = Path(os.path.abspath(args.data))
    base = _base(args.base)
    folder = args.output.parent / f"{args.output.stem}_annotations"
    if folder.exists() and not args.force:
        raise UserError(f"{folder}: exists; choose another name for the config, or --force")
    sources = Sources(args, data, folder)
    try:
        found = sources.find()
        train = open_split("train", *found["train"], False)
        val = open_split("val", *found["val"], True) if "val" in found else None
        if val and list(val.boxes) != list(train.boxes):
            raise UserError(
                f"{val.anno}: categories: {_listed(val.boxes)}; {train.anno} has "
                f"{_listed(train.boxes)}; both lists must have the same names in the same order"
            )
        text = _text(args, data, base, train, val)
        plan = _written(args.output, text, args.cards, _used(train))
    except OSError as error:
        sources.discard()
        raise UserError(f"{error.filename or args.output}: {path_reason(error)}") from None
    except UserError:
        sources.discard()
        raise
    return Written(train, val, plan, sources.notes + _enlarged(args, base, train))


def _base(name: str) -> Config:
    base = load_config(name)
    for key in ("LearningRate.base_lr", "LearningRate.schedulers", "TrainReader", "FCOSHead"):
        if base.node(key) is None:
            raise UserError(f"--base {name}: this config can't train: {key} is not set")
    return base


def _enlarged(args: Request, base: Config, train: ChosenSplit) -> list[str]:
    """What is to be said if images become much larger before they reach the network."""
    if args.size or not min(train.size):
        return []
    _, (seen,) = Rules.of(base).resized(np.zeros((1, 4), np.float32), np.array([train.size]))
    times = seen.prod() / np.prod(train.size)
    if times < ENLARGED:
        return []
    short, long = sorted(train.size)
    return [
        f"the images ({by(train.size[::-1])} pixels) are enlarged to {by(seen[::-1].round())} for "
        f"the network: {times:.0f} times the computation, which can help where objects are small; "
        f"--size {short} {long} writes a config that leaves them as they are"
    ]


def _sized(base: Config, size: tuple[int, int]) -> list:
    """Lines that resize images to other limits in every reader."""
    lines: list = []
    for reader in ("TrainReader", "EvalReader", "TestReader"):
        lines += [f"{reader}:", ("  sample_transforms:", f"the base's, with --size {by(size)}")]
        for name, arguments in named((base.data.get(reader) or {}).get("sample_transforms") or []):
            if name in ("Resize", "RandomResize"):
                old = np.atleast_2d(arguments["target_size"])
                new = (old / np.sort(old.max(0)) * sorted(size)).round().astype(int).tolist()
                arguments = {**arguments, "target_size": new if name[1] == "a" else new[0]}
            lines.append(f"  - {yaml_text({name: arguments})}")
    return lines


def _used(train: ChosenSplit) -> int:
    """Images per epoch: at most half of them have no box."""
    full = train.images - train.empty
    return full + min(train.empty, full)


def _text(args: Request, data: Path, base: Config, train: ChosenSplit, val: ChosenSplit | None):
    """The text of the config, with a reason for each value."""
    images, source = _used(train), base.data["TrainReader"]
    batch = args.batch_size or source.get("batch_size", 1)
    weights, why, scratch = _start(args, base)
    rate = base.data["LearningRate"]
    base_lr, base_batch = rate["base_lr"], rate.get("base_batch", args.cards * batch)
    factor = SCRATCH if scratch else 1
    longer = factor if base.data["pretrain_weights"] else 1  # else the base is long enough
    least = base.data["epoch"] * longer
    wanted = math.ceil(FINE_TUNING * factor * base_batch / images)
    epochs = max(least, min(wanted, MOST_EPOCHS))
    steps = epochs * images // base_batch
    schedulers, notes = _schedulers(rate["schedulers"], base.data["epoch"], epochs, steps)
    interval = max(1, round(epochs / EVALUATIONS))

    total = args.cards * batch * base.data["accumulate"]
    path = base.path.resolve()
    here = Path(os.path.abspath(args.output)).parent
    if CHECKOUT and here.is_relative_to(ROOT) and path.is_relative_to(ROOT):
        path = Path(os.path.relpath(path, here))
    elif not CHECKOUT and path.is_relative_to(CONFIGS):
        path = path.relative_to(FILES)  # `find_config` finds it in every installation
    seen = f"{images} images x {epochs} = {images * epochs} seen, {steps} steps of {base_batch}"
    if epochs == least:
        rule = f"the base's {base.data['epoch']} epochs" + f" x {longer}" * (longer > 1)
    elif epochs < wanted:
        rule = f"the rule of thumb's maximum; {FINE_TUNING * factor} steps would take " \
            f"{wanted} epochs"  # fmt: skip
    else:
        rule = (
            f"rule of thumb: at least {FINE_TUNING * factor} steps; the base's "
            f"{base.data['epoch']} epochs would be {base.data['epoch'] * images // base_batch}"
        )
    lines = [
        *_header(train, val),
        f"_BASE_: [{_yaml(str(path))}]",
        "",
        (f"num_classes: {len(train.boxes)}", f"the classes of {Path(train.anno).name}"),
        *_data(data, train, val),
        "",
        (f"pretrain_weights: {_yaml(weights)}", why),
    ]
    if scratch and base.data.get("ResNet", {}).get("freeze_norm", True):
        lines.append(("ResNet: {freeze_at: -1, freeze_norm: false}",
                      "random weights must not be frozen"))  # fmt: skip
    lines += [
        "",
        (f"epoch: {epochs}", f"{seen}; {rule}"),
        (f"eval_interval: {interval}", f"{math.ceil(epochs / interval)} evaluations"),
        (f"snapshot_epoch: {interval}", "save as often as evaluating"),
        (f"launch: {{cards: {args.cards}}}", "--gpus N overrides it; the LR follows"),
    ]
    if args.size:
        lines += _sized(base, args.size)
    if args.batch_size:
        at = lines.index("EvalReader:") if args.size else len(lines)
        lines[at:at] = ["TrainReader:"] * (not args.size) + [
            (f"  batch_size: {batch}", "images per card")
        ]
    lines += [
        "LearningRate:",
        (f"  base_lr: {base_lr:g}", f"the base's; a step of {total} images gets "
                                    f"{base_lr * total / base_batch:g} = x {total} / {base_batch}"),
        (f"  base_batch: {base_batch}", "images per step for base_lr and the warm-up"),
        "  schedulers:",
        *((f"  - {one}", note) for one, note in zip(schedulers, notes, strict=True)),
    ]  # fmt: skip
    width = max(len(line[0]) for line in lines if isinstance(line, tuple) and len(line[0]) < 44)
    return "".join(
        (line if isinstance(line, str) else f"{line[0]:<{width}}  # {line[1]}") + "\n"
        for line in lines
    )


def _header(train: ChosenSplit, val: ChosenSplit | None) -> list[str]:
    absent = [name for name, count in train.boxes.items() if not count]
    lines = [
        "# Written by `fcos config new`; change it as you like.",
        "#",
        f"# classes  {_listed(train.boxes, counts=True)}",
        f"# train    {train.images} images, {train.empty} of them without a box, "
        f"{sum(train.boxes.values())} boxes",
    ]
    if val:
        lines.append(f"# val      {val.images} images, {sum(val.boxes.values())} boxes")
    if absent:
        lines.append(f"# no boxes {_listed(absent)}")
    return lines


def _listed(names, counts: bool = False) -> str:
    """Class names in a form that is safe in a comment, which a line break would end."""
    shown = [
        (name if name.isprintable() else ascii(name)) + (f" {names[name]}" if counts else "")
        for name in list(names)[:MOST_NAMES]
    ]
    return f"{len(names)}: {', '.join(shown)}" + ", ..." * (len(names) > MOST_NAMES)


def _data(data: Path, train: ChosenSplit, val: ChosenSplit | None) -> list:
    def block(name: str, section: dict[str, Any], notes: dict[str, str]) -> list:
        return [f"{name}:"] + [
            (f"  {key}: {_yaml(value)}", notes[key]) if key in notes else
            f"  {key}: {_yaml(value)}"
            for key, value in section.items()
        ]  # fmt: skip

    more: dict[str, Any] = {}
    notes: dict[str, str] = {}
    if train.empty:
        more["allow_empty"] = True
        notes["allow_empty"] = f"{train.empty} of {train.images} images have no box: negatives"
    if train.images > _used(train):
        more["empty_ratio"] = 0.5
        notes["empty_ratio"] = f"at most half of an epoch: {_used(train) // 2} of {train.empty}"
    names = {"name": "ImageFolder", "dataset_dir": str(data)}
    names["anno_path"] = (val or train).section(data)["anno_path"]
    lines = block("TrainDataset", train.section(data, **more), notes)
    if val:
        lines += block("EvalDataset", val.section(data), {})
    else:
        lines.append(("EvalDataset: null", "there is nothing to evaluate on; train without --eval"))
    return lines + block("TestDataset", names, {"anno_path": "class names of predictions"})


def _yaml(value: Any) -> str:
    """`yaml_text`, but printable non-ASCII letters are not escaped."""
    readable = isinstance(value, str) and value.isprintable() and not value.isascii()
    return json.dumps(value, ensure_ascii=False) if readable else yaml_text(value)


def _start(args: Request, base: Config) -> tuple[str, str, bool]:
    """Initial weights, the reason, and whether training starts from scratch."""
    from fcos_recipe.checkpoint.zoo import ZOO

    if args.from_scratch:
        return "", "--from-scratch", True
    if args.weights:
        local = given_path(args.weights)
        where = os.path.abspath(local) if local.exists() else args.weights
        return ZOO[where].url if where in ZOO else where, "--weights", False
    same = [name for name in ZOO if base.name.startswith(name)]  # ..._fast has its weights, too
    if same:
        name = max(same, key=len)
        return ZOO[name].url, f"{ZOO[name].text} on COCO; the classifier is initialised anew", False
    own = base.data["pretrain_weights"] or ""
    why = "as in the base" if own else "none are published for this base; train from scratch"
    return own, why, not own


def _schedulers(given: list[dict], base_epochs: int, epochs: int, steps: int):
    """The base's decay and warm-up, scaled to `epochs`, with the reasons."""
    decay, *warm = ({k: v for k, v in one.items()} for one in given)
    if "milestones" in decay:
        old = decay["milestones"]
        decay["milestones"] = [max(1, round(m * epochs / base_epochs)) for m in old]
        notes = [f"at the same fractions of the run as the base's {old} of {base_epochs}"]
    else:
        decay["max_epochs"] = epochs
        notes = ["until the end of the run"]
    for one in warm:
        one.pop("epochs", None)
        written = one.get("steps", 500)
        one["steps"] = max(1, min(written, steps // WARM_UP))
        notes.append(
            f"a tenth of {steps}; the base has {written}" if one["steps"] < written
            else f"as in the base; less than a tenth of {steps}"
        )  # fmt: skip
    text = [f"!{one.pop('name')} {yaml_text(one)}" for one in [decay, *warm]]
    return text, notes


def _written(path: Path, text: str, cards: int, images: int) -> scaling.ScalePlan:
    """Write a draft, check it like `fcos config validate --files` and a run do, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with draft(path, ending=".yml") as part:
            part.write_text(text, encoding="utf-8")
            config = load_config(part)
            if missing := config.missing_files():
                raise UserErrors(missing)
            scaling.plan_scaling(config, cards, images)
    except UserError as error:
        lines = str(error).replace(display(part), display(path)).split("\n")
        raise UserError(*lines) from None
    return scaling.plan_scaling(load_config(path), cards, images)
