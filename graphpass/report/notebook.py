"""A report as a notebook shows it: the verdict, what changed, the passes, what one must know."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from graphpass.report.data import Report
from graphpass.report.rows import OVERVIEW, PASSES, Row, overview, passes, remarks
from graphpass.report.summary import verdict
from graphpass.wording import visible


def notebook(report: Report) -> str:
    """Return HTML without scripts, styles or anything from elsewhere; names are escaped."""
    parts = [f"<b>{_told(verdict(report))}</b>", _table(OVERVIEW, overview(report))]
    parts.append(_table(PASSES, passes(report, everything=False)))
    lines = [f"<li>{_told(line)}</li>" for line in remarks(report)]
    if lines:
        parts.append(f"<ul>{''.join(lines)}</ul>")
    return f"<div>{''.join(parts)}</div>"


def _table(header: Row, rows: Iterable[Row]) -> str:
    body = [_row("td", row) for row in rows]
    return f"<table>{_row('th', header)}{''.join(body)}</table>" if body else ""


def _row(tag: str, cells: Row) -> str:
    return "<tr>" + "".join(f"<{tag}>{_told(cell.strip())}</{tag}>" for cell in cells) + "</tr>"


def _told(text: str) -> str:
    return escape(visible(text))
