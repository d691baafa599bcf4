"""Fold an affine operator into weights that are stored as integers behind DequantizeLinear."""

from __future__ import annotations

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    const,
    either,
    label,
    opset,
    optional,
    require,
)

from .affine import Array, Floats, rescaled_step
from .affine_ops import affine_of, again, change_of, channels_after, through
from .linear import LINEAR, bias_after, gemm_bias, output_axis, output_channels, require_numbers

_PER_AXIS = 13  # the opset from which on DequantizeLinear has one step for each channel


class IntoQuantizedWeight(Rule):
    """f·Conv(x, Dequantize(q, d), b) + s = Conv(x, Dequantize(q, f·d), f·b + s), if f > 0.

    Dequantize(q, d) = (q − zero)·d, so that its step d takes f whatever the zero point; the
    stored integers stay. One step for the whole tensor becomes one for each output channel.
    ConvTranspose, Gemm and MatMul likewise.
    """

    pattern = affine_of(
        through(
            Op(
                LINEAR,
                any_("x"),
                Op(
                    "DequantizeLinear",
                    const("levels", quiet=True),
                    const("step"),
                    optional(const("zero")),
                    bind="dequantize",
                    shared=True,
                ),
                optional(
                    either(
                        const("bias"),
                        Op(
                            "DequantizeLinear",
                            const("bias_levels", quiet=True),
                            const("bias_step"),
                            optional(const("bias_zero")),
                            shared=True,
                        ),
                    )
                ),
                bind="linear",
            )
        )
    )

    def rewrite(
        self,
        affine: Node,
        term: Weight | None,
        between: Node | None,
        linear: Node,
        x: Tensor,
        dequantize: Node,
        levels: Weight,
        step: Weight,
        zero: Weight | None,
        bias: Weight | None,
        bias_levels: Weight | None,
        bias_step: Weight | None,
        bias_zero: Weight | None,
    ) -> Op | Tensor | None:
        if linear.op == "MatMul" and affine.op in ("Add", "Sub"):
            return None  # what is only a shift has its place already
        require_numbers(step)
        require(
            not attribute(dequantize, "output_dtype"),
            f"{label(dequantize)} may give another type than its step has",
        )
        seen = channels_after(between, output_channels(linear, levels.shape), step)
        change = change_of(affine, term, seen, f"the output of {label(linear)}")
        weight: Op | Tensor = dequantize.outputs[0]
        if change.scales:
            weight = _rescaled(linear, dequantize, levels, step, zero, change.factor)
        held = None if bias is None else bias.astype(np.float64)
        if bias_levels is not None and bias_step is not None:
            held = _dequantized(bias_levels, bias_step, bias_zero)
        if linear.op == "Gemm":
            new_bias = bias_after(linear, change, gemm_bias(linear, held), step)
            attributes = {**linear.attrs, "beta": None}
            return again(between, Op("Gemm", x, weight, new_bias, **attributes))
        new_bias = bias_after(linear, change, held, step)
        if linear.op == "MatMul":
            product = Op("MatMul", x, weight)
            return again(between, product if new_bias is None else Op("Add", product, new_bias))
        return again(between, Op(linear.op, x, weight, new_bias, **linear.attrs))


def _rescaled(
    linear: Node,
    dequantize: Node,
    levels: Weight,
    step: Weight,
    zero: Weight | None,
    factor: Floats,
) -> Op:
    """Return `dequantize` with its steps multiplied, one factor for each output channel."""
    require((factor > 0).all(), f"{label(dequantize)} would get a step that is not positive")
    if (factor == factor[0]).all():
        steps = rescaled_step(step, factor[0])
        return Op("DequantizeLinear", levels, steps, zero, **dequantize.attrs)
    grouped = linear.op == "ConvTranspose" and attribute(linear, "group") > 1
    require(not grouped, f"{label(dequantize)} has no step for each group of {label(linear)}")
    axis = output_axis(linear) % levels.ndim
    zeros: Weight | Array | None = zero
    if step.size == 1 and step.ndim < 2:
        require(opset(dequantize) >= _PER_AXIS, f"{label(dequantize)} can have one step only")
        if zero is not None:
            zeros = np.repeat(zero.array().reshape(-1), factor.size)
        step = step.reshape(1)
    else:
        require(
            step.ndim == 1 and attribute(dequantize, "axis") % levels.ndim == axis,
            f"the steps of {label(dequantize)} are not one for each output channel",
        )
    attributes = {**dequantize.attrs, "axis": axis}
    return Op("DequantizeLinear", levels, rescaled_step(step, factor), zeros, **attributes)


def _dequantized(levels: Weight, step: Weight, zero: Weight | None) -> Floats:
    start = 0.0 if zero is None else zero.astype(np.float64)
    return np.asarray((levels.astype(np.float64) - start) * step.astype(np.float64))
