"""A skeleton becomes files again: weights go from file to file inside the kernel.

Nothing is written under its final name. `stage_model` writes a model, ready to run, into a hidden
folder beside its destination, and `commit` renames it into place, its data first: killed at any
moment, the destination has the old files or the new ones, and the next process there cleans up.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from graphpass.resources import Closing
from graphpass.storage.layout import ExternalData, Layout, lay_out
from graphpass.storage.reference import WireError, WriteError, location_of
from graphpass.storage.splice import Sources, sync, write_file
from graphpass.storage.staging import Claim, free_data_name, own_data, remove_unused

_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP}

__all__ = [
    "StagedModel",
    "WriteError",
    "WrittenFile",
    "WrittenFiles",
    "stage_model",
    "write_model",
]


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written."""

    path: Path
    size_bytes: int


@dataclass(frozen=True)
class WrittenFiles:
    """The model file, its external data if it has any, and an older data file that was left.

    `superseded` is the data file of the model that was overwritten, where it could not be removed
    safely because another model, or a file of that name that is not ours, may need it.
    `left_alone`: what lay where temporary files go and is not ours.
    """

    model: WrittenFile
    data: WrittenFile | None = None
    superseded: tuple[Path, ...] = ()
    left_alone: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        """All files that were written, the model first."""
        return (self.model,) if self.data is None else (self.model, self.data)


def write_model(
    skeleton: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    external_data: ExternalData = "auto",
    size_threshold: int | None = None,
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
    size_threshold: int | None = None,
) -> StagedModel:
    """Write `skeleton` beside its destination; `commit()` on the result puts it there.

    Args:
        skeleton: may refer to the very files that will be replaced.
        path: the destination. A symbolic link is replaced, not followed.
        external_data: see `lay_out`.
        size_threshold: see `lay_out`.

    Raises:
        WireError: a file that the skeleton refers to is gone, too short or has changed.
        WriteError: the files cannot be written there.
    """
    staged = StagedModel(Path(path))
    try:
        staged.write(lay_out(skeleton, staged.data_name, external_data, size_threshold))
    except BaseException:
        staged.close()
        raise
    return staged


class StagedModel(Closing):
    """A model that is written, but not yet under its own name.

    It can be run from `path` as it is; leaving the `with` block without `commit()` removes it.
    """

    def __init__(self, destination: Path) -> None:
        """Claim `destination`, and clean up after a process that was killed there."""
        self._destination = destination
        with _reporting(destination):
            _refuse_special(destination)
            self._claim = Claim(destination)
        self.path = self._claim.folder / destination.name
        self.data_name = free_data_name(destination)
        self._data: Path | None = None

    def write(self, layout: Layout) -> None:
        """Write the files of `layout` into the hidden folder, durably."""
        with _reporting(self._destination), Sources(layout.sources) as sources:
            mode = _mode(self._destination)
            if layout.data:
                self._data = self._claim.folder / self.data_name
                write_file(self._data, layout.data, sources, mode)
            write_file(self.path, layout.model, sources, mode)

    @property
    def files(self) -> list[Path]:
        """What is written, the model first."""
        return [self.path] if self._data is None else [self.path, self._data]

    def commit(self) -> WrittenFiles:
        """Put the files under their names, in place of what was there.

        Raises:
            WriteError: it failed; the destination is as it was.
        """
        with _reporting(self._destination):
            size = self.path.stat().st_size
            folder = self._destination.parent
            old = own_data(self._destination)
            data = None
            if self._data is not None:
                data = WrittenFile(folder / self.data_name, self._data.stat().st_size)
            self._claim.note(self._data, old)
            if data is not None and self._data is not None:
                _rename_new(self._data, data.path)
                sync(folder)
            self.path.rename(self._destination)
            sync(folder)
            kept = [path for path in old if not remove_unused(path)]
            kept += [path for path in self._claim.orphans if path not in old and path.exists()]
            self._claim.unmark()
            left = tuple(self._claim.left)
            return WrittenFiles(WrittenFile(self._destination, size), data, tuple(kept), left)

    def close(self) -> None:
        """Remove what is not committed. May be called again."""
        self._claim.release()


@contextlib.contextmanager
def _reporting(destination: Path | str) -> Iterator[None]:
    """Turn errors of the operating system into one sentence."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {destination}: {error.strerror or error}") from None


def _refuse_special(destination: Path) -> None:
    """Raise WriteError if a rename onto `destination` would not replace a file."""
    try:
        location_of(os.path.realpath(destination))
    except (WireError, ValueError) as error:  # a name that is no text, or with a NUL in it
        raise WriteError(f"cannot write {str(destination)!r}: {error}") from None
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


def _rename_new(source: Path, target: Path) -> None:
    """Rename, but never over a file that is there."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, f"{target} appeared meanwhile") from None
        source.rename(target)
        return
    source.unlink()
