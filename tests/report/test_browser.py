"""The page in a real browser: no requests, no errors, nothing wider than the window."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from fcos_recipe.report import write as report
from tests.helpers.made_runs import judged, write_run

# A frame as wide as a phone; the page in it cannot run scripts, so the frame's owner looks.
FRAME = """<!DOCTYPE html><title>frame</title><link rel="icon" href="data:,">
<iframe src="report.html" style="width:%dpx;height:800px;border:0"></iframe><pre></pre><script>
onload = () => {
  console.info("control");
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  page.querySelectorAll("details").forEach(d => d.open = true);
  const width = page.documentElement.clientWidth;
  const scrolls = e => e.closest(".scroll, nav ul");
  const wide = [...page.querySelectorAll("body *")].filter(
    e => !scrolls(e) && e.getBoundingClientRect().right > width + 1 && !e.closest(".skip"));
  const small = [...page.querySelectorAll("svg.chart text")].map(
    e => e.getBoundingClientRect().height);
  document.querySelector("pre").textContent = JSON.stringify({
    width, scroll: page.documentElement.scrollWidth,
    wide: wide.map(e => e.tagName + "." + e.getAttribute("class")),
    fetched: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name),
    sections: [...page.querySelectorAll("h2")].map(e => e.textContent),
    charts: [...page.querySelectorAll("svg.chart")].map(e => e.getBoundingClientRect().width),
    images: [...page.images].map(e => [e.complete && e.naturalWidth,
                                       e.getBoundingClientRect().width]),
    background: getComputedStyle(page.body).backgroundColor,
    line: getComputedStyle(page.querySelector(".line")).stroke,
    text: Math.min(...small.filter(h => h > 0)),
  });
};
</script>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def site(tiny, validation, tmp_path_factory):
    """Address of a folder with a report and frames around it."""
    pytest.importorskip("hotcoco")
    folder = tmp_path_factory.mktemp("site")
    run = write_run(folder / "a_run", tiny, judged(*validation))
    report.write(run, [run], 20, folder)
    for width in (375, 1200):
        (folder / f"{width}.html").write_text(FRAME % width)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def look(chromium: str, url: str, profile: Path, dark: bool = False) -> tuple[dict, list[str]]:
    """What the frame found, and the lines of the console."""
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={profile}", "--enable-logging=stderr",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=1300,900",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--dump-dom", url],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    found = re.search(r"<pre>(\{.*?\})</pre>", done.stdout)
    assert found, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(found[1]), console


@pytest.mark.parametrize("width", [375, 1200])
def test_it_opens_offline_and_fits(chromium, site, tmp_path, width):
    found, console = look(chromium, f"{site}/{width}.html", tmp_path)
    assert len(console) == 1 and '"control"' in console[0]  # the console is heard, and silent
    assert found["fetched"] == []
    assert found["scroll"] <= found["width"] and found["wide"] == []
    assert found["sections"][:3] == ["Verdict", "Comparison", "Curves"]
    assert len(found["sections"]) == 12
    assert found["images"] and all(loaded > 100 for loaded, _ in found["images"])
    assert all(200 < shown <= found["width"] for _, shown in found["images"])
    assert len(found["charts"]) >= 9 and min(found["charts"]) > 250
    assert found["text"] >= 10  # pixels: what stands in the charts can be read


def test_dark_is_dark(chromium, site, tmp_path):
    light, _ = look(chromium, f"{site}/1200.html", tmp_path / "light")
    dark, _ = look(chromium, f"{site}/1200.html", tmp_path / "dark", dark=True)

    def brightness(color: str) -> float:
        return sum(map(int, re.findall(r"\d+", color)[:3])) / 3

    assert brightness(light["background"]) > 230 and brightness(dark["background"]) < 50
    assert brightness(light["line"]) < 130 < brightness(dark["line"])


def test_the_checks_above_can_fail(chromium, site, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "report.html").write_text(
        "<h2>x</h2><svg class=chart><text>x</text><path class=line></svg><img src='http://a.invalid"
        "/x.png'><div style='width:900px'>x</div><script>console.error('oh')</script>"
    )
    (folder / "375.html").write_text(FRAME % 375)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        found, console = look(
            chromium, f"http://127.0.0.1:{server.server_port}/375.html", tmp_path / "profile"
        )
        server.shutdown()
        thread.join()
    assert found["fetched"] == ["http://a.invalid/x.png"]
    assert found["scroll"] > found["width"] and "DIV.null" in found["wide"]
    assert any('"oh"' in line for line in console) and len(console) >= 2
