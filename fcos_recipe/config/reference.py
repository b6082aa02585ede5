"""The configuration reference: the recipe's keys and the arguments of its classes.

Both are read where they are defined, the schema's table and the docstrings; docs/configuration.md
is `fcos config keys --markdown`.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

from fcos_recipe.compat import REPLACED
from fcos_recipe.config import schema
from fcos_recipe.config.check import describe
from fcos_recipe.config.load import yaml_text
from fcos_recipe.places import ROOT

_HEAD = """\
# Configuration reference

<!-- generated: python tools/config.py keys --markdown > docs/configuration.md -->

Configs are YAML under PaddleDetection 2.6's names. `_BASE_` lists files to build on, relative to
the file that names them; `-o a.b=value` overrides from the command line; `python tools/config.py
print CONFIG` shows each value with the file and line that it comes from, `validate` checks keys at
any depth. Sections without a table here (`ResNet`, `FPN`, `OptimizerBuilder`, transforms such as
`RandomFlip`) are PaddleDetection's own, with the arguments of the class of that name.

## Top-level keys

"PD" marks keys that PaddleDetection has as well. A default of `-` means: absent unless set.

| key | values | default | PD | meaning |
|---|---|---|---|---|
"""
_CLASSES = """
## Classes of this recipe

They take the place of PaddleDetection's classes of the same name and accept its arguments.
"""


def lines() -> Iterator[str]:
    """The recipe's keys for a terminal: key, values, default, meaning; * for PaddleDetection's."""
    for name, key in schema.keys(schema.RECIPE):
        mark = "*" if key.stock else " "
        yield f"{mark} {name:<24}{describe(key.kind):<36}{_default(key):<12}{key.doc}"


def markdown() -> str:
    """The whole reference."""
    rows = [
        f"| `{name}` | {describe(key.kind)} | `{_default(key)}` | {'yes' * key.stock} | {key.doc} |"
        for name, key in schema.keys(schema.RECIPE)
    ]
    parts = [_HEAD + "\n".join(rows) + "\n", _CLASSES]
    for name, (_, why) in sorted(REPLACED.items()):
        source = next(source for source in schema.classes()[name] if source.own)
        parts.append(_component(name, source, why))
    return "\n".join(parts)


def _component(name: str, source: schema.Source, why: str) -> str:
    """One class: the first paragraph of its docstring and a table of its arguments."""
    node = schema.class_node(source, name)
    head, _, rest = (ast.get_docstring(node) or "").partition("\nArgs:\n")
    parent = getattr(node.bases[0], "id", "") if node.bases else ""
    if not rest and (base := schema.base(parent, source)) and base.own:
        inherited = ast.get_docstring(schema.class_node(base, parent)) or ""
        rest = inherited.partition("\nArgs:\n")[2]
    about = " ".join(head.split("\n\n")[0].split())
    arguments = schema.signature(name).args
    where = source.path.relative_to(ROOT).as_posix()
    rows = [
        f"| {', '.join(f'`{one}`' for one in names)} | {_defaults(names, arguments)} | {said} |"
        for names, said in _arguments(rest)
        if arguments.keys() >= set(names)  # a base class has more than some of its children
    ]
    table = ["", "| argument | default | meaning |", "|---|---|---|", *rows] if rows else []
    told = f"{about} Stock's: {why}. (`{where}`)"
    return "\n".join([f"### {name}", "", told, *table, ""])


def _arguments(text: str) -> Iterator[tuple[list[str], str]]:
    """(names, meaning) of a docstring's Args section."""
    match = re.match(r"(?:[ \t]+\S.*\n?|\n)*", text)
    block = match[0] if match else ""
    for entry in re.split(r"\n(?=    \S)", block.rstrip()):
        names, colon, said = entry.strip().partition(":")
        if colon:
            yield [one.strip() for one in names.split(",")], " ".join(said.split())


def _defaults(names: list[str], arguments: dict[str, Any]) -> str:
    values = [arguments.get(name, schema.ANY) for name in names]
    if any(value is schema.ANY for value in values):
        return ""
    return ", ".join(
        "required" if value is schema.REQUIRED else f"`{yaml_text(value)}`" for value in values
    )


def _default(key: schema.Key) -> str:
    return "-" if key.default is schema.UNSET else yaml_text(key.default)
