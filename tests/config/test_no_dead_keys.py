"""Every key that a config may contain is read by code, or says that it has no effect."""

import inspect
import re

import pytest

from fcos_recipe import compat
from fcos_recipe.config import load_config, schema
from tests.conftest import ROOT

CHECKED = {"metric"}  # its only allowed value says what happens


def test_every_key_is_read_or_warns():
    texts = [
        path.read_text() for path in (ROOT / "fcos_recipe").rglob("*.py")
        if path.name not in ("schema.py", "effects.py", "agreement.py")
    ]  # fmt: skip
    everything = "\n".join(texts)
    dead = [
        name for name, key in schema.keys(schema.RECIPE)
        if not key.instead and name not in CHECKED
        and not re.search(rf"""["']{name.rpartition(".")[2]}["']""", everything)
        and not re.search(rf"""data\["{name.partition(".")[0]}"\]\.items\(""", everything)
    ]  # fmt: skip
    assert not dead


@pytest.mark.parametrize(
    "override",
    [f"{name}={not key.default}".lower().replace("true", "true")
     for name, key in schema.keys(schema.RECIPE) if key.instead],
)  # fmt: skip
def test_a_key_without_effect_warns_when_it_is_set(override):
    config = load_config(ROOT / "configs/fcos/fcos_r50_fpn_1x_coco.yml", [override])
    (line,) = [w for w in config.warnings if "no effect" in w]
    assert line.startswith(f"command line: {override.partition('=')[0]}: no effect; ")


def test_every_argument_exists_in_its_constructor():
    compat.import_ppdet()
    from ppdet.core.workspace import global_config

    for name in compat.REPLACED:
        made = getattr(global_config[name].pymodule, name)
        assert schema.signature(name).args.keys() <= set(inspect.signature(made).parameters)
