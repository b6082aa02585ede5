"""docs/configuration.md equals the output of the code."""

import re

from fcos_recipe.cli import run
from fcos_recipe.compat import REPLACED
from fcos_recipe.config.schema import signature


def test_the_reference_is_up_to_date_and_complete(root, capsys):
    text = (root / "docs/configuration.md").read_text()
    assert run("config", ["keys", "--markdown"]) == 0
    assert capsys.readouterr().out == text, "run the command in the file's second line"
    parts = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.M | re.S))
    assert sorted(parts) == sorted(REPLACED)
    for name, part in parts.items():
        told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*)\|", part, re.M))))
        assert told == set(signature(name).args), name
