"""`fcos report`: write report.html and report.md for a run directory."""

import argparse
import signal
import sys
from pathlib import Path

from fcos_recipe import exit_codes
from fcos_recipe.commands.options import parser
from fcos_recipe.errors import printable
from fcos_recipe.report.write import HTML, MARKDOWN, make, write

PORT = 8040
_HELP = """\
examples:
  python tools/report.py output/fcos_r18_fpn_demo
  python tools/report.py output/new --compare output/old output/older
  python tools/report.py output/new --serve          # reloads while the run continues

It reads only the run directory; a training run writes both files at its end. report.html is one
file that opens without a network; report.md is for issues and reviews. --compare draws the curves
of the runs together and lists the config keys that differ; if both runs kept their detections
(detections.npz) on the same validation set, AP differences get a 95 % interval.
"""
_CODES = {
    exit_codes.OK: "written, or --serve was ended by SIGTERM",
    exit_codes.BAD_INPUT: "not a run directory, or not writable",
    exit_codes.INTERRUPTED: "interrupted by Ctrl-C",
}


def main(argv: list[str]) -> int:
    """Parse and run; see `fcos report --help`."""
    ask = parser("report", "Show everything about a run in one file.", _HELP, _CODES)
    add = ask.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="output directory of fcos train or fcos eval")
    add("--compare", type=Path, nargs="+", default=[], metavar="OTHER",
        help="run directories to compare with, at most five")  # fmt: skip
    add("--bootstrap", type=int, default=None, metavar="N",
        help="bootstrap draws per interval; 0: no intervals (default: 1000)")  # fmt: skip
    add("--output", type=Path, metavar="DIR",
        help=f"folder for {HTML} and {MARKDOWN} (default: RUN_DIR)")  # fmt: skip
    add(
        "--serve",
        type=int,
        nargs="?",
        const=PORT,
        metavar="PORT",
        help=f"serve it at http://127.0.0.1:PORT (default: {PORT}; 0: any free port)",
    )
    args = ask.parse_args(argv)
    if len(args.compare) > 5:
        ask.error("--compare: at most five")
    if args.bootstrap is not None and not 0 <= args.bootstrap <= 100_000:
        ask.error("--bootstrap: from 0 to 100000")
    if args.serve is not None:
        return _serve(args)
    if args.compare and args.bootstrap != 0:
        print("computing intervals takes seconds, or a minute for COCO's 5000 images "
              "(--bootstrap 0: no intervals)", file=sys.stderr)  # fmt: skip
    for path in write(args.run, args.compare, args.bootstrap, args.output):
        print(printable(str(path)))
    return 0


def _serve(args: argparse.Namespace) -> int:
    from fcos_recipe.report import html
    from fcos_recipe.report.serve import REFRESH, Server

    def page(refresh: int | None) -> str:
        return html.page(make(args.run, args.compare, args.bootstrap or 0), refresh)

    page(None)  # reports wrong directories now
    with Server(args.serve, page, args.run) as server:
        said = f"{server.url} shows {printable(str(args.run))} and reloads every {REFRESH} s"
        print(f"{said}; stop it with Ctrl-C", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        # every command blocks it, see `ending_at_once`; here it is the usual way to end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        server.serve_forever(poll_interval=0.2)
    return 0
