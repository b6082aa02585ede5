"""results.yml: its fields, its table in the README, its bands."""

import re

import pytest
import yaml

from fcos_recipe.checkpoint.zoo import ZOO
from fcos_recipe.commands.published_results import main
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from fcos_recipe.runs import published_results
from fcos_recipe.runs.published_results import insert, load, published, table


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_readme_shows_what_results_yml_says(root, name):
    path = root / name
    if not path.exists():
        pytest.skip(f"there is no {name}")
    remedy = f"run: python -m fcos_recipe.commands.published_results --write {name}"
    assert insert(path) == path.read_text(encoding="utf-8"), remedy


def test_rows_agree_with_the_configs_and_with_themselves(root):
    for row in load().rows:
        config = load_config(root / f"configs/fcos/{row.config}.yml").data
        batch = config["TrainReader"]["batch_size"] * config["launch"]["cards"]
        assert (row.total_batch, row.epochs) == (batch * config["accumulate"], config["epoch"])
        assert row.cards == config["launch"]["cards"]
        if row.ap_by_seed:
            mean = sum(row.ap_by_seed.values()) / len(row.ap_by_seed)
            assert row.ap == pytest.approx(mean, abs=0.06)
            low, high = row.ap_range
            assert row.tolerance >= high - low - 1e-9, "a band narrower than the seeds' own spread"
        assert not row.reproduced or (row.commit and row.machine and row.ap_by_seed)
        header = (root / f"configs/fcos/{row.config}.yml").read_text().split("\n_BASE_")[0]
        assert f"{row.ap} AP" in header, "the config's own header says otherwise"
        if row.weights_url:
            assert row.weights_url == ZOO[row.config].url
            assert f"AP {row.ap}" in ZOO[row.config].text
    assert {row.config for row in load().rows if row.reproduced} == {
        "fcos_r18_fpn_bccd", "fcos_r18_fpn_demo",
    }  # fmt: skip
    headline = published("fcos_r50_fpn_1x_coco")
    assert [(row.ap, row.images_per_second) for row in headline] == [(39.7, 8.24), (39.6, None)]
    assert published("mine") == []


def test_bands_belong_to_rows_and_are_bands():
    for band in load().loss_bands:
        assert band.total_batch in {row.total_batch for row in published(band.config)}
        assert all(0 < low < high for low, high in band.steps.values())
        assert list(band.steps) == sorted(band.steps)


def test_both_languages_have_every_row():
    english, chinese = table("en").splitlines(), table("zh").splitlines()
    assert len(english) == len(chinese) == len(load().rows) + 2
    for one, other in zip(english, chinese):
        assert one.count("|") == other.count("|") == 7
    for row in load().rows:
        assert f"`{row.config}`" in table("zh") and f"{row.ap:.1f}" in table("zh")
    assert "not published" not in table("zh") and "未公布" in table("zh")


def test_write_and_check(tmp_path, capsys):
    path = tmp_path / "NOTES_zh.md"
    path.write_text(
        f"before\n\n{published_results.BEGIN}\nstale\n{published_results.END}\nafter\n",
        encoding="utf-8",
    )
    assert main(["--check", str(path)]) == 1
    assert main(["--write", str(path)]) == 0 == main(["--check", str(path)])
    text = path.read_text(encoding="utf-8")
    assert table("zh") in text and text.startswith("before\n") and text.endswith("after\n")
    path.write_text("no marker")
    with pytest.raises(UserError, match="results:begin"):
        insert(path)


def test_a_wrong_field_is_told_with_its_place(tmp_path):
    path = tmp_path / "results.yml"
    path.write_text("rows:\n- {config: x, cards: many}\nloss_bands: []\n")
    with pytest.raises(UserError, match=r"results.yml: .*rows\[0\]"):
        load(path)


def test_the_issue_template_is_a_form_about_things_that_exist(root):
    text = (root / ".github/ISSUE_TEMPLATE/result.yml").read_text()
    form = yaml.safe_load(text)
    assert {"name", "description", "body"} <= set(form)
    kinds = {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    assert {part["type"] for part in form["body"]} <= kinds
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"].get("label") for part in form["body"] if "id" in part)
    for path in set(re.findall(r"(?:scripts|tools|configs)/[\w.]+\.(?:sh|py|yml)", text)):
        assert (root / path).is_file(), path
    assert f'"{form["name"]}"' in (root / "fcos_recipe/lab/hw_check.py").read_text()
