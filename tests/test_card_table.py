"""docs/iluvatar.md lists every place of the package that behaves differently on a card."""

import ast
import re

from tests.conftest import ROOT

# These measure or break a run, or show what one left behind: they are not part of it.
APART = {"lab", "report", "contents.py", "published_results.py", "verify_result.py"}
KINDS = {"cpu", "gpu", "iluvatar_gpu"}
# What the package asks of Paddle, or may come to ask, that a device answers in its own way.
CALLS = set(
    """
    get_device set_device synchronize device_count is_compiled_with_cuda get_all_custom_device_type
    get_available_custom_device CPUPlace CUDAPlace CUDAPinnedPlace CustomPlace pin_memory places
    memory_allocated max_memory_allocated memory_reserved max_memory_reserved empty_cache cuda
    get_rng_state set_rng_state get_cuda_rng_state set_cuda_rng_state set_flags set_config
    SyncBatchNorm convert_sync_batchnorm auto_cast GradScaler decorate is_bfloat16_supported
    init_parallel_env DataParallel no_sync all_reduce all_gather all_gather_object barrier
    broadcast_object_list DataLoader to_static enable_use_gpu enable_custom_device disable_gpu
    current_stream Stream
    """.split()
)
VARIABLES = re.compile(r"FLAGS_\w+|\w*XCCL\w*|\w*DISTRI_BACKEND|\w*_VISIBLE_DEVICES")


def on_cards(node: ast.AST) -> bool:
    """Whether a node compares kinds of devices, uses one of `CALLS`, or names a variable."""
    if isinstance(node, ast.Compare):
        inner = [part for side in (node.left, *node.comparators) for part in ast.walk(side)]
        return any(
            (isinstance(part, ast.Constant) and part.value in KINDS)
            or "PLUGIN" in (getattr(part, "id", ""), getattr(part, "attr", ""))
            for part in inner
        )
    if isinstance(node, ast.Attribute):
        return node.attr in CALLS or ast.unparse(node) == "paddle.seed"
    if isinstance(node, ast.Call):
        names = {getattr(node.func, "id", ""), *(keyword.arg for keyword in node.keywords)}
        return bool(names & CALLS)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return bool(VARIABLES.fullmatch(node.value))
    return False


def places() -> tuple[set[str], set[str]]:
    """module.function of every such place, and of everything; inner functions are their outer's."""
    found, every = set(), set()
    for path in (ROOT / "fcos_recipe").rglob("*.py"):
        if APART & set(path.relative_to(ROOT).parts):
            continue

        def visit(node, name, inside=False):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not inside:
                name = f"{name}.{node.name}"
                inside = isinstance(node, ast.FunctionDef)
            every.add(name)
            if on_cards(node):
                found.add(name)
            for child in ast.iter_child_nodes(node):
                visit(child, name, inside)

        visit(ast.parse(path.read_text()), path.stem)
    return found, every


def test_the_table_has_every_place_and_none_that_is_gone():
    text = (ROOT / "docs" / "iluvatar.md").read_text()
    section = re.search(r"^\| code \|.*?\n\n", text, re.M | re.S).group()
    rows = [line.strip("| ").split(" | ") for line in section.strip().splitlines()[2:]]
    assert all(len(row) == 3 for row in rows)
    listed = [name for row in rows for name in re.findall(r"`([\w.]+)`", row[0])]
    assert len(listed) == len(set(listed))
    found, every = places()
    assert not found - set(listed), "places that differ on a card and have no row"
    assert not set(listed) - every, "rows of places that are gone"
    known = re.compile(r"(stand-in|registry|stub|CPU|nothing)\b")
    assert all(known.match(row[2]) for row in rows)
