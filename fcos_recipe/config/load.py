"""Load a config: safe YAML, `_BASE_`, overrides, and the place where each value was written.

A config is first a tree of `Node`, which keeps file and line beside every value; `check` reads
that tree, so that every finding can say where. PaddleDetection's merge rules hold: dicts are merged
to any depth, everything else is replaced, later bases win over earlier ones and the file over its
bases.
"""

import copy
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fcos_recipe.config.check import SCHEDULERS, check, nearest
from fcos_recipe.config.schema import ONLY_OURS, RECIPE, RESULTS, UNSET
from fcos_recipe.errors import UserErrors
from fcos_recipe.places import ROOT

COMMAND_LINE = "command line"
DEFAULT = "default"
MAX_NODES = 100_000  # a config has hundreds; nested aliases can ask for billions
# YAML 1.2's 1e-3, which PyYAML (1.1) takes for text.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
TAG = "tag:yaml.org,2002:"
FILE_KEYS = ("TrainDataset", "EvalDataset", "TestDataset", "pretrain_weights")
PLAIN_TAGS = "str int float bool null timestamp map seq merge value".split()


class _Loader(yaml.SafeLoader):
    """Composes nodes; only scalars of plain types are ever constructed."""


class Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: text that looks like a number is quoted."""


for _class in (_Loader, Dumper):
    _class.add_implicit_resolver(TAG + "float", EXPONENT, list("+-.0123456789"))


def yaml_text(value: Any) -> str:
    """A value as YAML in one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, default_style=style, width=1e9)
    return text.removesuffix("\n").removesuffix("\n...").strip()


@dataclass
class Node:
    """A value of the config, with the place where it was written.

    Args:
        value: a scalar, a list of nodes, or a dict of nodes.
        where: "file:line", "command line" or "default".
    """

    value: Any
    where: str

    def plain(self) -> Any:
        """The value without its places."""
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
        tree: values with their places.
        warnings: lines to show at start.
        base: what the files that it builds on say without it; None where it builds on none.
        data: the plain values; schedulers are dicts `{"name": "PiecewiseDecay", ...}`.
    """

    path: Path
    tree: Node
    warnings: list[str] = field(default_factory=list)
    base: dict[str, Any] | None = None
    data: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.data = self.tree.plain()

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    def node(self, key: str) -> Node | None:
        """The node at a dotted key, list positions as numbers; None where nothing stands."""
        node = self.tree
        for part in key.split("."):
            try:
                node = node.value[int(part) if isinstance(node.value, list) else part]
            except (KeyError, IndexError, ValueError, TypeError):
                return None
        return node

    def origin(self, key: str) -> str:
        """Where the value at a dotted key was written: "file:line", "command line" or "default"."""
        node = self.node(key)
        return node.where if node else DEFAULT

    def stock_data(self) -> dict[str, Any]:
        """A copy of `data` without the keys that stock's classes would refuse."""
        data = copy.deepcopy(self.data)
        for section, keys in ONLY_OURS.items():
            for key in keys:
                data.get(section, {}).pop(key, None)
        return data

    def missing_files(self, *sections: str) -> list[str]:
        """Findings, one line each, about files that these sections name and that do not exist.

        Args:
            sections: of TrainDataset, EvalDataset, TestDataset, pretrain_weights; default: all.
        """
        found = []
        for name in sections or FILE_KEYS:
            section = self.data.get(name)
            if sections and section is None and name.endswith("Dataset"):
                found.append(
                    f"{self.origin(name)}: {name}: null, no data to evaluate on; leave --eval out, "
                    f"or give {name} an image_dir and an anno_path"
                )
            if isinstance(section, dict):
                named = [
                    (f"{name}.{key}", Path(path))
                    for key in ("image_dir", "anno_path")
                    for path in data_paths(section, key)
                ]
            else:
                local = section and "://" not in section
                named = [(name, Path(section).expanduser())] if section and local else []
            for key, path in named:
                if not path.exists() and not path.with_name(path.name + ".pdparams").exists():
                    remedy = f"set {name}.dataset_dir to your data's folder"
                    if "2017" in path.name:
                        remedy = f"fetch COCO: python datasets/download_coco.py, or {remedy}"
                    elif not isinstance(section, dict):
                        remedy = "name a file or a URL; '' trains from scratch"
                    found.append(f"{self.origin(key)}: {key}: {path} does not exist; {remedy}")
        return found


def project_configs() -> list[Path]:
    """Every config of the project, and every part that configs are made of."""
    return sorted(path for path in (ROOT / "configs").rglob("*.yml") if path != RESULTS)


def load_config(
    path: str | os.PathLike, overrides: Sequence[str] = (), strict: bool | None = None
) -> Config:
    """Load a YAML file with everything it builds on, apply overrides, check every key.

    Args:
        path: the file.
        overrides: `"a.b.c=1e-3"`, typed as in YAML; later ones win.
        strict: what stock silently ignores is an error (True), a warning (False), or (None) an
            error in a tree that is ours and on the command line, a warning in a foreign one. A tree
            is ours when the file or one that it builds on lies in the project's configs/.

    Raises:
        UserErrors: all findings at once, "file:line: key: what is wrong".
    """
    path = Path(path).expanduser()
    reader = _Reader()
    tree = reader.file(path, ())
    for text in overrides:
        reader.override(tree, text)
    if strict is None:
        ours = any(ROOT / "configs" in file.parents for file in reader.files)
        loose = set() if ours else {"file"}
    else:
        loose = set() if strict else {"file", COMMAND_LINE}
    errors, warnings = check(tree, loose)
    if reader.errors or errors:
        raise UserErrors(reader.errors + errors)
    _fill(tree, RECIPE)
    if reader.base:
        _fill(reader.base, RECIPE)
        _find_data(reader.base)
    base = reader.base.plain() if reader.base else None
    return Config(path, tree, warnings + _keep_pair(tree) + _find_data(tree), base)


def plain_values(text: str, file: str) -> dict[str, Any]:
    """What a resolved config's text says, neither checked nor looked up on the disk.

    Args:
        text: as `config.resolved.resolved` writes it.
        file: its name in error messages.

    Raises:
        UserErrors: it is not such YAML.
    """
    reader = _Reader()
    tree = reader.parse(text, file)
    if tree is None or reader.errors or not isinstance(tree.value, dict):
        raise UserErrors(reader.errors or [f"{file}: not a config"])
    return tree.plain()


def data_paths(section: dict[str, Any], key: str) -> list[str]:
    """Paths below `dataset_dir` that `image_dir` or `anno_path` names: one, a list, or none."""
    given = section.get(key) or []
    root = section.get("dataset_dir") or ""
    return [os.path.join(root, path) for path in (given if isinstance(given, list) else [given])]


def merge(base: Node, top: Node) -> None:
    """Merge `top` into `base`: dicts to any depth, everything else replaced."""
    for key, node in top.value.items():
        below = base.value.get(key)
        if below and isinstance(below.value, dict) and isinstance(node.value, dict):
            merge(below, node)
        else:
            base.value[key] = node


def display(path: str | os.PathLike) -> str:
    """A path as the user would type it: relative to where they stand when below that."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class _Reader:
    """Reads the files of one config and collects what is wrong with them."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.files: list[Path] = []
        self.count = 0
        self.base: Node | None = None

    def file(self, path: Path, parents: tuple[Path, ...], where: str = "") -> Node:
        real, prefix = Path(os.path.realpath(path)), f"{where}: _BASE_: " if where else ""
        empty = Node({}, display(path))
        if real in parents:
            self.errors.append(f"{prefix}{display(path)} builds on itself")
            return empty
        if path.exists() and not path.is_file():  # a device or pipe would be read for ever
            self.errors.append(f"{prefix}{display(path)}: not a file")
            return empty
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is not UTF-8 text"
            if not path.exists():
                why += nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")])
            self.errors.append(f"{prefix}{display(path)}: {why}")
            return empty
        self.files.append(real)
        top = self.parse(text, display(path))
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
            child = path.parent / Path(base.value).expanduser()
            merge(merged, self.file(child, (*parents, real), base.where))
        if names and not parents:
            self.base = copy.deepcopy(merged)
        merge(merged, top)
        return merged

    def override(self, tree: Node, text: str) -> None:
        key, equals, value = text.partition("=")
        if not equals or not all(part for part in key.split(".")):
            example = "expected KEY=VALUE, as in LearningRate.base_lr=1e-3"
            self.errors.append(f"{COMMAND_LINE}: -o {text}: {example}")
            return
        node = self.parse(value, "") if value else Node("", COMMAND_LINE)
        if node is None:
            return
        for part in reversed(key.split(".")):
            node = Node({part: node}, COMMAND_LINE)
        merge(tree, node)

    def parse(self, text: str, file: str) -> Node | None:
        """YAML text as nodes; None after an error."""
        try:
            root = yaml.compose(text, Loader=_Loader)
            return self.build(root, file) if root else Node(None, file or COMMAND_LINE)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            why = getattr(error, "problem", None) or str(error).splitlines()[0]
            self.errors.append(f"{self.place(mark, file)}: not valid YAML: {why}")
        except RecursionError:
            self.errors.append(f"{file or COMMAND_LINE}: nested too deeply")
        return None

    @staticmethod
    def place(mark: yaml.Mark | None, file: str) -> str:
        return f"{file}:{mark.line + 1}" if file and mark else file or COMMAND_LINE

    def build(self, node: yaml.Node, file: str) -> Node:
        self.count += 1
        if self.count > MAX_NODES:
            bomb = f"{file}: more than {MAX_NODES} values: aliases or bases that multiply?"
            raise UserErrors([*self.errors, bomb])
        where = self.place(node.start_mark, file)
        name = node.tag[1:] if node.tag[1:] in sum(SCHEDULERS, ()) else None
        if not name and node.tag.removeprefix(TAG) not in PLAIN_TAGS:
            tags = " ".join("!" + s for s in sum(SCHEDULERS, ()))
            self.errors.append(f"{where}: tag {node.tag} is not allowed; allowed are {tags}")
            return Node(None, where)
        if isinstance(node, yaml.MappingNode):
            start = {"name": Node(name, where)} if name else {}
            return Node(self.mapping(node, file, start), where)
        if name and not node.value:
            return Node({"name": Node(name, where)}, where)
        if name:
            self.errors.append(f"{where}: !{name} takes a mapping of its arguments")
        if isinstance(node, yaml.SequenceNode):
            return Node([self.build(item, file) for item in node.value], where)
        assert isinstance(node, yaml.ScalarNode)
        return Node(self.scalar(node, where), where)

    def mapping(self, node: yaml.MappingNode, file: str, result: dict) -> dict[str, Node]:
        lines: dict[str, int] = {}
        inherited: list[Node] = []
        for key_node, value_node in node.value:
            where, key = self.place(key_node.start_mark, file), key_node.value
            value = self.build(value_node, file)
            if key_node.tag == TAG + "merge":
                inherited += value.value if isinstance(value.value, list) else [value]
            elif not isinstance(key, str):
                self.errors.append(f"{where}: a key must be a word")
            elif key in lines:
                self.errors.append(f"{where}: {key}: written twice, first in line {lines[key]}")
            else:
                lines[key] = key_node.start_mark.line + 1
                result[key] = Node(value.value, where)
        for source in inherited:
            for key, value in source.value.items() if isinstance(source.value, dict) else ():
                result.setdefault(key, value)
        return result

    def scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        kind, text = node.tag.removeprefix(TAG), node.value
        if kind in ("int", "float", "bool", "null"):
            try:
                return _Loader("").construct_object(node)
            except (ValueError, KeyError):
                self.errors.append(f"{where}: {text!r} is not {kind}")
        return text


def _fill(tree: Node, table: dict[str, Any]) -> None:
    """Write the recipe's defaults where nothing else stands."""
    for name, key in table.items():
        if isinstance(key, dict):
            _fill(tree.value.setdefault(name, Node({}, DEFAULT)), key)
        elif key.default is not UNSET:
            tree.value.setdefault(name, Node(key.default, DEFAULT))


def _keep_pair(tree: Node) -> list[str]:
    """Drop a base_batch that another place wrote than base_lr: it says nothing about that LR.

    Dropped here, not ignored later, so that the resolved config means the same when loaded again.
    """
    rate = tree.value.get("LearningRate", Node({}, DEFAULT)).value
    if not {"base_lr", "base_batch"} <= set(rate):
        return []
    lr, batch = rate["base_lr"].where, rate["base_batch"].where
    if lr.rsplit(":", 1)[0] == batch.rsplit(":", 1)[0]:
        return []
    del rate["base_batch"]
    return [f"{lr}: LearningRate.base_lr: used as written, not scaled: base_batch is from {batch}"]


def _find_data(tree: Node) -> list[str]:
    """Point each relative `dataset_dir` to where the data are; returns lines that say so.

    Looked for below the working directory, then below the project; `dataset/x`, upstream's place,
    also as `datasets/x`. A directory that is nowhere stays as written.
    """
    found: dict[str, str] = {}
    for section in tree.value.values():
        node = section.value.get("dataset_dir") if isinstance(section.value, dict) else None
        written = node.value if node else None
        if not isinstance(written, str) or not written or Path(written).expanduser().is_absolute():
            continue
        names = [written]
        if Path(written).parts[0] == "dataset":
            names.append(str(Path("datasets", *Path(written).parts[1:])))
        places = [(n, p) for n in names for p in (Path(n), ROOT / n) if p.is_dir()]
        if node and places and places[0][1] != Path(written):
            name, place = places[0]
            node.value = display(place)
            if name != written:
                line = f"{node.where}: {written} not found, using {node.value}"
                found.setdefault(written, line)  # said once, not per section
    return list(found.values())
