"""`fcos report`: a run directory -> report.html and report.md."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from fcos_recipe.console import log
from fcos_recipe.errors import UserError, printable
from fcos_recipe.files.atomic import replace_file

HTML, MARKDOWN = "report.html", "report.md"
PORT = 8040
_HELP = """\
examples:
  python tools/report.py output/fcos_r18_fpn_demo
  python tools/report.py output/new --compare output/old output/older
  python tools/report.py output/new --serve          # refreshes while the run goes on

Reads the run directory and nothing else; a training run writes both files itself at its end.
report.html is one file that opens without a network; report.md is for issues and reviews.
--compare draws the runs' curves together and lists what their configs differ in; where both kept
their detections (detections.npz) on the same validation set, AP differences get a 95 % interval.
exit codes: 0 written, or --serve ended by SIGTERM; 2 not a run directory, or not writable;
130 --serve or writing ended by Ctrl-C
"""


def main(argv: list[str]) -> int:
    """Parse and run; see `fcos report --help`."""
    parser = argparse.ArgumentParser(
        prog="fcos report", description="One file that tells all of a run.", epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="of fcos train, or an output of fcos eval")
    add("--compare", type=Path, nargs="+", default=[], metavar="OTHER",
        help="run directories, at most five")  # fmt: skip
    add("--bootstrap", type=int, default=None, metavar="N",
        help="draws behind an interval; 0: no interval (default: 300)")  # fmt: skip
    add("--output", type=Path, metavar="DIR",
        help=f"gets {HTML} and {MARKDOWN} (default: RUN_DIR)")  # fmt: skip
    add(
        "--serve",
        type=int,
        nargs="?",
        const=PORT,
        metavar="PORT",
        help=f"show it on this machine at http://127.0.0.1:PORT (default {PORT}; 0: a free one)",
    )
    args = parser.parse_args(argv)
    if len(args.compare) > 5:
        parser.error("--compare: at most five")
    if args.bootstrap is not None and not 0 <= args.bootstrap <= 100_000:
        parser.error("--bootstrap: from 0 to 100000")
    if args.serve is not None:
        return _serve(args)
    if args.compare and args.bootstrap != 0:
        print("drawing images for the intervals: seconds, minutes for COCO's 5000 images "
              "(--bootstrap 0: no intervals)", file=sys.stderr)  # fmt: skip
    for path in write(args.run, args.compare, args.bootstrap, args.output):
        print(printable(str(path)))
    return 0


def make(path: Path, compare: Sequence[Path] = (), samples: int | None = None):
    """The report of a run directory as `blocks.Report`.

    Raises:
        UserError: one of the directories is not a run's.
    """
    from fcos_recipe.report.sections import build
    from fcos_recipe.runs.contents import read_run

    run, others = read_run(path), [read_run(other) for other in compare]
    comparison = None
    if others:
        from fcos_recipe.report.compare import SAMPLES, blocks

        comparison = blocks(run, others, SAMPLES if samples is None else samples)
    return build(run, others, comparison)


def write(
    path: Path, compare: Sequence[Path] = (), samples: int | None = None, folder: Path | None = None
) -> list[Path]:
    """Write `HTML` and `MARKDOWN`.

    Args:
        path: run directory.
        compare: others to set beside it.
        samples: draws of the bootstrap; None: the default.
        folder: where to; default the run directory.

    Returns:
        the two files.

    Raises:
        UserError: not a run directory, or the files can't be written.
    """
    from fcos_recipe.report import html, markdown

    report, folder = make(path, compare, samples), folder or path
    texts = {HTML: html.page(report), MARKDOWN: markdown.page(report, folder)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            replace_file(folder / name, text.encode(errors="replace"))
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror}; choose another place with --output") from None
    return [folder / name for name in texts]


def after_training(path: Path) -> None:
    """Write the report of a run that has just ended. It never fails: one line instead."""
    try:
        log.info("report: %s", write(path)[0])
    except Exception as error:
        log.warning("report: not written: %s: %s", type(error).__name__, error)


def _serve(args: argparse.Namespace) -> int:
    from fcos_recipe.report import html
    from fcos_recipe.report.serve import REFRESH, Server

    def page(refresh: int | None) -> str:
        return html.page(make(args.run, args.compare, args.bootstrap or 0), refresh)

    page(None)  # what is wrong with the directories shows now
    with Server(args.serve, page, args.run) as server:
        said = f"{server.url} shows {printable(str(args.run))}, again every {REFRESH} s"
        print(f"{said}; Ctrl-C ends it", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        server.serve_forever(poll_interval=0.2)
    return 0
