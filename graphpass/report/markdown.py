"""A report as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from graphpass.report.data import Report
from graphpass.report.rows import (
    CHOICES,
    OUTPUTS,
    OVERVIEW,
    PASSES,
    REWRITES,
    Row,
    choices,
    exactly,
    outputs,
    overview,
    passes,
    refusals,
    remarks,
    rewrites,
)
from graphpass.report.summary import verdict
from graphpass.wording import code_span
from graphpass.wording import markdown as escaped


def markdown(report: Report) -> str:
    """Return the report as Markdown, for a pull request."""
    names = [facts.files[0].name if facts.files else "" for facts in (report.input, report.output)]
    lines = ["## graphpass: " + " → ".join(code_span(name) for name in names if name), ""]
    lines += [f"**{escaped(verdict(report))}**", ""]
    lines += markdown_table(OVERVIEW, overview(report))
    lines += markdown_table(PASSES, passes(report))
    lines += [f"- {escaped(line)}" for line in remarks(report, everything=True)]
    lines += _folded("choices", markdown_table(CHOICES, choices(report)))
    if told := exactly(report):
        lines.append(f"- {told}")
    lines += _folded("outputs", markdown_table(OUTPUTS, outputs(report)))
    lines += _folded("rewrites", markdown_table(REWRITES, rewrites(report)))
    refused = refusals(report)
    if refused:
        count = sum(len(group.nodes) for group in refused)
        lines += ["", f"<details><summary>{count} refused</summary>", ""]
        lines += [f"- {escaped(group.told)}" for group in refused]
        lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def _folded(name: str, table: list[str]) -> list[str]:
    """Return a table to be opened by a click, nothing where it has no rows."""
    count = len(table) - 3
    if count < 1:
        return []
    return ["", f"<details><summary>{count} {name}</summary>", "", *table, "</details>"]


def markdown_table(header: Row, rows: Iterator[Row]) -> list[str]:
    """Return the lines of a table, and an empty one."""
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(escaped(cell.strip()) for cell in row)} |" for row in rows]
    return [*lines, ""]
