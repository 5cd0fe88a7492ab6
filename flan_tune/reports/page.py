"""HTML pieces, and the page around them. What comes from a run is escaped; nothing is loaded from outside."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template


@dataclass(frozen=True)
class Section:
    """A titled part of the page; `anchor` is what the contents link to. `body` is HTML."""

    anchor: str
    title: str
    body: str


@dataclass(frozen=True)
class Column:
    """A table column: `numeric` ones are aligned right, with figures of equal width."""

    title: str
    numeric: bool = True


def escape(text: object) -> str:
    """Text made safe for HTML, in attributes too."""
    return html.escape(str(text), quote=True)


def notice(text: str) -> str:
    """A sentence about something missing, set apart."""
    return f'<p class="notice">{escape(text)}</p>'


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def details(summary: str, body: str) -> str:
    """A part that opens on demand (and is open in print). `body` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def figure(svg: str, caption: str) -> str:
    """An inline figure with its caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], best: Sequence[int | None] | None = None) -> str:
    """A table; cells are HTML and escaped by the caller. `best`: for each column, the row set in bold, or None."""
    head = "".join(f"<th{_numeric(column)} scope='col'>{escape(column.title)}</th>" for column in columns)
    body = "".join(f"<tr>{_cells(columns, row, i, best)}</tr>" for i, row in enumerate(rows))
    head = f"<thead><tr>{head}</tr></thead>" if any(column.title for column in columns) else ""
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _numeric(column: Column) -> str:
    return ' class="number"' if column.numeric else ""


def _cells(columns: Sequence[Column], row: Sequence[str], number: int, best: Sequence[int | None] | None) -> str:
    cells = []
    for i, (column, cell) in enumerate(zip(columns, row, strict=True)):
        is_best = best is not None and best[i] == number
        cells.append(f"<td{_numeric(column)}>{f'<strong>{cell}</strong>' if is_best else cell}</td>")
    return "".join(cells)


def number(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """A number with a true minus sign, or a dash where there is none.

    >>> number(-3.14159), number(2, signed=True), number(None)
    ('−3.1', '+2.0', '–')
    """
    if value is None:
        return "–"
    rounded = round(value, digits) + 0.0  # no '-0.0'
    return format(rounded, f"{'+' if signed else ''},.{digits}f").replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(8.25), duration(200), duration(7384)
    ('8.2 s', '3 min 20 s', '2 h 03 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def assemble(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole page as one HTML text. `lead` is HTML that stands under the title."""
    contents = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "".join(f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections)
    files = resources.files("flan_tune.reports")
    return Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=files.joinpath("report.css").read_text(encoding="utf-8"),
        lead=lead,
        contents=contents,
        body=body,
    )
