"""What a pass may do to the process that it runs in: nothing.

A plug-in is code, and no code can be kept from what it wants to do. Accidents can: a script that
ends in sys.exit, a library that changes the working folder or closes descriptors it does not own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from typing import NoReturn

from graphpass.errors import GraphpassError, RuleError
from graphpass.interrupt import SignalledError, TimeLimitError, time_limit
from graphpass.ir.model import collection_paused

_COPIES_FROM = 200  # the numbers of copies of descriptors: what closes "all" often stops before
_DESCRIPTORS = "/proc/self/fd"


class _ExitError(BaseException):
    """Somebody called os._exit."""


@contextlib.contextmanager
def guarded(what: str, time_limit_s: float | None = None) -> Iterator[None]:
    """Let code of others run in the block; whatever it does but to return is a `RuleError`.

    Ctrl-C and signals end it as ever. The working folder, standard streams and files that it
    closed are put back, which is an error, too. `what` names it at the beginning of a sentence.
    """
    # files that were forgotten before close when garbage is collected: no fault of what runs here
    with collection_paused(), _Surroundings() as before:
        try:
            with _without_exit(), time_limit(time_limit_s):
                yield
        except (GraphpassError, KeyboardInterrupt, SignalledError):
            before.put_back()
            raise
        except TimeLimitError:
            reason = f"did not end within {time_limit_s:g} s"
        except MemoryError:
            reason = "needs more memory than there is"
        except (SystemExit, _ExitError):
            reason = "tried to end the whole process"
        except BaseException as error:
            reason = f"failed: {type(error).__name__}: {error}"
            before.put_back()
            raise RuleError(f"{what} {reason}") from error
        else:
            harm = before.put_back()
            if not harm:
                return
            reason = f"{harm}: that was put back"
        before.put_back()
    raise RuleError(f"{what} {reason}")


@contextlib.contextmanager
def _without_exit() -> Iterator[None]:
    """Let os._exit raise in this process; a child that was forked may end as it likes."""
    exit_, owner = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if os.getpid() != owner:
            exit_(status)
        raise _ExitError

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = exit_


class _Surroundings:
    """The working folder and the open files, with copies of their descriptors."""

    def __init__(self) -> None:
        self._folder = _folder()
        self._copies = {n: copy for n in _descriptors() if (copy := _copy(n)) is not None}
        self._known = {n: _identity(n) for n in self._copies}
        self._is_alone = threading.active_count() == 1

    def __enter__(self) -> _Surroundings:
        return self

    def __exit__(self, *_: object) -> None:
        for copy in self._copies.values():
            with contextlib.suppress(OSError):
                os.close(copy)

    def put_back(self) -> str:
        """Put back what has changed; say what it was, "" where nothing has."""
        found = []
        if self._folder and _folder() != self._folder:
            with contextlib.suppress(OSError):
                os.chdir(self._folder)
            found.append("changed the working folder")
        gone = [n for n, identity in self._known.items() if _identity(n) != identity]
        laid = any(number < 3 for number in gone) or 2 * len(gone) > len(self._known)
        if self._is_alone:  # a notebook's threads may have closed files of their own
            laid = laid or any(_has_a_name(self._copies[number]) for number in gone)
        if not laid:
            return " and ".join(found)
        for number in gone:
            copy = self._copies[number]
            if _identity(copy) == self._known[number]:
                os.dup2(copy, number, inheritable=number < 3)
        found.append("closed files that it had not opened")
        return " and ".join(found)


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        return ""


def _descriptors() -> list[int]:
    """Return what is open, where nobody else can open and close files at the same time."""
    others = (t for t in threading.enumerate() if t is not threading.main_thread())
    if threading.current_thread() is not threading.main_thread() or any(
        not thread.daemon for thread in others
    ):
        return []
    try:
        return [int(name) for name in os.listdir(_DESCRIPTORS)]  # noqa: PTH208
    except OSError:
        return []


def _copy(number: int) -> int | None:
    try:
        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _COPIES_FROM)
    except OSError:  # the one that listed them, or there are no more to be had
        return None


def _identity(number: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _has_a_name(number: int) -> bool:
    """Whether it is a file that one could open again.

    When a process that computes constants has died, its pipes close and the temporary file that
    held what it said.
    """
    try:
        status = os.fstat(number)
    except OSError:
        return True  # gone with the rest
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 0
