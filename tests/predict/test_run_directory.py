"""Every command and function that takes weights takes the directory of a run."""

import re
import shutil

import pytest

from fcos_recipe import api
from fcos_recipe.checkpoint import weights
from fcos_recipe.checkpoint.storage import class_names
from fcos_recipe.cli import run
from fcos_recipe.errors import UserError
from fcos_recipe.predict import Predictor

SLOW = pytest.mark.slow
# command and arguments; RUN, CONFIG, IMAGE, DATA and OUT stand for paths
COMMANDS = [
    "infer --weights RUN --input IMAGE --output OUT",
    "infer -c CONFIG -o weights=RUN --input IMAGE --output OUT",
    "eval -c CONFIG --weights RUN",
    "eval -c CONFIG -o weights=RUN",
    "weights convert RUN OUT.safetensors",
    "verify_result --weights RUN -c fcos_r18_fpn_demo",
    pytest.param("export_model --weights RUN --format paddle --output OUT", marks=SLOW),
    pytest.param(
        "train -c CONFIG --output OUT -o epoch=1 TrainReader.batch_size=2 pretrain_weights=RUN",
        marks=SLOW,
    ),
]


@pytest.fixture
def finished(trained, tmp_path):
    """A run directory with two weights files and a checkpoint, of which the best is the one."""
    folder = tmp_path / "a run.v2"
    (folder / "checkpoints/0001").mkdir(parents=True)
    shutil.copy(trained[0].parent / "config.yml", folder)
    for name in ("best_model.pdparams", "model_final.pdparams", "checkpoints/0001/model.pdparams"):
        shutil.copy(trained[0], folder / name)
    for ending in (".pdparams", ".json"):
        shutil.copy(trained[0].with_suffix(ending), folder / f"best_model{ending}")
    (folder / "model_final.pdparams").write_bytes(b"not these")
    return folder


@pytest.fixture
def taken(monkeypatch):
    """The weights files that were read."""
    files, read = [], weights.read

    def reading(path, *more):
        files.append(path)
        return read(path, *more)

    monkeypatch.setattr(weights, "read", reading)
    return files


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, finished, taken, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"RUN": finished, "CONFIG": finished / "config.yml", "OUT": tmp_path / "out",
              "IMAGE": data / "val/000001.jpg"}  # fmt: skip
    known = re.compile("|".join(places))
    words = [known.sub(lambda name: str(places[name[0]]), word) for word in line.split()]
    if words[0] == "verify_result":
        words += ["-o", f"EvalDataset.dataset_dir={data}"]
    code = run(words[0], words[1:])
    assert code == (2 if words[0] == "verify_result" else 0), capsys.readouterr()
    assert taken and set(taken) == {finished / "best_model.pdparams"}
    if words[0] == "verify_result":  # judged, on other images than the published figure's
        assert "verdict: not comparable" in capsys.readouterr().out


def test_functions(finished, taken, data, tmp_path):
    (found,) = api.predict(finished, [data / "val/000001.jpg"], device="cpu")
    (other,) = Predictor(finished, device="cpu")([data / "val/000001.jpg"])
    assert len(found) == len(other) > 0 and found.names == class_names(finished) == other.names
    api.evaluate(finished / "config.yml", finished)
    assert len(taken) == 3 and set(taken) == {finished / "best_model.pdparams"}


def test_weights_of_another_config_are_told_of_a_run_directory(finished, taken, capsys):
    note = finished / "best_model.json"
    note.write_text(note.read_text().replace("{", '{"config": "mine",', 1))
    argv = ["--weights", str(finished), "-c", "fcos_r18_fpn_demo"]
    assert run("verify_result", argv) == 2 and not taken
    assert "weights of mine, not of fcos_r18_fpn_demo" in capsys.readouterr().err


def test_a_run_without_final_weights_names_its_checkpoints(finished):
    for file in finished.glob("*.pdparams"):
        file.unlink()
    with pytest.raises(UserError, match="not ended .* name one of its checkpoints, .*/0001$"):
        Predictor(finished)
    assert weights.resolve(str(finished / "checkpoints/0001")).name == "model.pdparams"
