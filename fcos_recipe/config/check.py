"""Check a config against the schema: keys at any depth, types, class names."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from fcos_recipe.config import eval_sets, limits, schema
from fcos_recipe.config.schema import RECIPE, REQUIRED, Key, Signature

SCHEDULERS = (("PiecewiseDecay", "CosineDecay"), ("LinearWarmup", "ExpWarmup"))
# Sections in which a misplaced key is looked for first.
SECTIONS = ("TrainReader", "LearningRate", "OptimizerBuilder", "FCOSHead", "FPN", "ResNet")
# Sections whose `name` is a data set class; the other keys are its arguments.
DATASETS = ("TrainDataset", "EvalDataset", "TestDataset")


def check(tree, loose: set[str]) -> tuple[list[str], list[str]]:
    """Find all errors in a config.

    Args:
        tree: the merged nodes. A top-level key that is unknown, but whose value others take by a
            YAML alias, is removed.
        loose: "file", "command line" or both: a key there that PaddleDetection would silently
            ignore is a warning; elsewhere it is an error.

    Returns:
        errors, warnings: one line each, "file:line: key: what is wrong".
    """
    checker = _Checker(loose)
    checker.top(tree)
    return sorted(checker.errors, key=_place), sorted(checker.warnings, key=_place)


# Names that other projects give to keys.
ALIASES = {
    "lr": "LearningRate.base_lr",
    "learning_rate": "LearningRate.base_lr",
    "epochs": "epoch",
    "max_epochs": "epoch",
    "batch": "TrainReader.batch_size",
    "workers": "worker_num",
    "num_workers": "worker_num",
    "classes": "num_classes",
    "optimizer": "OptimizerBuilder.optimizer.type",
    "momentum": "OptimizerBuilder.optimizer.momentum",
    "weight_decay": "OptimizerBuilder.regularizer.factor",
    "warmup": "LearningRate.schedulers",
    "steps": "LearningRate.schedulers",
    "milestones": "LearningRate.schedulers",
    "gamma": "LearningRate.schedulers",
    "target_size": "TrainReader.sample_transforms",
    "img_size": "TrainReader.sample_transforms",
    "pretrained": "pretrain_weights",
    "fp16": "amp",
    "ema": "use_ema",
}


def key_named(name: str, exactly: bool = True) -> str:
    """The full path of the key with this name, or one like it, in some section; '' without one."""
    paths = _paths(None, ())
    near = [name] if name in paths else []
    near = near if exactly else get_close_matches(name, sorted(paths), n=1, cutoff=0.75)
    return paths[near[0]] if near else ""


def nearest(name: str, known) -> str:
    """Suggest the most similar of the known names; '' if none is similar."""
    near = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _place(finding: str) -> tuple[str, int]:
    """Sort key: file, then line."""
    found = re.match(r"(.+?):(\d+): ", finding)
    return (found[1], int(found[2])) if found else ("", 0)


def describe(kind: Any) -> str:
    """Describe a `Key.kind` in words."""
    if isinstance(kind, type):
        return {str: "text", bool: "true or false", int: "a whole number", dict: "a mapping"}.get(
            kind, "null" if kind is type(None) else f"a {kind.__name__}"
        )
    if kind == (int, float):
        return "a number"
    return " or ".join(k if isinstance(k, str) else describe(k) for k in kind)


class _Checker:
    def __init__(self, loose: set[str]):
        self.loose = loose
        self.errors: list[str] = []
        self.wrong: set[str] = set()  # keys that have their error
        self.warnings: list[str] = []
        self.components = set(schema.components())
        self.operators = set(schema.operators())
        self.sections: list[str] = []
        self.paths: dict[str, str] = {}  # of `_paths`, made when it is needed

    def error(self, node, key: str, text: str) -> None:
        """Report an error, unless the key has one already: the first is the most precise."""
        if not node.has_refused() and key not in self.wrong:
            self.errors.append(f"{node.where}: {key}: {text}")
        self.wrong.add(key)

    def unknown(self, node, key: str, known, ignored: bool = True, what: str = "unknown key"):
        """Report an unknown key; `ignored`: PaddleDetection would silently ignore it."""
        name = key.rsplit(".", 1)[-1]
        hint = self.elsewhere(key, exactly=True) or nearest(name, known) or self.elsewhere(key)
        place = "command line" if node.where == "command line" else "file"
        if ignored and place in self.loose:
            self.warnings.append(f"{node.where}: {key}: {what}, ignored{hint}")
        else:
            self.error(node, key, what + hint)

    def elsewhere(self, key: str, exactly: bool = False) -> str:
        """Suggest the full path of a key of the same or a similar name; '' if there is none."""
        name = key.rsplit(".", 1)[-1]
        paths = self.paths = self.paths or _paths(self.tree, self.sections)
        close = [] if exactly else get_close_matches(name, sorted(paths), n=1)
        near = [name] if name in paths else close
        near = [word for word in near if paths[word] != key]
        return f"; did you mean {paths[near[0]]!r}?" if near else ""

    def is_class(self, node, key: str) -> bool:
        """Whether the value is the name of a registered class; if not, report an error."""
        name = node.plain()
        if isinstance(name, str) and name in self.components:
            return True
        self.error(node, key, f"no registered class {name!r}{nearest(str(name), self.components)}")
        return False

    def top(self, tree) -> None:
        self.tree = tree
        self.sections = [name for name in tree.value if name in self.components]
        shared = set().union(*map(schema.shared_keys, self.used()))
        known = set(RECIPE) | self.components | shared
        for name, node in list(tree.value.items()):
            if node.shared and name not in known:
                del tree.value[name]  # it only holds a value that other keys take
            elif name in RECIPE:
                self.recipe(name, node, RECIPE[name])
            elif name in shared:
                self.effect(name, node, name)
            elif name not in self.components:
                self.unknown(node, name, known)
            elif node.value is None and name == "EvalDataset":
                continue  # no validation data: an error only with --eval
            elif not isinstance(node.value, dict):
                self.error(node, name, f"expected a mapping of arguments, found {node.plain()!r}")
            elif name in DATASETS:
                self.dataset(name, node)
            else:
                self.arguments(name, node, name)
        architecture = tree.value.get("architecture")
        if architecture:
            self.is_class(architecture, "architecture")

    def used(self) -> set[str]:
        """The classes that the config names or describes, and those that these use by default."""
        found: set[str] = set()
        new = {*self.sections, *(name for _, name in _named(self.tree))}
        while new := (new & self.components) - found:
            found |= new
            new = set().union(*map(self.parts, new))
        return found

    def parts(self, name: str) -> set[str]:
        """The values and defaults of a class's arguments that may be names of classes."""
        node = self.tree.value.get(name)
        given = node.value if node and isinstance(node.value, dict) else {}
        values = [
            *schema.signature(name).args.values(), *(child.value for child in given.values())
        ]  # fmt: skip
        return {value for value in values if isinstance(value, str)}

    def effect(self, key: str, node, argument: str) -> None:
        """Warn of an argument that this project's classes accept and do not need."""
        here, why = schema.WITHOUT_EFFECT.get(argument, (None, ""))
        if why and node.plain() not in (None, here):
            self.warnings.append(f"{node.where}: {key}: no effect; {why}")

    def recipe(self, name: str, node, key: Key | dict) -> None:
        if isinstance(key, dict):
            if not isinstance(node.value, dict):
                return self.error(node, name, f"expected a mapping, found {node.plain()!r}")
            for part, child in node.value.items():
                if part in key:
                    self.recipe(f"{name}.{part}", child, key[part])
                else:
                    self.unknown(child, f"{name}.{part}", key)
        elif not _matches(node.value, key.kind):
            self.error(node, name, f"expected {describe(key.kind)}, found {node.plain()!r}")
        elif name == eval_sets.KEY and node.value:
            self.eval_sets(node)
        elif (least := key.least) is not None and _is_below(node.value, least):
            self.error(node, name, f"expected at least {least}, found {node.value}")
        elif words := limits.wrong(name, node.value, key.default):
            self.error(node, name, f"expected {words}, found {node.value}")
        elif key.instead and node.value != key.default:
            self.warnings.append(f"{node.where}: {name}: no effect; {key.instead}")
        elif key.items and (strange := [x for x in node.plain() if not _is_one(x, key.items)]):
            words = key.items if isinstance(key.items, tuple) else ["a list of texts"]
            some = "some of " * (len(words) > 1)
            self.error(node, name, f"expected {some}{', '.join(words)}, found {strange[0]!r}")

    def dataset(self, section: str, node) -> None:
        if "name" in node.value:
            self.injection(section, node)
        else:
            self.error(node, section, "no class named; add `name: COCODataSet`")

    def eval_sets(self, node) -> None:
        for name, child in node.value.items():
            path = f"{eval_sets.KEY}.{name}"
            if not eval_sets.NAME.fullmatch(name):
                self.error(child, path, "a name consists of letters, digits, _ and -, and is not "
                           f"{eval_sets.MAIN}")  # fmt: skip
            elif child.value is None:
                continue  # leaves out a set of a base
            elif not isinstance(child.value, dict):
                self.error(child, path, f"expected a mapping of arguments, found {child.plain()!r}")
            elif "name" in child.value:
                self.injection(path, child)
            else:
                self.arguments("COCODataSet", child, path)

    def injection(self, key: str, node) -> None:
        """Check a mapping whose `name` is a class and whose other keys are its arguments."""
        name = node.value["name"]
        if self.is_class(name, f"{key}.name"):
            self.arguments(name.value, node, key, skip="name")

    def arguments(self, name: str, node, key: str, skip: str = "") -> None:
        self.against(schema.signature(name), node, key, skip, name)

    def against(self, found: Signature, node, key: str, skip: str, name: str) -> None:
        for arg, child in node.value.items():
            path = f"{key}.{arg}"
            if arg == skip:
                continue
            if arg not in found.args and arg in schema.NOT_HERE:
                self.error(child, path, f"not supported: {schema.NOT_HERE[arg]}; remove it")
            elif arg not in found.args:
                self.unknown(child, path, found.args, found.swallows, f"unknown argument of {name}")
            else:
                default = found.args[arg]
                self.value(path, child, default, arg)
                words = limits.wrong(f"{name}.{arg}", child.plain(), default)
                part = isinstance(default, str) and default in self.components
                if child.value is None and part and schema.is_ours(name):
                    words = f"the name of a class, such as {default}"
                if words:
                    self.error(child, path, f"expected {words}, found {child.plain()!r}")
                if schema.is_ours(name):
                    self.effect(path, child, arg)

    def value(self, key: str, node, default: Any, arg: str) -> None:
        """Check one argument; the type of its default is the type expected."""
        value = node.value
        lists = {
            "schedulers": "a list of a decay and a warm-up",
            "transforms": "a list of transforms",
        }
        known = "transforms" if re.search(r"transforms\d?$|_aug$", arg) else arg
        if known in lists or arg == "optimizer":
            if isinstance(value, list if known in lists else dict):
                getattr(self, known)(key, node)
            else:
                wanted = lists.get(known, "a mapping with its type")
                by_number = isinstance(value, dict) and any(word.isdigit() for word in value)
                remedy = "; a list can only be replaced as a whole" * by_number
                self.error(node, key, f"expected {wanted}, found {node.plain()!r}{remedy}")
        elif arg == "regularizer" and isinstance(value, dict):
            table = {"type": Key(("L1", "L2"), "", ""), "factor": Key((int, float), 0, "", least=0)}
            self.recipe(key, node, table)
            for missing in table.keys() - value.keys():
                self.error(
                    node, f"{key}.{missing}", "missing; set type and factor, or regularizer: null"
                )
        elif isinstance(value, dict) and "name" in value and not isinstance(default, dict):
            self.injection(key, node)
        elif isinstance(default, str) and default in self.components and value is not None:
            if isinstance(value, dict):
                self.error(node, key, f"no class named; add `name: {default}`")
            else:
                self.is_class(node, key)
        elif isinstance(default, Key):
            self.recipe(key, node, default)
        elif wanted := _expected(node.plain(), default):
            self.error(node, key, f"expected {wanted}, found {node.plain()!r}")

    def transforms(self, key: str, node) -> None:
        for i, item in enumerate(node.value):
            if not isinstance(item.value, dict):
                word = f"; write `{item.value}: {{}}`" if isinstance(item.value, str) else ""
                self.error(item, f"{key}.{i}", "expected `Name: {arguments}`" + word)
                continue
            for name, args in item.value.items():
                path = f"{key}.{i}.{name}"
                if name not in self.operators:
                    self.unknown(args, path, self.operators, False, "no such transform")
                elif not isinstance(args.value, dict):
                    self.error(args, path, f"expected a mapping of arguments; write `{name}: {{}}`")
                else:
                    self.arguments(name, args, path)
                    known = schema.signature(name).args
                    missing = [a for a, d in known.items() if d is REQUIRED and a not in args.value]
                    # with an unknown argument, a typo, only that is reported
                    if missing and set(args.value) <= set(known):
                        self.error(args, path, f"missing argument {', '.join(missing)}")

    def schedulers(self, key: str, node) -> None:
        """Check that a decay comes first and a warm-up second: they are read by position."""
        for i, item in enumerate(node.value):
            name = item.value.get("name") if isinstance(item.value, dict) else None
            allowed = SCHEDULERS[i] if i < len(SCHEDULERS) else ()
            if name is None or name.value not in allowed:
                what = f"expected !{' or !'.join(allowed)}" if allowed else "one scheduler too many"
                self.error(item, f"{key}.{i}", f"{what}; a decay comes first, a warm-up second")
                continue
            self.arguments(name.value, item, f"{key}.{i}", skip="name")
            known = schema.signature(name.value).args
            gamma, milestones = (
                item.value[k].plain() if k in item.value else known.get(k)
                for k in ("gamma", "milestones")
            )
            lists = [value for value in (gamma, milestones) if isinstance(value, list)]
            if len(lists) == 2 and len(lists[0]) != len(lists[1]):
                self.error(item.value.get("gamma", item), f"{key}.{i}.gamma",
                           f"{len(lists[0])} factors for {len(lists[1])} milestones")  # fmt: skip
        alone = node.plain()[:1] if len(node.value) < 2 else []
        if not node.value or any(isinstance(d, dict) and d.get("use_warmup", True) for d in alone):
            self.error(node, key, "no warm-up; add one, or use_warmup: false to the decay")

    def optimizer(self, key: str, node) -> None:
        kind = node.value.get("type")
        found = None
        if kind and isinstance(kind.value, str):
            found = schema.optimizer_signature(kind.value)
        if found is None:
            shown = kind.plain() if kind else None
            return self.error(kind or node, f"{key}.type", f"paddle.optimizer has no {shown!r}")
        self.against(found, node, key, "type", kind.value)


def _paths(tree, sections: Iterable[str]) -> dict[str, str]:
    """Last part of a dotted key -> the whole key, for all keys that a config may set.

    Args:
        tree: the config's node, which may describe classes in place; None without one.
        sections: the classes that it has sections for.
    """
    keys = [key for key, _ in schema.keys(RECIPE)]
    paths = {**ALIASES, **{key: key for key in keys if "." not in key}}
    named = [(name, name) for name in dict.fromkeys([*SECTIONS, *sections])]
    for path, name in [*named, *(_named(tree) if tree else ())]:
        for argument in schema.signature(name).args:
            paths.setdefault(argument, f"{path}.{argument}")
    for key in keys:
        paths.setdefault(key.rsplit(".", 1)[-1], key)
    return paths


def _named(node, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, class) of each mapping below a node that names its class."""
    for key, child in node.value.items():
        if isinstance(child.value, dict):
            here = f"{path}.{key}" if path else key
            if "name" in child.value:
                yield here, str(child.value["name"].value)
            yield from _named(child, here)


def _is_one(value: Any, items: Any) -> bool:
    return isinstance(value, items) if isinstance(items, type) else value in items


def _is_below(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and not value >= least  # nan is below, too


def _matches(value: Any, kind: Any) -> bool:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if isinstance(value, bool):
        return bool in kinds
    return any(value == k if isinstance(k, str) else isinstance(value, k) for k in kinds)


def _expected(value: Any, default: Any) -> str:
    """Describe the expected type, that of the argument's default; '' if the value has it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        return "" if isinstance(value, bool) or value in (0, 1) else "true or false"
    if isinstance(default, float) or (default == 0 and isinstance(default, int)):
        return "" if number else "a number"
    if isinstance(default, int):
        return "" if number and isinstance(value, int) else "a whole number"
    if isinstance(default, str):
        return "" if value is None or isinstance(value, (str, dict)) else "text"
    if isinstance(default, (list, tuple)):
        return "" if value is None or number or isinstance(value, list) else "a list"
    if isinstance(default, dict):
        return "" if value in (None, False, "None") or isinstance(value, dict) else "a mapping"
    return ""
