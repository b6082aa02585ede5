"""Write the configuration reference: the recipe's keys and the arguments of its classes.

They are taken from the schema and the docstrings. `fcos config keys --markdown` writes
docs/configuration.md.
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

Configs are YAML files with the key names of PaddleDetection 2.6. `_BASE_` lists the files that a
config extends, relative to that config; `-o a.b=value` overrides a value on the command line.
`python tools/config.py print CONFIG` shows each value with its file and line; `validate` checks
keys at any depth. Sections without a table here (`ResNet`, `FPN`, `OptimizerBuilder`, transforms
such as `RandomFlip`) are PaddleDetection's own and take the arguments of the class of that name.

## Top-level keys

"PD" marks keys that PaddleDetection also has. A default of `-` means that the key is absent unless
it is set.

| key | values | default | PD | meaning |
|---|---|---|---|---|
"""
_CLASSES = """
## Classes of this recipe

They replace PaddleDetection's classes of the same name and accept the same arguments.
"""


def lines() -> Iterator[str]:
    """List the recipe's keys for a terminal; * marks keys that PaddleDetection also has."""
    for name, key in schema.keys(schema.RECIPE):
        mark = "*" if key.stock else " "
        yield f"{mark} {name:<24}{describe(key.kind):<36}{_default(key):<12}{key.doc}"


def markdown() -> str:
    """Write the whole reference."""
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
    """Describe a class: the first paragraph of its docstring and a table of its arguments."""
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
        f"| {', '.join(f'`{one}`' for one in names)} | {_defaults(names, arguments)} | {meaning} |"
        for names, meaning in _arguments(rest)
        if arguments.keys() >= set(names)  # a subclass may not have all arguments of its base
    ]
    table = ["", "| argument | default | meaning |", "|---|---|---|", *rows] if rows else []
    text = f"{about} PaddleDetection's class {why}. (`{where}`)"
    return "\n".join([f"### {name}", "", text, *table, ""])


def _arguments(text: str) -> Iterator[tuple[list[str], str]]:
    """Read (names, meaning) of each entry in a docstring's Args section."""
    match = re.match(r"(?:[ \t]+\S.*\n?|\n)*", text)
    block = match[0] if match else ""
    for entry in re.split(r"\n(?=    \S)", block.rstrip()):
        names, colon, meaning = entry.strip().partition(":")
        if colon:
            yield [one.strip() for one in names.split(",")], " ".join(meaning.split())


def _defaults(names: list[str], arguments: dict[str, Any]) -> str:
    values = [arguments.get(name, schema.ANY) for name in names]
    if any(value is schema.ANY for value in values):
        return ""
    return ", ".join(
        "required" if value is schema.REQUIRED else f"`{yaml_text(value)}`" for value in values
    )


def _default(key: schema.Key) -> str:
    return "-" if key.default is schema.UNSET else yaml_text(key.default)
