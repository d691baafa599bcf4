"""Where a model's external data is, and whether the model may read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from onnx import TensorProto

from graphpass.storage.reference import Reference, WireError, byte_count, stamp

# A file of zeros that nobody wrote costs nothing to send, and all memory to read.
_HOLES_FROM_BYTES = 1 << 28


class DataFiles:
    """The external data files of one model, each looked at once.

    A model from a stranger must not pull other files of the user into itself: its data lies in its
    own folder, whichever way the location or the file system spells it, or where the user allows.
    """

    def __init__(self, model: str, folder: Path, allowed: Sequence[Path]) -> None:
        """`model`: what errors call it; `folder`: its own; `allowed`: others to read from."""
        self._model = model
        self._folder = folder
        self._allowed = [os.path.realpath(path) for path in allowed]
        self._found: dict[str, tuple[str, os.stat_result]] = {}

    def reference(self, tensor: TensorProto) -> Reference:
        """Return where the data of an external tensor is.

        Raises:
            WireError: it is not there, not as long as the tensor's shape says, or may not be read.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            if location not in self._found:
                self._found[location] = self._find(location)
            path, status = self._found[location]
            offset, length = _range(entries, path, status.st_size)
            expected = byte_count(tensor.data_type, list(tensor.dims))
            if length != expected:
                raise _RefusedError(f"has {length} bytes in {path}, but its shape needs {expected}")
        except _RefusedError as refused:
            message = f"the data of tensor '{tensor.name}' in {self._model} {refused}"
            raise WireError(message) from None
        return Reference(path, offset, length, "external", stamp(status))

    def _find(self, location: str) -> tuple[str, os.stat_result]:
        """Return the real path and the status of a data file that may be read."""
        if not location or "\0" in location:
            raise _RefusedError("is external, but no file is named")
        path = Path(os.path.realpath(self._folder / location))
        trusted = any(path.is_relative_to(folder) for folder in self._allowed)
        escape = None if trusted else self._escape(location, path)
        if escape is not None:
            raise _RefusedError(
                f"is at '{location}', {escape}: not read unless its folder is allowed"
            )
        try:
            status = path.stat()
        except OSError as error:
            raise _RefusedError(f"cannot be read from {path}: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode):
            raise _RefusedError(f"should be in {path}, which is not a regular file")
        if status.st_size > _HOLES_FROM_BYTES and status.st_blocks * 512 < status.st_size // 16:
            raise _RefusedError(
                f"should be in {path}, which is nearly all holes: {status.st_size} bytes, of which "
                f"{status.st_blocks * 512} are there"
            )
        if status.st_nlink > 1 and not trusted:
            raise _RefusedError(
                f"is at '{location}', a hard link, which may be a file from elsewhere: "
                "not read unless its folder is allowed"
            )
        return str(path), status

    def _escape(self, location: str, path: Path) -> str | None:
        """Return how `location`, really `path`, leaves the model's folder; None if it does not."""
        if Path(location).is_absolute():
            return "an absolute path"
        if ".." in Path(location).parts:
            return "a path with '..'"
        if not path.is_relative_to(os.path.realpath(self._folder)):
            return "a symbolic link out of the model's folder"
        return None


class _RefusedError(Exception):
    """What is wrong with a tensor's data, as the rest of a sentence that names the tensor."""


def _range(entries: dict[str, str], path: str, size: int) -> tuple[int, int]:
    """Return offset and length in bytes; what is not given is the start and the end of the file."""
    offset = _natural(entries.get("offset", "0"))
    length = _natural(entries["length"]) if "length" in entries else max(size - offset, 0)
    if offset + length > size:
        raise _RefusedError(
            f"is said to be {length} bytes from byte {offset} of {path}, which has only {size}"
        )
    return offset, length


def _natural(text: str) -> int:
    if not text.isdecimal() or len(text) > 19:
        raise _RefusedError(f"has the offset or length '{text[:40]}', which is no number of bytes")
    return int(text)
