"""Error texts: secrets in URLs are masked, and names from files neither break nor fill a line."""

import json
from urllib.parse import urlsplit

import numpy as np
import pytest

from fcos_recipe.errors import (
    MOST,
    RunFailure,
    UserError,
    UserErrors,
    one_line,
    printable,
    shortened,
    tell,
    without_secrets,
)

CANARY = "CANARY"
PASSWORDS = [CANARY, f"p@{CANARY}", f"p/{CANARY}", f"p?{CANARY}", f"p#{CANARY}", f"p'{CANARY}",
             f'p"{CANARY}', f"p;{CANARY}", f"p%40{CANARY}", f"{CANARY}:é"]  # fmt: skip
NAMES = ["sig", "pwd", "pass", "auth", "code", "jwt", "session", "X-Amz-Signature", "q", ""]


@pytest.mark.parametrize("seed", range(200))
def test_no_secret_of_a_url_stays(seed):
    rng = np.random.default_rng(seed)

    def one(*of):
        return of[rng.integers(len(of))]

    user = one("", f"user:{one(*PASSWORDS)}@", f"{one(*PASSWORDS)}@")
    pairs = [f"{one(*NAMES)}={CANARY}{k}" for k in range(rng.integers(3))]
    after = one("?", ";") + one("&", ";").join(pairs) if pairs else ""
    after += one("", f"#access_token={CANARY}", f"#{CANARY}", f"?{CANARY}")
    url = f"{one('https', 'bos', 's3+http')}://{user}example.invalid/w.pdparams{after}"
    before, behind = one(("", ""), ("see ", " now"), ("'", "'"), ("-o a=", ""))
    for text in (f"{before}{url}{behind}", json.dumps({"a": url, "b": [url]})):
        for shown in (without_secrets(text), printable(text)):
            assert CANARY not in shown, (text, shown)
    assert json.loads(without_secrets(json.dumps({"a": url, "b": "x@y"})))["b"] == "x@y"


def test_the_rest_of_a_url_and_other_text_stay():
    plain = "https://example.invalid:8080/a/w.pdparams and a@b, x?y=z, 'c' & d; e#f"
    assert without_secrets(plain) == plain
    url = "https://user:p@ss@example.invalid/w.pdparams?sig=a&pwd=b#c"
    masked = without_secrets(url)
    assert masked == "https://***@example.invalid/w.pdparams?sig=***&pwd=***#***"
    assert without_secrets(masked) == masked and urlsplit(masked).hostname == "example.invalid"


NAMES_OF_FILES = ["x" * 10**6, "9" * 400 + "\n" * 5000, "a\nb\tc\x1b[2J", "\ud800" * 9]


@pytest.mark.parametrize("name", NAMES_OF_FILES, ids=["long", "line feeds", "codes", "bytes"])
@pytest.mark.parametrize("kind", [UserError, RunFailure, lambda text: UserErrors([text] * 3)])
def test_an_error_is_one_bounded_line_whatever_it_names(kind, name, capsys):
    error = kind(f"c.yml: epoch: {name}: not a number; write one")
    tell(error)
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == (3 if isinstance(error, UserErrors) else 1)
    for line in shown:
        assert line.startswith("error: c.yml: epoch: ") and line.isprintable()
        assert line.endswith("not a number; write one") and len(line) <= MOST + len("error: ")
    assert one_line(str(error)) == str(error) or len(shown) == 3  # raised again, it stays the same


def test_a_text_is_cut_in_its_middle():
    assert shortened("x" * 60, 60) == "x" * 60
    assert shortened("a" * 99 + "z" * 99, 60) == f"{'a' * 23} ... (198 characters) ... {'z' * 11}"
