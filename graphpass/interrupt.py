"""Signals and time limits end what is going on, by an exception, where one can be raised safely.

A handler runs between any two instructions of Python, also in the middle of the import of an
extension module, which does not survive an exception there, or of what ends with an object, where
the interpreter drops it. It is put off until that is over.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphpass.watchdog import Watchdog

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_AGAIN_S = 0.01  # how soon to look whether an import is over
_INSIST_S = 0.5  # what goes on all the same, since something swallowed the exception, is told again

_MOST_LATE = 0.1  # of a time limit, how much longer a call of a library may take, but at least
_LEAST_LATE_S = 2.0

# called by the interpreter, which drops an exception from in there: locks of logging around a fork,
# and what runs as an object goes, wherever that is
_DROPS_EXCEPTIONS = frozenset(
    ("_acquireLock", "_releaseLock", "_after_at_fork_child_reinit_locks", "__del__")
)

_pending: list[int] = []
_deadline: list[float] = []  # the innermost last
_hard_deadline: list[float] = []  # by then the process ends, where it may
_watchdog: list[Watchdog] = []
_may_end = [False]


class SignalledError(SystemExit):
    """The process was asked to end; as an exit code what a shell would say, 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class TimeLimitError(BaseException):
    """What was limited took longer. No `except Exception` of a rule gets in its way."""


def end_on_signals(*numbers: signal.Signals) -> None:
    """Raise `SignalledError` in the main thread on these signals, `KeyboardInterrupt` on SIGINT.

    One that is ignored, as by nohup, stays so.
    """
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    signal.signal(signal.SIGALRM, _on_alarm)
    atexit.register(_stop_clock)


def end_on_time() -> None:
    """Let time limits end this process, which is graphpass alone, where no handler can run.

    That is so in a long call of an extension module. It ends with a sentence and exit code 3.
    """
    import graphpass.watchdog  # noqa: F401  # now: no handler may come in the middle of it

    _may_end[0] = True


def _stop_clock() -> None:
    """Let no alarm ring in an interpreter that has taken its handlers down: it would be killed."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for watchdog in _watchdog:
        watchdog.set(0)


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `TimeLimitError` in the block once it has taken longer.

    Only the main thread can be interrupted so, and only while nothing else uses its alarm clock;
    elsewhere there is no limit. Nor can a single call of an extension module be cut short, but
    by the end of the whole process (see `end_on_time`).
    """
    if seconds is None or not _has_the_clock():
        yield
        return
    if _may_end[0] and not _watchdog:
        from graphpass.watchdog import Watchdog  # starts a thread: what is forked is forked before

        _watchdog.append(Watchdog())
    before = signal.signal(signal.SIGALRM, _on_alarm)
    _deadline.append(min([time.monotonic() + seconds, *_deadline]))
    _hard_deadline.append(_deadline[-1] + max(seconds * _MOST_LATE, _LEAST_LATE_S))
    _set_clock()
    try:
        yield
    finally:
        _deadline.pop()
        _hard_deadline.pop()
        _set_clock()
        signal.signal(signal.SIGALRM, before)


def forget() -> None:
    """Be a process of its own, in a child that was forked: its parent's signals are not for it."""
    _pending.clear()
    _deadline.clear()
    _hard_deadline.clear()
    _may_end[0] = False
    for number in (*ENDING_SIGNALS, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


def _has_the_clock() -> bool:
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGALRM)
    if handler is _on_alarm:
        return True
    return handler is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def _set_clock() -> None:
    if _pending:
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    elif _deadline:
        left = max(_deadline[-1] - time.monotonic(), _AGAIN_S)
        signal.setitimer(signal.ITIMER_REAL, left, _INSIST_S)
    else:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if _may_end[0]:
        _set_watchdog()


def _set_watchdog() -> None:
    for watchdog in _watchdog:
        watchdog.set(max(_hard_deadline[-1] - time.monotonic(), _AGAIN_S) if _hard_deadline else 0)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _must_wait(frame):
        _pending.append(number)
        _set_clock()
        return
    _end(number)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    if _must_wait(frame):
        _set_clock()
        return
    if _pending:
        number = _pending[0]
        _pending.clear()
        _set_clock()
        _end(number)
    if _deadline and time.monotonic() >= _deadline[-1]:
        raise TimeLimitError


def _end(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SignalledError(number)


def _must_wait(frame: FrameType | None) -> bool:
    """Whether an exception raised at `frame` would break an import, or get lost."""
    while frame is not None:
        code = frame.f_code
        if (
            code.co_filename.startswith("<frozen importlib")
            or code.co_filename == weakref.__file__
            or code.co_name in _DROPS_EXCEPTIONS
        ):
            return True
        frame = frame.f_back
    return False


def with_standard_streams() -> set[int]:
    """Open what of the descriptors 0, 1, 2 is closed, as /dev/null; return which those are.

    Else the next file to be opened, a model, would take their place.
    """
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            closed.add(number)
    return closed
