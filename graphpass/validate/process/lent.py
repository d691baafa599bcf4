"""A runtime for whoever needs one for a moment: the one that validates, where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from graphpass.validate.process.runtime import Limits, Runtime

_TIME_S = 60.0  # for one request to a runtime that nobody lent

_lent: ContextVar[Runtime | None] = ContextVar("_lent", default=None)


@contextlib.contextmanager
def lending(runtime: Runtime) -> Iterator[None]:
    """Let `borrowed` give out `runtime` inside of this block."""
    token = _lent.set(runtime)
    try:
        yield
    finally:
        _lent.reset(token)


@contextlib.contextmanager
def borrowed() -> Iterator[Runtime]:
    """Give out the runtime that is lent, or one that ends with this block."""
    runtime = _lent.get()
    if runtime is not None:
        yield runtime
        return
    with Runtime(Limits(time_s=_TIME_S), threads=1) as runtime:
        yield runtime
