"""The hidden folder beside a destination, and what is left of writers that were killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

from graphpass.storage.protobuf import LENGTH_DELIMITED, varint
from graphpass.storage.reference import WriteError, is_external, tensors
from graphpass.storage.splice import Sources, sync, write_file
from graphpass.storage.wire import graph_bytes

_JOURNAL_LIMIT_BYTES = 1 << 16
_TOKEN = re.compile("[0-9a-f]{32}")
_MARK = "user.graphpass"  # the extended attribute that holds a token
_TAIL = b"\0graphpass"  # before a token at the end of a file, where there are no such attributes
_TOKEN_BYTES = 16
_TAIL_BYTES = len(_TAIL) + 2 * _TOKEN_BYTES


class Claim:
    """The hidden folder beside a destination, locked while its process lives.

    Its journal says which data files a process that was killed had published or was about to
    remove. Anybody may have put a journal there, so it is not believed: a file goes only if it
    has a name that we give, beside the destination, and holds the journal's random token, which
    nobody can put into another's file. What else is found is left alone and listed in `left`.

    The token is an extended attribute. Where a file system has none, a new file holds it at its
    end until the model has its name; old ones are not touched, and those that a process that was
    killed did not remove any more are listed in `orphans`.
    """

    def __init__(self, destination: Path) -> None:
        """Make the folder, or take it over from a process that was killed.

        Raises:
            OSError: the folder cannot be made.
            WriteError: another process is writing the same destination, or something else is
                where the folder or a file in it has to be.
        """
        self._destination = destination
        self.folder = destination.parent / f".{destination.name}.graphpass"
        self.left: list[Path] = []
        self.orphans: list[Path] = []
        self._marked: list[Path] = []
        # None of these can be the name of a model or its data here.
        self._lock_path = self.folder / f"{destination.name}.lock"
        self._journal = self.folder / f"{destination.name}.journal"
        self._new_journal = self.folder / f"{destination.name}.journal.new"
        lock = None
        while lock is None:
            lock = self._lock()
        self._descriptor = lock
        try:
            self._clear()
        except BaseException:
            os.close(lock)
            self._descriptor = -1
            raise

    def note(self, data: Path | None, old: list[Path]) -> None:
        """Note which data file is new and which are the old model's, in case we are killed."""
        token = secrets.token_hex(_TOKEN_BYTES)
        new = [] if data is None else [data]
        if not new and not old:
            return
        for path in new:
            if not self._mark(path, token):
                _append(path, _TAIL + token.encode())
                self._marked.append(self._destination.parent / path.name)
        for path in old:
            self._mark(path, token)
        content = {
            "token": token,
            "new": [path.name for path in new],
            "old": [path.name for path in old],
        }
        with Sources({}) as none:
            write_file(self._new_journal, [json.dumps(content).encode()], none, None)
        self._new_journal.rename(self._journal)  # in one step: a journal is never half written
        sync(self.folder)

    def unmark(self) -> None:
        """Take the token out of what is delivered."""
        for path in self._marked:
            _unmark(path)
        self._marked.clear()

    def release(self) -> None:
        """Remove the folder and all of ours that is in it. May be called again."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError, WriteError):
            self._clear()
            self.unmark()
            self._lock_path.unlink()
            self.folder.rmdir()
        # a signal may come in between, and what is closed twice is a "Bad file descriptor"
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)

    def _mark(self, path: Path, token: str) -> bool:
        """Let a file hold the token; False where the file system or its owner does not let us."""
        try:
            os.setxattr(path, _MARK, token.encode(), follow_symlinks=False)
        except (OSError, AttributeError):  # no other system than Linux has it
            return False
        self._marked.append(self._destination.parent / path.name)
        return True

    def _lock(self) -> int | None:
        """Return the descriptor of the lock; None if its last owner has just removed it."""
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        try:
            status = self.folder.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise self._in_the_way(self.folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            lock = os.open(self._lock_path, flags, 0o600)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise self._in_the_way(self._lock_path) from None
            raise
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._lock_path.lstat().st_ino == os.fstat(lock).st_ino:
                return lock
        except BlockingIOError:
            os.close(lock)
            raise WriteError(f"another graphpass is writing {self._destination}") from None
        except FileNotFoundError:
            pass
        os.close(lock)
        return None

    def _in_the_way(self, path: Path) -> WriteError:
        return WriteError(f"cannot write {self._destination}: {path} is in the way")

    def _clear(self) -> None:
        """Empty the folder of what we write and finish or undo what was under way."""
        if os.path.lexists(self._journal):
            self._settle()
        self.left.clear()
        needed = (self._destination.name, self._new_journal.name)
        for path in sorted(self.folder.iterdir()):
            if path == self._lock_path:
                continue
            ours = path.name in needed or self._is_data_name(path.name)
            if ours and not stat.S_ISDIR(path.lstat().st_mode):
                path.unlink()
            elif ours:
                raise self._in_the_way(path)
            else:
                self.left.append(path)

    def _settle(self) -> None:
        """Remove the data that no model has: the new if the model was not renamed, else the old.

        What is no journal of ours is set aside.
        """
        noted = self._read_journal()
        if noted is None:
            number = (n for n in itertools.count(1) if not os.path.lexists(self._set_aside(n)))
            self._journal.rename(self._set_aside(next(number)))
            return
        committed = not os.path.lexists(self.folder / self._destination.name)
        for name in noted.new + noted.old:
            path = self._destination.parent / name
            if _token_of(path) != noted.token:
                if committed and name in noted.old and os.path.lexists(path):
                    self.orphans.append(path)
                continue
            if not committed and name in noted.new:
                path.unlink()
            elif not (committed and name in noted.old and remove_unused(path)):
                _unmark(path)
        self._journal.unlink()

    def _set_aside(self, number: int) -> Path:
        return self.folder / f"{self._journal.name}.unreadable-{number}"

    def _read_journal(self) -> _Noted | None:
        """Return what the journal says; None where it does not say what we write."""
        try:
            with _opened(self._journal, os.O_RDONLY) as descriptor:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return None
                content = os.read(descriptor, _JOURNAL_LIMIT_BYTES + 1)
        except OSError:
            return None
        if len(content) > _JOURNAL_LIMIT_BYTES:
            return None
        try:
            told = json.loads(content)
            noted = _Noted(told["token"], told["new"], told["old"])
            known = isinstance(noted.token, str) and _TOKEN.fullmatch(noted.token)
            names = [*noted.new, *noted.old]
            return noted if known and all(map(self._is_data_name, names)) else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _is_data_name(self, name: object) -> bool:
        return isinstance(name, str) and bool(_data_name(self._destination).fullmatch(name))


class _Noted(NamedTuple):
    token: str
    new: list[str]
    old: list[str]


def _token_of(path: Path) -> str | None:
    """Return the token that a regular file holds."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        return os.getxattr(path, _MARK, follow_symlinks=False).decode(errors="replace")
    except (OSError, AttributeError):
        return _tail_of(path)


def _tail_of(path: Path) -> str | None:
    """Return the token at the end of a file."""
    with contextlib.suppress(OSError), _opened(path, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        tail = os.pread(descriptor, _TAIL_BYTES, max(size - _TAIL_BYTES, 0))
        token = tail.removeprefix(_TAIL).decode(errors="replace")
        return token if tail.startswith(_TAIL) and _TOKEN.fullmatch(token) else None
    return None


def _append(path: Path, tail: bytes) -> None:
    """Append to a file, durably."""
    with _opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        while tail:
            tail = tail[os.write(descriptor, tail) :]
        os.fsync(descriptor)


def _unmark(path: Path) -> None:
    with contextlib.suppress(OSError, AttributeError):
        os.removexattr(path, _MARK, follow_symlinks=False)
    if _tail_of(path) is not None:
        with contextlib.suppress(OSError), _opened(path, os.O_WRONLY) as descriptor:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - _TAIL_BYTES)
            os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _data_name(destination: Path) -> re.Pattern[str]:
    """Return the pattern of the names that data files of `destination` have."""
    return re.compile(re.escape(destination.name) + r"(\.[0-9]+)?\.data")


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
    name = _data_name(destination)
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
