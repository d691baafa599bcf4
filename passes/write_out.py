"""write-out: operators that a target lacks, in the smaller ones that ONNX defines them by."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from graphpass import (
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    any_,
    attribute,
    dtype,
    label,
    needed,
    optional,
    rank,
    require,
)
from graphpass.errors import UsageError
from graphpass.ir.refusal import PRECISION, UNKNOWN_SIZE

_FLOATS = (np.float32, np.float64)


class WriteOutLayerNormalization(Rule):
    """LayerNormalization(x, s, b) = (x − μ) / √(mean((x − μ)²) + ε) · s + b, μ = mean(x).

    That is how ONNX defines it (Ba, Kiros & Hinton, 2016). Over the last axes, as it is here; a
    Transpose that moves down through it makes it one over the channels of [B, C, 1, S].
    """

    pattern = Op(
        "LayerNormalization", any_("x"), any_("scale"), optional(any_("bias")), bind="norm"
    )

    def rewrite(self, norm: Node, x: Tensor, scale: Tensor, bias: Tensor | None) -> Any:
        kind = dtype(x)
        require(
            kind is not None and kind in _FLOATS,
            f"{label(norm)} computes in float32 what is {kind or 'of a type that is not known'}",
            PRECISION,
        )
        count = needed(rank(x), f"the rank of '{x.name}' is not known", UNKNOWN_SIZE)
        axes = list(range(attribute(norm, "axis") % count, count))
        epsilon = np.array(attribute(norm, "epsilon"), kind)
        centred = Op("Sub", x, Op("ReduceMean", x, axes=axes, keepdims=1))
        squares = Op("Mul", centred, centred)
        variance = Op("ReduceMean", squares, axes=axes, keepdims=1)
        deviation = Op("Sqrt", Op("Add", variance, epsilon))
        result = Op("Mul", Op("Div", centred, deviation), scale)
        return result if bias is None else Op("Add", result, bias)


class WriteOutHardSwish(Rule):
    """HardSwish(x) = x · HardSigmoid(x, 1/6, 1/2), as ONNX defines it."""

    pattern = Op("HardSwish", any_("x"))

    def rewrite(self, x: Tensor) -> Op:
        return Op("Mul", x, Op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


class WriteOutGelu(Rule):
    """Gelu(x) = ½ · x · (1 + erf(x / √2)), as ONNX defines it (Hendrycks & Gimpel, 2016)."""

    pattern = Op("Gelu", any_("x"), bind="gelu")

    def rewrite(self, gelu: Node, x: Tensor) -> Any:
        kind = dtype(x)
        if attribute(gelu, "approximate") != "none" or kind is None or kind not in _FLOATS:
            return None
        one, half, root = (np.array(value, kind) for value in (1, 0.5, math.sqrt(2)))
        error = Op("Add", Op("Erf", Op("Div", x, root)), one)
        return Op("Mul", half, Op("Mul", x, error))


_RULES: Final[dict[str, Rule]] = {
    "LayerNormalization": WriteOutLayerNormalization(),
    "HardSwish": WriteOutHardSwish(),
    "Gelu": WriteOutGelu(),
}


@dataclass(frozen=True)
class WriteOut(Pass):
    """Operators that a target lacks, in the smaller ones that ONNX defines them by.

    For runtimes that have the operator this is no gain: it runs only where it is asked for, as the
    profiles of targets do.
    """

    name: ClassVar[str] = "write-out"
    operators: str = field(
        default=",".join(_RULES), metadata={"help": f"of {', '.join(_RULES)}; with commas"}
    )

    def __post_init__(self) -> None:
        for name in self._listed():
            if name not in _RULES:
                raise UsageError(f"write-out knows {', '.join(_RULES)}, and not {name!r}")

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The rules for the operators that are listed."""
        return tuple(_RULES[name] for name in self._listed())

    def _listed(self) -> list[str]:
        return list(filter(None, (name.strip() for name in self.operators.split(","))))
