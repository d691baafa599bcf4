"""Ends this process where nothing in Python can: in the middle of a long call of a library.

A call into onnx or protobuf holds the interpreter until it returns, and no signal handler runs
before that. A timer of the kernel starts a thread of the C library instead, which needs no
interpreter: it says one sentence and ends the process. Nothing is lost by that: what is not
delivered is in a hidden folder, and the next run removes it, as after a kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from typing import Any

from graphpass.errors import ModelError

_SENTENCE = (
    b"a single step of a library does not come to an end within --timeout; nothing was written"
)
_IN_A_THREAD = 2  # SIGEV_THREAD
_MONOTONIC = 1  # CLOCK_MONOTONIC
_AFTER_S = 0.1  # the end comes after the sentence


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux, with its function and argument; 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("how", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("_rest", ctypes.c_byte * 32),
    )


class _Time(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Time), ("value", _Time))


class Watchdog:
    """A clock that ends the process when it rings, with the exit code of a bad model.

    It does nothing where the system has no such timers, or in a process that was forked.
    """

    def __init__(self) -> None:
        """Make it; it does not run yet."""
        self._owner = os.getpid()
        self._timers: list[ctypes.c_void_p] = []
        self._sentence = ctypes.create_string_buffer(_SENTENCE)
        self._name = ctypes.create_string_buffer(b"graphpass")
        if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
            return
        with contextlib.suppress(OSError, AttributeError, ValueError):
            self._library: Any = ctypes.CDLL(None, use_errno=True)
            name = ctypes.c_void_p.in_dll(self._library, "program_invocation_short_name")
            name.value = ctypes.addressof(self._name)
            said = ctypes.addressof(self._sentence)
            for function, value in (("warnx", said), ("_exit", ModelError.exit_code)):
                self._timers.append(self._timer(function, value))

    def set(self, seconds: float) -> None:
        """Let it ring after `seconds`, whatever it was set to; 0: never."""
        if self._owner != os.getpid():
            return
        for index, timer in enumerate(self._timers):
            later = seconds + index * _AFTER_S if seconds else 0.0
            whole = int(later)
            time = _Time(whole, int((later - whole) * 1e9))
            self._library.timer_settime(timer, 0, ctypes.byref(_Setting(_Time(), time)), None)

    def _timer(self, function: str, value: int) -> ctypes.c_void_p:
        pointer = ctypes.cast(getattr(self._library, function), ctypes.c_void_p).value
        event = _Event(value, 0, _IN_A_THREAD, pointer, None)
        timer = ctypes.c_void_p()
        if self._library.timer_create(_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "no timer")
        return timer


__all__ = ["Watchdog"]
