"""A skeleton becomes files again: weights go from file to file inside the kernel.

Nothing is written under its final name. `stage_model` writes a model, ready to run, into a hidden
folder beside its destination, and `commit` renames it into place, its data first: killed at any
moment, the destination has the old files or the new ones, and the next process there cleans up.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import onnx

from graphpass.layout import ExternalData, Layout, lay_out
from graphpass.protobuf import Piece, Splice
from graphpass.reference import WireError, WriteError, is_external, stamp, tensors
from graphpass.wire import skeleton_or_none

__all__ = [
    "StagedModel",
    "WriteError",
    "WrittenFile",
    "WrittenFiles",
    "stage_model",
    "write_model",
    "write_stream",
]

_CHUNK_BYTES = 1 << 20
_CANNOT_SPLICE = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EBADF,
    errno.ETXTBSY,
}


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written."""

    path: Path
    size_bytes: int

    def sha256(self) -> str:
        """Return the SHA-256 of the file as it is now, in hexadecimal."""
        digest = hashlib.sha256()
        with self.path.open("rb", buffering=0) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class WrittenFiles:
    """The model file, its external data if it has any, and an older data file that was left.

    `superseded` is the data file of the model that was overwritten, where it could not be removed
    safely because another model, or a file of that name that is not ours, may need it.
    """

    model: WrittenFile
    data: WrittenFile | None = None
    superseded: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        """All files that were written, the model first."""
        return (self.model,) if self.data is None else (self.model, self.data)


def write_model(
    skeleton: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    external_data: ExternalData = "auto",
    size_threshold: int = 1024,
) -> WrittenFiles:
    """Write `skeleton` to `path`: see `stage_model`, and `lay_out` for the options."""
    with stage_model(
        skeleton, path, external_data=external_data, size_threshold=size_threshold
    ) as staged:
        return staged.commit()


def stage_model(
    skeleton: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    external_data: ExternalData = "auto",
    size_threshold: int = 1024,
) -> StagedModel:
    """Write `skeleton` beside its destination; `commit()` on the result puts it there.

    Args:
        skeleton: may refer to the very files that will be replaced.
        path: the destination. A symbolic link is replaced, not followed.
        external_data: see `lay_out`.
        size_threshold: see `lay_out`, in bytes.

    Raises:
        WireError: a file that the skeleton refers to is gone, too short or has changed.
        WriteError: the files cannot be written there.
    """
    staged = StagedModel(Path(path))
    try:
        staged.write(lay_out(skeleton, staged.data_name, external_data, size_threshold))
    except BaseException:
        staged.discard()
        raise
    return staged


def write_stream(skeleton: onnx.ModelProto, file: IO[bytes]) -> int:
    """Write `skeleton` as one model file to a stream such as `sys.stdout.buffer`.

    Returns:
        The number of bytes written.

    Raises:
        WireError: a file that the skeleton refers to is gone, too short or has changed.
        WriteError: the model is over 2 GiB, or the stream ended.
    """
    layout = lay_out(skeleton, "", "never")
    written = 0
    with _Sources(layout.sources) as sources:
        for chunk in itertools.chain.from_iterable(map(sources.chunks, layout.model)):
            try:
                file.write(chunk)
            except OSError as error:
                raise WriteError(f"cannot write the model: {error.strerror}") from None
            written += len(chunk)
    file.flush()
    return written


class StagedModel:
    """A model that is written, but not yet under its own name.

    It can be run from `path` as it is; leaving the `with` block without `commit()` removes it.
    """

    def __init__(self, destination: Path) -> None:
        """Claim `destination`, and clean up after a process that was killed there."""
        self._destination = destination
        with _reporting(destination):
            _refuse_special(destination)
            self._claim = _Claim(destination)
        self.path = self._claim.folder / destination.name
        self.data_name = _free_data_name(destination)
        self._data: Path | None = None

    def __enter__(self) -> StagedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.discard()

    def write(self, layout: Layout) -> None:
        """Write the files of `layout` into the hidden folder, durably."""
        with _reporting(self._destination), _Sources(layout.sources) as sources:
            mode = _mode(self._destination)
            if layout.data:
                self._data = self._claim.folder / self.data_name
                _write_file(self._data, layout.data, sources, mode)
            _write_file(self.path, layout.model, sources, mode)

    def commit(self) -> WrittenFiles:
        """Put the files under their names, in place of what was there.

        Raises:
            WriteError: it failed; the destination is as it was.
        """
        with _reporting(self._destination):
            size = self.path.stat().st_size
            folder = self._destination.parent
            old = _own_data(self._destination)
            self._claim.note(self._data, old)
            data = None
            if self._data is not None:
                data = WrittenFile(folder / self.data_name, self._data.stat().st_size)
                _rename_new(self._data, data.path)
                _sync(folder)
            self.path.rename(self._destination)
            _sync(folder)
            kept = tuple(path for path in old if not _remove_unused(path, self._destination))
            return WrittenFiles(WrittenFile(self._destination, size), data, kept)

    def discard(self) -> None:
        """Remove what is not committed. May be called again."""
        self._claim.release()


class _Claim:
    """The hidden folder beside a destination, locked while its process lives."""

    def __init__(self, destination: Path) -> None:
        """Make the folder, or take it over from a process that was killed.

        Raises:
            OSError: the folder cannot be made.
            WriteError: another process is writing the same destination.
        """
        self._destination = destination
        self.folder = destination.parent / f".{destination.name}.graphpass"
        # Neither can be the name of a model or its data here.
        self._lock_path = self.folder / f"{destination.name}.lock"
        self._journal = self.folder / f"{destination.name}.journal"
        lock = None
        while lock is None:
            lock = self._lock()
        self._descriptor = lock
        self._clear()

    def note(self, data: Path | None, old: list[Path]) -> None:
        """Note which data file is new and which are the old model's, in case we are killed."""
        if data is None and not old:
            return
        new = [] if data is None else [data]
        content = {
            "new": {path.name: path.stat().st_ino for path in new},
            "old": {path.name: path.stat().st_ino for path in old},
        }
        with _Sources({}) as none:
            _write_file(self._journal, [json.dumps(content).encode()], none, None)
        _sync(self.folder)

    def release(self) -> None:
        """Remove the folder and all that is in it. May be called again."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            self._clear()
            self._lock_path.unlink()
            self.folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = -1

    def _lock(self) -> int | None:
        """Return the descriptor of the lock; None if its last owner has just removed it."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        status = self.folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise WriteError(f"cannot write {self._destination}: {self.folder} is in the way")
        try:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._lock_path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            raise WriteError(f"another graphpass is writing {self._destination}") from None
        except FileNotFoundError:
            pass
        os.close(lock)
        return None

    def _clear(self) -> None:
        """Empty the folder and finish or undo what its journal says was under way."""
        if self._journal.exists():
            self._settle()
        for path in self.folder.iterdir():
            if path not in (self._lock_path, self._journal):
                path.unlink()
        self._journal.unlink(missing_ok=True)

    def _settle(self) -> None:
        """Remove the data that no model has: the new if the model was not renamed, else the old."""
        try:
            content = json.loads(self._journal.read_bytes())
        except ValueError:  # killed while it was written: nothing had been published yet
            return
        committed = not (self.folder / self._destination.name).exists()
        for name, inode in content["old" if committed else "new"].items():
            path = self._destination.parent / name
            if path.exists() and path.stat().st_ino == inode:
                if committed:
                    _remove_unused(path, self._destination)
                else:
                    path.unlink()


@contextlib.contextmanager
def _reporting(destination: Path) -> Iterator[None]:
    """Turn errors of the operating system into one sentence."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {destination}: {error.strerror or error}") from None


def _refuse_special(destination: Path) -> None:
    """Raise WriteError if a rename onto `destination` would not replace a file."""
    if not destination.parent.is_dir():
        raise WriteError(f"cannot write {destination}: there is no folder {destination.parent}")
    if destination.is_dir():
        raise WriteError(f"cannot write {destination}: it is a folder")
    if destination.exists() and not destination.is_file():
        raise WriteError(f"cannot write {destination}: it is not a regular file")


def _mode(destination: Path) -> int | None:
    """Return the permissions of the file that is replaced; None: as the umask says."""
    try:
        return stat.S_IMODE(destination.stat().st_mode) & 0o777
    except FileNotFoundError:
        return None


def _write_file(path: Path, pieces: Iterable[Piece], sources: _Sources, mode: int | None) -> None:
    """Write a new file, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        for piece in pieces:
            if isinstance(piece, Splice):
                sources.splice(piece, descriptor)
            else:
                _write_all(descriptor, piece)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_new(source: Path, target: Path) -> None:
    """Rename, but never over a file that is there."""
    try:
        os.link(source, target)
    except PermissionError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(errno.EEXIST, f"{target} appeared meanwhile") from None
        source.rename(target)
        return
    source.unlink()


def _data_names(destination: Path) -> Iterator[str]:
    """Yield the names that data files of `destination` may have, the best first."""
    yield f"{destination.name}.data"
    for number in itertools.count(1):
        yield f"{destination.name}.{number}.data"


def _free_data_name(destination: Path) -> str:
    """Return a name for a data file that nothing has: the old model needs its own until the end."""
    return next(
        name for name in _data_names(destination) if not os.path.lexists(destination.parent / name)
    )


def _own_data(destination: Path) -> list[Path]:
    """Return the data files of the model at `destination` that bear its name, as we name them."""
    name = re.compile(re.escape(destination.name) + r"(\.[0-9]+)?\.data")
    return [
        destination.parent / location
        for location in sorted(_locations(destination))
        if name.fullmatch(location)
    ]


def _locations(model: Path) -> set[str]:
    """Return where the model in a file says that its external data is; no model, no places."""
    skeleton = skeleton_or_none(model)
    if skeleton is None:
        return set()
    return {
        os.path.normpath(entry.value)
        for tensor in tensors(skeleton)
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _remove_unused(data: Path, destination: Path) -> bool:
    """Remove the data file of an overwritten model, unless another model may need it."""
    with contextlib.suppress(OSError):
        status = data.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return False
        for other in data.parent.iterdir():
            if other != data and other.is_file() and data.name in _locations(other):
                return False
        data.unlink()
        return True
    return False


class _Sources:
    """The files that pieces come from, opened once each and checked to be what they were."""

    def __init__(self, stamps: dict[str, str]) -> None:
        self._stamps = stamps
        self._descriptors: dict[str, int] = {}
        self._spliceable = True

    def __enter__(self) -> _Sources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            for path, descriptor in self._descriptors.items():
                if error is None:
                    self._check(path, descriptor)
        finally:
            for descriptor in self._descriptors.values():
                os.close(descriptor)

    def chunks(self, piece: Piece) -> Iterator[bytes]:
        """Yield the bytes of `piece`."""
        if isinstance(piece, bytes):
            yield piece
            return
        source = self._open(piece.path)
        position, end = piece.offset, piece.offset + piece.length
        while position < end:
            chunk = os.pread(source, min(_CHUNK_BYTES, end - position), position)
            if not chunk:
                raise WireError(f"{piece.path} became shorter while it was read")
            yield chunk
            position += len(chunk)

    def splice(self, piece: Splice, target: int) -> None:
        """Append the bytes of `piece` to the file `target`, inside the kernel where it can."""
        source = self._open(piece.path)
        position, end = piece.offset, piece.offset + piece.length
        while self._spliceable and position < end:
            try:
                count = os.copy_file_range(source, target, end - position, offset_src=position)
            except OSError as error:
                if error.errno not in _CANNOT_SPLICE:
                    raise
                count = 0
            self._spliceable = count > 0
            position += count
        for chunk in self.chunks(Splice(piece.path, position, end - position)):
            _write_all(target, chunk)

    def _open(self, path: str) -> int:
        if path not in self._descriptors:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise WireError(f"cannot read {path}: {error.strerror}") from None
            self._descriptors[path] = descriptor
            self._check(path, descriptor)
        return self._descriptors[path]

    def _check(self, path: str, descriptor: int) -> None:
        if stamp(os.fstat(descriptor)) != self._stamps[path]:
            raise WireError(f"{path} has changed since it was read")
