"""Modules import each other in one direction, also inside functions."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.conftest import ROOT

# (importer, imported): a command that calls another one
ALLOWED = {("fcos_recipe.commands.train", "fcos_recipe.runs.loss_band")}


def imports() -> dict[str, set[str]]:
    """Module -> those of the package that it imports, without the package itself."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "fcos_recipe").rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found.update(name if name in files else node.module for name in names)
        found &= files.keys() - {module, "fcos_recipe"}
    return graph


def test_no_import_circles():
    graph = imports()
    assert "fcos_recipe.checkpoint.weights" in graph["fcos_recipe.checkpoint.storage"]
    for importer, imported in ALLOWED:
        graph[importer].remove(imported)  # fails where it is no longer needed
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " <- ".join(error.args[1]))
