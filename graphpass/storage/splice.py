"""Bytes go from file to file inside the kernel, and durably."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from graphpass.storage.protobuf import Piece, Splice
from graphpass.storage.reference import WireError, stamp

_CHUNK_BYTES = 1 << 20
_OPEN_FILES = 16  # some models keep every weight in a file of its own
_STEP_BYTES = 1 << 26  # written at once, before the disk begins with it
_SPLICED_FROM_BYTES = 1 << 16  # below that, a copy costs less than a call
_CANNOT_SPLICE = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
}


def write_file(path: Path, pieces: Iterable[Piece], sources: Sources, mode: int | None) -> None:
    """Write a new file, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with open(descriptor, "wb", buffering=_CHUNK_BYTES) as file:  # noqa: PTH123
        if mode is not None:
            os.fchmod(descriptor, mode)
        flowing = _Flow(descriptor)
        for piece in pieces:
            if isinstance(piece, Splice) and piece.length >= _SPLICED_FROM_BYTES:
                file.flush()
                piece = sources.splice(piece, descriptor, flowing)
            for chunk in sources.chunks(piece):
                file.write(chunk)
                flowing.advance(len(chunk))
        file.flush()
        os.fsync(descriptor)


class _Flow:
    """Lets the disk begin while there is more to write: `fsync` at the end finds little to do."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written = self._begun = 0

    def advance(self, count: int) -> None:
        """Note that `count` bytes more were written."""
        self._written += count
        if self._written - self._begun < _STEP_BYTES:
            return
        # named for the cache, but what it does to pages that are not on disk is to send them there
        with contextlib.suppress(OSError):
            size = self._written - self._begun
            os.posix_fadvise(self._descriptor, self._begun, size, os.POSIX_FADV_DONTNEED)
        self._begun = self._written


def sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Sources:
    """The files that pieces come from, the last few of them open, checked to be what they were."""

    def __init__(self, stamps: dict[str, str]) -> None:
        self._stamps = stamps
        self._descriptors: dict[str, int] = {}
        self._spliceable = hasattr(os, "copy_file_range")  # Linux has it

    def __enter__(self) -> Sources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_all_but(0, check=error is None)

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """Yield the bytes of `piece`, 1 MiB at a time."""
        if isinstance(piece, bytes):
            for start in range(0, len(piece), _CHUNK_BYTES):
                yield piece[start : start + _CHUNK_BYTES]
            return
        source = self._open(piece.path)
        position, end = piece.offset, piece.offset + piece.length
        while position < end:
            chunk = os.pread(source, min(_CHUNK_BYTES, end - position), position)
            if not chunk:
                raise WireError(f"{piece.path} became shorter while it was read")
            yield chunk
            position += len(chunk)

    def splice(self, piece: Splice, target: int, flowing: _Flow) -> Splice:
        """Append `piece` to the file `target` inside the kernel; return what it cannot do so."""
        source = self._open(piece.path)
        position, end = piece.offset, piece.offset + piece.length
        while self._spliceable and position < end:
            try:
                size = min(_STEP_BYTES, end - position)
                count = os.copy_file_range(source, target, size, offset_src=position)
            except OSError as error:
                if error.errno not in _CANNOT_SPLICE:
                    raise
                count = 0
            self._spliceable = count > 0
            position += count
            flowing.advance(count)
        return Splice(piece.path, position, end - position)

    def _open(self, path: str) -> int:
        descriptor = self._descriptors.pop(path, None)
        if descriptor is None:
            self._close_all_but(_OPEN_FILES - 1)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise WireError(f"cannot read {path}: {error.strerror}") from None
            self._descriptors[path] = descriptor
            self._check(path, descriptor)
        self._descriptors[path] = descriptor  # last, as it is the one in use
        return descriptor

    def _close_all_but(self, count: int, *, check: bool = True) -> None:
        """Close those that were not used for longest, all of them whatever a check says."""
        with contextlib.ExitStack() as stack:
            while len(self._descriptors) > count:
                path = next(iter(self._descriptors))
                descriptor = self._descriptors.pop(path)
                stack.callback(os.close, descriptor)
                if check:
                    stack.callback(self._check, path, descriptor)

    def _check(self, path: str, descriptor: int) -> None:
        if stamp(os.fstat(descriptor)) != self._stamps[path]:
            raise WireError(f"{path} has changed since it was read")
