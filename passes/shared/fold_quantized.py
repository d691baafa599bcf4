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
    constant,
    either,
    label,
    opset,
    optional,
    require,
)

from .affine import Affine, Array, Floats, rescaled_step
from .affine_ops import affine_of, again, change_of, channels_after, through
from .dequantize import Quantized, quantized
from .linear import LINEAR, bias_after, gemm_bias, output_axis, output_channels
from .maps import of_channels

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
                            bind="stored",
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
        stored: Node | None,
        bias_levels: Weight | None,
        bias_step: Weight | None,
        bias_zero: Weight | None,
    ) -> Op | Tensor | None:
        if linear.op == "MatMul" and affine.op in ("Add", "Sub"):
            return None  # what is only a shift has its place already
        weight = Quantized(dequantize, levels, step, zero)
        weight.require_steps()
        seen = channels_after(between, output_channels(linear, levels.shape), step)
        change = change_of(affine, term, seen, f"the output of {label(linear)}")
        held = None if bias is None else bias.astype(np.float64)
        if stored is not None and bias_levels is not None and bias_step is not None:
            held = Quantized(stored, bias_levels, bias_step, bias_zero).values()
        return again(between, _after(linear, weight, held, change))


def quantized_after(linear: Node, change: Affine) -> Op:
    """Return `linear` with a map of its whole output in the steps of its weight, and its bias."""
    weight = quantized(linear.inputs[1])
    require(weight is not None, f"the weight of {label(linear)} is not a constant")
    assert weight is not None
    weight.require_steps()
    own = of_channels(linear, change, output_channels(linear, weight.levels.shape))
    held: Floats | None = None
    if len(linear.inputs) > 2 and linear.inputs[2].name:
        plain, stored = constant(linear.inputs[2]), quantized(linear.inputs[2])
        require(plain or stored, f"the bias of {label(linear)} is not a constant")
        if plain is not None:
            held = plain.astype(np.float64)
        elif stored is not None:
            held = stored.values()
    return _after(linear, weight, held, own)


def _after(linear: Node, found: Quantized, held: Floats | None, change: Affine) -> Op:
    x, step = linear.inputs[0], found.step
    weight: Op | Tensor = found.node.outputs[0]
    if change.scales:
        weight = _rescaled(linear, found, change.factor)
    if linear.op == "Gemm":
        new_bias = bias_after(linear, change, gemm_bias(linear, held), step)
        return Op("Gemm", x, weight, new_bias, **{**linear.attrs, "beta": None})
    new_bias = bias_after(linear, change, held, step)
    if linear.op == "MatMul":
        product = Op("MatMul", x, weight)
        return product if new_bias is None else Op("Add", product, new_bias)
    return Op(linear.op, x, weight, new_bias, **linear.attrs)


def _rescaled(linear: Node, found: Quantized, factor: Floats) -> Op:
    """Return the weight with its steps multiplied, one factor for each output channel."""
    dequantize, levels, step, zero = found.node, found.levels, found.step, found.zero
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
