"""What is known of operators: one table, which rules, the engine and the validators ask.

What a trait says holds for every opset from the row's `since` on, and is tested against ONNX
Runtime. Where an attribute, an input or an output decides, as alpha does whether LeakyRelu is
monotone, one of the functions below says how it is for a node.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Flag, auto
from functools import lru_cache, reduce
from operator import or_
from typing import Final

from graphpass.ir.questions import (
    STANDARD_DOMAINS,
    Node,
    RefusedError,
    attribute,
    cast_type,
    constant,
    operator,
    opset,
    schema,
)


class Trait(Flag):
    """What an operator may be; "data" are the inputs that are no parameters (`Operator.data`)."""

    # how elements of the outputs come from those of the inputs
    ELEMENTWISE = auto()  # from the one at the same place of the first input alone
    BROADCASTING = auto()  # from those at the same place of all inputs, as numpy broadcasts them
    REDUCTION = auto()  # one from all along some axes
    ALONG_AXIS = auto()  # from all along an axis, which stays
    MOVEMENT = auto()  # each is an element of the data, moved or repeated, or fills a gap
    VIEW = auto()  # all elements stay, in their order: only the shape is another
    SLIDING = auto()  # from a window that slides over the axes from 2 on
    POOL = auto()  # from a window of one channel, or from all of it
    SUM = auto()  # adds up many
    ARITHMETIC = auto()  # + - * /
    POSITION = auto()  # where they lie, not what they are
    CONTRACTION = auto()  # sums of products of the elements of two inputs
    NORMALIZATION = auto()  # scaled and shifted by statistics
    RECURRENT = auto()  # step by step along a sequence
    SIZES_ONLY = auto()  # from the sizes of the input, not its elements
    SOURCE = auto()  # made of nothing, or of parameters
    RANDOM = auto()  # another one in each run
    CONTROL = auto()  # what its bodies compute
    QUANTIZING = auto()  # into or out of integers, by scale and zero point
    SAMPLING = auto()  # from elements near a place that is computed
    # what may be relied on, for all data at once
    PICKS = auto()  # each element is one of the data, or a zero: nothing is rounded
    ON_MAGNITUDES = auto()  # f(|x|, |w|) bounds |f(x, w)|, and, times roundoff, its rounding
    TAME = auto()  # its result is about as large as its data, and moves no more than they do
    BOUNDED = auto()  # its result is at most about 1 larger than its data, and moves no more
    HOMOGENEOUS = auto()  # f(a·x) = a·f(x) for a > 0
    MONOTONE = auto()  # no element of the output falls where one of the data rises
    KEEPS_ZERO = auto()  # zeros make zeros
    KEEPS_NAN = auto()  # what is computed from NaN is NaN
    KEEPS_AXES = auto()  # what it does not mix lies on the same axis of its outputs
    COMMUTATIVE = auto()  # f(a, b) = f(b, a), to the bit
    OF_ONE_ITSELF = auto()  # of one element alone it makes that one, −0 maybe as 0
    LOSES_SIGN_OF_ZERO = auto()  # 0 and -0 make the same
    PASSES_SIGN_OF_ZERO = auto()  # 0 and -0 make the same, or 0 and -0
    # what every runtime, ONNX's reference among them, computes to the same bit: moved elements,
    # what IEEE 754 rounds in one way only, comparisons
    EXACT = auto()
    EXACT_ON_INTEGERS = auto()  # on integers only: sums of floats depend on their order
    # what decides how precisely numbers must be held
    AVERAGES = auto()  # divides by how many there are, which no float may hold exactly
    CLAMPS = auto()  # beyond a bound all data are the same to it
    SQUASHES = auto()  # of data beyond a bound, infinite or not, it makes nearly the same
    WIDENS = auto()  # may leave the range of its data, or sums up too many for half precision
    OWN_TYPE = auto()  # says the type of its output itself, or computes with integers


@dataclass(frozen=True)
class Operator:
    """A row: what holds of an operator from opset `since` on.

    `data`: how many inputs are data, not parameters such as axes, shapes, bounds, weights; None:
    all. `positive`: attributes that must not be negative for HOMOGENEOUS and MONOTONE to hold.
    """

    name: str
    traits: Trait
    domain: str = ""
    since: int = 1
    data: int | None = 1
    positive: tuple[str, ...] = ()


def _row(
    names: str,
    traits: Trait,
    since: int = 1,
    data: int | None = 1,
    positive: str = "",
    domain: str = "",
) -> list[Operator]:
    split = tuple(positive.split())
    return [Operator(name, traits, domain, since, data, split) for name in names.split()]


_E, _B, _R = Trait.ELEMENTWISE, Trait.BROADCASTING, Trait.REDUCTION
_H, _UP, _0, _NAN = Trait.HOMOGENEOUS, Trait.MONOTONE, Trait.KEEPS_ZERO, Trait.KEEPS_NAN
_MOVE = Trait.MOVEMENT | Trait.PICKS | Trait.ON_MAGNITUDES | _H | _UP | _0 | _NAN
_VIEW = _MOVE | Trait.VIEW
_POOL = Trait.SLIDING | Trait.POOL
_NORM_AXIS = Trait.ALONG_AXIS | Trait.NORMALIZATION
_SLIDING_SUM = Trait.SLIDING | Trait.CONTRACTION | Trait.ON_MAGNITUDES
_TAME, _BOUNDED, _PICKS = Trait.TAME, Trait.BOUNDED, Trait.PICKS
_MAGNITUDES = Trait.ON_MAGNITUDES

_ROWS: tuple[Operator, ...] = (
    # one element from one
    *_row("Identity", _E | _VIEW),
    *_row("Dropout", _E | _MOVE | _TAME | Trait.RANDOM),
    *_row("Relu", _E | _H | _UP | _0 | _NAN | _TAME | _PICKS),
    *_row("LeakyRelu", _E | _H | _UP | _0 | _NAN | _TAME, positive="alpha"),
    *_row("Abs", _E | _H | _0 | _NAN | _TAME),
    *_row("Neg", _E | _H | _0 | _NAN | _TAME),
    *_row("Sign", _E | _UP | _0),
    *_row("Ceil Floor Round", _E | _UP | _0 | _NAN | _BOUNDED),
    *_row("Asinh Atan Sinh", _E | _UP | _0 | _NAN),
    *_row("Erf", _E | _UP | _0 | _NAN),
    *_row("Asin Atanh Sqrt", _E | _UP | _0 | _NAN),
    *_row("Tanh Softsign", _E | _UP | _0 | _NAN | _TAME),
    *_row("Elu Selu Celu", _E | _UP | _0 | _NAN | _TAME, positive="alpha gamma"),
    *_row("ThresholdedRelu", _E | _UP | _0 | _TAME, positive="alpha"),
    *_row("Clip", _E | _UP | _0 | _NAN | _TAME),
    *_row("HardSwish Swish Gelu Mish", _E | _0 | _NAN | _TAME),
    *_row("Sin Tan", _E | _0 | _NAN),
    *_row("Shrink", _E | _0),
    *_row("Exp Log Acosh", _E | _UP | _NAN),
    *_row("Sigmoid Softplus", _E | _UP | _NAN | _BOUNDED),
    *_row("HardSigmoid", _E | _UP | _NAN | _BOUNDED, positive="alpha"),
    *_row("Acos Cos Cosh Reciprocal", _E | _NAN),
    *_row("Cast CastLike", _E | _0 | _NAN | _MAGNITUDES),
    *_row("IsInf IsNaN Not BitwiseNot", _E),
    # one element from several
    *_row("Add", _B | Trait.ARITHMETIC | _H | _UP | _0 | _NAN | _MAGNITUDES, since=7, data=None),
    *_row("Sub", _B | Trait.ARITHMETIC | _H | _0 | _NAN, since=7, data=None),
    *_row("Mul", _B | Trait.ARITHMETIC | _0 | _NAN | _MAGNITUDES, since=7, data=None),
    *_row("Div", _B | Trait.ARITHMETIC | _NAN, since=7, data=None),
    *_row("Pow", _B, since=7, data=None),
    *_row("PRelu", _B | _0 | _NAN, since=7),
    *_row("Sum Mean", _B | _H | _UP | _0 | _NAN | _MAGNITUDES, since=8, data=None),
    *_row("Max", _B | _H | _UP | _0 | _NAN | _PICKS | _MAGNITUDES, since=8, data=None),
    *_row("Min", _B | _H | _UP | _0 | _NAN | _PICKS, since=8, data=None),
    *_row("Where", _B | Trait.MOVEMENT | _PICKS, since=9, data=None),
    *_row("Mod", _B, since=10, data=None),
    *_row("And Or Xor Equal Greater Less", _B, since=7, data=None),
    *_row("GreaterOrEqual LessOrEqual", _B, since=12, data=None),
    *_row("BitShift", _B, since=11, data=None),
    *_row("BitwiseAnd BitwiseOr BitwiseXor", _B, since=18, data=None),
    # all along some axes
    *_row("ReduceSum ReduceMean", _R | Trait.SUM | _H | _UP | _0 | _NAN | _MAGNITUDES),
    *_row("ReduceMax", _R | _H | _UP | _0 | _PICKS | _MAGNITUDES),
    *_row("ReduceMin", _R | _H | _UP | _0 | _PICKS),
    *_row("ReduceL1 ReduceL2", _R | _H | _0 | _NAN),
    *_row("ReduceProd ReduceSumSquare", _R | _0 | _NAN),
    *_row("ReduceLogSum ReduceLogSumExp", _R | _UP | _NAN),
    *_row("GlobalAveragePool", Trait.POOL | Trait.SUM | _H | _UP | _0 | _NAN | _MAGNITUDES),
    *_row("GlobalMaxPool", Trait.POOL | _H | _UP | _0 | _PICKS | _MAGNITUDES),
    *_row("GlobalLpPool", Trait.POOL | _H | _0 | _NAN),
    *_row("ArgMax ArgMin", _R | Trait.POSITION),
    *_row("Softmax LogSoftmax", _NORM_AXIS | _NAN | _BOUNDED),
    *_row("Hardmax", _NORM_AXIS | _BOUNDED),
    *_row("LpNormalization", _NORM_AXIS | _0 | _NAN),
    *_row("CumSum", Trait.ALONG_AXIS | _H | _UP | _0),
    *_row("CumProd", Trait.ALONG_AXIS | _0),
    *_row("TopK", Trait.ALONG_AXIS | _PICKS | _H | _0),
    # elements that move, are repeated or dropped
    *_row("Reshape Flatten Squeeze Unsqueeze", _VIEW),
    *_row("Transpose Expand Tile Slice Split Gather GatherElements GatherND", _MOVE),
    *_row("Concat", _MOVE, data=None),
    *_row("DepthToSpace SpaceToDepth ReverseSequence Compress Trilu CenterCropPad", _MOVE),
    *_row("Pad", Trait.MOVEMENT | _MAGNITUDES | _UP | _NAN),
    *_row("ScatterElements ScatterND TensorScatter", Trait.MOVEMENT, data=None),
    *_row("Upsample Resize GridSample RoiAlign MaxRoiPool MaxUnpool", Trait.SAMPLING),
    # windows
    *_row("Conv ConvTranspose", _SLIDING_SUM, data=2),
    *_row("DeformConv", Trait.SLIDING | Trait.CONTRACTION, data=2),
    *_row("ConvInteger QLinearConv", Trait.SLIDING | Trait.CONTRACTION | Trait.QUANTIZING, data=2),
    *_row("CausalConvWithState", Trait.SLIDING | Trait.CONTRACTION | Trait.RECURRENT),
    *_row("AveragePool", _POOL | Trait.SUM | _H | _UP | _0 | _NAN | _MAGNITUDES),
    *_row("MaxPool", _POOL | _H | _UP | _0 | _PICKS | _MAGNITUDES),
    *_row("LpPool", _POOL | Trait.SUM | _H | _0 | _NAN),
    # sums of products
    *_row("Gemm MatMul", Trait.CONTRACTION | _MAGNITUDES, data=2),
    *_row("Einsum", Trait.CONTRACTION, data=None),
    *_row("MatMulInteger QLinearMatMul", Trait.CONTRACTION | Trait.QUANTIZING, data=2),
    *_row("Attention LinearAttention", Trait.CONTRACTION, data=3),
    # statistics
    *_row("BatchNormalization InstanceNormalization GroupNormalization", Trait.NORMALIZATION),
    *_row("LayerNormalization RMSNormalization", Trait.NORMALIZATION),
    *_row("MeanVarianceNormalization LRN", Trait.NORMALIZATION),
    # integers and back
    *_row("QuantizeLinear DequantizeLinear", Trait.QUANTIZING),
    # step by step
    *_row("LSTM GRU RNN", Trait.RECURRENT),
    # of sizes, of nothing
    *_row("Shape Size", Trait.SIZES_ONLY),
    *_row("EyeLike", Trait.SIZES_ONLY),
    *_row("Constant ConstantOfShape Range", Trait.SOURCE, data=0),
    *_row("BlackmanWindow HammingWindow HannWindow MelWeightMatrix", Trait.SOURCE, data=0),
    *_row("RandomNormal RandomUniform", Trait.SOURCE | Trait.RANDOM, data=0),
    *_row("RandomNormalLike RandomUniformLike", Trait.SIZES_ONLY | Trait.RANDOM),
    *_row("Bernoulli", Trait.RANDOM),
    *_row("Multinomial", Trait.RANDOM),
    # bodies
    *_row("If Loop Scan SequenceMap", Trait.CONTROL, data=None),
    # other domains
    *_row("Binarizer", _E, domain="ai.onnx.ml"),
    *_row("Imputer", _E, domain="ai.onnx.ml"),
    *_row("Gelu FastGelu QuickGelu", _E | _0 | _NAN | _TAME, domain="com.microsoft"),
)

# what cuts across the kinds above
_ACROSS = (
    (Trait.COMMUTATIVE, "Add Mul And Or Xor Equal"),
    (Trait.OF_ONE_ITSELF, "ReduceMean ReduceMax ReduceMin ReduceSum ReduceProd"),
    (
        Trait.KEEPS_AXES,
        "Concat Split Slice Pad Tile DepthToSpace SpaceToDepth Trilu ReverseSequence Compress"
        " Expand",
    ),
    (
        Trait.EXACT,
        "Concat Expand Flatten Gather Identity Pad Reshape Slice Squeeze Tile Transpose Unsqueeze"
        " Where Abs Add Ceil Div Floor Mul Neg Reciprocal Sqrt Sub"
        " And Equal Greater GreaterOrEqual Less LessOrEqual Not Or Cast CastLike ConstantOfShape",
    ),
    (Trait.EXACT_ON_INTEGERS, "Max Min Mod Range ReduceMax ReduceMin ReduceProd ReduceSum"),
    (
        Trait.LOSES_SIGN_OF_ZERO,
        "Abs ArgMax ArgMin Cos Cosh Equal Exp Greater GreaterOrEqual Hardmax HardSigmoid IsInf"
        " IsNaN Less LessOrEqual Shape Sigmoid Size Softmax Softplus",
    ),
    (
        Trait.PASSES_SIGN_OF_ZERO,
        "Add AveragePool BatchNormalization Celu Clip Concat Conv ConvTranspose DepthToSpace"
        " Dropout Einsum Elu Erf Expand Flatten Gather GatherElements GatherND Gelu Gemm"
        " GlobalAveragePool GlobalMaxPool GroupNormalization HardSwish Identity"
        " InstanceNormalization LayerNormalization LeakyRelu MatMul Max MaxPool Mean Min Mish Mul"
        " Neg PRelu Pad ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum"
        " ReduceSumSquare Relu Reshape Resize RMSNormalization Selu Slice SpaceToDepth Split"
        " Squeeze Sub Sum Swish Tanh Tile Transpose Unsqueeze Where",
    ),
    # what decides how precisely numbers must be held
    (
        Trait.AVERAGES,
        "Mean ReduceMean AveragePool GlobalAveragePool LayerNormalization InstanceNormalization"
        " GroupNormalization RMSNormalization MeanVarianceNormalization",
    ),
    (Trait.CLAMPS, "Clip HardSigmoid HardSwish Max Min"),
    (
        Trait.SQUASHES,
        "Softmax LogSoftmax Exp Sigmoid HardSigmoid Tanh Erf Clip Min Max Softsign ArgMax",
    ),
    # what PyTorch's autocast computes in float32, as far as it is an operator of ONNX
    # (https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float32")
    (
        Trait.WIDENS,
        "Exp Log Pow Softmax LogSoftmax Softplus CumSum Reciprocal"
        " ReduceSum ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp"
        " LayerNormalization GroupNormalization InstanceNormalization LpNormalization",
    ),
    (
        Trait.OWN_TYPE,
        "Cast ConstantOfShape EyeLike QuantizeLinear DequantizeLinear"
        " RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Multinomial",
    ),
)

# what runtimes compute together with the Conv before it, so that it has to stay right behind it
FUSED_BEHIND_CONV: Final = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")

# what is known to be known to nobody: sequences, images, text, losses, and what mixes freely
UNCLASSIFIED: Final = frozenset(
    """AffineGrid BitCast Col2Im ConcatFromSequence DFT Det DynamicQuantizeLinear ImageDecoder
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero OneHot Optional OptionalGetElement
    OptionalHasElement RegexFullMatch
    RotaryEmbedding STFT Scatter SequenceAt SequenceConstruct SequenceEmpty SequenceErase
    SequenceInsert SequenceLength SoftmaxCrossEntropyLoss SplitToSequence StringConcat
    StringNormalizer StringSplit SwiGLU TfIdfVectorizer Unique""".split()
)


def _with_all(row: Operator) -> Operator:
    more = [trait for trait, names in _ACROSS if not row.domain and row.name in names.split()]
    return replace(row, traits=reduce(or_, more, row.traits))


_TABLE: Final = {(row.domain, row.name): _with_all(row) for row in _ROWS}


def row(op: str, domain: str = "", version: int | None = None) -> Operator | None:
    """Return what is known of an operator in an opset (None: the newest); None: nothing."""
    found = _TABLE.get(("" if domain in STANDARD_DOMAINS else domain, op))
    return found if found is not None and (version is None or version >= found.since) else None


def traits(op: str, domain: str = "") -> Trait:
    """Return what an operator may be in the newest opset; nothing where it is not known."""
    found = row(op, domain)
    return Trait(0) if found is None else found.traits


@lru_cache
def named(*choices: Trait, without: Trait | None = None) -> tuple[str, ...]:
    """Return the standard operators that have all traits of one of `choices`, for a pattern.

    `without`: they have none of these. Some have a trait only as of an opset, or with some
    attributes: ask `has` about the node.
    """
    return tuple(
        found.name
        for found in _TABLE.values()
        if not found.domain
        and not (without and found.traits & without)
        and any(choice in found.traits for choice in choices)
    )


def of_node(node: Node) -> Operator | None:
    """Return what is known of a node's operator in its model's opset; None: nothing."""
    if operator(node).startswith("function::"):
        return None
    return row(node.op, node.domain or "", opset(node))


def has(node: Node, traits: Trait) -> bool:
    """Whether `node`, with the attributes, inputs and outputs that it has, has all of `traits`.

    False where the operator is unknown, or what decides is a parameter of its function.
    """
    found = of_node(node)
    if found is None or traits not in found.traits:
        return False
    try:
        return not traits & _lacks(node, found)
    except RefusedError:
        return False


def _lacks(node: Node, found: Operator) -> Trait:
    """Return the traits of the row that this node has not."""
    op = found.name
    lacks = Trait(0)
    if any((attribute(node, name) or 0) < 0 for name in found.positive):
        lacks |= _H | _UP | _0
    if Trait.RANDOM in found.traits and op == "Dropout":
        lacks |= ~Trait.RANDOM if is_training(node) else Trait.RANDOM
    elif op in ("Cast", "CastLike") and not _makes_floats(node):
        lacks |= _NAN | _MAGNITUDES
    elif op == "Clip" and not _spans_zero(node):
        lacks |= _0 | _TAME
    elif op.startswith("Scatter") and attribute(node, "reduction") not in (None, "none"):
        lacks |= Trait.MOVEMENT
    return lacks


def _makes_floats(node: Node) -> bool:
    kind = cast_type(node)
    return kind is not None and kind.kind not in "iub"


def _spans_zero(clip: Node) -> bool:
    for name, place, sign in (("min", 1, 1), ("max", 2, -1)):
        bound = clip.attrs.get(name)
        if bound is None and len(clip.inputs) > place and clip.inputs[place].name:
            weight = constant(clip.inputs[place])
            if weight is None:
                return False
            bound = weight.array().reshape(-1)[0]
        if bound is not None and not sign * bound <= 0:
            return False
    return True


def is_training(node: Node) -> bool:
    """Whether `node` is in training, or may be: it drops at random or uses the batch's statistics.

    Seen by attributes (`is_test`, `training_mode`), by an input that says so or is computed, and
    by the statistics that a BatchNormalization gives out before opset 14. Raises `RefusedError`
    where an attribute is a parameter of the function around it.
    """
    op, version = operator(node), opset(node)
    if op not in ("BatchNormalization", "Dropout"):
        return False
    if version < 7:
        return not attribute(node, "is_test")
    if op == "BatchNormalization":
        return bool(attribute(node, "training_mode")) or any(t.name for t in node.outputs[1:])
    switch = node.inputs[2] if version >= 12 and len(node.inputs) > 2 else None
    if switch is None or switch.name == "":
        return False
    value = constant(switch)
    return value is None or bool(value.array().any())


def is_random(node: Node) -> bool:
    """Whether two runs of `node` may differ: by what is known, or because it is not known."""
    return schema(node) is None or has(node, Trait.RANDOM)
