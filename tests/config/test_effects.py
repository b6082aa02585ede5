"""One table says what each config key affects."""

from fnmatch import fnmatchcase

import pytest

from fcos_recipe.compat import REPLACED
from fcos_recipe.config import effects, load_config, schema
from fcos_recipe.config.effects import STEPS, TABLE, differences, effect
from fcos_recipe.config.find import project_configs


def all_keys() -> set[str]:
    """Every key of the schema, of the project's configs and of the classes that they name."""
    keys = {name for name, _ in schema.keys(schema.RECIPE)}
    sections = set(REPLACED) | {"OptimizerBuilder", "LearningRate", "ResNet", "FPN"}
    for path in project_configs():
        if path.parent.name == "fcos":
            data = load_config(path).data
            keys |= {key for key, *_ in differences(data, {}) if key}
            sections |= {name for name, value in data.items() if isinstance(value, dict)}
    for name in sections & set(schema.components()):
        keys |= {f"{name}.{argument}" for argument in schema.signature(name).args}
    return keys


KEYS = sorted(all_keys())


@pytest.mark.parametrize("key,resumable,run,weights", [
    ("seed", False, False, False),
    ("LearningRate.base_lr", False, True, False),
    ("TrainReader.sample_transforms.0.RandomFlip.prob", False, True, False),
    ("TrainReader.batch_size", True, False, False),
    ("accumulate", True, False, False),
    ("launch.cards", True, False, False),
    ("EvalReader.batch_size", True, True, True),
    ("EvalReader.sample_transforms.1.Resize.target_size", False, True, True),
    ("EvalDataset.anno_path", False, True, True),
    ("EvalDataset.dataset_dir", True, False, False),
    ("FCOSHead.nms.score_threshold", False, True, True),
    ("pretrain_weights", True, True, False),
    ("early_stop.patience", True, True, False),
    ("use_ema", False, True, False),
    ("amp", False, True, True),
    ("to_static", True, False, False),
    ("TestReader.batch_size", True, False, False),
    ("TestReader.sample_transforms.2.NormalizeImage.mean", False, True, True),
    ("a.key.that.is.new", False, True, True),
])  # fmt: skip
def test_what_a_change_means(key, resumable, run, weights):
    assert effect(key)[1:] == (resumable, run, weights)


def test_each_key_has_one_effect_and_each_pattern_a_key():
    assert len(KEYS) > 240
    table = {row: patterns.split() for row, patterns in TABLE.items()}
    used = set()
    for key in KEYS:
        rows = [row for row, names in table.items() if any(fnmatchcase(key, n) for n in names)]
        # a row of whole sections stands last: it is for what the rows before it do not name
        assert len(rows) < 2 or rows[0] is STEPS or rows[1:] == [list(TABLE)[-1]], (key, rows)
        assert effect(key) is (rows[0] if rows else STEPS)
        used |= {name for name in table[effect(key)] if fnmatchcase(key, name)}
    assert used == {name for names in table.values() for name in names}, "patterns without a key"


def test_a_new_key_at_its_default_is_no_change():
    now = load_config(project_configs()[0].parents[1] / "fcos/fcos_r18_fpn_bccd.yml").data
    old = {key: value for key, value in now.items() if key not in ("accumulate", "bad_numbers")}
    assert differences(old, now) and effects.changes(old, now) == []
    assert effects.changes(old, {**now, "accumulate": 2}) == [("accumulate", "-", "2")]
