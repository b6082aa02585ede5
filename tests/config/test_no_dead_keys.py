"""Every key that a config may contain is read by code, or says that it has no effect."""

import ast
import inspect
import re
import textwrap

import pytest

from fcos_recipe import compat
from fcos_recipe.config import load_config, schema
from fcos_recipe.errors import UserErrors
from fcos_recipe.system import watchdog
from tests.conftest import ROOT

HEADLINE = ROOT / "configs/fcos/fcos_r50_fpn_1x_coco.yml"
TREES = [
    ast.parse(path.read_text()) for path in (ROOT / "fcos_recipe").rglob("*.py")
    if path.name not in ("schema.py", "effects.py") and "lab" not in path.parts
]  # fmt: skip
ATTRIBUTES = {
    node.attr for tree in TREES for node in ast.walk(tree)
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
}  # fmt: skip
CHECKED = {"metric"}  # its only allowed value says what happens
# Sections that are handed over whole, with the keys that the receiver reads.
WHOLE = {"watchdog": set(watchdog.DEFAULTS), "autotune": {"kernel", "layout"}}
DATA = re.compile(r"(.*\.)?(data|cfg|tree\.value)$")  # how code calls the values of a config


def reads(tree: ast.Module):
    """(expression, key) for each `expression["key"]` and `expression.get("key")` that is read."""
    words = {  # for name in ("a", "b"): expression[name]
        loop.target.id: [word.value for word in loop.iter.elts if isinstance(word, ast.Constant)]
        for loop in ast.walk(tree)
        if isinstance(loop, ast.For) and isinstance(loop.target, ast.Name)
        and isinstance(loop.iter, ast.Tuple)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            place, key = node.value, node.slice
        elif (isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Attribute)
              and node.func.attr == "get"):  # fmt: skip
            place, key = node.func.value, node.args[0]
        else:
            continue
        names = words.get(key.id, []) if isinstance(key, ast.Name) else [getattr(key, "value", "")]
        yield from ((ast.unparse(place), name) for name in names)


def keys_that_are_read(trees) -> set[str]:
    """Dotted keys of a config's values that some module of the package reads."""
    found = set()
    for tree in trees:
        pairs = set(reads(tree))
        found |= {key for place, key in pairs if DATA.match(place)}
        named = {  # x = config.data["section"]: x["key"]
            ast.unparse(item.targets[0]): ast.unparse(item.value)
            for item in ast.walk(tree) if isinstance(item, ast.Assign)
        }  # fmt: skip
        for place, key in pairs:
            section = re.match(r"(.*)\['(\w+)'\]$", named.get(place, place))
            if section and DATA.match(section[1]):
                found.add(f"{section[2]}.{key}")
    return found | {f"{name}.{key}" for name in found & WHOLE.keys() for key in WHOLE[name]}


def dead_keys(trees=TREES) -> list[str]:
    read = keys_that_are_read(trees) | CHECKED
    # our classes take these as arguments, which another test follows
    read |= set().union(*map(schema.shared_keys, compat.REPLACED))
    return [
        name for name, key in schema.keys(schema.RECIPE) if not key.instead and name not in read
    ]


def test_every_key_is_read_or_warns():
    assert dead_keys() == []


def test_a_key_that_nothing_reads_is_found(monkeypatch):
    stop = {**schema.RECIPE["early_stop"], "eval": schema.Key(int, 0, "")}
    monkeypatch.setitem(schema.RECIPE, "early_stop", stop)
    monkeypatch.setitem(schema.RECIPE, "dead", schema.Key(bool, False, ""))
    assert dead_keys() == ["early_stop.eval", "dead"]
    used = "data['log_iter']"
    without = [
        ast.parse(text.replace(used, "20")) for text in map(ast.unparse, TREES) if used in text
    ]
    kept = [tree for tree in TREES if used not in ast.unparse(tree)]
    assert "log_iter" in dead_keys(kept + without)


@pytest.mark.parametrize(
    "override",
    [f"{name}={not key.default}".lower()
     for name, key in schema.keys(schema.RECIPE) if key.instead]
    + ["TrainReader.collate_batch=false", "TestReader.fuse_normalize=false", "FCOSHead.trt=true",
       "trt=true", "TestReader.inputs_def={image_shape: [3, 8, 8]}"],
)  # fmt: skip
def test_a_key_without_effect_warns_when_it_is_set(override):
    config = load_config(HEADLINE, [override])
    (line,) = [w for w in config.warnings if "no effect" in w]
    assert line.startswith(f"command line: {override.partition('=')[0]}: no effect; ")


@pytest.mark.parametrize("key", ["use_cot", "eval_size", "data_format", "for_mot", "exclude_nms"])
def test_a_key_of_other_detectors_that_no_class_of_the_config_reads_is_unknown(key):
    with pytest.raises(UserErrors, match=f"{key}: unknown key"):
        load_config(HEADLINE, [f"{key}=1"])


def unused_arguments(cls: type) -> set[str]:
    """Arguments that the constructor does not use, or only keeps in an attribute nobody reads."""
    init = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))
    kept = set()
    for node in (node for node in ast.walk(init) if isinstance(node, ast.Assign)):
        (target,), value = node.targets, node.value
        both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        for left, right in zip(target.elts, value.elts) if both else [(target, value)]:
            if isinstance(left, ast.Attribute) and left.attr not in ATTRIBUTES:
                kept.add(right)
    used = {
        node.id for node in ast.walk(init)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in kept
    }  # fmt: skip
    return set(inspect.signature(cls).parameters) - used


def test_every_argument_exists_in_its_constructor_and_is_used_there():
    compat.import_ppdet()
    from ppdet.core.workspace import global_config

    for name in compat.REPLACED:
        made = getattr(global_config[name].pymodule, name)
        accepted = schema.signature(name).args.keys()
        assert accepted <= set(inspect.signature(made).parameters), name
        assert unused_arguments(made) & accepted <= schema.WITHOUT_EFFECT.keys(), name
