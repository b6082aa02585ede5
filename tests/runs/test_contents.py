"""Reading run directories of finished, stopped, running and damaged runs."""

import json
import subprocess
import sys
import time

import pytest

from fcos_recipe.errors import UserError
from fcos_recipe.report import html, sections
from fcos_recipe.report.headline import headline
from fcos_recipe.runs.contents import read_run, value


def test_figures_counted_by_hand(made):
    run = read_run(made)
    assert run.state == "finished" and run.notes == []
    assert run.speed == (4.0, 8.0)  # the first stretch, at 1 image/s, is warm-up
    # 4 images at 1 image/s and 44 at 8; two evaluations of 9 s
    assert run.hours == pytest.approx((9.5 / 3600, 18 / 3600))
    assert run.best == (0.2, 2) and run.epochs == 2 and run.cards == 2
    assert run.warnings == ["WARNING a thing is odd"]
    assert run.ap == json.loads((made / "eval.json").read_text())["stats"][0]


def test_without_facts_cards_follow_from_the_throughputs(made):
    (made / "facts.json").unlink()
    run = read_run(made)
    assert run.cards == 2 and run.config_name == "tiny" and run.epochs == 2
    assert any(note.startswith("facts.json is missing") for note in run.notes)


def test_killed(made):
    for name in ("model_final.pdparams", "eval.json", "analysis.json"):
        (made / name).unlink()
    with open(made / "metrics.jsonl", "a") as file:
        file.write('{"time": 1, "kind": "train", "ep')
    run = read_run(made)
    assert run.state == "stopped" and len(run.train) == 12
    assert "metrics.jsonl: the last line is incomplete and ignored." in run.notes
    assert headline(run) == "Stopped before the end, in epoch 2 of 2: AP 20.0"
    page = html.page(sections.build(run))
    assert "--resume auto" in page and "eval.json is missing" in page


def test_a_run_that_went_on_after_its_end_is_not_finished(made):
    with open(made / "metrics.jsonl", "a") as file:
        late = {"kind": "train", "time": time.time() + 60, "epoch": 3, "step": 13}
        file.write(json.dumps(late) + "\n")
    assert read_run(made).state == "stopped"


def test_running_is_known_by_the_lock_which_is_left_alone(made):
    holder = subprocess.Popen(
        [sys.executable, "-c",
         "import fcntl,sys;f=open(sys.argv[1],'w');fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB);"
         "print('held',flush=True);sys.stdin.read()", str(made / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        assert read_run(made).state == "running"
        assert headline(read_run(made)).startswith("Running, in epoch 2 of 2: AP ")
        (made / "analysis.json").unlink()
        assert read_run(made).notes == [
            "analysis.json is not written yet: curves, confusions and errors cannot be shown."
        ]
    finally:
        holder.communicate("")
    assert read_run(made).state == "finished"


@pytest.mark.parametrize("content", [
    "", "{", "[]", "null", '{"kind": 3}', '{"kind": "train"}\n[1]\n"x"\n', "\x00\xff", "NaN\n",
    '{"kind": "train", "epoch": "2", "step": [], "loss": {}, "images_per_second": true}\n',
    '{"kind": "train", "step": 1e400, "loss": NaN}\n' + "[" * 100_000 + "\n",
    '{"kind": "eval", "AP": "x"}\n{"kind": "eval", "epoch": 1, "AP": -1}\n',
])  # fmt: skip
def test_damaged_metrics_never_fail(made, content):
    (made / "metrics.jsonl").write_text(content)
    page = html.page(sections.build(read_run(made)))
    assert "</html>" in page


@pytest.mark.parametrize("content", [
    "", "{}", "[]", "null", "7", "{", '{"stats": "x", "names": 3}', '{"stats": [1], "names": []}',
    '{"config": 3, "device": [], "cards": "x"}', '{"images": [{}]}', "[" * 100_000,
    '{"pr": {}, "confusion": {"names": ["a"], "matrix": [[1, 2]]}}', "\x00" * 99,
])  # fmt: skip
@pytest.mark.parametrize("name", ["eval.json", "analysis.json", "facts.json", "environment.json",
                                  "examples/index.json", "config.yml"])  # fmt: skip
def test_damaged_files_become_words(made, name, content):
    (made / name).write_text(content)
    run = read_run(made)
    page = html.page(sections.build(run))
    assert "</html>" in page
    if name not in ("config.yml", "environment.json") and content != "{}":
        assert any(note.startswith(f"{name} is damaged") for note in run.notes), run.notes


def test_each_file_may_be_missing(made, tmp_path):
    whole = html.page(sections.build(read_run(made)))
    for name in ("eval.json", "analysis.json", "facts.json", "environment.json", "config.yml",
                 "metrics.jsonl", "log.txt", "examples/index.json"):  # fmt: skip
        (made / name).rename(tmp_path / "aside")
        run = read_run(made)
        assert [n for n in run.notes if n.startswith(f"{name} is missing: ")], name
        page = html.page(sections.build(run))
        assert name in page and page != whole
        (tmp_path / "aside").rename(made / name)


def test_an_evaluation_has_no_run_files_and_misses_none(made):
    result = {"weights": "out/best_model.pdparams", **json.loads((made / "eval.json").read_text())}
    (made / "eval.json").write_text(json.dumps(result))
    for name in ("metrics.jsonl", "config.yml", "facts.json", "environment.json", "log.txt"):
        (made / name).unlink()
    run = read_run(made)
    assert run.state == "evaluation" and run.notes == []
    assert headline(run) == f"Evaluation of best_model.pdparams: AP {100 * run.ap:.1f}"


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        read_run(tmp_path / "none")
    with pytest.raises(UserError, match="not a run"):
        read_run(tmp_path)
    (tmp_path / "log.txt").write_text("x")
    with pytest.raises(UserError, match="not a run"):
        read_run(tmp_path)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(made):
    import os

    (made / "eval.json").unlink()
    os.mkfifo(made / "eval.json")
    assert any("eval.json is not a file" in note for note in read_run(made).notes)


def test_value_is_a_finite_number():
    row = {"a": 1, "b": float("nan"), "c": "1", "d": True, "e": None, "f": float("inf"), "g": 0.5}
    assert [value(row, k) for k in "abcdefgh"] == [1, *[None] * 5, 0.5, None]
