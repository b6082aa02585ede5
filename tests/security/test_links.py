"""No command follows a link that stands under the name of a file or folder that it writes.

The property: what a command has written is replaced by links to canaries, file by file and folder
by folder, and the command runs again. It succeeds or refuses with exit code 2 and one line, and the
canaries keep their content.
"""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from fcos_recipe.cli import run
from tests.helpers import layouts

# Name of a case: arguments. A link under a name that they contain may be followed, as by `cp`.
ANNO = "DATA/annotations/instances_train.json"
QUICK = {
    "verify": ["dataset", "verify", "DATA", "--fix", "FIX", "--json", "A.json"],
    "browse": ["dataset", "browse", "DATA", "--output", "A.html"],
    "subset": ["dataset", "subset", ANNO, "--count", "2", "-o", "A.json", "--force"],
    "split": ["dataset", "split", ANNO, "-o", "OUT", "--force", "--json", "A.json"],
    "merge": ["dataset", "merge", ANNO, "-o", "OUT/A.json", "--force"],
    "convert": ["dataset", "convert", "YOLO", "-o", "OUT", "--force"],
    "embedded": ["dataset", "convert", "LABELME", "-o", "OUT", "--force", "--skip-bad"],
    "new": ["config", "new", "--data", "YOLO", "-o", "OUT/c.yml"],
    "copy": ["config", "copy", "fcos_r50_fpn_1x_coco"],
    "weights": ["weights", "convert", "W.pdparams", "w.pdparams"],
    "report": ["report", "RUN", "--bootstrap", "0"],
    "report elsewhere": ["report", "RUN", "--output", "OUT", "--bootstrap", "0"],
}  # fmt: skip
ONLY_NAMED = {"subset", "merge"}  # write nothing else
SLOW = {
    "train": ["train", "-c", "C.yml", "--eval", "--output", "TRAINED", "--resume", "auto",
               "--logger", "csv", "tensorboard", "-o", "epoch=2"],
    "eval": ["eval", "-c", "C.yml", "--weights", "TRAINED/model_final.pdparams", "--output_eval",
              "OUT", "--save-predictions", "A.json"],
    "infer": ["infer", "-c", "C.yml", "--weights", "TRAINED/model_final.pdparams", "--input",
               "DATA", "--output", "OUT", "--csv", "--save-crops", "--save-labels", "yolo",
               "--max-dets", "2", "--draw-threshold", "0"],
    "export": ["export_model", "-c", "C.yml", "--weights", "TRAINED/model_final.pdparams",
                "--output", "OUT"],
    "stats": ["dataset", "stats", "DATA", "--output", "OUT"],
}  # fmt: skip


def tree(folder: Path) -> dict[Path, tuple]:
    """Everything below a folder, without following links; by inode and time a file is known."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        found[path.relative_to(folder)] = (seen.st_ino, seen.st_mtime_ns) * (not path.is_dir())
    return found


def digest(folder: Path) -> str:
    """Hash of names, kinds, times and contents below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        total.update(f"{path} {seen.st_mode} {seen.st_mtime_ns}".encode())
        total.update(path.read_bytes() if path.is_file() else b"")
    return total.hexdigest()


@pytest.fixture
def place(tmp_path, shapes, tiny, made, monkeypatch) -> Path:
    """Working directory with small data sets, a run and weights; a canary folder is beside it."""
    work, canary = tmp_path / "work", tmp_path / "canary"
    for folder in (work, canary / "folder"):
        folder.mkdir(parents=True)
    for file in ("file", "folder/file", "folder/eval.json", "folder/train.csv"):
        (canary / file).write_text("precious")
    shutil.copytree(shapes, work / "DATA", ignore=shutil.ignore_patterns(".fcos_index", "*.yml"))
    layouts.yolo_ultralytics(work / "YOLO")
    layouts.labelme_embedded(work / "LABELME")
    made.rename(work / "RUN")
    (work / "C.yml").write_text(tiny.read_text().replace(str(shapes), str(work / "DATA")))
    (work / "W.pdparams").write_bytes(pickle.dumps({"w": np.zeros(2, np.float32)}, 4))
    monkeypatch.chdir(work)
    return work


def written_by(argv: list[str], place: Path) -> list[Path]:
    """Run a command; what it made or changed, with its folders, but what the arguments name."""
    before = tree(place)
    assert run(argv[0], argv[1:]) == 0
    after = tree(place)
    new = {p for p in after if p not in before or after[p] != before[p]}
    named = {Path(word) for word in argv} | {p for word in argv for p in Path(word).parents}
    folders = {q for p in new for q in p.parents if q.parts[:1] != ("DATA",)}
    return [place / p for p in sorted((new | folders) - named)]


def put_link(path: Path, to: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(to)


def once_more(argv: list[str], canary: Path, capfd) -> str:
    """Run a command that may refuse in one line; return it."""
    before = digest(canary)
    capfd.readouterr()
    code = run(argv[0], argv[1:])
    shown = capfd.readouterr()
    assert digest(canary) == before, (argv, shown.err)
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    # 1: figures that were already shown could not be written as well
    assert code in (0, 1, 2) and len(errors) == (code > 0), shown.err
    assert "Traceback" not in shown.err, shown.err
    return errors[0] if errors else ""


@pytest.mark.parametrize("name", QUICK)
def test_a_link_in_place_of_one_thing_written(name, place, capfd):
    argv = QUICK[name]
    canary = place.parent / "canary"
    written = written_by(argv, place)
    assert bool(written) == (name not in ONLY_NAMED)
    shutil.copytree(place, place.parent / "done", symlinks=True)
    for path in written:
        for to in ("folder",) if path.is_dir() else ("file", "none"):
            put_link(path, canary / to)
            once_more(argv, canary, capfd)
            shutil.rmtree(place)
            shutil.copytree(place.parent / "done", place, symlinks=True)
            os.chdir(place)


@pytest.mark.e2e
@pytest.mark.slow
def test_links_in_place_of_all_that_is_written(place, capfd):
    """Links that are refused are removed one after another, until the command succeeds."""
    canary = place.parent / "canary"
    assert run("train", [*SLOW["train"][1:-1], "epoch=1"]) == 0
    for argv in SLOW.values():
        written = written_by(argv, place)
        assert written, argv
        folders = [p for p in written if p.is_dir()]
        for kind in ([p for p in written if p not in folders], folders):
            links = [p for p in kind if not any(q in p.parents for q in kind)]
            for path in links:
                put_link(path, canary / ("folder" if path in folders else "file"))
            while said := once_more(argv, canary, capfd):
                refused = [p for p in links if p.is_symlink() and p.name in said]
                assert refused, said
                for path in refused:
                    path.unlink()
