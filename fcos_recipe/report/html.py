"""Render a report as one HTML file without scripts or external requests; all text is escaped."""

import base64
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from fcos_recipe.errors import UserError, printable
from fcos_recipe.files.reading import read_bytes, read_text
from fcos_recipe.report import blocks
from fcos_recipe.report.svg import swatch
from fcos_recipe.runs.contents import MOST_PICTURE

# Forbids scripts and requests even if a malicious file or class name should get past the escaping.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
STYLE = Path(__file__).with_name("style.css")


def page(report: blocks.Report, refresh: int | None = None) -> str:
    """The HTML text.

    Args:
        report: the report.
        refresh: interval in seconds at which the browser reloads the page; None: never.
    """
    live = ""
    if refresh:
        live = (
            f'<p class="live" role="status">Live: this page reloads every {refresh} s. '
            '<a href="/?still">Stop reloading</a></p>'
        )
    meta = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    links = "".join(f'<li><a href="#{s.anchor}">{text(s.title)}</a></li>' for s in report.sections)
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">{meta}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" '
        f'content="no-referrer"><link rel="icon" href="data:,"><title>{text(report.title)}</title>'
        f"<style>{read_text(STYLE)}</style></head><body>\n"
        '<a class="skip" href="#main">Skip to the report</a>'
        f'<header><h1>{text(report.title)}</h1><p class="sub">{text(report.subtitle)}</p>{live}'
        f'</header>\n<nav aria-label="Sections"><ul>{links}</ul></nav>\n<main id="main">'
    ]
    for section in report.sections:
        parts.append(
            f'\n<section aria-labelledby="{section.anchor}"><h2 id="{section.anchor}">'
            f"{text(section.title)}</h2>"
        )
        parts += [_block(block) for block in section.blocks]
        parts.append("</section>")
    return "".join(parts) + "\n</main></body></html>\n"


def text(value: object) -> str:
    """Escape text for use in elements and attributes."""
    return escape(printable(str(value)))


def _block(block) -> str:
    return _RENDER[type(block)](block)


def _text(block: blocks.Text) -> str:
    if block.kind == "heading":
        return f"<h3>{text(block.text)}</h3>"
    kind = f' class="{block.kind}"' if block.kind else ""
    return f"<p{kind}>{text(block.text)}</p>"


def _items(block: blocks.Items) -> str:
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in block.items) + "</ul>"


def _tiles(block: blocks.Tiles) -> str:
    rows = "".join(
        f"<div><dt>{text(name)}</dt><dd{_long(value)}>{text(value)}"
        + (f"<small>{text(remark)}</small>" if remark else "")
        + "</dd></div>"
        for name, value, remark in block.tiles
    )
    return f'<dl class="tiles">{rows}</dl>'


def _long(value: str) -> str:
    return ' class="long"' if len(value) > 9 else ""


def _table(block: blocks.Table) -> str:
    def kind(k: int) -> str:
        return ' class="word"' if k in block.left else ""

    head = "".join(f'<th scope="col"{kind(k)}>{text(h)}</th>' for k, h in enumerate(block.head))
    body = []
    for first, *rest in block.rows:
        cells = "".join(_cell(cell, kind(k)) for k, cell in enumerate(rest, 1))
        first = first.text if isinstance(first, blocks.Cell) else first
        body.append(f'<tr><th scope="row"{kind(0)}>{_breakable(first)}</th>{cells}</tr>')
    return (
        f'<p class="caption">{text(block.caption)}</p>'  # a <caption> scrolls away with its table
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(block.caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _breakable(value: str) -> str:
    """Escaped text in which long keys and paths may wrap after a dot or slash."""
    return re.sub(r"([./])(?=\w)", r"\1<wbr>", text(value))


def _cell(cell: str | blocks.Cell, kind: str) -> str:
    if isinstance(cell, str):
        return f"<td{kind}>{_breakable(cell) if kind else text(cell)}</td>"
    if cell.bar is not None:
        share = f"{100 * min(max(cell.bar, 0), 1):.1f}%"
        return f'<td class="bar"><span style="--w:{share}">{text(cell.text)}</span></td>'
    strength = f"{100 * min(max(cell.heat or 0, 0), 1):.0f}%"
    return f'<td class="heat" style="--h:{strength}">{text(cell.text)}</td>'


def _charts(block: blocks.Charts) -> str:
    return '<div class="charts">' + "".join(_chart(c) for c in block.charts) + "</div>"


def _chart(c: blocks.Chart) -> str:
    legend = ""
    if len(c.series) > 1:
        rows = "".join(f"<li>{swatch(k)}{text(name)}</li>" for k, name in enumerate(c.series))
        legend = f'<ul class="legend">{rows}</ul>'
    return (
        f"<figure><h3>{text(c.title)}</h3>{c.svg}{legend}"
        f"<figcaption>{text(c.summary)}</figcaption></figure>"
    )


def _pair(p: blocks.Pair) -> str:
    pictures = []
    for path, title, alt in zip((p.truth, p.found), ("annotations", "detections"), p.alts):
        try:
            content = read_bytes(path, MOST_PICTURE)
            if not content.startswith(b"\xff\xd8\xff"):  # for example a link to a private file
                raise UserError("not a JPEG")
        except UserError:
            lost = f"{path.name}: missing, too large, or not a JPEG"
            pictures.append(f'<p class="note">{text(lost)}</p>')
            continue
        data = base64.b64encode(content).decode()
        pictures.append(
            f'<div><img src="data:image/jpeg;base64,{data}" width="{p.size[0]}" '
            f'height="{p.size[1]}" alt="{text(alt)}"><span>{title}</span></div>'
        )
    return (
        f'<figure class="pair"><figcaption>{text(p.caption)}</figcaption>'
        f'<div class="both">{"".join(pictures)}</div></figure>'
    )


def _code(block: blocks.Code) -> str:
    lines = [f"<mark>{text(t)}</mark>" if marked else text(t) for t, marked in block.lines]
    label = text(block.label or "text")
    body = "\n".join(lines)
    return f'<pre class="scroll" role="region" tabindex="0" aria-label="{label}">{body}</pre>'


def _fold(block: blocks.Fold) -> str:
    inner = "".join(_block(b) for b in block.blocks)
    return f"<details><summary>{text(block.summary)}</summary>{inner}</details>"


_RENDER: dict[type, Callable[[Any], str]] = {
    blocks.Text: _text, blocks.Items: _items, blocks.Tiles: _tiles, blocks.Table: _table,
    blocks.Charts: _charts, blocks.Pair: _pair, blocks.Code: _code, blocks.Fold: _fold,
}  # fmt: skip
