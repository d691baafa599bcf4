"""Validation: the original and a rewritten model through ONNX Runtime, compared.

Feeds. The first is standard normal with a batch of 1. Then come large values with a batch of 2,
values in [0, 1] with a batch of 5, zeros; other symbolic sizes change too, as far as the model
takes it. Models of more than 3e8 multiply-adds do without zeros, of more than 1e9 also without
[0, 1], and of more than 1e10 without all but the first: the same ones in every run. Where they take
a batch of 2, the original is run on the first two as one batch, and alone on the first only should
the candidate differ from its row. Inputs with a default are overridden in one feed more. Arrays
that the user gives replace all that; what they leave out is drawn. Sizes and ranges of integers
that the model refuses are replaced by others.

Both sides run without ONNX Runtime's optimizations, which would do half of the rewrites on
either side and hide the difference.

Tolerance. An output may move by ten times its noise floor, never less than sixteen ulps of its
scale (four in half precision): see `compare`. The floor is measured as far as needed, cheapest
first: inputs moved by one ulp; ONNX Runtime's optimizations and one ulp of noise behind every
sum inside the network; and three and two draws of these. Cheap models get one draw in any case,
for the report. Only then is a candidate accused.

Names are imported on first use, so that the worker process starts with `worker` alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphpass.validate.baseline import ReferenceCannotRunError
    from graphpass.validate.compare import OutputComparison
    from graphpass.validate.feeds.given import InputsError
    from graphpass.validate.latency import Latency
    from graphpass.validate.options import ValidationOptions
    from graphpass.validate.process.runtime import (
        Limits,
        ProviderUnavailableError,
        RunError,
        Runtime,
    )
    from graphpass.validate.structure import check_structure
    from graphpass.validate.validator import Validator
    from graphpass.validate.verdict import Verdict

_HOMES = {
    "InputsError": "feeds.given",
    "Latency": "latency",
    "Limits": "process.runtime",
    "OutputComparison": "compare",
    "ProviderUnavailableError": "process.runtime",
    "ReferenceCannotRunError": "baseline",
    "RunError": "process.runtime",
    "Runtime": "process.runtime",
    "ValidationOptions": "options",
    "Validator": "validator",
    "Verdict": "verdict",
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
