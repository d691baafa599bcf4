"""Text files appear in one step."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from graphpass.errors import OutputError
from graphpass.resources import Closing


class PendingText(Closing):
    """Text that is written, but not yet under its own name; leaving the block removes it."""

    def __init__(self, path: Path, text: str) -> None:
        """Raises `OutputError`."""
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        require_place(path)
        try:
            self._temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            self.close()
            raise OutputError(f"cannot write {path}: {error.strerror}") from None

    def commit(self) -> None:
        """Give it its name, in place of what was there. Raises `OutputError`."""
        try:
            self._temporary.replace(self._path)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Remove what is not committed."""
        with contextlib.suppress(OSError):
            self._temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a file in one step. Raises `OutputError`."""
    with PendingText(path, text) as pending:
        pending.commit()


def require_place(path: Path) -> None:
    """Raise `OutputError` where it is known before that no file can be written to `path`."""
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {path}: it is not a regular file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {folder} is not writable")


def require_folder(folder: Path) -> None:
    """Raise `OutputError` where `folder` is not there and cannot be made, or is not writable."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"cannot make the folder {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot make the folder {folder}: {there} is not writable")
