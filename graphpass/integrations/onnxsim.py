"""graphpass where onnxsim is called.

from graphpass.integrations import simplify
model, ok = simplify(model)
"""

from __future__ import annotations

from typing import Any

import onnx

from graphpass.rewrite.registry import Passes
from graphpass.run.optimization import Source, optimize


def simplify(
    model: Source, passes: Passes = "runtime", **options: Any
) -> tuple[onnx.ModelProto, bool]:
    """Return an optimized model, which is another object, and whether it was compared and holds.

    Args:
        model: a file, bytes, or a ModelProto, which stays as it is.
        passes: as `graphpass.optimize` takes them.
        **options: as `graphpass.optimize` takes them. With `validate=False` nothing is compared,
            so that the second value is False.

    What is wrong is undone, so that a model comes back that computes what it did; where it cannot
    be said, as ONNX Runtime cannot run it, `graphpass.errors.RuntimeUnavailableError` is raised.
    """
    with optimize(model, passes, **options) as result:
        return result.model, result.report.validated
