"""What a constant subgraph computes is asked of whoever can run it: passes run nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import onnx

from graphpass.ir.questions import RefusedError

# from a model without inputs to its outputs by name; raises RefusedError where it does not run
Evaluate = Callable[[onnx.ModelProto], Mapping[str, Any]]

_evaluate: ContextVar[Evaluate | None] = ContextVar("_evaluate", default=None)


@contextlib.contextmanager
def evaluating(how: Evaluate) -> Iterator[None]:
    """Let rules and surveys have models run by `how` inside of this block."""
    token = _evaluate.set(how)
    try:
        yield
    finally:
        _evaluate.reset(token)


def evaluate(model: onnx.ModelProto) -> Mapping[str, Any]:
    """Run a model without inputs; return its outputs by name. Raises `RefusedError`."""
    how = _evaluate.get()
    if how is None:
        raise RefusedError("there is nothing here to run it")
    return how(model)
