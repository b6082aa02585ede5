"""Loading configs: safe, strict, typed; all errors are reported at once with their position."""

import itertools
import random
from pathlib import Path

import pytest

from fcos_recipe.cli import run
from fcos_recipe.config import load_config, schema
from fcos_recipe.config.find import project_configs
from fcos_recipe.config.load import yaml_text
from fcos_recipe.errors import UserError, UserErrors
from tests.conftest import ROOT

HEADLINE = "configs/fcos/fcos_r50_fpn_1x_coco.yml"
PUBLISHED = (
    "fcos_r50_fpn_1x_coco", "fcos_r50_fpn_iou_1x_coco", "fcos_r50_fpn_multiscale_2x_coco",
    "fcos_r50_fpn_iou_multiscale_2x_coco", "fcos_dcn_r50_fpn_1x_coco",
)  # fmt: skip


def upstream(name: str) -> Path:
    """A file of the fixture: the values of PaddleDetection's FCOS configs in its own layout."""
    return Path(__file__).parents[1] / "fixtures/paddledet_tree/configs/fcos" / f"{name}.yml"


def write(folder: Path, text: str, name: str = "a.yml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def errors(path, *overrides, strict=None) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        load_config(path, overrides, strict)
    return caught.value.messages


def test_every_yaml_of_the_project_loads_strictly(root):
    files = project_configs()
    assert {f"{name}.yml" for name in PUBLISHED} <= {path.name for path in files}
    for path in files:
        assert load_config(path, strict=True).warnings == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_resolve_to_upstreams_values(root, name):
    ours = load_config(root / f"configs/fcos/{name}.yml")
    theirs = load_config(upstream(name))
    assert theirs.warnings == []
    data, expected = ours.stock_data(), theirs.data
    # The two intended differences: the card count is said, and data stand under datasets/.
    assert (data.pop("launch"), expected.pop("launch")) == ({"cards": 8}, {"cards": 0})
    for section in ("TrainDataset", "EvalDataset", "TestDataset"):
        assert expected[section].pop("dataset_dir") == "dataset/coco"
        assert data[section].pop("dataset_dir") == "datasets/coco"
    assert data == expected


def test_upstreams_tree_loads_with_its_data_found_under_datasets(tmp_path, monkeypatch):
    (tmp_path / "datasets/coco").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    cfg = load_config(upstream(PUBLISHED[0]), strict=True)
    assert {cfg.data[f"{part}Dataset"]["dataset_dir"] for part in ("Train", "Eval", "Test")} == {
        "datasets/coco"
    }
    assert len(cfg.warnings) == 1
    assert "dataset/coco not found, using datasets/coco" in cfg.warnings[0]
    (tmp_path / "dataset/coco").mkdir(parents=True)
    assert load_config(upstream(PUBLISHED[0])).data["TrainDataset"]["dataset_dir"] == "dataset/coco"


def test_typos_at_every_depth_are_told_together(root, tmp_path):
    path = write(tmp_path, f"""\
_BASE_: [{root / HEADLINE}]
epochs: 12
lunch: {{cards: 8}}
launch: {{card: 8}}
FPN: {{out_chanel: 256}}
FCOSHead:
  fcos_loss: {{qualty: iou}}
  nms: {{name: MultiClasNMS}}
OptimizerBuilder:
  optimizer: {{type: Momentum, momentun: 0.9}}
TrainReader:
  batch_sizes: 2
  sample_transforms:
  - Decode: {{}}
  - Resize: {{target_size: [8, 8], keep_ration: true}}
  - RandomFlipp: {{}}
LearningRate:
  schedulers:
  - !PiecewiseDecay {{gama: 0.1}}
  - !LinearWarmup {{steps: 5}}
architecture: FCOSS
FCOS: {{neck: FPNN}}
""")  # fmt: skip
    found = errors(path)
    for line, key, hint in (
        (2, "epochs", "epoch"), (3, "lunch", "launch"), (4, "launch.card", "cards"),
        (5, "FPN.out_chanel", "out_channel"), (7, "FCOSHead.fcos_loss.qualty", "quality"),
        (8, "FCOSHead.nms.name", "MultiClassNMS"),
        (10, "OptimizerBuilder.optimizer.momentun", "momentum"),
        (12, "TrainReader.batch_sizes", "batch_size"),
        (15, "TrainReader.sample_transforms.1.Resize.keep_ration", "keep_ratio"),
        (16, "TrainReader.sample_transforms.2.RandomFlipp", "RandomFlip"),
        (19, "LearningRate.schedulers.0.gama", "gamma"), (21, "architecture", "FCOS"),
        (22, "FCOS.neck", "FPN"),
    ):  # fmt: skip
        assert any(e.startswith(f"{path}:{line}: {key}: ") and repr(hint) in e for e in found), key
    assert len(found) == 13
    assert [e.split(":")[1] for e in found] == sorted((e.split(":")[1] for e in found), key=int)


def test_wrong_types_are_told_together(root, tmp_path):
    path = write(tmp_path, f"""\
_BASE_: [{root / HEADLINE}]
epoch: twelve
amp_level: O3
device: tpu
worker_num: 2.5
launch: {{cards: -1}}
seed: true
ResNet: {{depth: fifty}}
FPN: {{use_c5: maybe, spatial_scales: 0.5x}}
TrainReader: {{batch_size: '2', sample_transforms: [Decode]}}
LearningRate: {{base_lr: fast, base_batch: 16.5}}
FCOSHead: 3
EvalReader:
  sample_transforms:
  - Resize: {{}}
  - Permute:
""")  # fmt: skip
    text = "\n".join(errors(path))
    for part in (
        "epoch: expected a whole number, found 'twelve'", "amp_level: expected O1 or O2",
        "device: expected auto or cpu", "worker_num: expected a whole number or auto",
        "launch.cards: expected at least 0, found -1", "seed: expected a whole number, found True",
        "ResNet.depth: expected a whole number", "FPN.use_c5: expected true or false",
        "FPN.spatial_scales: expected a list", "TrainReader.batch_size: expected a whole number",
        "sample_transforms.0: expected `Name: {arguments}`", "LearningRate.base_lr: expected a num",
        "LearningRate.base_batch: expected a whole number", ":12: FCOSHead: expected a mapping",
        "Resize: missing argument target_size, keep_ratio", "Permute: expected a mapping of",
    ):  # fmt: skip
        assert part in text, part
    assert len(text.splitlines()) == 16


def places(value, above=()):
    """The path of every value in nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield (*above, key)
        if isinstance(child, (dict, list)):
            yield from places(child, (*above, key))


def test_one_bad_value_anywhere_is_one_line_that_names_its_key(root, tmp_path):
    data = load_config(root / "configs/fcos/fcos_r18_fpn_bccd.yml").data
    refused = ["99999999999999999999", "!Nope {}", '"\\0"', "!!set {a}", "!!int x"]
    wrong = [".nan", "-5", "0,01", "[[1]]", "{a: [1]}", "true", "null"]
    pairs = [*itertools.product(places(data), refused + wrong)]
    for place, text in random.Random(0).sample(pairs, 150):
        *above, last = place
        part = data
        for key in above:
            part = part[key]
        kept, part[last] = part[last], "HERE"
        path = write(tmp_path, yaml_text(data).replace("HERE", text))
        part[last] = kept
        try:
            load_config(path, strict=True)
            found = []
        except UserErrors as error:
            found = error.messages
        key = ".".join(map(str, place))
        named = [line.split(": ")[1] for line in found]
        assert len(named) == len(set(named)), (place, text, found)
        if text in refused:
            assert named == [key] or "architecture" in found[0], (place, text, found)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("base_lr=0,01", "base_lr: expected a number, found '0,01'"),
        ("schedulers=0,01", "schedulers: expected a list of a decay and a warm-up, found '0,01'"),
        ("={base_lr: 0,01, base_batch: 8}", "base_lr: a decimal comma; write 0.01"),
        ("base_batch=99999999999999999999", "base_batch: expected a whole number within 64 bits"),
    ],
)
def test_a_number_that_is_none_is_told_once(root, given, says):
    given = f"LearningRate.{given}".replace(".=", "=")
    (line,) = errors(root / HEADLINE, given)
    assert line.startswith(f"command line: LearningRate.{says}")


@pytest.mark.parametrize(
    "schedulers",
    ["[!LinearWarmup {}, !PiecewiseDecay {}]", "[!PiecewiseDecay {}]", "[]",
     "[!PiecewiseDecay {gamma: [0.1], milestones: [8, 11]}, !LinearWarmup {}]"],
)  # fmt: skip
def test_schedules_that_stock_cannot_run_are_refused(root, tmp_path, schedulers):
    text = f"_BASE_: [{root / HEADLINE}]\nLearningRate: {{schedulers: {schedulers}}}\n"
    assert all("LearningRate.schedulers" in e for e in errors(write(tmp_path, text)))


def test_what_stock_ignores_is_a_warning_in_a_foreign_tree(tmp_path):
    text = f"_BASE_: [{upstream(PUBLISHED[0])}]\nTrainReader: {{batch_sizes: 4}}\nfleets: true\n"
    path = write(tmp_path, text)
    warnings = load_config(path).warnings
    assert len(warnings) == 2
    assert warnings[0].startswith(f"{path}:2: TrainReader.batch_sizes: ")
    assert "ignored; did you mean 'batch_size'?" in warnings[0]
    assert len(errors(path, strict=True)) == 2
    # What stock refuses is an error everywhere, and so is a typo on the command line.
    assert "qualty" in errors(path, "FCOSHead.fcos_loss.qualty=iou", strict=False)[0]
    assert errors(path, "epochs=3")[0].startswith("command line: epochs: ")


def test_overrides_are_typed_and_all_kept(root):
    cfg = load_config(
        root / HEADLINE,
        ["LearningRate.base_lr=1e-3", "LearningRate.base_batch=4",
         "FPN.spatial_scales=[.125, 625E-4, .03125]", "weights=", "output_eval='1e3'",
         "use_gpu=False", "seed=7", "pretrain_weights=a=b.p"],
    )  # fmt: skip
    assert cfg.data["LearningRate"]["base_lr"] == 0.001
    assert cfg.data["LearningRate"]["base_batch"] == 4
    assert cfg.data["FPN"]["spatial_scales"] == [0.125, 0.0625, 0.03125]
    assert cfg.data["FPN"]["out_channel"] == 256
    assert (cfg.data["weights"], cfg.data["use_gpu"], cfg.data["seed"]) == ("", False, 7)
    assert cfg.data["pretrain_weights"] == "a=b.p" and cfg.data["output_eval"] == "1e3"
    assert cfg.origin("LearningRate.base_lr") == "command line"
    assert cfg.origin("device") == "default"
    place = cfg.origin("TrainReader.sample_transforms.1.Resize.target_size").rsplit(":", 1)
    line = Path(place[0]).read_text().splitlines()[int(place[1]) - 1]
    assert "target_size: [800, 1333]" in line
    assert len(errors(root / HEADLINE, "epoch", "=3", "a..b=1", "epoch=[")) == 4


def test_a_tag_that_would_run_code_is_refused_and_not_run(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path, f"""\
epoch: !!python/object/apply:os.system ['touch {canary}']
a: !!python/object/new:subprocess.Popen [['touch', '{canary}']]
b: !Callable {{full_type: os.mkdir, args: ['{canary}']}}
""")  # fmt: skip
    found = errors(path, f"c=!!python/object/apply:os.mkdir ['{canary}']")
    assert [e.split(": tag ")[0] for e in found] == [
        f"{path}:1: epoch", f"{path}:2: a", f"{path}:3: b", "command line: c"]  # fmt: skip
    assert not canary.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
        "a: &a [*a]\n",
        "[" * 5000,
        "a: {b: [c\n",
        "a: 1\na: 2\n",
        "- 1\n",
        "? [1, 2]\n: 3\n",
        "a: !!int x\n",
        "a: *b\n",
        "a: \x00\n",
    ],
    ids="aliases merges loop deep open twice list key int anchor nul".split(),
)
def test_malformed_yaml_is_one_plain_error(tmp_path, text):
    found = errors(write(tmp_path, text))
    assert str(tmp_path / "a.yml") in found[0] and "\n" not in found[0]


def test_bases_merge_as_upstream_does_and_missing_ones_are_named(tmp_path):
    write(tmp_path, "epoch: 1\nResNet: {depth: 18, return_idx: [1, 2, 3]}\nseed: 1\n", "b1.yml")
    write(tmp_path, "epoch: 2\nResNet: {variant: d}\nseed: 2\n", "b2.yml")
    path = write(tmp_path, "_BASE_: [b1.yml, b2.yml]\nepoch: 3\nResNet: {return_idx: [3]}\n")
    data = load_config(path).data
    assert (data["epoch"], data["seed"]) == (3, 2)
    assert data["ResNet"] == {"depth": 18, "return_idx": [3], "variant": "d"}
    path = write(tmp_path, "_BASE_: [no.yml, a.yml, 3]\nepochs: 3\n")
    found = errors(path, strict=True)
    assert len(found) == 4
    assert found[0].startswith(f"{path}:1: _BASE_: {tmp_path / 'no.yml'}: No such file")
    path = tmp_path / "nothing.yml"
    assert errors(path) == [f"{path}: No such file or directory"]
    with pytest.raises(UserErrors, match="did you mean 'a.yml'"):
        load_config(tmp_path / "aa.yml")


def test_a_key_that_holds_a_value_for_others_is_allowed(root, tmp_path):
    text = f"_BASE_: [{root / HEADLINE}]\nlength: &length 24\nepoch: *length\nother: &other 3\n"
    (error,) = errors(write(tmp_path, text), strict=True)
    assert ":4: other: unknown key" in error
    config = load_config(write(tmp_path, text.replace("other: &other 3\n", "")), strict=True)
    assert config.data["epoch"] == 24 and "length" not in config.data and not config.warnings


def test_base_and_data_under_the_home_directory(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = [
        f"{part}Dataset.dataset_dir={place}/x" for part, place in (("Train", "~"), ("Eval", "$D"))
    ]
    config = load_config(root / HEADLINE, given)
    assert config.data["TrainDataset"]["dataset_dir"] == f"{tmp_path}/x"
    assert (
        "$D/x/val2017 does not exist; variables have no" in config.missing_files("EvalDataset")[0]
    )
    write(tmp_path, "epoch: 5\n", "home.yml")
    (tmp_path / "x").mkdir()
    assert load_config(write(tmp_path / "x", "_BASE_: ['~/home.yml']\n")).data["epoch"] == 5


def test_missing_files_are_named_with_their_place(root, tmp_path):
    cfg = load_config(root / HEADLINE, ["pretrain_weights=no/such", "TrainDataset.dataset_dir=/no"])
    found = cfg.missing_files("TrainDataset", "pretrain_weights")
    assert len(found) == 3
    assert ":8: TrainDataset.image_dir: /no/train2017 does not exist; " in found[0]
    assert "python datasets/download_coco.py" in found[0]
    assert found[2].startswith("command line: pretrain_weights: no/such does not exist; ")
    write(tmp_path, "", "w.pdparams")
    assert load_config(root / HEADLINE, [f"pretrain_weights={tmp_path / 'w'}"]).missing_files(
        "pretrain_weights") == []  # fmt: skip


def test_without_ppdet_one_clear_error(root, monkeypatch):
    schema.classes.cache_clear()
    monkeypatch.setattr(schema, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="ppdet is not installed"):
        load_config(root / HEADLINE)
    schema.classes.cache_clear()


@pytest.mark.parametrize("given", ["fcos_r18_fpn_demo", "fcos_r18_fpn_demo.yml",
                                   "configs/fcos/fcos_r18_fpn_demo.yml"])  # fmt: skip
def test_a_config_of_the_project_is_found_by_name_from_any_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(given).path == ROOT / "configs/fcos/fcos_r18_fpn_demo.yml"
    (tmp_path / "fcos_r18_fpn_demo.yml").write_text("epoch: 1\n")  # an existing file comes first
    if given == "fcos_r18_fpn_demo":  # which of the two is meant is not guessed
        with pytest.raises(UserError, match="both fcos_r18_fpn_demo.yml here and a config"):
            load_config(given)
    elif given == "fcos_r18_fpn_demo.yml":
        assert load_config(given).path == Path("fcos_r18_fpn_demo.yml")


def test_copied_configs_have_the_values_of_their_originals(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in sorted((ROOT / "configs" / "fcos").glob("*.yml")):
        assert run("config", ["copy", path.stem]) == 0
        assert load_config(path.name).data == load_config(path).data
    assert run("config", ["copy", path.stem]) == 2  # it exists
    assert run("config", ["copy", "fcos_r19"]) == 2


@pytest.mark.parametrize(
    ("records", "name"),
    [
        ({}, "config"),
        ({"facts.json": '{"config": {"name": "mine"}}'}, "mine"),
        ({"best_model.json": '{"config": "mine"}'}, "mine"),
        ({"facts.json": "{", "model_final.json": '{"config": "mine"}'}, "mine"),
        ({"facts.json": '{"config": {"name": "../up"}}', "best_model.json": "[]"}, "config"),
        ({"facts.json": '{"config": {"name": ".."}}'}, "config"),
    ],
)
def test_the_config_of_a_run_has_the_name_that_the_run_recorded(tmp_path, root, records, name):
    base = f"_BASE_: [{root}/{HEADLINE}]\n"
    for file, text in records.items():
        (tmp_path / file).write_text(text)
    assert load_config(write(tmp_path, base, "config.yml")).name == name
    assert load_config(write(tmp_path, base, "other.yml")).name == "other"
