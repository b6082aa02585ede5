"""docs/*.ipynb: kept without outputs, and runs from top to bottom in an empty folder.

The cells run here one after the other as plain Python: a Jupyter kernel would bring some forty
packages. So they use nothing of IPython, and a picture is the value of its cell's last line.
"""

import ast
import json

import pytest
from PIL import Image

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
SMALL = {"IMAGES = 400": "IMAGES = 40", "EPOCHS = 4": "EPOCHS = 1"}


def code(notebook) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_have_no_outputs_and_are_linked(notebook):
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    for cell in content["cells"]:
        assert cell["metadata"] == {} and cell["id"]
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))
    for page in ("README.md", "README_zh.md"):
        assert f"docs/{notebook.name}" in (ROOT / page).read_text()


@pytest.mark.e2e
def test_it_trains_and_shows_predictions(tmp_path, monkeypatch, capsys):
    (notebook,) = NOTEBOOKS
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    shown, text = [], "\0".join(code(notebook))
    for usual, small in SMALL.items():
        assert text.count(usual) == 1
        text = text.replace(usual, small)
    for cell in text.split("\0"):
        tree, last = ast.parse(cell), None
        if isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        exec(compile(tree, notebook.name, "exec"), names)
        if last:
            shown.append(eval(compile(last, notebook.name, "eval"), names))
    (picture,) = [value for value in shown if isinstance(value, Image.Image)]
    assert picture.size == (4 * 224, 160)
    said = capsys.readouterr().out
    assert "0 errors, 0 warnings" in said and "step  10  loss" in said and "\nAP 0." in said
    assert (tmp_path / "notebook/run/report.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notebook"]
