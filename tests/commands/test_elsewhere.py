"""Options of PaddleDetection and other projects are answered with what to use here."""

import pytest

from fcos_recipe.cli import run
from fcos_recipe.commands.elsewhere import PADDLEDETECTION, USUAL, markdown
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


def test_the_page_has_the_table():
    assert markdown() in (ROOT / "docs" / "migrating.md").read_text()


def test_help_does_not_list_them(capsys):
    for command in PADDLEDETECTION:
        with pytest.raises(SystemExit):
            run(command, ["--help"])
        assert "slim_config" not in capsys.readouterr().out
