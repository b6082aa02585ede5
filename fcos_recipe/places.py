"""Where the project's own files are, in a checkout and installed from a wheel; how paths are shown.

Commands write below the working directory, never into an installed package.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  #: the folder from which this package is imported
CHECKOUT = (ROOT / "setup.py").is_file() and (ROOT / "configs" / "results.yml").is_file()
#: The folder with configs/ and tools/; setup.py copies both into the package of a wheel.
FILES = ROOT if CHECKOUT else PACKAGE
CONFIGS = FILES / "configs"
RESULTS = CONFIGS / "results.yml"  #: published figures, not a config
TOOLS = FILES / "tools"
DATA = (ROOT if CHECKOUT else Path()) / "datasets"  #: where data sets are downloaded


def display(path: str | os.PathLike) -> str:
    """Show a path relative to the working directory if it lies below it, else absolute."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
