"""Tables in the documents that tests write and check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PROOF = Path(__file__).parents[1] / "docs" / "proof.md"


def write_table(name: str, lines: Sequence[str]) -> None:
    """Put `lines` between the marks of a table in docs/proof.md."""
    text = PROOF.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, rest = text.split(begin)
    PROOF.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1], "utf-8")


def rows_of(name: str) -> dict[str, list[str]]:
    """Return the cells of a table in docs/proof.md by the first of each row."""
    text = PROOF.read_text(encoding="utf-8")
    part = text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in part.splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}
