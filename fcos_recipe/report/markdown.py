"""Render a report as Markdown for issues and reviews; pictures are links to files."""

import os
import re
from collections.abc import Set
from html import escape
from pathlib import Path
from urllib.parse import quote

from fcos_recipe.errors import printable
from fcos_recipe.report import blocks


def page(report: blocks.Report, folder: Path) -> str:
    """The Markdown text.

    Args:
        report: the report.
        folder: where the file will be saved; picture links are relative to it.
    """
    parts = [f"# {text(report.title)}", text(report.subtitle)]
    for section in report.sections:
        parts.append(f"## {text(section.title)}")
        parts += [_block(block, folder) for block in section.blocks]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(value: object) -> str:
    """Escape text so that it stays on one line and contains no markup."""
    line = " ".join(printable(str(value)).split())
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", escape(line, quote=False))


def _block(block, folder: Path) -> str:
    match block:
        case blocks.Text():
            form = {"verdict": "**{}**", "heading": "### {}"}.get(block.kind, "{}")
            return form.format(text(block.text))
        case blocks.Items():
            return "\n".join(f"- {text(item)}" for item in block.items)
        case blocks.Tiles():
            rows = [[name, value, remark] for name, value, remark in block.tiles]
            return _table(["", "", ""], rows)
        case blocks.Table():
            rows = [[c.text if isinstance(c, blocks.Cell) else c for c in r] for r in block.rows]
            return f"{text(block.caption)}\n\n{_table(block.head, rows, block.left)}"
        case blocks.Charts():
            return "\n".join(f"- {text(c.title)}: {text(c.summary)}" for c in block.charts)
        case blocks.Pair():
            pictures = " ".join(
                f"![{text(alt)}]({quote(os.path.relpath(path, folder))})"
                for path, alt in zip((block.truth, block.found), block.alts)
            )
            return f"{text(block.caption)}\n\n{pictures}"
        case blocks.Code():
            lines = [printable(line) for line, _ in block.lines]
            longest = max(map(len, re.findall("`+", "\n".join(lines))), default=0)
            fence = "`" * max(3, longest + 1)  # longer than any fence in the text
            return "\n".join([fence, *lines, fence])
        case blocks.Fold():
            inner = "\n\n".join(_block(b, folder) for b in block.blocks)
            return (
                f"<details><summary>{escape(printable(block.summary))}</summary>\n\n{inner}\n\n"
                "</details>"
            )
    raise TypeError(block)


def _table(head: list[str], rows: list[list[str]], left: Set[int] = frozenset({0})) -> str:
    rule = ["---" if k in left else "--:" for k in range(len(head))]
    lines = [[text(h) for h in head], rule, *([text(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
