"""The live page: its answers, the accepted hosts, and how the server ends."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import pytest

from fcos_recipe.commands import report
from fcos_recipe.errors import UserError
from fcos_recipe.report import html
from fcos_recipe.report.serve import REFRESH, Server
from fcos_recipe.report.write import make
from tests.conftest import ROOT


@pytest.fixture
def server(made):
    calls = []

    def page(refresh):
        calls.append(refresh)
        return html.page(make(made), refresh)

    with Server(0, page, made) as server:
        server.calls = calls
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, path="/", host=None, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer, answer.read().decode()


def test_it_shows_what_the_run_has_written_meanwhile(server, made):
    answer, text = ask(server)
    assert answer.status == 200 and f'http-equiv="refresh" content="{REFRESH}"' in text
    assert "text/html" in answer.headers["Content-Type"]
    assert ask(server)[1] == text and server.calls == [REFRESH]  # nothing new: not made again
    record = {"kind": "train", "time": 1, "epoch": 2, "step": 999, "loss": 0.7357}
    with open(made / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")
    assert "0.7357" in ask(server)[1] and "0.7357" not in text
    still = ask(server, "/?still")[1]
    assert 'http-equiv="refresh"' not in still
    assert ask(server, method="HEAD")[1] == ""


def test_loopback_only():
    with Server(0, lambda refresh: "", ROOT) as server:
        assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{}", "127.0.0.1:1",
                                  "127.0.0.1", "localhost.evil:{}", "127.0.0.1:{}@evil",
                                  "[::1]:{}"])  # fmt: skip
def test_other_names_get_nothing(server, host):
    answer, text = ask(server, host=host.format(server.server_port))
    assert answer.status == 403 and "FCOS" not in text and server.calls == []
    assert ask(server, host=f"localhost:{server.server_port}")[0].status == 200


@pytest.mark.parametrize("path", ["/config.yml", "/../environment.json", "/..%2f..%2fetc/passwd",
                                  "/x//", "/examples/", "/?x", "/?still&x"])  # fmt: skip
def test_no_file_and_no_listing(server, path):
    answer, text = ask(server, path)
    assert answer.status == 404 and text == "this server only has the page /\n"
    assert ask(server, method="POST")[0].status == 501


def test_a_directory_that_goes_away_is_told(server, made, tmp_path):
    assert ask(server)[0].status == 200
    made.rename(tmp_path / "elsewhere")
    answer, text = ask(server)
    assert answer.status == 503 and "no such run directory" in text


def test_a_port_in_use_is_one_line(server, made):
    with pytest.raises(UserError, match="--serve .*: Address already in use"):
        Server(server.server_port, None, made)
    with pytest.raises(UserError, match="--serve 99999: "):
        Server(99999, None, made)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_how_it_ends(made, number, code):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/report.py"), str(made), "--serve", "0"], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        url = urlsplit(re.search(r"http://127\.0\.0\.1:\d+/", line)[0])
        connection = http.client.HTTPConnection(url.netloc, timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        process.send_signal(number)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code and out == ""
    assert error.strip() == ("interrupted" if number == signal.SIGINT else "")


def test_what_is_no_run_ends_before_it_serves(tmp_path):
    with pytest.raises(UserError, match="no such run directory"):
        report.main([str(tmp_path / "none"), "--serve", "0"])
