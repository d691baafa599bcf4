"""The hidden folder beside a destination, and what is left of writers that were killed."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import onnx

from graphpass.storage.protobuf import LENGTH_DELIMITED, varint
from graphpass.storage.reference import WriteError, is_external, tensors
from graphpass.storage.splice import Sources, sync, write_file
from graphpass.storage.wire import graph_bytes


class Claim:
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
        with Sources({}) as none:
            write_file(self._journal, [json.dumps(content).encode()], none, None)
        sync(self.folder)

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
                    remove_unused(path)
                else:
                    path.unlink()


def _data_names(destination: Path) -> Iterator[str]:
    """Yield the names that data files of `destination` may have, the best first."""
    yield f"{destination.name}.data"
    for number in itertools.count(1):
        yield f"{destination.name}.{number}.data"


def free_data_name(destination: Path) -> str:
    """Return a name for a data file that nothing has: the old model needs its own until the end."""
    return next(
        name for name in _data_names(destination) if not os.path.lexists(destination.parent / name)
    )


def own_data(destination: Path) -> list[Path]:
    """Return the data files of the model at `destination` that bear its name, as we name them.

    Data that somebody has removed is none.
    """
    name = re.compile(re.escape(destination.name) + r"(\.[0-9]+)?\.data")
    return [
        destination.parent / location
        for location in sorted(_locations(destination))
        if name.fullmatch(location) and (destination.parent / location).exists()
    ]


def _locations(model: Path) -> set[str]:
    """Return where the model in a file says that its external data is; no model, no places."""
    return {
        os.path.normpath(entry.value)
        for tensor in tensors(onnx.ModelProto.FromString(graph_bytes(model)))
        if is_external(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }


def remove_unused(data: Path) -> bool:
    """Remove the data file of an overwritten model, unless a model beside it names it."""
    with contextlib.suppress(OSError):
        status = data.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            return False
        for other in data.parent.iterdir():
            if other != data and other.is_file() and _names(other, os.fsencode(data.name)):
                return False
        data.unlink()
        return True
    return False


def _names(model: Path, name: bytes) -> bool:
    """Say whether the model in a file has `name` as a location, or as the end of one."""
    content = graph_bytes(model)
    value = onnx.StringStringEntryProto.VALUE_FIELD_NUMBER << 3 | LENGTH_DELIMITED
    return varint(value) + varint(len(name)) + name in content or b"/" + name in content
