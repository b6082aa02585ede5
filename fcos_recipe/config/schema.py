"""Keys that a config may contain: the recipe's own (`RECIPE`) and the arguments of classes.

Arguments are read from the source code of the installed ppdet and of this package; neither is
imported.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fcos_recipe.errors import UserError
from fcos_recipe.places import PACKAGE
from fcos_recipe.plugins import Plugin


@dataclass(frozen=True)
class Key:
    """One recipe key.

    Args:
        kind: a type, a tuple of types, or a tuple of the allowed words.
        default: its value if no file sets it; UNSET: the key is then absent.
        doc: one line for the reference.
        stock: whether PaddleDetection also has this key.
        least: the smallest number allowed.
        items: allowed elements of a list: words, or the type `str`; (): any.
        instead: for a key of PaddleDetection that nothing reads here: what to use.
    """

    kind: Any
    default: Any
    doc: str
    stock: bool = False
    least: int | None = None
    items: tuple[str, ...] | type = ()
    instead: str = ""


UNSET = object()
LOGGERS = ("visualdl", "tensorboard", "wandb", "csv")
NUMBER = (int, float)
WATCH = "seconds without progress before a run counts as hung; 0: "

NO_EFFECT = "PaddleDetection's key; no effect here"

# Top-level keys; a dict is a section with its own keys. No other module repeats a default.
RECIPE: dict[str, Any] = {
    "architecture": Key(str, "FCOS", "registered class of the model", True),
    "device": Key(("auto", "cpu", "gpu", "iluvatar_gpu"), "auto", "where to run"),
    "use_gpu": Key(bool, True, "false: device: cpu; true on the command line: never the CPU", True),
    "use_xpu": Key(bool, False, "true is an error: this hardware is not supported", True),
    "use_mlu": Key(bool, False, "true is an error: this hardware is not supported", True),
    "use_npu": Key(bool, False, "true is an error: this hardware is not supported", True),
    "launch": {"cards": Key(int, 0, "processes of one run, one card each; 0: all", least=0)},
    "seed": Key(int, 0, "seed of weights, image order and augmentation on all ranks", least=0),
    "metric": Key(("COCO",), "COCO", "evaluation metric", True),
    "num_classes": Key(int, 80, "number of classes in the data set", True, least=1),
    "norm_type": Key((str, type(None)), UNSET, "norm_type of sections that do not set it", True),
    "epoch": Key(int, 12, "epochs of the whole run", True, least=1),
    "accumulate": Key(int, 1, "batches whose gradients are averaged into one step", least=1),
    "scale_lr": Key(bool, True, "scale LR and warm-up when the total batch is not base_batch"),
    "amp": Key(bool, False, "automatic mixed precision", True),
    "amp_level": Key(("O1", "O2"), "O1", "O1: listed operators, O2: nearly all", True),
    "amp_dtype": Key(("float16", "bfloat16"), "float16", "data type of the lower precision"),
    "custom_white_list": Key((list, type(None)), None, "operators always in low precision", True),
    "custom_black_list": Key((list, type(None)), None, "operators never in low precision", True),
    "init_loss_scaling": Key(NUMBER, 1024, "first loss scale of float16", True),
    "to_static": Key(bool, False, "compile the model to a static graph for training", True),
    "find_unused_parameters": Key(bool, False, "allow parameters without a gradient", True),
    "comm_buffer_mb": Key(int, 25, "MiB of gradients averaged over ranks per message", least=1),
    "autotune": {
        "kernel": Key(bool, False, "time convolution algorithms in the first steps; cards only"),
        "layout": Key(bool, False, "channels-last where it helps low precision; cards only"),
    },
    "use_ema": Key(bool, False, "evaluate an exponential moving average of the weights", True),
    "ema_decay": Key(NUMBER, 0.9998, "decay of the average", True),
    "ema_decay_type": Key(
        ("threshold", "normal", "exponential"), "threshold", "how the decay grows at start", True
    ),
    "cycle_epoch": Key(int, -1, "epochs after which the average restarts; -1: never", True),
    "ema_black_list": Key((list, type(None)), None, "parameters left out of the average", True),
    "ema_filter_no_grad": Key(bool, False, "leave frozen parameters out of the average", True),
    "eval_sets": Key(
        (dict, type(None)),
        {},
        "further data sets to evaluate on, each under a name with its own figures, e.g. "
        "{night: {anno_path: night.json}}; what a set leaves out is EvalDataset's",
    ),
    "eval_interval": Key(int, 1, "epochs between two evaluations with --eval", least=1),
    "snapshot_epoch": Key(int, 1, "epochs between two checkpoints", True, least=1),
    "snapshot_steps": Key(int, 0, "steps between two checkpoints inside an epoch; 0: off", least=0),
    "snapshot_minutes": Key(NUMBER, 15, "minutes between two checkpoints; 0: off", least=0),
    "keep_checkpoints": Key(int, 5, "newest checkpoints to keep; best_model is kept too", least=1),
    "max_failed_saves": Key(
        int, 3, "checkpoints in a row that were not saved after which a run stops", least=1
    ),
    "bad_numbers": {
        "policy": Key(("stop", "skip", "rollback"), "stop", "on a NaN or Inf loss or gradient"),
        "max_skips": Key(int, 10, "steps skipped or rolled back before a run stops", least=0),
        "lr_factor": Key(NUMBER, 0.5, "factor on the LR at each rollback"),
        "diverged": Key(NUMBER, 5, "warn above this multiple of the median loss; 0: off", least=0),
    },
    "early_stop": {
        "patience": Key(
            int, 0, "evaluations without a better AP before the run ends; 0: off", least=0
        ),
        "min_delta": Key(NUMBER, 0.0, "smallest gain in AP (0-1) that counts as better"),
    },
    "watchdog": {
        "startup": Key(NUMBER, 0, WATCH + "automatic", least=0),
        "step": Key(NUMBER, 0, WATCH + "max(120, 10 x the median step)", least=0),
        "eval": Key(NUMBER, 0, WATCH + "automatic", least=0),
        "save": Key(NUMBER, 0, WATCH + "automatic", least=0),
    },
    "worker_num": Key((int, "auto"), "auto", "reader processes per card", True, least=0),
    "plugins": Key(
        list,
        [],
        "Python files with transforms, backbones and losses of yours; each must be "
        "permitted with --allow-code",
        items=str,
    ),
    "freeze": Key(
        list, [], "name patterns of parameters that keep their values, e.g. [backbone.*]", items=str
    ),
    "max_bad_images": Key(
        int, 10, "unreadable images that each card skips before the run stops", least=0
    ),
    "pretrain_weights": Key(
        (str, type(None)), "", "initial weights: file, run directory or URL; '': none", True
    ),
    "weights": Key((str, type(None)), "", "default weights file of eval and infer", True),
    "save_dir": Key(str, "output", "folder in which run directories are created", True),
    "log_iter": Key(int, 20, "steps between two lines of the log", True, least=1),
    "classwise": Key(bool, False, "print AP per class", True),
    "loggers": Key(list, [], f"also write metrics for {', '.join(LOGGERS)}", items=LOGGERS),
    "logger_images": Key(int, 4, "evaluation images with boxes that loggers receive", least=0),
    "use_vdl": Key(bool, False, "write VisualDL logs", True),
    "vdl_log_dir": Key(str, UNSET, "folder for VisualDL logs", True),
    "output_eval": Key((str, type(None)), None, "folder for the COCO results file", True),
    "save_prediction_only": Key(
        bool, False, NO_EFFECT, True, instead="use `fcos eval --save-predictions FILE`"
    ),
    "print_flops": Key(bool, False, NO_EFFECT, True, instead="use `fcos analyze_model`"),
    "print_params": Key(bool, False, NO_EFFECT, True, instead="use `fcos analyze_model`"),
    "export": {
        "post_process": Key(bool, True, NO_EFFECT, True, instead="exports always decode boxes"),
        "nms": Key(bool, True, NO_EFFECT, True, instead="use `fcos export_model --no-nms`"),
        "benchmark": Key(bool, False, NO_EFFECT, True, instead="use `fcos export_model --no-nms`"),
        "fuse_conv_bn": Key(
            bool, False, NO_EFFECT, True, instead="inference engines fold BatchNorm themselves"
        ),
    },
}


def keys(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """Yield (dotted name, key) of every key in `RECIPE`."""
    for name, key in table.items():
        if isinstance(key, dict):
            yield from keys(key, f"{prefix}{name}.")
        else:
            yield prefix + name, key


# Arguments of a section that its class does not take, but this recipe.
ONLY_OURS = {"LearningRate": {"base_batch": Key(int, UNSET, "images per step of base_lr")}}
# Transform that mixes samples -> the Reader's argument for its epochs, and how many samples it
# needs besides the first. PaddleDetection uses the first one of this order that is active.
MIXING = {"Mixup": ("mixup_epoch", 1), "Cutmix": ("cutmix_epoch", 1), "Mosaic": ("mosaic_epoch", 4)}
# Arguments of PaddleDetection's classes that this project's classes in their place do not have.
NOT_HERE = {
    "ssod_loss": "semi-supervised training is not part of this recipe",
    "pre_img_epoch": "it serves CenterTrack alone",
    "fcos_post_process": "as in PaddleDetection 2.6, NMS is an argument of FCOSHead",
}
# Arguments of PaddleDetection's classes that this project's classes accept and do not need -> the
# value that says what happens here, and why another one changes nothing.
WITHOUT_EFFECT: dict[str, tuple[Any, str]] = {
    "collate_batch": (True, "targets of FCOS have the same shape for every image"),
    "fuse_normalize": (True, "exports always normalise"),
    "inputs_def": ({}, "exports take images of any size"),
    "trt": (False, "exports are the same for every inference engine"),
}
# Arguments that OptimizerBuilder sets itself, so that YAML must not.
BUILDER_SETS = {"learning_rate", "parameters", "grad_clip"}

ANY = object()  # the default is an expression: a value's type cannot be checked
REQUIRED = object()


@dataclass
class Signature:
    """Arguments of a class's constructor, each with its default (a literal, ANY or REQUIRED)."""

    args: dict[str, Any] = field(default_factory=dict)
    swallows: bool = False  # unknown arguments go into unused **kwargs: they are silently ignored


@dataclass(frozen=True)
class Source:
    """Where a class is defined."""

    path: Path
    text: str
    start: int
    own: bool
    registered: bool
    op: bool


CLASS = re.compile(r"^((?:@[^\n]*\n)*)class[ \t]+(\w+)", re.M)


_plugins: Sequence[Plugin] = ()


def use(plugins: Sequence[Plugin]) -> None:
    """Let the classes of these files count, and of no others, for the config being checked."""
    global _plugins
    if plugins != _plugins:
        _plugins = plugins
        for function in (classes, shared_keys, signature):
            function.cache_clear()


@lru_cache
def classes() -> dict[str, list[Source]]:
    """Class name -> its definitions in ppdet's data, modeling and optimizer, here and in plugins.

    Raises:
        UserError: ppdet is not installed.
    """
    spec = find_spec("ppdet")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("ppdet is not installed: configs cannot be checked; run scripts/install.sh")
    stock = Path(spec.submodule_search_locations[0])
    found: dict[str, list[Source]] = {}
    for plugin in _plugins:
        for match in CLASS.finditer(plugin.text):
            registered, op = "@register" in match[1], "@register_op" in match[1]
            place = (Path(plugin.path), plugin.text, match.start())
            found.setdefault(match[2], []).append(Source(*place, False, registered, op))
    for folder in [PACKAGE / part for part in ("data", "model")] + [
        stock / part for part in ("data", "modeling", "optimizer")
    ]:
        own = stock not in folder.parents
        for path in sorted(folder.rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            for match in CLASS.finditer(text):
                op = "@register_" in match[1] and (own or "transform" in path.parts)
                source = Source(path, text, match.start(), own, "@register" in match[1], op)
                found.setdefault(match[2], []).append(source)
    return found


@lru_cache
def shared_keys(name: str) -> frozenset[str]:
    """Top-level keys that the class `name` reads as arguments (`__shared__`), such as norm_type."""
    found: set[str] = set()
    for source in classes().get(name, []):
        node = class_node(source, name)
        for item in node.body:
            if isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "__shared__":
                found |= set(ast.literal_eval(item.value))
        parents = [base.id for base in node.bases if isinstance(base, ast.Name)]
        found = found.union(*(shared_keys(parent) for parent in parents if parent != name))
    return frozenset(found)


def is_ours(name: str) -> bool:
    """Whether a class of this project is used under this name."""
    return any(source.own for source in classes().get(name, []))


def components() -> list[str]:
    """Class names that can be sections of a config."""
    return [n for n, s in classes().items() if any(x.registered and not x.op for x in s)]


def operators() -> list[str]:
    """Class names that can be used in a list of transforms."""
    return [name for name, sources in classes().items() if any(x.op for x in sources)]


@lru_cache
def signature(name: str) -> Signature:
    """Arguments of the class `name`: ppdet's and, if this package replaces the class, ours."""
    sources = sorted(classes().get(name, []), key=lambda s: (s.own, s.registered))
    chosen = [s for s in sources if s.own] + [s for s in sources if not s.own][-1:]
    result = Signature()
    for source in chosen:
        one = _read(source, name)
        # a default of None in our class does not tell the type: keep ppdet's default
        ours = {k: v for k, v in result.args.items() if v is not None}
        result.args = {**result.args, **one.args, **ours}
        result.swallows = one.swallows  # the last one is ppdet's, if it has the class
    result.args.update(ONLY_OURS.get(name, {}))
    if is_ours(name):
        for argument in NOT_HERE:
            result.args.pop(argument, None)
    return result


@lru_cache
def optimizer_signature(kind: str) -> Signature | None:
    """Arguments of `paddle.optimizer.<kind>`, from Paddle's source; None if it does not exist."""
    spec = find_spec("paddle")
    places = spec.submodule_search_locations if spec else None
    folder = Path(places[0]) / "optimizer" if places else None
    path = folder / f"{kind.lower()}.py" if folder else None
    if path is None or not path.is_file() or not kind.isidentifier():
        return None
    text = path.read_text(encoding="utf-8")
    match = re.search(rf"^class {kind}\b", text, re.M)
    if match is None:
        return None
    found = _read(Source(path, text, match.start(), False, False, False), kind)
    args = {k: v for k, v in found.args.items() if k not in BUILDER_SETS}
    return Signature({**args, "param_groups": ANY}, found.swallows)


def _read(source: Source, name: str) -> Signature:
    node = class_node(source, name)
    result = Signature()
    functions = (n for n in node.body if isinstance(n, ast.FunctionDef))
    init = next((n for n in functions if n.name == "__init__"), None)
    if init is not None:
        a = init.args
        names = [arg.arg for arg in a.posonlyargs + a.args][1:]
        names += [arg.arg for arg in a.kwonlyargs]
        given = a.defaults + a.kw_defaults  # defaults of the last names
        given = [None] * (len(names) - len(given)) + given
        values = [REQUIRED if node is None else _literal(node) for node in given]
        result.args = dict(zip(names, values, strict=True))
    rest = init.args.kwarg if init is not None else None
    if (
        init
        and rest
        and not any(
            k.arg is None and isinstance(k.value, ast.Name) and k.value.id == rest.arg
            for k in _keywords(init)
        )
    ):
        result.swallows = True
    elif init is None or rest:
        # **kwargs are passed to the base classes
        bases = [b.id if isinstance(b, ast.Name) else getattr(b, "attr", "") for b in node.bases]
        known = [(b, s) for b in bases if b != name and (s := base(b, source))]
        result.swallows = init is not None and not known
        for parent, where in known:
            more = _read(where, parent)
            result.args = {**more.args, **result.args}
            result.swallows |= more.swallows
    return result


def base(name: str, near: Source) -> Source | None:
    """Find the definition of a base class that the source `near` uses."""
    found = classes().get(name, [])
    return next((s for s in found if s.path == near.path), found[-1] if found else None)


def class_node(source: Source, name: str) -> ast.ClassDef:
    """Parse one class; the whole file only if the class cannot be cut out of it."""
    end = re.compile(r"^(?=[^\s#)\]}])", re.M)
    head = re.compile(rf"^class[ \t]+{name}\b", re.M).search(source.text, source.start)
    assert head is not None, name  # `classes` found it there
    start = head.start()
    stop = end.search(source.text, start + 1)
    try:
        tree = ast.parse(source.text[start : stop.start() if stop else None])
    except SyntaxError:
        tree = ast.parse(source.text)
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def _keywords(init: ast.FunctionDef) -> list[ast.keyword]:
    calls = (node for node in ast.walk(init) if isinstance(node, ast.Call))
    return [k for call in calls for k in call.keywords if isinstance(k.value, ast.Name)]


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ANY
