"""Text files are read if they are files, and appear in one step."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from graphpass.errors import OutputError, UsageError
from graphpass.resources import Closing

_LONGEST_BYTES = 1 << 28


def read_text(path: Path) -> str:
    """Return what a file holds; a pipe or device is not waited for. Raises `UsageError`."""
    try:
        if not path.is_file() and path.exists() and not path.is_dir():
            raise UsageError(f"{path} is not a regular file")
        if path.stat().st_size > _LONGEST_BYTES:
            raise UsageError(f"{path} is longer than the {_LONGEST_BYTES >> 20} MiB that are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text in UTF-8") from None


class PendingText(Closing):
    """Text that is written, but not yet under its own name; leaving the block removes it."""

    def __init__(self, path: Path, text: str) -> None:
        """Raises `OutputError`."""
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        require_place(path)
        try:
            with self._temporary.open("x", encoding="utf-8") as file:  # never through a link
                file.write(text)
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
