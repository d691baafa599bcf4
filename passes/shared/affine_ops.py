"""Affine operators in a graph: BatchNormalization, and Mul, Add, Sub, Div by a constant."""

from __future__ import annotations

import numpy as np

from graphpass import (
    Node,
    Op,
    Tensor,
    Weight,
    attribute,
    const,
    constant,
    dtype,
    either,
    label,
    opset,
    require,
)
from graphpass.ir.operators import Trait, is_training, named
from graphpass.ir.questions import is_overridable
from graphpass.ir.refusal import COMPUTED, OLD_OPSET, OVERRIDABLE, TRAINING, UNKNOWN_SIZE
from graphpass.rewrite.pattern import Pattern

from .affine import Affine, Floats, of_arithmetic, of_batch_normalization
from .channels import Channels, per_channel, vector
from .dequantize import quantized

_ARITHMETIC = named(Trait.ARITHMETIC)


def affine_of(inner: Pattern, *, shared: bool = False) -> either:
    """An affine operator on `inner`; binds `affine`, and `term` where it is arithmetic."""
    term = const("term", quiet=True)
    return either(
        Op("BatchNormalization", inner, ..., bind="affine", shared=shared),
        Op(_ARITHMETIC, inner, term, bind="affine", shared=shared),
        Op(_ARITHMETIC, term, inner, bind="affine", shared=shared),
    )


def through(inner: Pattern) -> either:
    """`inner`, or `between` on `inner`: an operator that leaves every element as it is."""
    return either(inner, Op(("Transpose", "Cast", "Identity"), inner, bind="between"))


# ------------------------------------------------------------------- what an affine operator does


def change_of(affine: Node, term: Weight | None, channels: Channels, where: str) -> Affine:
    """Return what `affine` does to each of `channels`, which lie in the tensor called `where`."""
    if term is not None:
        return arithmetic(affine, term, channels, where)
    require(opset(affine) >= 7, f"{label(affine)} is from before opset 7", OLD_OPSET)
    require(not is_training(affine), f"{label(affine)} is in training mode", TRAINING)
    require(
        attribute(affine, "spatial") in (None, 1),
        f"{label(affine)} normalizes every position by itself (spatial=0)",
    )
    require(channels.rank is not None, f"the rank of {where} is unknown", UNKNOWN_SIZE)
    require(
        channels.place() == 1,
        f"{label(affine)} normalizes axis 1, but the channels of {where} lie along axis "
        f"{channels.place()} there",
    )
    scale, offset, mean, variance = _parameters(affine, channels.size)
    epsilon = attribute(affine, "epsilon")
    positive = (variance + epsilon > 0).all()
    require(positive, f"the variance of {label(affine)} plus epsilon is not positive everywhere")
    with np.errstate(all="ignore"):
        change = of_batch_normalization(scale, offset, mean, variance, epsilon)
    return _finite(change, affine)


def _parameters(affine: Node, size: int) -> list[Floats]:
    values = []
    for role, tensor in zip(
        ("scale", "offset", "mean", "variance"), affine.inputs[1:], strict=True
    ):
        weight = constant(tensor)
        stored = quantized(tensor) if weight is None else None
        name = f"the {role} of {label(affine)}, '{tensor.name}',"
        overridable = weight is None and is_overridable(tensor)
        require(not overridable, f"{name} may be overridden at run time", OVERRIDABLE)
        require(weight or stored, f"{name} is not a constant", COMPUTED)
        if weight is not None:
            values.append(vector(weight, size))
        elif stored is not None:
            require(stored.levels.shape == (size,), f"{name} is not one value for each channel")
            values.append(stored.values())
    return values


def arithmetic(affine: Node, term: Weight, channels: Channels, where: str) -> Affine:
    """Return what an operator with the constant `term` on one side does to each channel."""
    require(opset(affine) >= 7, f"{label(affine)} is from before opset 7", OLD_OPSET)
    values = per_channel(term, channels, where)
    term_first = affine.inputs[0] is term.origin
    if affine.op == "Div":
        require(not term_first, f"{label(affine)} divides by {where}")
        require((values != 0).all(), f"{label(affine)} divides by zero")
    with np.errstate(all="ignore"):
        return _finite(of_arithmetic(affine.op, values, term_first=term_first), affine)


def _finite(change: Affine, affine: Node) -> Affine:
    finite = np.isfinite(change.factor).all() and np.isfinite(change.shift).all()
    require(finite, f"{label(affine)} has parameters that are not finite")
    return change


# ---------------------------------------------------------------------------- what stands between


def channels_after(between: Node | None, channels: Channels, weight: Weight) -> Channels:
    """Say where `channels`, which lie in the input of `between`, lie in its output."""
    if between is None or between.op == "Identity":
        return channels
    if between.op == "Transpose":
        return channels.after(between)
    same = attribute(between, "to") == weight.data_type
    require(same, f"{label(between)} changes the type")
    return channels


def channels_before(between: Node | None, channels: Channels, weight: Weight) -> Channels:
    """Say where `channels`, which lie in the output of `between`, lie in its input."""
    if between is None or between.op == "Identity":
        return channels
    if between.op == "Transpose":
        return channels.before(between)
    same = dtype(between.inputs[0]) == weight.dtype
    require(same, f"{label(between)} changes the type")
    return channels


def again(between: Node | None, term: Op | Tensor) -> Op | Tensor:
    """Put `between` on `term`, where it does anything."""
    if between is None or between.op != "Transpose":
        return term
    return Op("Transpose", term, **between.attrs)
