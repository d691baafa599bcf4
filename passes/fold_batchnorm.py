"""fold-batchnorm: per-channel affine operators disappear into the weights beside them.

BatchNormalization at inference and Mul, Add, Sub, Div by constants are affine maps of each
channel. Behind a Conv, ConvTranspose, Gemm or MatMul they scale its outputs; before one, its
inputs. One operator is folded at a time until none is left, so that every written form of a
normalization is covered by the same few laws.
"""

from __future__ import annotations

import numpy as np

from graphpass import (
    Node,
    Op,
    Pass,
    Rule,
    Tensor,
    Weight,
    any_,
    const,
    constant,
    either,
    is_output,
    label,
    operator,
    optional,
    producer,
    readers,
    require,
)

from .shared.affine import FLOAT_TYPES, Affine, rounded
from .shared.affine_ops import (
    affine_of,
    again,
    arithmetic,
    change_of,
    channels_after,
    channels_before,
    through,
)
from .shared.channels import Channels, require_not_widened, vector
from .shared.fold_quantized import IntoQuantizedWeight
from .shared.fused_functions import require_not_the_end_of_a_function
from .shared.linear import (
    LINEAR,
    bias_after,
    bias_ahead,
    gemm_bias,
    input_channels,
    output_channels,
    pads_nothing,
    require_numbers,
    scaled_inputs,
    scaled_outputs,
)

_MATMUL = either(
    Op("MatMul", any_("x"), const("weight", quiet=True), bind="matmul"),
    Op("MatMul", const("weight", quiet=True), any_("x"), bind="matmul"),
)

# ------------------------------------------------------------- backward: into what stands before


class IntoConv(Rule):
    """f·Conv(x, W, b) + s = Conv(x, f·W, f·b + s), with f and s per output channel.

    ConvTranspose likewise: output channels are axis 1 of its weight, counted within a group.
    Padding is no matter: it is a part of the sum that f multiplies.
    """

    pattern = affine_of(
        through(
            Op(
                ("Conv", "ConvTranspose"),
                any_("x"),
                const("weight"),
                optional(const("bias")),
                bind="conv",
            )
        )
    )

    def rewrite(
        self,
        affine: Node,
        term: Weight | None,
        between: Node | None,
        conv: Node,
        x: Tensor,
        weight: Weight,
        bias: Weight | None,
    ) -> Op | Tensor:
        require_numbers(weight)
        channels = output_channels(conv, weight.shape)
        seen = channels_after(between, channels, weight)
        change = change_of(affine, term, seen, f"the output of {label(conv)}")
        held = None if bias is None else vector(bias, channels.size)
        folded = scaled_outputs(conv, weight, change)
        new_bias = bias_after(conv, change, held, weight)
        return again(between, Op(conv.op, x, folded, new_bias, **conv.attrs))


class IntoGemm(Rule):
    """f·Gemm(x, W, C) + s = Gemm(x, f·W, f·β·C + s) with the new β = 1; f and s per column."""

    pattern = affine_of(
        through(Op("Gemm", any_("x"), const("weight"), optional(const("bias")), bind="gemm"))
    )

    def rewrite(
        self,
        affine: Node,
        term: Weight | None,
        between: Node | None,
        gemm: Node,
        x: Tensor,
        weight: Weight,
        bias: Weight | None,
    ) -> Op | Tensor:
        require_numbers(weight)
        seen = channels_after(between, output_channels(gemm, weight.shape), weight)
        change = change_of(affine, term, seen, f"the output of {label(gemm)}")
        folded = scaled_outputs(gemm, weight, change)
        held = None if bias is None else bias.astype(np.float64)
        new_bias = bias_after(gemm, change, gemm_bias(gemm, held), weight)
        return again(between, Op("Gemm", x, folded, new_bias, **{**gemm.attrs, "beta": None}))


class IntoMatMul(Rule):
    """f·MatMul(x, W) + s = MatMul(x, f·W) + s, with f and s per column of W.

    MatMul(W, x) likewise, per row. What is only a shift has its place already.
    """

    pattern = affine_of(through(_MATMUL))

    def rewrite(
        self,
        affine: Node,
        term: Weight | None,
        between: Node | None,
        matmul: Node,
        x: Tensor,
        weight: Weight,
    ) -> Op | Tensor | None:
        if affine.op in ("Add", "Sub"):
            return None
        channels = _matmul_channels(matmul, x, weight)
        seen = channels_after(between, channels, weight)
        change = change_of(affine, term, seen, f"the output of {label(matmul)}")
        return again(between, _matmul(matmul, x, weight, change, channels))


class IntoMatMulAdd(Rule):
    """f·(MatMul(x, W) + b) + s = MatMul(x, f·W) + (f·b + s), with b, f and s per column of W.

    MatMul(W, x) likewise, per row; instead of + b also − b or b − MatMul(x, W).
    """

    pattern = affine_of(
        through(
            either(
                Op(("Add", "Sub"), _MATMUL, const("bias", quiet=True), bind="total"),
                Op(("Add", "Sub"), const("bias", quiet=True), _MATMUL, bind="total"),
            )
        )
    )

    def rewrite(
        self,
        affine: Node,
        term: Weight | None,
        between: Node | None,
        total: Node,
        bias: Weight,
        matmul: Node,
        x: Tensor,
        weight: Weight,
    ) -> Op | Tensor:
        channels = _matmul_channels(matmul, x, weight)
        inner = arithmetic(total, bias, channels, f"the output of {label(matmul)}")
        seen = channels_after(between, channels, weight)
        outer = change_of(affine, term, seen, f"the output of {label(total)}")
        return again(between, _matmul(matmul, x, weight, outer.of(inner), channels))


def _matmul_channels(matmul: Node, x: Tensor, weight: Weight) -> Channels:
    require_numbers(weight)
    return output_channels(matmul, weight.shape, weight_first=matmul.inputs[1] is x)


def _matmul(matmul: Node, x: Tensor, weight: Weight, change: Affine, channels: Channels) -> Op:
    """Return the product whose output is changed, and the sum after it where there is a shift."""
    first = matmul.inputs[1] is x
    folded = scaled_outputs(matmul, weight, change, weight_first=first)
    product = Op("MatMul", folded, x) if first else Op("MatMul", x, folded)
    if not change.shifts:
        return product
    shift = rounded(change.shift, weight.dtype, f"the sum after {label(matmul)}")
    return Op("Add", product, channels.spread(shift))


# ----------------------------------------------------------------- forward: into what comes after


class AheadOfConv(Rule):
    """Conv(f·x + s, W, b) = Conv(x, f·W, b + Σ W·s), with f and s per input channel.

    Exact where s = 0 or where nothing is padded: zeros are padded to f·x + s, not to x.
    ConvTranspose takes in f alone: near its edges fewer positions overlap, so that Σ W·s varies.
    """

    pattern = Op(
        ("Conv", "ConvTranspose"),
        through(affine_of(any_("x"), shared=True)),
        const("weight"),
        optional(const("bias")),
        bind="conv",
    )

    def rewrite(
        self,
        conv: Node,
        between: Node | None,
        affine: Node,
        x: Tensor,
        term: Weight | None,
        weight: Weight,
        bias: Weight | None,
    ) -> Op | None:
        if _is_bias(affine, x):
            return None
        require_not_the_end_of_a_function(affine, x)
        require_numbers(weight)
        channels = input_channels(conv, weight.shape)
        seen = channels_before(between, channels, weight)
        change = change_of(affine, term, seen, f"the input of {label(conv)}")
        require_not_widened(affine, x, term, seen)
        if change.shifts:
            require(
                conv.op == "Conv",
                f"near its edges {label(conv)} adds up fewer weights, so that no one bias fits",
            )
            require(
                pads_nothing(conv, weight.shape, conv.inputs[0]),
                f"{label(conv)} pads with zeros, which the shift of {label(affine)} does not reach",
            )
        _require_all_readers(affine, between or conv, seen, change)
        folded = scaled_inputs(conv, weight, change)
        if not change.shifts:
            return Op(conv.op, again(between, x), folded, bias, **conv.attrs)
        held = None if bias is None else vector(bias, weight.shape[0])
        new_bias = bias_ahead(conv, change, held, weight)
        return Op("Conv", again(between, x), folded, new_bias, **conv.attrs)


class AheadOfGemm(Rule):
    """Gemm(f·x + s, W, C) = Gemm(x, f·W, β·C + α·Σ W·s) with the new β = 1; f, s per row of W."""

    pattern = Op(
        "Gemm",
        through(affine_of(any_("x"), shared=True)),
        const("weight"),
        optional(const("bias")),
        bind="gemm",
    )

    def rewrite(
        self,
        gemm: Node,
        between: Node | None,
        affine: Node,
        x: Tensor,
        term: Weight | None,
        weight: Weight,
        bias: Weight | None,
    ) -> Op | None:
        if _is_bias(affine, x):
            return None
        require_not_the_end_of_a_function(affine, x)
        require_numbers(weight)
        seen = channels_before(between, input_channels(gemm, weight.shape), weight)
        change = change_of(affine, term, seen, f"the input of {label(gemm)}")
        require_not_widened(affine, x, term, seen)
        _require_all_readers(affine, between or gemm, seen, change)
        folded = scaled_inputs(gemm, weight, change)
        if not change.shifts:
            return Op("Gemm", again(between, x), folded, bias, **gemm.attrs)
        held = None if bias is None else bias.astype(np.float64)
        new_bias = bias_ahead(gemm, change, gemm_bias(gemm, held), weight)
        attributes = {**gemm.attrs, "beta": None}
        return Op("Gemm", again(between, x), folded, new_bias, **attributes)


class AheadOfMatMul(Rule):
    """MatMul(f·x + s, W) = MatMul(x, f·W) + Σ W·s, with f and s per row of W."""

    pattern = Op(
        "MatMul",
        through(affine_of(any_("x"), shared=True)),
        const("weight", quiet=True),
        bind="matmul",
    )

    def rewrite(
        self,
        matmul: Node,
        between: Node | None,
        affine: Node,
        x: Tensor,
        term: Weight | None,
        weight: Weight,
    ) -> Op | None:
        if _is_bias(affine, x):
            return None
        require_not_the_end_of_a_function(affine, x)
        require_numbers(weight)
        require(weight.ndim == 2, f"the weight of {label(matmul)} is no matrix")
        seen = channels_before(between, input_channels(matmul, weight.shape), weight)
        change = change_of(affine, term, seen, f"the input of {label(matmul)}")
        require_not_widened(affine, x, term, seen)
        _require_all_readers(affine, between or matmul, seen, change)
        folded = scaled_inputs(matmul, weight, change)
        product = Op("MatMul", again(between, x), folded)
        if not change.shifts:
            return product
        return Op("Add", product, bias_ahead(matmul, change, None, weight))


def _is_bias(affine: Node, x: Tensor) -> bool:
    """Whether `affine` is the bias of a MatMul before it, where it belongs."""
    source = producer(x)
    return (
        affine.op in ("Add", "Sub")
        and source is not None
        and operator(source) == "MatMul"
        and any(constant(tensor) is not None for tensor in source.inputs)
    )


def _require_all_readers(affine: Node, taker: Node, channels: Channels, change: Affine) -> None:
    """Refuse where `affine` would have to stay for another reader: its work would be done twice."""
    output = affine.outputs[0]
    require(not is_output(output), f"{label(affine)} is an output of the graph")
    for reader in readers(output):
        require(
            reader is taker or _takes_in(reader, affine, channels, change),
            f"{label(affine)} also feeds {label(reader)}, which cannot take it in",
        )


def _takes_in(node: Node, affine: Node, channels: Channels, change: Affine) -> bool:
    """Whether a rule above moves `affine` into `node`."""
    if operator(node) not in LINEAR or node.graph is not affine.graph:
        return False
    x, *rest = node.inputs
    weight, *bias = [constant(tensor) for tensor in rest if tensor.name]
    if x is not affine.outputs[0] or weight is None or None in bias:
        return False
    if weight.dtype not in FLOAT_TYPES or weight.ndim < 2:
        return False
    own = input_channels(node, weight.shape)
    if (own.size, own.axis) != (channels.size, channels.axis):
        return False
    if node.op == "MatMul":
        return weight.ndim == 2
    spreads = node.op == "Gemm" or (node.op == "Conv" and pads_nothing(node, weight.shape, x))
    return spreads or not change.shifts


class FoldBatchNorm(Pass):
    """Fold BatchNormalization, or Mul, Add, Sub, Div per channel, into Conv, Gemm and MatMul."""

    name = "fold-batchnorm"
    rules = (
        IntoConv(),
        IntoGemm(),
        IntoMatMul(),
        IntoMatMulAdd(),
        IntoQuantizedWeight(),
        AheadOfConv(),
        AheadOfGemm(),
        AheadOfMatMul(),
    )
