"""Options of PaddleDetection and other projects are answered with what to use here."""

import re

import pytest

from fcos_recipe.cli import run
from fcos_recipe.commands.elsewhere import PADDLEDETECTION, USUAL, WORKING, markdown
from tests.conftest import ROOT


@pytest.mark.parametrize(
    "command, option, remedy",
    [(command, option, remedy) for table in (PADDLEDETECTION, USUAL)
     for command, remedies in table.items() for option, remedy in remedies.items()],
)  # fmt: skip
def test_the_answer_is_one_line(command, option, remedy, capsys):
    for argv in ([option], [option, "value"], [f"{option}=value"]):
        assert run(command, argv) == 2
        assert capsys.readouterr().err == f"error: {option}: not an option here; {remedy}\n"


CONFIG = str(ROOT / "configs/fcos/fcos_r18_fpn_demo.yml")


@pytest.mark.parametrize("line, says", [
    ("train my.yml", "my.yml: not expected here; a config is named with -c, as in -c my.yml"),
    ("analyze_model my.yml", "required: -c/--config; a config is named with -c, as in -c my.yml"),
    ("infer my.yml", "required: --input.*; a config is named with -c"),
    ("doctor my.yaml", "a config is named with -c, as in -c my.yaml"),
    ("train -c C epoch=3", "values are set with -o, as in -o epoch=3"),
    ("train data=my.yaml model=n epochs=3", "-c; `fcos config new --data DIR -o my.yml` writes"),
    ("train -c C -epoch 3", "-epoch: not an option here; use -o epoch=3"),
    ("train -c C --num-classes=4", "use -o num_classes=4"),
    ("train -c C --momentum --eval", "use -o OptimizerBuilder.optimizer.momentum=VALUE"),
    ("train -c C --work-num 4", "did you mean -o worker_num=4?"),
    ("train -c C --evall", "--evall: not an option here; did you mean --eval?"),
    ("train -c C --seed x", "argument --seed: not a whole number: 'x'"),
    ("train", "-c CONFIG is required"),
    ("train -c C -o TrainReader.batch_size 4", "KEY=VALUE without spaces"),
    ("train -c C -o batch_size=2", "did you mean 'TrainReader.batch_size'"),
    ("infer --weights nope.pdparams --input a.png -o amp=true", "nope.pdparams: no such weights"),
    ("infer --input a.png -o amp=true", "-o: name the config with -c CONFIG, or the weights"),
    ("export_model --weights nope", r"nope: no such weights file \(nor nope.pdparams, nor a"),
])  # fmt: skip
def test_what_a_stranger_writes_is_answered_with_what_to_write(line, says, capsys):
    command, *argv = (CONFIG if word == "C" else word for word in line.split())
    try:
        code = run(command, argv)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and re.search(says, error) and "usage:" not in error
    assert all(text.startswith("error: ") for text in error.splitlines())


@pytest.mark.parametrize(("text", "says"), [
    ("\tepoch: 3\n", "x.yml:1: .*indent with spaces, not tabs"),
    ("epoch:3\nnum_classes: 4\n", "x.yml:2: .*space after its colon missing"),
    ("TrainReader:\n  batch_size: 2\n   shuffle: true\n", "x.yml:3: .*a line above indented"),
    ("TrainReader: {batch_size: 2\nepoch: 3\n", "x.yml:2: .*a bracket above not closed"),
])  # fmt: skip
def test_a_beginners_yaml_is_answered_with_the_likely_mistake(text, says, tmp_path, capsys):
    (tmp_path / "x.yml").write_text(text)
    assert run("config", ["validate", str(tmp_path / "x.yml")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert re.search(says, error), error


@pytest.mark.parametrize("line", [
    "eval -c C --weights w --output FILE", "eval -c C --weights w --json FOLDER",
    "eval -c C --weights w --save-predictions FILE/x", "infer --weights w --input a --output FILE",
    "infer --weights w --input a --output FILE/x/y", "export_model --weights w --output FILE",
    "train -c C --output FILE/x", "analyze_model -c C --json FOLDER", "report r --output FILE",
    "dataset verify x.json --json FOLDER", "dataset stats x.json --output FILE/x",
    "config new --data d -o FILE/x.yml", "dataset split x.json --output FILE",
])  # fmt: skip
def test_an_output_that_cannot_be_written_is_named_before_any_work(line, tmp_path, capsys):
    (tmp_path / "file").touch()
    words = {"C": CONFIG, "FOLDER": str(tmp_path)}
    text = line.replace("FILE", f"{tmp_path}/file")
    command, *argv = (words.get(word, word) for word in text.split())
    assert run(command, argv) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert (
        re.search(r"^error: (--?\w|/).*(file|folder)", error)
        and "exists" in error
        or "not a" in error
    )


def test_the_page_has_the_table():
    assert markdown() in (ROOT / "docs" / "migrating.md").read_text()


# The options of PaddleDetection's tools, from its releases 2.4 to 2.7, besides -c and -o.
_SLICES = "slice_infer slice_size overlap_ratio combine_method match_threshold match_metric"
UPSTREAM = {
    "train": "eval resume slim_config enable_ce amp fleet use_vdl vdl_log_dir use_wandb to_static "
             "save_prediction_only profiler_options save_proposals proposals_path",
    "eval": f"output_eval json_eval slim_config bias classwise save_prediction_only amp {_SLICES}",
    "infer": "infer_dir infer_img infer_list output_dir draw_threshold slim_config use_vdl "
             f"vdl_log_dir save_results visualize do_eval rtn_im_file save_threshold {_SLICES}",
    "export_model": "output_dir export_serving_model slim_config for_fd",
}  # fmt: skip


@pytest.mark.parametrize("command", UPSTREAM)
def test_every_option_of_paddledetection_works_or_is_refused_with_the_reason(command, capsys):
    named = {option.split("--")[-1] for table in (WORKING, PADDLEDETECTION)
             for option in table[command]} - {"config", "opt"}  # fmt: skip
    assert named == set(UPSTREAM[command].split())
    with pytest.raises(SystemExit):
        run(command, ["--help"])
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z]\w*", capsys.readouterr().out))
    assert {word for option in WORKING[command] for word in option.split(", ")} <= shown


@pytest.mark.e2e
@pytest.mark.slow
def test_command_lines_of_paddledetection_do_what_they_say(tiny, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    c = ["-c", str(tiny), "-o", f"save_dir={tmp_path}", "epoch=1", "TrainDataset.sample_num=4",
         "FCOSHead.nms.score_threshold=0.001"]  # fmt: skip
    assert run("train", [*c, "--eval", "--enable_ce", "True", "--use_vdl=False",
                         "--vdl_log_dir", "vdl"]) == 0  # fmt: skip
    weights = "weights=tiny/model_final"
    assert run("train", [*c, "epoch=2", "-r", "tiny/checkpoints/0001"]) == 0
    assert run("eval", [*c, weights, "--classwise", "--output_eval", "figures"]) == 0
    picture = next((shapes / "val").glob("*.*"))
    for given in (["--infer_dir", str(shapes / "val")], ["--infer_img", str(picture)]):
        assert run("infer", [*c, weights, *given, "--output_dir", "drawn", "--draw_threshold=0.01",
                             "--save_results=True", "--use_vdl=False"]) == 0  # fmt: skip
    assert run("export_model", [*c, weights, "--output_dir", "exported"]) == 0
    written = ["figures/eval.json", "drawn/predictions.json", "drawn/" + picture.name]
    assert all((tmp_path / name).is_file() for name in written)
    assert list((tmp_path / "exported").glob("tiny-paddle/*.pdiparams"))


def test_help_does_not_list_them(capsys):
    for command in PADDLEDETECTION:
        with pytest.raises(SystemExit):
            run(command, ["--help"])
        assert "slim_config" not in capsys.readouterr().out
