"""`fcos verify_result` and the report give one verdict on a run."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.config.effects import effect, is_block
from fcos_recipe.config.schema import RECIPE
from fcos_recipe.errors import UserErrors
from fcos_recipe.report.headline import against_published
from fcos_recipe.runs import judgement
from fcos_recipe.runs.contents import ConfigFacts, Evaluation, Facts, Run, read_run
from fcos_recipe.runs.judgement import differing
from fcos_recipe.runs.published_results import published
from fcos_recipe.training import resume
from tests.commands.test_verify_result import BCCD, make_run
from tests.config.test_effects import KEYS


def verdicts(folder: Path, capsys) -> tuple[int, str, str]:
    """verify_result's exit code and output, and the report's sentence."""
    code = run("verify_result", [str(folder)])
    return code, capsys.readouterr().out, against_published(read_run(folder))[0].text


@pytest.fixture
def made(root, tmp_path):
    """made(*overrides, **other): a finished run of the BCCD config at its published AP."""
    (row,) = published(BCCD)

    def make(*overrides, ap=row.ap, **other) -> Path:
        return make_run(tmp_path / "run", root, ap, *overrides, **other)

    return make


def test_another_seed_is_judged(made, capsys):
    folder = made("seed=1")
    assert json.loads((folder / "facts.json").read_text())["config"]["command_line"] == ["seed"]
    code, out, said = verdicts(folder, capsys)
    assert code == 0 and "verdict: reproduced" in out
    assert said.startswith("AP 51.4 is 0.0 above") and "within the tolerance of 1.4" in said


def test_another_lr_in_the_file_is_not_judged(made, capsys):
    """The command line is empty: what was edited is the YAML."""
    folder = made("LearningRate.base_lr=0.1")
    facts = json.loads((folder / "facts.json").read_text())
    facts["config"]["command_line"] = []
    (folder / "facts.json").write_text(json.dumps(facts))
    code, out, said = verdicts(folder, capsys)
    assert code == 2 and "verdict: not comparable" in out
    for text in (out, said):
        assert "LearningRate.base_lr: 0.1, not 0.002" in text
    assert said.startswith("Not comparable with the published 51.4")


def put(data: dict, key: str, value) -> dict:
    """A copy of a config's data with another value at a dotted key."""
    data = copy.deepcopy(data)
    at: Any = data
    *parents, last = key.split(".")
    for part in parents:
        index = int(part) if isinstance(at, list) else part
        if not isinstance(at, list) and not isinstance(at.get(part), dict | list):
            at[part] = {}
        at = at[index]
    at[int(last) if isinstance(at, list) else last] = value
    return data


def test_a_change_of_any_key_means_the_same_to_all_who_compare(root, tmp_path, monkeypatch):
    """--resume, verify_result with a run and with weights, and the report."""
    config = load_config(root / f"configs/fcos/{BCCD}.yml")
    monkeypatch.setattr(judgement, "load_config", cache(load_config))
    monkeypatch.setattr(judgement, "plain_values", lambda text, file: json.loads(text))  # faster
    compared = 0
    for key in KEYS:
        node = config.node(key)
        if key.split(".")[0] not in {*config.data, *RECIPE} or (node and is_block(node.plain())):
            continue  # of another config, or a block of keys
        if not node and ("transforms." in key or "schedulers." in key):
            continue  # a position in a list of another config
        changed = put(config.data, key, "changed")
        what = effect(key)
        try:
            resumed = bool(resume.compare({"settings": changed}, config, force=False))
        except UserErrors:
            resumed = False
        assert resumed == what.resumable, key
        assert bool(differing(BCCD, changed)) == what.run, key
        assert bool(differing(BCCD, changed, only_weights=True)) == what.weights, key
        run = Run(
            tmp_path, train=[{"images_seen": 40, "step": 10}], config=json.dumps(changed),
            facts=Facts(ConfigFacts(BCCD), "cpu", 2, total_batch=4, epochs=10),
            evaluation=Evaluation([0.5], ["AP"], images=87, epoch=10),
        )  # fmt: skip
        said = against_published(run)[0].text
        assert said.startswith("Not comparable") == what.run, (key, said)
        assert (f"{key}: changed, not " in said) == what.run, (key, said)
        compared += 1
    assert compared > 150
