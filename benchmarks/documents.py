"""Tables in documents: what a program here measured stands between marks of its own."""

from collections.abc import Sequence
from pathlib import Path


def write_between(marks: tuple[str, str], lines: Sequence[str], document: Path) -> None:
    """Put lines in the place of what stands between two marks of a document."""
    before, _, rest = document.read_text(encoding="utf-8").partition(marks[0])
    after = rest.partition(marks[1])[2]
    text = "\n".join([marks[0], *lines, marks[1]])
    document.write_text(f"{before}{text}{after}", encoding="utf-8")
