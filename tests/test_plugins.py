"""Python files of the user: only with permission, in every command, with errors in one line."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from fcos_recipe import plugins
from fcos_recipe.checkpoint import weights
from fcos_recipe.cli import run
from fcos_recipe.config import load_config
from fcos_recipe.errors import UserError
from tests.conftest import ROOT, run_tool

PARTS = """\
import numpy as np
import paddle
from ppdet.core.workspace import register
from ppdet.data.transform.operators import BaseOperator, register_op
from ppdet.modeling.shape_spec import ShapeSpec
from fcos_recipe.model.loss import FCOSLoss

@register_op
class MyGray(BaseOperator):
    def __init__(self, prob=0.5, fails=False):
        super().__init__()
        self.prob, self.fails = prob, fails

    def apply(self, sample, context=None):
        assert not self.fails, "on purpose"
        if self.rng.uniform() < self.prob and np.random.rand() < 0.9:
            gray = sample["image"].mean(axis=2, keepdims=True)
            sample["image"] = np.repeat(gray, 3, axis=2).astype(sample["image"].dtype)
        return sample

@register
class MyBackbone(paddle.nn.Layer):
    def __init__(self, width=16):
        super().__init__()
        sizes = [3, width, width, width, width]
        self.convs = paddle.nn.LayerList(
            [paddle.nn.Conv2D(a, b, 3, 2, padding=1) for a, b in zip(sizes, sizes[1:])])
        self.width = width

    def forward(self, inputs):
        x, found = inputs["image"], []
        for conv in self.convs:
            x = paddle.nn.functional.relu(conv(x))
            found.append(x)
        return found[2:]

    @property
    def out_shape(self):
        return [ShapeSpec(channels=self.width, stride=s) for s in (8, 16)]

@register
class MyLoss(FCOSLoss):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def forward(self, *args):
        losses = super().forward(*args)
        losses["loss_cls"] = losses["loss_cls"] * self.factor
        return losses
"""
LINE = next(i for i, text in enumerate(PARTS.splitlines(), 1) if "on purpose" in text)


@pytest.fixture(autouse=True)
def _nothing_is_permitted(monkeypatch):
    monkeypatch.setenv(plugins.ENVIRONMENT, "")  # and is restored, whatever a command adds


@pytest.fixture
def own(tiny, tmp_path) -> Path:
    """A config with a transform, a backbone and a loss of the user's, in a file beside it."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.py").write_text(PARTS)
    path = tmp_path / "own.yml"
    path.write_text(f"""\
_BASE_: ['{tiny}']
plugins: [parts/mine.py]
FCOS: {{backbone: MyBackbone}}
MyBackbone: {{width: 8}}
FCOSHead: {{fcos_loss: {{name: MyLoss, factor: 1.5}}}}
TrainReader:
  sample_transforms:
  - Decode: {{}}
  - MyGray: {{}}
  - Resize: {{target_size: [64, 96], keep_ratio: true, interp: 1}}
  - NormalizeImage: {{mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], is_scale: true}}
  - RandomFlip: {{}}
""")
    return path


@pytest.fixture
def permitted(own, monkeypatch) -> Path:
    monkeypatch.setenv(plugins.ENVIRONMENT, str(own.parent / "parts" / "mine.py"))
    return own


def train(config, output, *extra) -> int:
    return run("train", ["-c", str(config), "--output", str(output), *map(str, extra)])


@pytest.mark.parametrize(
    ("command", "before"),
    [("train", []), ("eval", ["--weights", "x.pdparams"]), ("infer", ["--infer_img", "x.jpg"]),
     ("export_model", ["--weights", "x.pdparams"]), ("doctor", []), ("config", ["validate"]),
     ("config", ["print"]), ("analyze_model", [])],
)  # fmt: skip
def test_a_config_alone_runs_no_code(own, command, before, capfd, monkeypatch):
    canary = own.parent / "canary"
    (own.parent / "parts" / "mine.py").write_text(f"open({str(canary)!r}, 'w')\n")
    monkeypatch.chdir(own.parent)
    other = own.parent / "parts" / "other.py"
    other.write_text("")
    for allowed in ([], ["--allow-code", str(other)], ["--allow-code", "own.yml"]):
        assert run(command, [*before, "-c", "own.yml", *allowed]) == 2
    error = capfd.readouterr().err
    path = own.parent / "parts" / "mine.py"
    line = (f"own.yml:2: plugins: {path} is Python code, which runs with all your rights: read "
            f"it, then permit it with --allow-code {path}")  # fmt: skip
    assert error.count(line) == 3 and not canary.exists()
    assert "Traceback" not in error


@pytest.mark.e2e
def test_own_parts_train_resume_evaluate_predict_and_export(permitted, tmp_path, capfd):
    """A resumed run with workers equals one without workers, the user's random numbers included."""
    assert train(permitted, tmp_path / "whole", "--eval") == 0
    recorded = json.loads((tmp_path / "whole" / "environment.json").read_text())["plugins"]
    path = permitted.parent / "parts" / "mine.py"
    (plugin,) = load_config(permitted).plugins
    assert recorded == [{"path": str(path), "sha256": plugin.sha256}]
    cut = tmp_path / "cut"
    assert train(permitted, cut, "-o", "epoch=1", "worker_num=2") == 0
    # the run directory's config names the file by its absolute path; the same code elsewhere is
    # the same code, other code is refused
    again = ["--resume", "auto", "-o", "epoch=2"]
    path.write_text(PARTS + "# a change\n")
    capfd.readouterr()
    assert train(permitted, cut, *again) == 2
    assert "plugins: the code changed since the checkpoint: mine.py (" in capfd.readouterr().err
    path.write_text(PARTS)
    assert train(cut / "config.yml", cut, *again, "worker_num=2") == 0
    one, two = (weights.read(p / "model_final.pdparams") for p in (tmp_path / "whole", cut))
    assert "backbone.convs.0.weight" in one
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    made = ["--weights", str(cut / "model_final.pdparams")]
    assert run("eval", ["-c", str(cut / "config.yml"), *made, "--no-plots",
                        "--output", str(tmp_path / "eval")]) == 0  # fmt: skip
    assert run("export_model", [*made, "--output", str(tmp_path / "exported")]) == 0
    test = "TestReader.sample_transforms=[{Decode: {}}, {MyGray: {}}, {Permute: {}}]"
    capfd.readouterr()
    assert run("export_model", [*made, "-c", str(permitted), "-o", test]) == 2
    assert "TestReader: MyGray is a transform of yours" in capfd.readouterr().err
    os.environ.pop(plugins.ENVIRONMENT)
    capfd.readouterr()
    assert run("export_model", [*made, "--output", str(tmp_path / "again")]) == 2
    assert "permit it with --allow-code" in capfd.readouterr().err


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (("import paddle\n", "import padle\n"), [],
         ":2: ModuleNotFoundError: No module named 'padle'"),
        (("class MyLoss", "class MyLoss("), [], ": SyntaxError: "),
        (("class MyLoss", "class RetinaHead: pass\n@register\nclass MyLoss"), [],
         "ValueError: Module class already registered: RetinaHead"),
        (("import paddle\n", "import sys; sys.exit(0)\n"), [], ":2: SystemExit: 0"),
        (("inputs[", "inputs.input["), [], ": AttributeError: 'dict' object has no"),
        (("losses = super()", "losses = open('no/file')"), [], ": FileNotFoundError: "),
        (("", ""), ["TrainReader.sample_transforms.1.MyGray.fails=true"], None),
        (("fails=False", "fails=True"), ["worker_num=0"], f":{LINE}: AssertionError: on purpose"),
        (("fails=False", "fails=True"), ["worker_num=2"], f":{LINE}: AssertionError: on purpose"),
    ],
)  # fmt: skip
def test_errors_in_the_file_are_one_line(permitted, tmp_path, change, options, says, capfd):
    path = permitted.parent / "parts" / "mine.py"
    path.write_text(PARTS.replace(*change, 1))
    options = ["-o", *options] if options else []
    assert train(permitted, tmp_path / "run", *options) == 2
    error = capfd.readouterr().err.strip()
    if says:
        assert error.startswith(f"error: {path}:") and says in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in error


def test_classes_of_a_file_count_for_its_config_alone(permitted, tiny):
    assert load_config(permitted).plugins
    with pytest.raises(UserError, match="no registered class 'MyBackbone'"):
        load_config(tiny, ["FCOS.backbone=MyBackbone"])
    with pytest.raises(UserError, match="unknown argument of MyGray; did you mean 'prob'"):
        load_config(permitted, ["TrainReader.sample_transforms=[{MyGray: {probe: 1}}]"])


@pytest.mark.e2e
def test_the_example_of_the_page(tiny, tmp_path):
    page = (ROOT / "docs" / "training.md").read_text()
    begins = {"my.yml": "yaml\n(?=plugins)", "my_parts.py": "python\n(?=# my_parts)"}
    for name, language in begins.items():
        (block,) = re.findall(rf"```{language}(.*?)```", page, re.S)
        (tmp_path / name).write_text(f"_BASE_: ['{tiny}']\n" * (name == "my.yml") + block)
    code = ["--allow-code", tmp_path / "my_parts.py"]
    assert train(tmp_path / "my.yml", tmp_path / "run", *code, "-o", "epoch=1") == 0


@pytest.mark.slow
@pytest.mark.e2e
def test_two_ranks(own, tmp_path):
    done = run_tool("train", "-c", own, "--output", tmp_path / "run", "--allow-code",
                    own.parent / "parts" / "mine.py", cwd=tmp_path, launch=2)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "model_final.pdparams").exists()
