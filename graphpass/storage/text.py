"""Text files appear in one step."""

from __future__ import annotations

import os
from pathlib import Path

from graphpass.errors import OutputError


def write_text(path: Path, text: str) -> None:
    """Write a file in one step. Raises `OutputError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror}") from None
