"""Write a resolved config as text."""

from collections.abc import Iterator

from fcos_recipe.config.effects import is_block
from fcos_recipe.config.load import Config, Node, yaml_text


def resolved(config: Config) -> str:
    """Write YAML that loads to the same values, each with its origin in a comment."""
    return "".join(line + "\n" for line in _lines(config.tree))


def _lines(node: Node, indent: str = "") -> Iterator[str]:
    for key, child in node.value.items():
        plain = child.plain()
        if is_block(plain) and isinstance(plain, dict):
            yield f"{indent}{yaml_text(key)}:"
            yield from _lines(child, indent + "  ")
        elif is_block(plain):
            yield f"{indent}{yaml_text(key)}:"
            for item in child.value:
                body = list(_lines(item, indent + "  "))
                yield f"{indent}- {body[0].lstrip()}"
                yield from body[1:]
        else:
            yield f"{indent}{yaml_text(key)}: {yaml_text(plain)}  # {child.where}"
