"""Make and write the report of a run directory."""

from collections.abc import Sequence
from pathlib import Path

from fcos_recipe.console import log
from fcos_recipe.errors import UserError, path_reason
from fcos_recipe.files.atomic import replace_file

HTML, MARKDOWN = "report.html", "report.md"


def make(path: Path, compare: Sequence[Path] = (), samples: int | None = None):
    """Make the report of a run directory, a `blocks.Report`.

    Raises:
        UserError: one of the directories is not a run directory.
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
        compare: run directories to compare it with.
        samples: bootstrap draws; None: the default.
        folder: output folder; default: the run directory.

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
            replace_file(folder / name, text)
    except OSError as error:
        where = error.filename or folder
        raise UserError(
            f"{where}: {path_reason(error)}; choose another folder with --output"
        ) from None
    return [folder / name for name in texts]


def after_training(path: Path, missing: dict[str, Exception]) -> None:
    """Write the report of a run that has ended; a failure is added to `missing` and logged."""
    try:
        log.info("report: %s", write(path)[0])
    except Exception as error:
        missing["report"] = error
        log.warning("report: not written: %s: %s", type(error).__name__, error)
