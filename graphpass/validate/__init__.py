"""Validation: the original and a rewritten model through ONNX Runtime, compared.

Names are imported on first use, so that the worker process starts with `worker` alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphpass.validate.compare import OutputComparison
    from graphpass.validate.options import ValidationOptions
    from graphpass.validate.point import ReferenceCannotRunError
    from graphpass.validate.runtime import (
        Limits,
        ProviderUnavailableError,
        RunError,
        Runtime,
    )
    from graphpass.validate.structure import check_structure
    from graphpass.validate.user_inputs import InputsError
    from graphpass.validate.validator import Latency, Validator, Verdict

_HOMES = {
    "InputsError": "user_inputs",
    "Latency": "validator",
    "Limits": "runtime",
    "OutputComparison": "compare",
    "ProviderUnavailableError": "runtime",
    "ReferenceCannotRunError": "point",
    "RunError": "runtime",
    "Runtime": "runtime",
    "ValidationOptions": "options",
    "Validator": "validator",
    "Verdict": "validator",
    "check_structure": "structure",
}

__all__ = [
    "InputsError",
    "Latency",
    "Limits",
    "OutputComparison",
    "ProviderUnavailableError",
    "ReferenceCannotRunError",
    "RunError",
    "Runtime",
    "ValidationOptions",
    "Validator",
    "Verdict",
    "check_structure",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
