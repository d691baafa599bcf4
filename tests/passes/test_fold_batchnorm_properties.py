"""fold-batchnorm on drawn graphs, in exact integers: it folds what it may and is never wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check_equal, check_untouched, check_valid, graph, operators

Array = npt.NDArray[Any]
FOLD = make("fold-batchnorm")
SMALL = st.integers(0, 2**32 - 1)
OPERATORS = st.sampled_from(["Mul", "Add", "Sub", "Div"])


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """What the pass makes of `model`: valid, equal to the bit, and nothing is left to do."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    for value, found in zip(model.graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(found)
    result, _ = apply_to(FOLD, model)
    check_valid(model, result)
    check_equal(model, result, exact=True, dims={"N": 2}, seeds=[0])
    check_untouched(FOLD, result)
    return result


def values(seed: int, shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(seed).integers(-2, 3, shape).astype(np.float32)


def powers(seed: int, shape: tuple[int, ...]) -> Array:
    """Powers of two of either sign, by which products and quotients stay exact."""
    rng = np.random.default_rng(seed)
    found: Array = 2.0 ** rng.integers(-1, 3, shape) * rng.choice([-1, 1], shape)
    return found.astype(np.float32)


def statistics(seed: int, channels: int) -> dict[str, Array]:
    """The parameters of a BatchNormalization with epsilon 0.25 whose root is a power of two."""
    variance = np.random.default_rng(seed).choice([0.75, 3.75, 15.75], channels)
    return {
        "scale": 8 * powers(seed, (channels,)),
        "offset": values(seed + 1, (channels,)),
        "mean": values(seed + 2, (channels,)),
        "variance": variance.astype(np.float32),
    }


class Chain:
    """Affine operators one after the other, as text and constants."""

    def __init__(
        self, draw: st.DrawFn, start: str, shapes: list[tuple[int, ...]], most: int
    ) -> None:
        self.text = ""
        self.last = start
        self.constants: dict[str, Any] = {}
        for _ in range(draw(st.integers(1, most))):
            self._step(draw, draw(st.sampled_from(shapes)))

    def _step(self, draw: st.DrawFn, shape: tuple[int, ...]) -> None:
        op, seed, swapped = draw(OPERATORS), draw(SMALL), draw(st.booleans())
        new = f"{self.last}_"
        name = f"{new}c"
        self.constants[name] = (powers if op in ("Mul", "Div") else values)(seed, shape)
        sides = [self.last, name]
        if swapped and op != "Div":
            sides.reverse()
        self.text += f" {new} = {op}({', '.join(sides)})"
        self.last = new

    def normalize(self, draw: st.DrawFn, channels: int) -> None:
        names = {f"{self.last}_{k}": v for k, v in statistics(draw(SMALL), channels).items()}
        self.constants |= names
        new = f"{self.last}_"
        listed = ", ".join([self.last, *names])
        self.text += f" {new} = BatchNormalization<epsilon=0.25>({listed})"
        self.last = new


@st.composite
def behind(draw: st.DrawFn) -> tuple[str, onnx.ModelProto]:
    """A linear operator with a foldable chain behind it: what must be left, and the model."""
    group = draw(st.sampled_from([1, 2, 3]))
    per_group = draw(st.integers(1, 2))
    channels, inputs, seed = group * draw(st.integers(1, 3)), group * per_group, draw(SMALL)
    spatial = draw(st.integers(1, 2))
    kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)))
    op = draw(st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul"]))
    bias = draw(st.booleans())
    chain_shapes = {
        "Conv": [(), (1,), (channels, *[1] * spatial), (1, channels, *[1] * spatial)],
        "Gemm": [(), (channels,), (1, channels)],
        "MatMul": [(), (channels,), (1, 1, channels)],
    }
    chain = Chain(draw, "a", chain_shapes[op.replace("Transpose", "")], 4)
    if op != "MatMul" and draw(st.booleans()):
        chain.normalize(draw, channels)
    size = ",".join(["5", "4"][:spatial])
    if op == "Conv":
        pads = draw(st.lists(st.integers(0, 1), min_size=2 * spatial, max_size=2 * spatial))
        weight = (channels, per_group, *kernel)
        call = f"Conv<group={group}, pads={pads}>(x, W{', b' if bias else ''})"
        shape = f"N,{inputs},{size}"
    elif op == "ConvTranspose":
        strides = draw(st.lists(st.integers(1, 2), min_size=spatial, max_size=spatial))
        weight = (inputs, channels // group, *kernel)
        call = f"ConvTranspose<group={group}, strides={strides}>(x, W{', b' if bias else ''})"
        shape = f"N,{inputs},{size}"
    elif op == "Gemm":
        trans = draw(st.integers(0, 1))
        weight = (channels, inputs) if trans else (inputs, channels)
        call = f"Gemm<transB={trans}, alpha=2.0, beta=0.5>(x, W{', b' if bias else ''})"
        shape = f"N,{inputs}"
    else:
        weight = (inputs, channels)
        call = "MatMul(x, W)"
        shape = f"N,3,{inputs}"
    if bias and op != "MatMul":
        chain.constants["b"] = values(seed + 1, (channels,))
    model = graph(
        f"(float[{shape}] x) => (float[] {chain.last}) {{a = {call}{chain.text}}}",
        W=values(seed, weight),
        **chain.constants,
    )
    return op, model


@settings(max_examples=60, deadline=None)
@given(behind())
def test_everything_behind_folds(case: tuple[str, onnx.ModelProto]) -> None:
    op, model = case
    left = operators(checked(model))
    # a lone Sub behind a MatMul is its bias, and at home
    assert left == op or (op == "MatMul" and left in ("MatMul Add", "MatMul Sub")), left


@st.composite
def ahead(draw: st.DrawFn) -> tuple[str, onnx.ModelProto]:
    """A linear operator that pads nothing with a foldable chain before it."""
    group = draw(st.sampled_from([1, 2, 3]))
    per_group, seed, spatial = draw(st.integers(1, 2)), draw(SMALL), draw(st.integers(1, 2))
    inputs, channels = group * per_group, group * draw(st.integers(1, 2))
    op = draw(st.sampled_from(["Conv", "Gemm", "MatMul"]))
    ones = [1] * spatial if op == "Conv" else []
    if op == "Conv":
        kernel = tuple(draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial)))
        weight: tuple[int, ...] = (channels, per_group, *kernel)
        call, shape = f"Conv<group={group}>", ",".join(["N", str(inputs), *["4"] * spatial])
    else:
        weight, call, shape = (inputs, channels), op, f"N,{inputs}"
    chain = Chain(draw, "x", [(), (inputs, *ones), (1, inputs, *ones)], 3)
    if draw(st.booleans()):
        chain.normalize(draw, inputs)
    model = graph(
        f"(float[{shape}] x) => (float[] y) {{{chain.text} y = {call}({chain.last}, W)}}",
        W=values(seed, weight),
        **chain.constants,
    )
    return op, model


@settings(max_examples=40, deadline=None)
@given(ahead())
def test_everything_ahead_folds(case: tuple[str, onnx.ModelProto]) -> None:
    op, model = case
    left = operators(checked(model))
    assert left == op or (op == "MatMul" and left == "MatMul Add"), left


LOOKALIKES = [
    (), (1,), (3,), (1, 1), (3, 1), (1, 3), (3, 3), (3, 1, 1), (1, 3, 1), (1, 1, 3), (3, 3, 3),
    (1, 3, 1, 1), (3, 1, 1, 1), (1, 1, 3, 1), (1, 1, 1, 3), (2, 3, 1, 1), (1, 1, 3, 1, 1),
]  # fmt: skip
LOOKALIKES += 3 * [(), (3,), (3, 1, 1), (1, 3, 1, 1)]  # those that are what they look like
PERMUTATIONS = st.permutations([0, 1, 2, 3]) | st.just([0, 2, 3, 1]) | st.just([0, 3, 1, 2])


@st.composite
def anything(draw: st.DrawFn) -> onnx.ModelProto:
    """Every size is 3 or 1, so that each constant looks as if it lay along each axis."""
    side, seed = st.sampled_from([3, 3, 3, 1]), draw(SMALL)
    before = Chain(draw, "x", LOOKALIKES, 2)
    order = list(draw(PERMUTATIONS))
    head = f"{before.text} t = Transpose<perm={order}>({before.last})"
    start = draw(st.sampled_from(["t", before.last, "x"]))
    given_shape = [draw(side) for _ in range(4)]
    given_text = f"(float[{','.join(map(str, given_shape))}] x)"
    shapes = {
        name: shape_of(graph(f"{given_text} => (float[] {name}) {{{head}}}", **before.constants))
        for name in (before.last, "t")
    }
    first = {**shapes, "x": given_shape}[start]
    assume(all(shape is not None and len(shape) == 4 for shape in shapes.values()))
    assert first is not None
    call, weight = draw(st.sampled_from([
        ("Conv(%s, W)", (draw(side), first[1], 1, 1)),
        ("Conv<pads=[1,1,1,1]>(%s, W)", (draw(side), first[1], 3, 3)),
        (f"Conv<group={first[1]}>(%s, W)", (first[1], 1, 1, 1)),
        ("ConvTranspose(%s, W)", (first[1], draw(side), 1, 1)),
        ("ConvTranspose(%s, W)", (first[1], draw(side), 3, 3)),
        ("MatMul(%s, W)", (first[3], draw(side))),
        ("MatMul(W, %s)", (draw(side), first[2])),
    ]))  # fmt: skip
    order = list(draw(PERMUTATIONS))
    middle = f"{head} a = {call % start} u = Transpose<perm={order}>(a)"
    after = Chain(draw, draw(st.sampled_from(["a", "u"])), LOOKALIKES, 3)
    watched = draw(st.sampled_from(["", ", float[] t", ", float[] a"]))
    model = graph(
        f"{given_text} => (float[] {after.last}{watched}) {{{middle}{after.text}}}",
        W=values(seed, weight),
        **before.constants,
        **after.constants,
    )
    assume(shape_of(model) is not None)
    return model


def shape_of(model: onnx.ModelProto) -> tuple[int, ...] | None:
    """The shape of the first output; None where the operators do not fit together."""
    try:
        found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    return tuple(dim.dim_value for dim in found.graph.output[0].type.tensor_type.shape.dim)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(anything())
def test_never_wrong(model: onnx.ModelProto) -> None:
    checked(model)
