"""The data sets that weights are evaluated on: EvalDataset and the named ones of `eval_sets`.

EvalDataset alone decides which weights are the best and whether a run stops early. A named set is
evaluated with the same weights at the same times; what it does not set is taken from EvalDataset.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

from fcos_recipe.errors import UserError

MAIN, KEY = "EvalDataset", "eval_sets"
NAME = re.compile(r"(?!EvalDataset$)[A-Za-z0-9][A-Za-z0-9_-]*")  # it is part of keys and of curves


def sections(data: dict[str, Any], only: str | None = None) -> dict[str, str]:
    """List the data sets of a config, EvalDataset first, as name -> dotted key.

    Args:
        data: values of a resolved config.
        only: a name; the others are left out.

    Raises:
        UserError: there is no set of this name.
    """
    others = [name for name, values in (data["eval_sets"] or {}).items() if values is not None]
    found = {MAIN: MAIN, **{name: f"{KEY}.{name}" for name in others}}
    if only is None:
        return found
    if only not in found:
        raise UserError(f"--eval-set {only}: the config has {', '.join(found)}")
    return {only: found[only]}


def section(data: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the values of a section by its dotted key, as `sections` gives it."""
    above, _, name = key.rpartition(".")
    return (data[above] if above else data).get(name)


def fill(tree) -> None:
    """Give each named set of a config's nodes what it does not set itself."""
    main = tree.value.get(MAIN)
    for node in named(tree).values() if main and main.value else ():
        for key, child in main.value.items():
            node.value.setdefault(key, copy.deepcopy(child))


def disagreements(tree) -> Iterator[str]:
    """Find named sets that cannot be evaluated beside EvalDataset, as lines for the user."""
    main = tree.value.get(MAIN)
    for name, node in named(tree).items():
        place = f"{node.where}: {KEY}.{name}"
        if main is None or main.value is None:
            yield f"{place}: needs {MAIN}, which chooses the best weights; set it, or remove this"
            continue
        own, theirs = node.plain(), main.plain()
        if own.get("name", theirs["name"]) != theirs["name"]:
            yield f"{place}.name: {own['name']}, but {MAIN} is a {theirs['name']}; make them equal"
        elif {**theirs, **own} == theirs:
            yield f"{place}: the same data as {MAIN}; set another anno_path, or remove it"


def named(tree) -> dict[str, Any]:
    """The named sets of a config's nodes."""
    node = tree.value.get(KEY)
    found = node.value if node and isinstance(node.value, dict) else {}
    return {name: child for name, child in found.items() if isinstance(child.value, dict)}
