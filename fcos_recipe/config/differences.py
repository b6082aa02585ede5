"""A resolved config as text, and the keys in which two configs differ."""

from collections.abc import Iterator
from typing import Any

from fcos_recipe.config.load import Config, Node, yaml_text


def resolved(config: Config) -> str:
    """The config as YAML that loads to the same values, each with its origin as a comment."""
    return "".join(line + "\n" for line in _lines(config.tree))


def differences(a: dict, b: dict) -> list[tuple[str, str, str]]:
    """(key, value in a, value in b) for every key in which two resolved configs' data differ.

    Keys are dotted, values are YAML; "-" where a key is absent.
    """
    left, right = dict(_leaves(a)), dict(_leaves(b))
    rows = [(key, left.get(key, "-"), right.get(key, "-")) for key in {**left, **right}]
    return [row for row in rows if row[1] != row[2]]


def _lines(node: Node, indent: str = "") -> Iterator[str]:
    for key, child in node.value.items():
        plain = child.plain()
        if _is_block(plain) and isinstance(plain, dict):
            yield f"{indent}{yaml_text(key)}:"
            yield from _lines(child, indent + "  ")
        elif _is_block(plain):
            yield f"{indent}{yaml_text(key)}:"
            for item in child.value:
                body = list(_lines(item, indent + "  "))
                yield f"{indent}- {body[0].lstrip()}"
                yield from body[1:]
        else:
            yield f"{indent}{yaml_text(key)}: {yaml_text(plain)}  # {child.where}"


def _is_block(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(v and isinstance(v, dict) for v in value)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if _is_block(value):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, yaml_text(value)
