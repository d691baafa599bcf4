"""fold-batchnorm: per-channel affine operators disappear into the weights beside them.

BatchNormalization at inference and Mul, Add, Sub, Div by constants are affine maps of each
channel. Behind a Conv, ConvTranspose, Gemm or MatMul they scale its outputs; before one, its
inputs. One operator is folded at a time until none is left, so that every written form of a
normalization is covered by the same few laws.
"""

from __future__ import annotations

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
from graphpass.ir.refusal import IS_OUTPUT
from graphpass.ir.windows import pads_nothing

from .shared.affine import FLOAT_TYPES, Affine
from .shared.affine_ops import (
    affine_of,
    again,
    arithmetic,
    change_of,
    channels_after,
    channels_before,
    through,
)
from .shared.ahead_through import AheadThrough
from .shared.channels import Channels, require_not_widened
from .shared.fold_quantized import IntoQuantizedWeight
from .shared.fused_functions import require_whole_function
from .shared.linear import (
    LINEAR,
    input_channels,
    output_channels,
    require_numbers,
)
from .shared.split_norms import NormsBehindSplit
from .shared.take_in import (
    conv_after,
    conv_ahead,
    gemm_after,
    gemm_ahead,
    matmul_after,
    matmul_ahead,
)
from .shared.through import IntoSources

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
        return again(between, conv_after(conv, weight, bias, change))


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
        return again(between, gemm_after(gemm, weight, bias, change))


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
        return again(between, matmul_after(matmul, weight, change, channels))


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
        return again(between, matmul_after(matmul, weight, outer.of(inner), channels))


def _matmul_channels(matmul: Node, x: Tensor, weight: Weight) -> Channels:
    require_numbers(weight)
    return output_channels(matmul, weight.shape, weight_first=matmul.inputs[1] is x)


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
        change = _ahead_of(conv, between, affine, x, term, weight)
        return None if change is None else conv_ahead(conv, again(between, x), weight, bias, change)


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
        change = _ahead_of(gemm, between, affine, x, term, weight)
        return None if change is None else gemm_ahead(gemm, again(between, x), weight, bias, change)


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
        change = _ahead_of(matmul, between, affine, x, term, weight)
        return None if change is None else matmul_ahead(matmul, again(between, x), weight, change)


def _ahead_of(
    layer: Node,
    between: Node | None,
    affine: Node,
    x: Tensor,
    term: Weight | None,
    weight: Weight,
) -> Affine | None:
    """Return what `affine` does to each input channel of `layer`; None where it belongs to `x`.

    Refuses where it would have to stay, or be widened.
    """
    if _is_bias(affine, x):
        return None
    require_whole_function(affine, x)
    require_numbers(weight)
    is_matrix = layer.op != "MatMul" or weight.ndim == 2
    require(is_matrix, f"the weight of {label(layer)} is no matrix")
    seen = channels_before(between, input_channels(layer, weight.shape), weight)
    change = change_of(affine, term, seen, f"the input of {label(layer)}")
    require_not_widened(affine, x, term, seen)
    _require_all_readers(affine, between or layer, seen, change)
    return change


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
    require(not is_output(output), f"{label(affine)} is an output of the graph", IS_OUTPUT)
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
    spreads = node.op == "Gemm" or (node.op == "Conv" and pads_nothing(node, x))
    return spreads or not change.shifts


class FoldBatchNorm(Pass):
    """Fold BatchNormalization, or Mul, Add, Sub, Div per channel, into Conv, Gemm and MatMul."""

    name = "fold-batchnorm"
    surveys = (NormsBehindSplit(),)
    rules = (
        IntoConv(),
        IntoGemm(),
        IntoMatMul(),
        IntoMatMulAdd(),
        IntoQuantizedWeight(),
        AheadOfConv(),
        AheadOfGemm(),
        AheadOfMatMul(),
        IntoSources(),
        AheadThrough(),
    )
