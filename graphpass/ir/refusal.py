"""Why a rewrite is refused: a code for programs, a sentence for readers, and what can be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True)
class RefusalKind:
    """What refusals have in common: `code` in reports, `advice`, one sentence, or empty."""

    code: str
    advice: str = ""


CONDITION = RefusalKind("condition")  # of the rule itself
READERS = RefusalKind("several-readers")
FURTHER_OUTPUTS = RefusalKind("further-outputs")
PARAMETER = RefusalKind("function-parameter")
TRAINING = RefusalKind("training", "export the model in inference mode: model.eval() in torch")
OVERRIDABLE = RefusalKind(
    "overridable",
    "give --freeze-initializers, if nobody overrides it, or export without weights among the"
    " inputs: keep_initializers_as_inputs=False in torch",
)
COMPUTED = RefusalKind(
    "computed",
    "run clean-up before, or export with do_constant_folding=True, if it can be computed without"
    " the inputs",
)
PER_PIXEL = RefusalKind("per-pixel", "run gemm-to-conv, which keeps the weights of each pixel")
POSITIONS = RefusalKind(
    "positions", "give gemm-to-conv{target=all}, if each position is to become a pixel"
)
UNKNOWN_SIZE = RefusalKind(
    "unknown-size",
    "export with fixed sizes (only the batch left open), or run ONNX shape inference",
)
PRECISION = RefusalKind("precision", "export with float32 weights")
LARGER = RefusalKind("larger", "nothing has to be done: it is smaller as it is")
OLD_OPSET = RefusalKind("old-opset", "convert the model to a newer opset: onnx.version_converter")
IS_OUTPUT = RefusalKind("output", "remove that output from the export, if nobody reads it")


class RefusedError(Exception):
    """A rule's conditions do not hold; the text is one sentence that says why."""

    def __init__(self, reason: str, kind: RefusalKind = CONDITION) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind


def require(condition: object, reason: str, kind: RefusalKind = CONDITION) -> None:
    """Refuse the rewrite with `reason`, one sentence, unless `condition` holds."""
    if not condition:
        raise RefusedError(reason, kind)


def needed(value: Value | None, reason: str, kind: RefusalKind = CONDITION) -> Value:
    """Return `value`; refuse the rewrite with `reason` where it is None."""
    if value is None:
        raise RefusedError(reason, kind)
    return value
