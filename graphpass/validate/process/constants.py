"""ONNX Runtime to compute constants with: in the process that validates, if there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from graphpass.ir.questions import RefusedError
from graphpass.rewrite.evaluation import evaluating
from graphpass.validate.process.runtime import Limits, RunError, Runtime

_LIMITS = Limits(time_s=60.0, memory_mib=1024)  # of a process of its own


@contextlib.contextmanager
def runtime_for_constants(runtime: Runtime | None = None) -> Iterator[None]:
    """Let passes compute constants with `runtime`, or with one that is started when needed.

    ONNX Runtime's own optimizations are off, so that the values are those of the graph as it is.
    """
    with contextlib.ExitStack() as stack:

        def run(model: onnx.ModelProto) -> Mapping[str, Any]:
            nonlocal runtime
            if runtime is None:
                runtime = stack.enter_context(Runtime(_LIMITS, threads=1))
            try:
                with runtime.load(model) as session:
                    return session.run({}).outputs
            except RunError as error:
                raise RefusedError(str(error)) from error

        with evaluating(run):
            yield
