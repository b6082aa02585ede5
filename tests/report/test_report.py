"""The report of a really trained run, and of runs with malicious names."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from fcos_recipe.cli import run
from fcos_recipe.report import blocks, html, markdown
from fcos_recipe.report.sections import build, command_line
from fcos_recipe.report.write import make
from fcos_recipe.runs.contents import read_run
from tests.conftest import ROOT
from tests.helpers.made_runs import judged, write_run

SECTIONS = ["Verdict", "Curves", "AP per class", "Precision and recall", "Errors and confusions",
            "Best and worst images", "Data", "Config", "Environment", "Reproduce it"]  # fmt: skip
VOID = {"meta", "link", "img", "br", "hr", "wbr"}


class Page(HTMLParser):
    """What a page consists of; refuses tags that are not closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.words, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def check(page: Page) -> None:
    """What every page has to keep to."""
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "audio", "video"}
    for tag, attrs in page.tags:
        assert not [a for a in attrs if a.startswith("on")], (tag, attrs)
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            if key in attrs:
                assert attrs[key].startswith(("#", "data:image/jpeg;base64,", "data:,", "/?still"))
        assert "url(" not in (attrs.get("style") or "")
    assert page.named("html")[0]["lang"] == "en" and len(page.named("main")) == 1
    assert all(a.get("alt") for a in page.named("img"))
    assert all(a.get("scope") in ("row", "col") for a in page.named("th"))
    svgs = [a for a in page.named("svg") if "chart" in a["class"]]
    assert all(a["role"] == "img" and a["aria-label"] for a in svgs)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.named("a") if a["href"].startswith("#")} <= set(ids)
    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:]))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run of two epochs with evaluation."""
    path = tmp_path_factory.mktemp("run") / "trained"
    assert run("train", ["-c", str(tiny), "--output", str(path), "--eval"]) == 0
    return path


@pytest.mark.e2e
@pytest.mark.matrix
def test_training_ends_with_its_report(trained):
    text = (trained / "report.html").read_text()
    page = Page(text)
    check(page)
    assert [name for level, name in page.headings if level == 2][: len(SECTIONS)] == SECTIONS
    read = read_run(trained)
    assert read.state == "finished" and read.notes == [] and read.facts.validating
    words = " ".join(page.words)
    assert f"Finished: AP {100 * read.ap:.1f} after epoch 2" in words
    assert f"{read.speed[0]:.2f}" in words and "There is no published figure" in words
    steps = [json.loads(x) for x in (trained / "metrics.jsonl").read_text().splitlines()]
    assert len(read.train) + len(read.evals) == len(steps)
    assert read.facts.total_batch == 4 and read.facts.steps == 12
    # the data, counted from the annotation files
    for split in ("train", "val"):
        told = read.facts.data[split]
        content = json.loads(Path(told.annotations).read_text())
        assert (told.images, told.boxes) == (len(content["images"]), len(content["annotations"]))
    changes = {key: (base, here) for key, base, here, _ in read.facts.config.changes}
    assert changes["FPN.out_channel"] == ("64", "32") and "epoch" not in changes
    # marked lines are those that the table lists
    marked = re.findall(r"<mark>(.*?)</mark>", text)
    assert any("out_channel: 32" in line for line in marked)
    assert not any("num_classes" in line for line in marked)
    note = (trained / "report.md").read_text()
    assert [x[3:] for x in note.splitlines() if x.startswith("## ")][: len(SECTIONS)] == SECTIONS


@pytest.mark.e2e
def test_without_evaluation(tiny, tmp_path):
    assert run("train", ["-c", str(tiny), "--output", str(tmp_path / "r"), "-o", "epoch=1"]) == 0
    page = Page((tmp_path / "r/report.html").read_text())
    check(page)
    words = " ".join(page.words)
    assert "no AP, because it was never evaluated" in words and "Train with --eval" in words
    assert [name for level, name in page.headings if level == 2][: len(SECTIONS)] == SECTIONS


@pytest.mark.e2e
def test_a_report_that_fails_never_fails_the_run(tiny, tmp_path, monkeypatch, capfd):
    def broken(*_):
        raise ZeroDivisionError("in a chart")

    monkeypatch.setattr("fcos_recipe.report.write.write", broken)
    assert run("train", ["-c", str(tiny), "--output", str(tmp_path / "r"), "-o", "epoch=1"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "report: not written: ZeroDivisionError: in a chart"
    assert (tmp_path / "r/model_final.pdparams").exists()


def test_all_of_a_run_is_in_it(made):
    text = html.page(build(read_run(made)))
    page = Page(text)
    check(page)
    assert len(text) < 3_000_000
    assert len(page.named("img")) == 2 * len(read_run(made).examples.images) > 8
    assert len([a for a in page.named("svg") if "chart" in a["class"]]) == 10
    words = " ".join(page.words)
    for part in ("triangle", "Loc", "Confusion matrix", "abc",
                 "with uncommitted changes", "resolved config"):  # fmt: skip
        assert part in words
    result = json.loads((made / "eval.json").read_text())
    for row in result["per_class"]:
        assert f"{100 * row['AP']:.1f}" in words and str(row["instances"]) in words
    assert "DEVICE=cpu bash scripts/train.sh --gpus 2 -c" in words


def test_the_chart_names_the_median_of_the_table(made):
    read = read_run(made)
    for k, record in enumerate(read.train[:-1]):  # an even number, and a first that is left out
        record["images_per_second_per_card"] = 4 + 0.07 * k * k
    read.train.pop()
    text = html.page(build(read))
    assert f"Median {read.speed[0]:.2f} without the first" in text
    assert text.count(f"{read.speed[0]:.2f}") >= 2


def test_the_command_of_the_demo_is_the_demo(made):
    read = read_run(made)
    read.facts.cards = 1
    read.environment.command = [
        "demo.py",
        "--started",
        "17",
        "-o",
        "epoch=1",
    ]
    assert command_line(read) == "python -m fcos_recipe.commands.demo -o epoch=1"
    read.facts.cards = 8
    read.environment.command = ["train.py", "-c", "a.yml", "-o", "epoch=1", "device=cpu"]
    assert command_line(read) == "DEVICE=cpu bash scripts/train.sh --gpus 8 -c a.yml -o epoch=1"
    read.environment.device = "gpu"
    read.environment.command = ["train.py", "-c", "a.yml", "--eval"]
    assert command_line(read) == "bash scripts/train.sh --gpus 8 -c a.yml --eval"
    read.facts.cards = 1
    read.environment.command = ["train.py", "-c", "my config.yml"]
    assert command_line(read) == "python tools/train.py -c 'my config.yml'"


HOSTILE = [
    "<script>alert(1)</script>", "\x1b[31mred\x1b[0m\x07", '"><img src=x onerror=alert(1)>',
    "</style></pre></svg><h1>", "a|b`c*[x](javascript:alert(1))", "\u202eevil\u2066",
    "{0.__class__}", "x" * 300, "名前 & naïve", "'};</title><base href=//evil>",
]  # fmt: skip


def test_hostile_names(tiny, tmp_path):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 64}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(HOSTILE, 1)],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": [2 * k, 2, 20, 30], "iscrowd": 0,
             "area": 600}
            for k in range(1, len(HOSTILE) + 1)
        ],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    from PIL import Image

    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "images/a.jpg")
    path = write_run(tmp_path / HOSTILE[2].replace("/", ""), tiny,
                     judged(tmp_path / "a.json", tmp_path / "images"))  # fmt: skip
    environment = json.loads((path / "environment.json").read_text())
    environment.update(cpu=HOSTILE[0], command=HOSTILE, cards=HOSTILE, git=HOSTILE[5])
    (path / "environment.json").write_text(json.dumps(environment))
    index = json.loads((path / "examples/index.json").read_text())
    index["images"][0]["file"] = HOSTILE[2]
    index["images"].append({**index["images"][0], "truth": "../../etc/passwd", "kind": HOSTILE[0]})
    (path / "examples/index.json").write_text(json.dumps(index))
    with open(path / "config.yml", "a") as file:
        file.write(f"# {HOSTILE[0]} {HOSTILE[1]}  # command line\n")
    with open(path / "log.txt", "a") as file:
        file.write(f"2026-01-02 03:04:06,000 WARNING {HOSTILE[0]}\n")
    report = make(path, [path], 10)
    text, note = html.page(report), markdown.page(report, path)
    page = Page(text)
    check(page)
    assert HOSTILE[0] in "".join(page.words) and "passwd" not in text
    for out in (text, note):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]", out)
        assert "<script" not in re.sub(r"(?s)```.*?```", "", out)
    outside = re.sub(r"(?s)(`{3,})\n.*?\n\1", "", note)  # in a fence nothing is markup
    assert not re.search(r"<(?!/?(details|summary)>)[a-z/]", outside)
    assert "[x](" not in outside and not re.search(r"(?<!\\)\|b", outside)


def test_pictures_are_bounded_and_are_pictures(made):
    first = made / "examples" / read_run(made).examples.images[0].truth
    first.write_bytes(b"root:x:0:0")
    text = html.page(build(read_run(made)))
    assert "missing, too large, or not a JPEG" in text and "cm9vdD" not in text
    index = json.loads((made / "examples/index.json").read_text())
    for row in index["images"]:
        (made / "examples" / row["found"]).write_bytes(b"\xff\xd8\xff" + bytes(390_000))
    text = html.page(build(read_run(made)))
    assert "would make the page too large" in text and len(text) < 3_000_000


def test_markdown_fences_are_longer_than_those_inside():
    report = blocks.Report("t", "s", [blocks.Section("x", "x", [
        blocks.Code([("```", False), ("<b>", True), ("````", False)])])])  # fmt: skip
    assert "`````\n```\n<b>\n````\n`````" in markdown.page(report, ROOT)


def luminance(color: str) -> float:
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_contrast_in_light_and_dark():
    """WCAG 2: 4.5 for text, 3 for lines of charts."""
    style = html.STYLE.read_text()
    palettes = [dict(re.findall(r"--(\w+):(#[0-9a-f]{6})", part))
                for part in re.findall(r":root\{(.*?)\}", style, re.S)[:2]]  # fmt: skip
    assert [set(p) for p in palettes] == [set(palettes[0])] * 2 and len(palettes[0]) == 16
    for palette in palettes:
        for name, least in {"ink": 7, "soft": 4.5, "link": 4.5, "good": 3, "bad": 3,
                            **{f"s{k}": 3 for k in range(6)}}.items():  # fmt: skip
            for ground in ("bg", "card"):
                a, b = sorted(luminance(palette[k]) for k in (name, ground))
                assert (b + 0.05) / (a + 0.05) >= least, (name, ground)
        a, b = sorted(luminance(palette[k]) for k in ("ink", "mark"))
        assert (b + 0.05) / (a + 0.05) >= 4.5


def test_the_tool(made, tmp_path, capsys):
    assert run("report", [str(made), "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "out/report.html"), str(tmp_path / "out/report.md")]  # fmt: skip
    assert not (made / "report.html").exists()
    assert run("report", [str(tmp_path / "none")]) == 2
    assert run("report", [str(made), "--compare", str(tmp_path / "none")]) == 2
    (tmp_path / "file").write_text("")
    assert run("report", [str(made), "--output", str(tmp_path / "file")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors.pop(1).startswith("computing intervals")
    assert len(errors) == 3 and all(line.startswith("error: ") for line in errors)


def test_no_paddle_and_no_picture_library_is_needed(made):
    code = (
        "import sys; from fcos_recipe.cli import run; code = run('report', sys.argv[1:]);"
        "print(sorted({'paddle', 'matplotlib', 'cv2', 'hotcoco'} & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made)], cwd=ROOT, text=True,
                          capture_output=True)  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


def test_many_classes_stay_readable(made):
    analysis = json.loads((made / "analysis.json").read_text())
    names = [f"class {k}" for k in range(80)] + ["background"]
    matrix = (np.eye(81, dtype=int) * 5 + np.eye(81, k=3, dtype=int)).tolist()
    analysis["confusion"] = {"names": names, "matrix": matrix}
    (made / "analysis.json").write_text(json.dumps(analysis))
    words = " ".join(Page(html.page(build(read_run(made)))).words)
    assert "Confusion matrix" not in words and "Most frequent confusions" in words
