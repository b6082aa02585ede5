"""README and docs/: every command in a block runs, or is listed here with the reason why not."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fcos_recipe.cli import run
from tests.conftest import ROOT, run_tool

READMES = [ROOT / "README.md", ROOT / "README_zh.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md"))]

# Commands are compared by their beginnings. What a test of its own runs names that test.
ELSEWHERE = {
    "bash scripts/demo.sh": "tests/commands/test_demo.py and its own installation",
    "bash scripts/test.sh": "is what runs this test",
    "bash scripts/install.sh": "tests/install",
    "bash .ci/run": "runs all tests",
    "python tools/benchmark.py": "takes minutes and gigabytes; tests/lab/test_benchmark.py",
    "python tools/analyze_model.py": "measures for a minute; tests/commands/test_analyze_model.py",
    "bash scripts/hw_check.sh": "needs cards; tests/lab/test_hw_check.py",
    "bash scripts/run_and_time.sh": "trains; tests/commands/test_run_and_time.py",
    "source .venv": "changes the shell; tests/test_readme_in_order.py",
    "python tools/infer.py --weights output/demo": "tests/test_readme_in_order.py",
    "python tools/eval.py -c configs/fcos/fcos_r18_fpn_demo.yml": "tests/test_readme_in_order.py",
    "python tools/verify_result.py": "needs a run; tests/commands/test_verify_result.py",
    "python tools/report.py": "needs a run; tests/report",
    "python tools/dataset.py convert": "needs another format; tests/datasets/test_convert.py",
    "python tools/weights.py get": "needs the network; tests/checkpoint/test_zoo.py",
    "bash scripts/fault_test.sh": "takes minutes; tests/lab/test_faults.py",
    "bash scripts/check.sh": "is part of scripts/test.sh",
    ".venv/bin/python -m fcos_recipe.commands.draw_shapes": "part of the demonstration",
    "export FAKE_CARDS=": "compiles the stand-in card; tests/card",
    "pip install": "tests/install and the lock files",
    "sbatch": "needs Slurm; tests/test_deploy.py",
    "export NAME=": "needs Kubernetes; tests/test_deploy.py",
    "envsubst": "needs Kubernetes; tests/test_deploy.py",
    "docker": "needs Docker; tests/test_deploy.py",
    "python datasets/download_coco.py": "needs COCO's server; tests/datasets/test_coco2017.py",
}


HEADLINE = "configs/fcos/fcos_r50_fpn_1x_coco.yml"


def commands() -> list[str]:
    pages = "\n".join(page.read_text() for page in PAGES)
    blocks = re.findall(r"```bash\n(.*?)```", pages, re.S)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def inline() -> list[str]:
    """`python tools/...` commands inside the READMEs' sentences; other pages abbreviate theirs."""
    text = "\n".join(page.read_text() for page in READMES)
    found = re.findall(r"`(python tools/[^`]*|fcos [a-z]+[^`]*)`", text)
    return [" ".join(text.split()) for text in found if "..." not in text]


def test_commands_are_known():
    assert len(commands()) > 10
    for command in commands() + inline():
        assert plan(command) is not None, f"no test knows how to run: {command}"


def plan(command: str):
    """How to try a command: a reason to leave it, or the words of a dry or short run."""
    for start, reason in ELSEWHERE.items():
        if command.startswith(start):
            return reason
    # not a host of ours
    words = shlex.split(re.sub(r"--master [\w.-]+:", "--master 127.0.0.1:", command))
    while words and "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    if words[:1] == ["bash"] and words[1].startswith("scripts/train"):
        return ["bash", *words[1:], "--dry-run"]
    if "paddle.distributed.launch" in command:
        return [w for w in words[words.index("tools/train.py") :]]
    if words[:1] in (["python"], ["fcos"]):
        return words[1:] if words[0] == "python" else [f"tools/{words[1]}.py", *words[2:]]
    return None


@pytest.fixture(scope="module")
def placeholders(shapes, tmp_path_factory) -> dict[str, str]:
    """What stands for the pages' placeholders: a data set, its parts, and a config for it."""
    folder = tmp_path_factory.mktemp("placeholders")
    annotations = shapes / "annotations" / "instances_train.json"
    for name, share in (("A.json", "0.5"), ("B.json", "0.3")):
        argv = ["subset", str(annotations), "--share", share, "-o", str(folder / name)]
        assert run("dataset", [*argv, "--seed", "1" if name == "A.json" else "2"]) == 0
    assert run("config", ["new", "--data", str(shapes), "-o", str(folder / "my.yml"),
                          "--base", "fcos_r18_fpn_demo", "--from-scratch"]) == 0  # fmt: skip
    files = {name: str(folder / name) for name in ("A.json", "B.json", "my.yml")}
    folders = dict.fromkeys(("DIR", "OTHER_DIR"), str(shapes))
    return {**files, **folders, **dict.fromkeys(("all.json", "my.json"), str(annotations))}


@pytest.mark.parametrize("command", sorted({*commands(), *inline()}))
def test_command_is_accepted(command, placeholders, tmp_path, capfd, monkeypatch):
    """Each command does its work, or gets as far as the COCO or the weights it lacks here."""
    words = plan(command)
    if isinstance(words, str):
        return
    monkeypatch.chdir(ROOT)
    if words[0] in ("tools/dataset.py", "tools/config.py"):
        before = [None, *words]
        outputs = ("-o", "--output", "--json", "--fix")
        words = [
            str(tmp_path / word)
            if last in outputs and "=" not in word
            else placeholders.get(word, word)
            for last, word in zip(before, words)
        ]
    words = [str(ROOT / HEADLINE) if word == "my.yml" else word for word in words]
    if words[0] == "bash":
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120, cwd=ROOT,
            env={**os.environ, "DEVICE": "cpu", "PATH": path},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "paddle.distributed.launch" in done.stdout or "tools/train.py" in done.stdout
        return
    name, arguments = words[0].removeprefix("tools/").removesuffix(".py"), words[1:]
    code = run(name, arguments)
    captured = capfd.readouterr()
    if name in ("train", "eval", "infer", "export_model"):  # refused for COCO's absence alone
        assert code == 2
        assert re.search("does not exist|no such|no image found", captured.err, re.I), captured.err
    else:
        assert code in (0, 1), captured.err


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda page: page.name
)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    ending = r"(?:yml|yaml|sh|py|md|sbatch|cpu|nvidia|ixuca)"
    named = re.findall(rf"\b(?:configs|docs|scripts|tools|tests)/[\w./-]+\.{ending}\b", text)
    for path in set(named):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/reliability.md"])
def test_promises_name_tests_that_exist(page):
    """Each row of the page's first table names a test, and every named test is there."""
    text = (ROOT / page).read_text()
    there = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    for name in set(re.findall(r"`(test_\w+)`", text)):
        assert f"def {name}(" in there, f"{page} names {name}"
    header, _, *rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    assert len(rows) > 5
    for row in rows:
        assert re.search(r"`test_\w+`", row), f"{page}: no test in: {row}"


SHOWN = re.compile(
    r"```bash\n(python tools/analyze_model[^\n]* --scaling[^\n]*)\n```\n+```text\n(.*?)```", re.S
)


def test_calculated_tables_are_what_the_command_prints(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [pair for page in PAGES for pair in SHOWN.findall(page.read_text())]
    assert found
    for command, shown in found:
        assert run("analyze_model", [*shlex.split(command)[2:], "-o", "device=cpu"]) == 0
        assert capsys.readouterr().out == shown


@pytest.mark.e2e
def test_own_data_as_the_readme_says(shapes, tiny, tmp_path):
    """The README's config for a user's own folder, with this folder in it."""
    block = re.search(r"```yaml\n(_BASE_.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    config = tmp_path / "mine.yml"
    text = re.sub(r"^_BASE_.*$", f"_BASE_: ['{tiny}']", block, flags=re.M)
    text = re.sub(r"^pretrain_weights.*$", "", text, flags=re.M).replace("/data/cells", str(shapes))
    text = text.replace("annotations/", "annotations/instances_").replace(
        "num_classes: 3", "num_classes: 4"
    )
    config.write_text(text)
    done = run_tool("train", "-c", config, "--eval", "-o", "epoch=1", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "output" / "mine" / "best_model.pdparams").is_file()


def test_files_that_pages_name_exist():
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs/architecture.svg"]
    for page in pages:
        for name in re.findall(r"\b[\w/-]+/\w+\.py\b", page.read_text()):
            places = ROOT / name, ROOT / "fcos_recipe" / name
            assert any(path.is_file() for path in places), f"{page.name}: {name}"
