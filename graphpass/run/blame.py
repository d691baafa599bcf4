"""Whose fault an exception is that nobody raised on purpose: the model's, or ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx

from graphpass.errors import GraphpassError, ModelError
from graphpass.validate.structure import checker_error


@contextlib.contextmanager
def blamed(model: onnx.ModelProto) -> Iterator[None]:
    """Let what fails in the block on a model that is not valid ONNX be a `ModelError` about it.

    On a valid model it stays what it is: a bug.
    """
    try:
        yield
    except (GraphpassError, MemoryError, OSError):
        raise
    except Exception as error:
        reason = checker_error(model)
        if reason is None:
            raise
        raise ModelError(f"the model is not valid ONNX: {reason}") from error
