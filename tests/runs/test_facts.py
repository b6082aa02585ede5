"""facts.json, which a run writes at its start."""

import json
from types import SimpleNamespace

from fcos_recipe.config import load_config
from fcos_recipe.data.dataset import COCODataSet
from fcos_recipe.runs.facts import config_facts, dataset_facts, write_facts


def test_changes_against_the_bases(tiny):
    config = load_config(tiny, ["epoch=7", "LearningRate.base_lr=0.02", "save_dir=output"])
    facts = config_facts(config)
    changes = {key: row for key, *row in facts["changes"]}
    assert facts["name"] == "tiny" and facts["based"]
    assert changes["FPN.out_channel"][:2] == ["64", "32"]
    assert changes["FPN.out_channel"][2].startswith(f"{tiny}:")
    assert changes["epoch"] == ["2", "7", "command line"]
    assert changes["LearningRate.schedulers.0.max_epochs"] == ["2", "-", ""]
    assert "save_dir" not in changes  # written again, but the same
    assert "num_classes" not in changes and "TrainReader.batch_size" not in changes
    assert facts["command_line"] == ["epoch", "LearningRate.base_lr", "LearningRate.base_batch"]
    for key, (_, here, _) in changes.items():
        assert here == "-" or config.node(key) is not None


def test_a_resolved_config_builds_on_nothing(tiny, tmp_path):
    from fcos_recipe.config.resolved import resolved

    (tmp_path / "config.yml").write_text(resolved(load_config(tiny)))
    facts = config_facts(load_config(tmp_path / "config.yml"))
    assert facts["based"] is False and facts["changes"] == []


def test_data_are_counted(shapes):
    content = json.loads((shapes / "annotations/instances_train.json").read_text())
    dataset = COCODataSet(str(shapes), "train", "annotations/instances_train.json", sample_num=5)
    dataset.parse_dataset()
    facts = dataset_facts(dataset)
    boxes = content["annotations"]
    assert facts["images"] == len(content["images"]) == 24 and facts["used"] == 5
    assert facts["boxes"] == len(boxes) == sum(facts["by_size"].values())
    empty = 24 - len({a["image_id"] for a in boxes})
    assert facts["without_boxes"] == empty and facts["width_height"] == [[128, 96, 24]]
    for row, category in zip(facts["classes"], content["categories"]):
        mine = [a for a in boxes if a["category_id"] == category["id"]]
        assert (row["name"], row["boxes"]) == (category["name"], len(mine))
        assert row["images"] == len({a["image_id"] for a in mine})
    assert json.loads(json.dumps(facts)) == facts


def test_facts_never_fail_a_run(tmp_path, caplog):
    import logging

    logging.getLogger("fcos").propagate = True
    with caplog.at_level("WARNING", logger="fcos"):
        write_facts(SimpleNamespace(config=None))
    assert "facts.json: not written: AttributeError" in caplog.text


def test_data_of_two_files_are_counted_together(shapes):
    parts = [COCODataSet(str(shapes), folder, f"annotations/instances_{folder}.json",
                         allow_empty=True) for folder in ("train", "val")]  # fmt: skip
    both = COCODataSet(str(shapes), ["train", "val"], [part.anno_path for part in parts],
                       allow_empty=True)  # fmt: skip
    for dataset in (*parts, both):
        dataset.parse_dataset()
    one, two, whole = map(dataset_facts, (*parts, both))
    for key in ("images", "used", "boxes", "without_boxes"):
        assert whole[key] == one[key] + two[key]
    assert one["annotations"] in whole["annotations"] and " + " in whole["annotations"]
