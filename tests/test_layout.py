"""The rooms of the package are in a fixed order: a module imports only from its own room or from
earlier ones. Imports inside functions count as well."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Top-level modules count as rooms. docs/architecture.md says what happens in each.
ROOMS = """
    errors exit_codes places plugins console compat drawing
    files config system data model checkpoint datasets runs predict evaluation training launch
    report api commands lab cli __main__
""".split()


def modules() -> dict[str, Path]:
    """Module -> its file."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "fcos_recipe").rglob("*.py")
    }


def imports() -> dict[str, set[str]]:
    """Module -> those of the package that it imports, without the package itself."""
    files = modules()
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
    del graph["fcos_recipe"]
    return graph


def room(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


def test_no_import_goes_upwards():
    graph = imports()
    assert "fcos_recipe.checkpoint.weights" in graph["fcos_recipe.checkpoint.storage"]
    upwards = {
        (module, other)
        for module, others in graph.items()
        for other in others
        if room(other) > room(module)
    }
    assert not upwards


def test_no_import_circles():
    graph = imports()
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " <- ".join(error.args[1]))


def test_only_commands_and_lab_parse_arguments():
    parsing = {
        module
        for module, path in modules().items()
        if re.search(r"^\s*(import|from) argparse\b", path.read_text(), re.MULTILINE)
    }
    assert "fcos_recipe.commands.options" in parsing
    others = {m for m in parsing if m.split(".")[1] not in ("commands", "lab", "cli")}
    assert not others


# What may read a file without files/reading.py, and why.
READERS = {
    "lab": "benchmarks and fault tests read what they have written themselves",
    "launch": "logs of ranks that it started, and /proc",
    "system": "/proc, /sys and the version file of the installed Paddle",
    "runs.environment": "/proc",
    "config.schema": "the source code of the installed paddledet and Paddle",
    "data.index": "maps an index that was opened with `open_regular`",
    "predict.video": "OpenCV opens a video that `open_regular` has accepted, or the one it wrote",
    "checkpoint.storage": "writes the files of a checkpoint",
    "files": "the readers themselves",
    "console": "opens /dev/null",
}
_LOADS = {"np.load", "json.load", "pickle.load", "paddle.load", "yaml.load"}
_READS = {"open", "read_text", "read_bytes", "fromfile", "memmap", "imread", "VideoCapture",
          "ZipFile", "loadtxt", "genfromtxt", "imreadmulti"}  # fmt: skip
_HARMLESS = {"open_regular", "BytesIO", "read_text", "read_bytes", "mapped"}  # give opened content


def raw_reads(path: Path) -> list[str]:
    """Calls that open a file, unless their argument is what files/reading.py returned or a file
    that was opened earlier."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        within = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node)}
        method = isinstance(node.func, ast.Attribute) and name in ("read_text", "read_bytes")
        if ast.unparse(node.func) in _LOADS or name in _READS and (method or name not in _HARMLESS):
            modes = [a.value for a in node.args[1:2] if isinstance(a, ast.Constant)]
            writes = any(isinstance(m, str) and set(m) & set("wax") for m in modes)
            if (
                not writes
                and not within & (_HARMLESS - {name})
                and not within & {"opened", "stdin", "stdout"}
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}")
    return found


def test_files_are_read_through_one_module():
    rest = [
        line
        for module, path in modules().items()
        if not any(f"{module}.".startswith(f"fcos_recipe.{known}.") for known in READERS)
        for line in raw_reads(path)
    ]
    assert not rest, "\n".join(rest)
