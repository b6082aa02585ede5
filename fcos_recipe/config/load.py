"""Load a config: safe YAML, `_BASE_`, overrides, and the origin of each value.

A config is read as a tree of `Node`, which keeps file and line beside every value, so that `check`
can report where an error is. PaddleDetection's merge rules apply: dicts are merged to any depth,
everything else is replaced; later bases override earlier ones, and a file overrides its bases.
"""

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fcos_recipe.config import eval_sets, user_code
from fcos_recipe.config.agreement import disagreements, not_supported
from fcos_recipe.config.check import SCHEDULERS, check, nearest
from fcos_recipe.config.find import find_config, find_data, recorded_name
from fcos_recipe.config.schema import ONLY_OURS, RECIPE, UNSET, components, use
from fcos_recipe.errors import UserError, UserErrors, one_line
from fcos_recipe.files.reading import given_path, read_text
from fcos_recipe.places import CONFIGS, display
from fcos_recipe.plugins import Plugin

COMMAND_LINE = "command line"
DEFAULT = "default"
MAX_NODES = 100_000  # a config has hundreds; nested YAML aliases can expand to billions
# Numbers such as 1e-3 of YAML 1.2, which PyYAML (YAML 1.1) reads as text.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
TAG = "tag:yaml.org,2002:"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_SCALARS = {  # types of YAML that a text can fail to be, in words
    "int": "a whole number within 64 bits",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
MOST_BYTES = 1 << 20  # of a config file
DEMO_DATA = "datasets/demo"
DRAW = "python -m fcos_recipe.commands.draw_shapes"
FILE_KEYS = ("TrainDataset", "EvalDataset", "TestDataset", "pretrain_weights")
PLAIN_TAGS = "str int float bool null timestamp map seq merge value".split()


_YAML_HINTS = {  # part of PyYAML's message: what a beginner's mistake it most likely is
    r"'\t'": "; indent with spaces, not tabs",
    "could not find expected ':'": "; is the space after a colon missing here or a line above?",
    "mapping values are not allowed": "; is a line above indented otherwise, or is "
    "the space after its colon missing?",
    "expected ',' or": "; is a bracket above not closed?",
}


class _Loader(yaml.SafeLoader):
    """Composes nodes, at most `MAX_NODES`; constructs only scalars of plain types.

    A node that is used a second time, by an alias, gets the attribute `shared`.
    """

    made = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.made += 1
        if self.made > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values")
        again = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if node is not None and again:
            vars(node)["shared"] = True
        return node


class Dumper(yaml.SafeDumper):
    """Writes YAML that `_Loader` reads back: text that looks like a number is quoted."""


for _class in (_Loader, Dumper):
    _class.add_implicit_resolver(TAG + "float", EXPONENT, list("+-.0123456789"))


def yaml_text(value: Any) -> str:
    """Write a value as one line of YAML."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, default_style=style, width=1e9)
    return text.removesuffix("\n").removesuffix("\n...").strip()


@dataclass
class Node:
    """A value of the config with its origin.

    Args:
        value: a scalar, a list of nodes, or a dict of nodes.
        where: "file:line", "command line" or "default".
        shared: another place in the file takes its value from here, through a YAML alias.
        refused: the value could not be read; this is an error already.
    """

    value: Any
    where: str
    shared: bool = False
    refused: bool = False

    def has_refused(self) -> bool:
        """Whether this value, or one at any depth in it, could not be read."""
        parts = self.value.values() if isinstance(self.value, dict) else self.value
        inside = isinstance(self.value, (dict, list)) and any(part.has_refused() for part in parts)
        return self.refused or inside

    def plain(self) -> Any:
        """Return the value without the origins."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


@dataclass
class Config:
    """A resolved and checked config.

    Args:
        path: the file it was loaded from.
        tree: values with their origins.
        warnings: lines to print at start.
        base: the data of its bases without this file; None if it has no bases.
        plugins: the user's files that it names, permitted and read.
        overrides: texts "a.b.c=1e-3" that were applied.
        data: the plain values; schedulers are dicts `{"name": "PiecewiseDecay", ...}`.
        name: the file's name without its suffix; for the config.yml of a run directory, the name
            of the config that the run was started with.
    """

    path: Path
    tree: Node
    warnings: list[str] = field(default_factory=list)
    base: dict[str, Any] | None = None
    plugins: list[Plugin] = field(default_factory=list)
    overrides: Sequence[str] = ()
    data: dict[str, Any] = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.data = self.tree.plain()
        self.name = recorded_name(self.path) or self.path.stem

    def node(self, key: str) -> Node | None:
        """Return the node at a dotted key (list positions are numbers); None if it is absent."""
        node = self.tree
        for part in key.split("."):
            try:
                node = node.value[int(part) if isinstance(node.value, list) else part]
            except (KeyError, IndexError, ValueError, TypeError):
                return None
        return node

    def origin(self, key: str) -> str:
        """Return the origin of a dotted key: "file:line", "command line" or "default"."""
        node = self.node(key)
        return node.where if node else DEFAULT

    def stock_data(self) -> dict[str, Any]:
        """Copy `data` without the keys that PaddleDetection's classes do not accept."""
        data = copy.deepcopy(self.data)
        for section, keys in ONLY_OURS.items():
            for key in keys:
                data.get(section, {}).pop(key, None)
        return data

    def missing_files(self, *sections: str) -> list[str]:
        """List an error, one line each, for every file of these sections that does not exist.

        Args:
            sections: of TrainDataset, EvalDataset, TestDataset, pretrain_weights and
                eval_sets.NAME; default: all.
        """
        found = []
        every = dict.fromkeys([*FILE_KEYS, *eval_sets.sections(self.data).values()])
        for name in sections or every:
            section = eval_sets.section(self.data, name)
            if sections and section is None and name.endswith("Dataset"):
                found.append(
                    f"{self.origin(name)}: {name}: null, no data to evaluate on; omit --eval, "
                    f"or set image_dir and anno_path of {name}"
                )
            if isinstance(section, dict):
                named = [
                    (f"{name}.{key}", Path(path))
                    for key in ("image_dir", "anno_path")
                    for path in data_paths(section, key)
                ]
            else:
                local = section and "://" not in section
                named = [(name, given_path(section))] if section and local else []
            for key, path in named:
                endings = ("", ".pdparams", ".safetensors")
                if not any(Path(f"{path}{end}").exists() for end in endings):
                    remedy = f"set {name}.dataset_dir to the folder of your data"
                    if "$" in str(path):
                        remedy = "variables have no values in YAML; write the path itself"
                    elif re.fullmatch(r"(instances_)?(train|val)2017(\.json)?", path.name):
                        remedy = f"download COCO: python datasets/download_coco.py, or {remedy}"
                    elif DEMO_DATA in str(path):
                        remedy = f"draw the demo's data: {DRAW} --output {DEMO_DATA}"
                    elif not isinstance(section, dict):
                        remedy = "name a file or a URL; '' trains from scratch"
                    found.append(f"{self.origin(key)}: {key}: {path} does not exist; {remedy}")
        return found


def load_config(
    path: str | os.PathLike, overrides: Sequence[str] = (), strict: bool | None = None
) -> Config:
    """Load a YAML file with its bases, apply overrides, check every key.

    Args:
        path: the file, or the name of one of the project's configs (`find_config`).
        overrides: such as `"a.b.c=1e-3"`; values are YAML, later ones win.
        strict: whether a key that PaddleDetection silently ignores is an error (True) or a warning
            (False). None: an error on the command line, and in files if this file or one of its
            bases lies in the project's configs/; otherwise a warning.

    Raises:
        UserErrors: all errors together, "file:line: key: what is wrong".
    """
    path = find_config(path)
    reader = _Reader()
    tree = reader.file(path, ())
    for text in overrides:
        reader.override(tree, text)
    if strict is None:
        ours = any(CONFIGS in file.parents for file in reader.files)
        loose = set() if ours else {"file"}
    else:
        loose = set() if strict else {"file", COMMAND_LINE}
    plugins = user_code.named(tree)
    use(plugins)
    if errors := not_supported(tree):
        raise UserErrors(errors)
    errors, warnings = check(tree, loose)
    errors = reader.errors + errors or disagreements(tree)
    if errors:
        raise UserErrors(errors)
    for one in filter(None, (tree, reader.base)):
        _fill(one, RECIPE)
        eval_sets.fill(one)
    if reader.base:
        find_data(reader.base)
    base = reader.base.plain() if reader.base else None
    warnings += _keep_pair(tree) + find_data(tree)
    return Config(path, tree, warnings, base, plugins, overrides)


def plain_values(text: str, file: str) -> dict[str, Any]:
    """Read the values of a resolved config without checking keys or files.

    Args:
        text: as `config.resolved.resolved` writes it.
        file: its name in error messages.

    Raises:
        UserErrors: the text is not a YAML mapping.
    """
    reader = _Reader()
    tree = reader.parse(text, file)
    if tree is None or reader.errors or not isinstance(tree.value, dict):
        raise UserErrors(reader.errors or [f"{file}: not a config"])
    return tree.plain()


def data_paths(section: dict[str, Any], key: str) -> list[str]:
    """List the paths in `image_dir` or `anno_path` (a path, a list or none), with `dataset_dir`."""
    given = section.get(key) or []
    root = section.get("dataset_dir") or ""
    return [os.path.join(root, path) for path in (given if isinstance(given, list) else [given])]


def join(above: str, part: str | int) -> str:
    """The dotted key of a part."""
    return f"{above}.{part}" if above else str(part)


def merge(base: Node, top: Node) -> None:
    """Merge `top` into `base`: dicts to any depth; everything else is replaced."""
    for key, node in top.value.items():
        below = base.value.get(key)
        if below and isinstance(below.value, dict) and isinstance(node.value, dict):
            merge(below, node)
        else:
            base.value[key] = node


class _Reader:
    """Reads the files of one config and collects their errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.files: list[Path] = []
        self.count = 0
        self.base: Node | None = None

    def file(self, path: Path, parents: tuple[Path, ...], where: str = "") -> Node:
        real, prefix = Path(os.path.realpath(path)), f"{where}: _BASE_: " if where else ""
        shown = one_line(display(path))
        empty = Node({}, shown)
        if real in parents:
            self.errors.append(f"{prefix}{shown} includes itself through _BASE_")
            return empty
        try:
            text = read_text(path, MOST_BYTES)
        except UserError as error:
            why = str(error).removeprefix(f"{path}: ")
            if not path.exists():
                why += nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
            self.errors.append(f"{prefix}{shown}: {why}")
            return empty
        self.files.append(real)
        top = self.parse(text, shown)
        if top is None or top.value is None:
            return empty
        if not isinstance(top.value, dict):
            self.errors.append(f"{top.where}: a config is a mapping of keys to values")
            return empty
        bases = top.value.pop("_BASE_", None)
        names = bases.value if bases else []
        merged = Node({}, top.where)
        for base in names if isinstance(names, list) else [bases]:
            if not isinstance(base.value, str):
                self.errors.append(f"{base.where}: _BASE_: expected a list of file names")
                continue
            try:
                child = given_path(base.value, path.parent)
                if not child.exists() and base.value.startswith("configs/"):
                    child = find_config(base.value)
            except UserError as error:
                self.errors.append(f"{base.where}: _BASE_: {error}")
                continue
            merge(merged, self.file(child, (*parents, real), base.where))
        if names and not parents:
            self.base = copy.deepcopy(merged)
        merge(merged, top)
        return merged

    def override(self, tree: Node, text: str) -> None:
        key, equals, value = text.partition("=")
        if not equals or not all(part for part in key.split(".")):
            example = "expected KEY=VALUE without spaces, as in LearningRate.base_lr=1e-3"
            self.errors.append(f"{COMMAND_LINE}: -o {text}: {example}")
            return
        node = self.parse(value, "", key) if value else Node("", COMMAND_LINE)
        if node is None:
            return
        for part in reversed(key.split(".")):
            node = Node({part: node}, COMMAND_LINE)
        merge(tree, node)

    def parse(self, text: str, file: str, key: str = "") -> Node | None:
        """YAML text as nodes, the value of a dotted key or a whole file; None after an error."""
        try:
            root = yaml.compose(text, Loader=_Loader)
            return self.build(root, file, key) if root else Node(None, file or COMMAND_LINE)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            why = getattr(error, "problem", None) or str(error).splitlines()[0]
            hint = next((hint for part, hint in _YAML_HINTS.items() if part in why), "")
            self.errors.append(f"{self.place(mark, file)}: not valid YAML: {why}{hint}")
        except RecursionError:
            self.errors.append(f"{file or COMMAND_LINE}: nested too deeply")
        return None

    @staticmethod
    def place(mark: yaml.Mark | None, file: str) -> str:
        return f"{file}:{mark.line + 1}" if file and mark else file or COMMAND_LINE

    def build(self, node: yaml.Node, file: str, key: str) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            bomb = f"{file}: more than {MAX_NODES} values; check its YAML aliases and _BASE_"
            raise UserErrors([*self.errors, bomb])
        where = self.place(node.start_mark, file)
        # PaddleDetection's `!ClassName {...}` means `{name: ClassName, ...}`; nothing is called
        name = node.tag[1:] if re.fullmatch(r"![A-Za-z]\w*", node.tag) else None
        if name and name not in (known := {*sum(SCHEDULERS, ()), *components()}):
            hint = nearest(name, known)
            return self.refused(None, where, key, f"tag !{name}: no registered class{hint}")
        if not name and node.tag.removeprefix(TAG) not in PLAIN_TAGS:
            return self.refused(None, where, key, f"tag {node.tag} is not allowed; only !CLASS is, "
                                "with the name of a registered class")  # fmt: skip
        if isinstance(node, yaml.MappingNode):
            start = {"name": Node(name, where)} if name else {}
            return Node(self.mapping(node, file, key, start), where)
        if name and not node.value:
            return Node({"name": Node(name, where)}, where)
        if name:
            return self.refused(None, where, key, f"!{name} takes a mapping of its arguments")
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return Node([self.build(item, file, join(key, i)) for i, item in items], where)
        assert isinstance(node, yaml.ScalarNode)
        return self.scalar(node, where, key)

    def refused(self, value: Any, where: str, key: str, why: str) -> Node:
        self.errors.append(": ".join(part for part in (where, key, why) if part))
        return Node(value, where, refused=True)

    def mapping(
        self, node: yaml.MappingNode, file: str, above: str, result: dict[str, Node]
    ) -> dict[str, Node]:
        lines: dict[str, int] = {}
        inherited: list[Node] = []
        for key_node, value_node in node.value:
            where, key = self.place(key_node.start_mark, file), key_node.value
            if not isinstance(key, str):
                self.errors.append(f"{where}: a key must be a word")
                continue
            path, last = join(above, key), next(reversed(result), "")
            value = self.build(value_node, file, path)
            if key_node.tag == TAG + "merge":
                inherited += value.value if isinstance(value.value, list) else [value]
            elif key in lines:
                self.errors.append(f"{where}: {path}: written twice, first in line {lines[key]}")
            elif (  # YAML reads `{a: 0,01}` as a: 0 and a key 01 without a value
                key.isdecimal()
                and key_node.end_mark.index == value_node.end_mark.index
                and isinstance(result.get(last, value).value, int)
            ):
                number = f"{result[last].value}.{key}"
                why = f"a decimal comma; write {number}"
                result[last] = self.refused(number, where, join(above, last), why)
            else:
                lines[key] = key_node.start_mark.line + 1
                shared = getattr(value_node, "shared", False)
                result[key] = Node(value.value, where, shared, value.refused)
        for source in inherited:
            for key, value in source.value.items() if isinstance(source.value, dict) else ():
                result.setdefault(key, value)
        return result

    def scalar(self, node: yaml.ScalarNode, where: str, key: str) -> Node:
        kind, text = node.tag.removeprefix(TAG), node.value
        shown = text if len(text) < 80 else f"{text[:80]}..."
        if _NO_TEXT.search(text):
            return self.refused(
                None, where, key, f"{shown!a}: a null character or half a character"
            )
        if kind in _SCALARS:
            try:
                value = _Loader("").construct_object(node)
                if not isinstance(value, int) or value.bit_length() < 64:
                    return Node(value, where)
            except (ValueError, KeyError, IndexError, OverflowError):
                pass
            return self.refused(text, where, key, f"expected {_SCALARS[kind]}, found {shown!r}")
        return Node(text, where)


def _fill(tree: Node, table: dict[str, Any]) -> None:
    """Add the recipe's defaults for keys that are not set."""
    for name, key in table.items():
        if isinstance(key, dict):
            _fill(tree.value.setdefault(name, Node({}, DEFAULT)), key)
        elif key.default is not UNSET:
            tree.value.setdefault(name, Node(key.default, DEFAULT))


def _keep_pair(tree: Node) -> list[str]:
    """Remove a base_batch from another file than base_lr: it does not belong to that LR.

    It is removed, not ignored later, so that the resolved config has the same meaning when loaded
    again.
    """
    rate = tree.value.get("LearningRate", Node({}, DEFAULT)).value
    if not {"base_lr", "base_batch"} <= set(rate):
        return []
    lr, batch = rate["base_lr"].where, rate["base_batch"].where
    if lr.rsplit(":", 1)[0] == batch.rsplit(":", 1)[0]:
        return []
    del rate["base_batch"]
    return [f"{lr}: LearningRate.base_lr: used as written, not scaled: base_batch is from {batch}"]
