"""The families of clean-up: what each makes of its operators, and where it must not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_refused, check_replay, graph, operators

CLEAN_UP = make("clean-up")
INT = np.int64


def becomes(text: str, after: str, **options: Any) -> onnx.ModelProto:
    """Check one model, to the bit, and that a second run finds nothing more."""
    result = check(CLEAN_UP, graph(text, **options), after, exact=True)
    again = apply_to(CLEAN_UP, result)[1].rewrites
    assert not again, [rewrite.rule for rewrite in again]
    return result


def keeps(text: str, after: str, **options: Any) -> None:
    """Check that the operators stay, whatever becomes of their constants."""
    assert operators(check(CLEAN_UP, graph(text, **options), after)) == after


def array(*values: int) -> Any:
    return np.array(values, INT)


# ------------------------------------------------------------------------------------ pieces

X = "(float[2,6,4] x) => (float[{0}] y) {{{1}}}"
PIECES = {
    "slices of other axes": (
        "2,3,2",
        "a = Slice(x, z, k3, one) y = Slice(a, z, k2, two)",
        "Slice",
    ),
    "a range of a range": (
        "2,2,4",
        "a = Slice(x, one, k5, one) y = Slice(a, one, k3, one)",
        "Slice",
    ),
    "a range beyond the end": (
        "2,2,4",
        "a = Slice(x, one, k3, one) y = Slice(a, z, k9, one)",
        "Slice",
    ),
    "from the back": ("2,2,4", "a = Slice(x, m3, k9, one) y = Slice(a, z, k2, one)", "Slice Slice"),
    "backwards": (
        "2,3,4",
        "a = Slice(x, k5, one, one, m1) y = Slice(a, z, k3, one)",
        "Slice Slice",
    ),
    "gather of a range": ("2,3,4", "y = Gather<axis=1>(x, range)", "Slice"),
    "gather out of order": ("2,3,4", "y = Gather<axis=1>(x, mixed)", "Gather"),
    "slices end to end": (
        "2,3,4",
        "a = Slice(x, z, k3, one) b = Slice(x, k3, big, one) y = Sub(a, b)",
        "Split Sub",
    ),
    "slices with a gap": (
        "2,2,4",
        "a = Slice(x, z, k2, one) b = Slice(x, k3, k5, one) y = Sub(a, b)",
        "Slice Slice Sub",
    ),
    "slices that overlap": (
        "2,4,4",
        "a = Slice(x, z, k4, one) b = Slice(x, k2, big, one) y = Sub(a, b)",
        "Slice Slice Sub",
    ),
    "split and joined": (
        "2,6,4",
        "a, b = Split<axis=1>(x, parts) c = Concat<axis=-2>(a, b) y = Neg(c)",
        "Neg",
    ),
    "split and joined the other way": (
        "2,6,4",
        "a, b = Split<axis=1>(x, parts) y = Concat<axis=1>(b, a)",
        "Split Concat",
    ),
    "split and joined on another axis": (
        "2,3,8",
        "a, b = Split<axis=1>(x, parts) y = Concat<axis=2>(a, b)",
        "Split Concat",
    ),
    "split into one": ("2,6,4", "a = Split<axis=1>(x, whole) y = Neg(a)", "Neg"),
    "joined twice": (
        "2,18,4",
        "a = Concat<axis=1>(x, x) y = Concat<axis=-2>(a, x)",
        "Concat",
    ),
    "joined twice on other axes": (
        "4,12,4",
        "a = Concat<axis=1>(x, x) y = Concat<axis=0>(a, a)",
        "Concat Concat",
    ),
    "an empty part": (
        "2,6,4",
        "e = Slice(x, z, z, one) a = Concat<axis=1>(e, x, e) y = Neg(a)",
        "Neg",
    ),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces(name: str) -> None:
    shape, body, after = PIECES[name]
    held = {
        "z": array(0),
        "one": array(1),
        "two": array(2),
        "k2": array(2),
        "k3": array(3),
        "k4": array(4),
        "k5": array(5),
        "k9": array(9),
        "m1": array(-1),
        "m3": array(-3),
        "big": array(2**62),
        "range": array(2, 3, 4),
        "mixed": array(2, 4, 3),
        "parts": array(3, 3),
        "whole": array(6),
    }
    text = X.format(shape, body)
    used = {key: value for key, value in held.items() if f" {key}" in body.replace("(", " ")}
    becomes(text, after, **used)


@pytest.mark.parametrize("opset", [9, 12])
def test_pieces_of_older_opsets(opset: int) -> None:
    text = "(float[2,6] x) => (float[2,2] y) {"
    if opset < 10:
        body = (
            "a = Slice<axes=[1],starts=[1],ends=[5]>(x) y = Slice<axes=[1],starts=[1],ends=[3]>(a)"
        )
        becomes(text + body + "}", "Slice", opset=opset)
    else:
        body = "a = Slice(x, s, e, s) b = Slice(x, z, s, s) c = Concat<axis=1>(b, a) y = Neg(c)"
        constants = {"s": array(1), "e": array(6), "z": array(0)}
        becomes(text.replace("2,2", "2,6") + body + "}", "Neg", opset=opset, **constants)


def test_a_slice_up_to_a_computed_size_is_nothing() -> None:
    text = """(float[N,H] x, float[N,H] z) => (float[N,H] y) {
        s = Shape<start=1>(x) c = Slice(z, zero, s, one) y = Add(x, c)
    }"""
    becomes(text, "Add", zero=array(0), one=array(1))


def test_a_slice_up_to_the_size_of_another_axis_stays() -> None:
    text = """(float[N,H] x) => (float[N,W] y) {s = Shape<end=1>(x) y = Slice(x, zero, s, one)}"""
    keeps(text, "Shape Slice", zero=array(0), one=array(1))


# --------------------------------------------------------------------------------- sequences

SEQUENCES = {
    "two parts": (
        "q = SplitToSequence<axis=1>(x, parts) a = SequenceAt(q, i0) b = SequenceAt(q, i1)"
        " y = Sub(a, b)",
        "Split Sub",
    ),
    "from the end": (
        "q = SplitToSequence<axis=-1>(x, parts) a = SequenceAt(q, m1) y = Neg(a)",
        "Split Neg",
    ),
    "chunks": ("q = SplitToSequence<axis=1>(x, i3) a = SequenceAt(q, i0) y = Neg(a)", "Split Neg"),
    "constructed": (
        "q = SequenceConstruct(x, z) a = SequenceAt(q, i1) b = SequenceAt(q, i0) y = Sub(a, b)",
        "Sub",
    ),
    "joined": ("q = SequenceConstruct(x, z) y = ConcatFromSequence<axis=1>(q)", "Concat"),
    "stacked": (
        "q = SequenceConstruct(x, z) y = ConcatFromSequence<axis=1,new_axis=1>(q)",
        "Unsqueeze Unsqueeze Concat",
    ),
    "split and joined": (
        "q = SplitToSequence<axis=1>(x, parts) c = ConcatFromSequence<axis=-1>(q) y = Neg(c)",
        "Neg",
    ),
    "split and stacked": (
        "q = SplitToSequence<axis=1>(x, parts) y = ConcatFromSequence<axis=1,new_axis=1>(q)",
        "SplitToSequence ConcatFromSequence",
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(name: str) -> None:
    body, after = SEQUENCES[name]
    shape = {"joined": "2,12", "stacked": "2,2,6", "split and stacked": "2,2,3"}.get(name)
    shape = shape or ("2,6" if "constructed" in name or name == "split and joined" else "2,3")
    inputs = "float[2,6] x, float[2,6] z" if " z)" in body else "float[2,6] x"
    held = {"parts": array(3, 3), "i0": INT(0), "i1": INT(1), "m1": INT(-1), "i3": INT(3)}
    used = {key: value for key, value in held.items() if f" {key})" in body}
    becomes(f"({inputs}) => (float[{shape}] y) {{{body}}}", after, **used)


def test_a_sequence_that_is_read_at_a_computed_place_stays() -> None:
    text = """(float[2,6] x, int64 i) => (float[2,3] y) {
        q = SplitToSequence<axis=1>(x, parts) y = SequenceAt(q, i)
    }"""
    check_refused(CLEAN_UP, graph(text, parts=array(3, 3)), "is not a constant")


def test_single_parts_lose_their_axis() -> None:
    text = """(float[2,3] x) => (float[2] y) {
        q = SplitToSequence<axis=1,keepdims=0>(x) a = SequenceAt(q, i) b = SequenceAt(q, j)
        y = Sub(a, b)
    }"""
    becomes(text, "Gather Gather Sub", i=INT(0), j=INT(2))


def test_slices_of_a_slice_are_slices_of_the_whole() -> None:
    text = """(float[2,6,8] x) => (float[2,3,4] y) {
        a = Slice(x, z, k9, one, two) b = Slice(a, z, k9, two, two) c = Slice(a, one, k9, two, two)
        y = Sub(b, c)
    }"""
    held = {"z": array(0), "k9": array(99), "one": array(1), "two": array(2)}
    becomes(text, "Slice Slice Sub", **held)
    seen = text.replace("float[2,3,4] y)", "float[2,3,4] y, float[2,3,8] a)")
    keeps(seen, "Slice Slice Slice Sub", **held)


def test_halves_that_are_sliced_further_are_no_split() -> None:
    text = """(float[2,6,8] x) => (float[2,3,7] y) {
        a = Slice(x, z, three, one) b = Slice(x, three, k9, one)
        c = Slice(a, one, k9, two) d = Slice(b, one, k9, two) y = Sub(c, d)
    }"""
    held = {"z": array(0), "k9": array(99), "one": array(1), "two": array(2), "three": array(3)}
    becomes(text, "Slice Slice Sub", **held)


def test_single_slices_are_gathered() -> None:
    text = """(float[N,3,4] x) => (float[N,4] y) {
        a, b, c = Split<axis=1>(x, ones) p = Squeeze(a, one) q = Squeeze(b, m2) r = Squeeze(c, one)
        s = Sub(p, q) y = Mul(s, r)
    }"""
    held = {"ones": array(1, 1, 1), "one": array(1), "m2": array(-2)}
    becomes(text, "Gather Gather Gather Sub Mul", **held)
    read = text.replace("float[N,4] y)", "float[N,4] y, float[N,1,4] t)").replace(
        "s = Sub", "t = Neg(c) s = Sub"
    )
    keeps(read, "Split Squeeze Squeeze Squeeze Neg Sub Mul", **held)
    wide = text.replace("[N,3,4]", "[N,4,4]").replace(
        "r = Squeeze(c, one)", "r = ReduceSum<keepdims=0>(c, one)"
    )
    keeps(wide, "Split Squeeze Squeeze ReduceSum Sub Mul", **{**held, "ones": array(1, 1, 2)})


# ------------------------------------------------------------------------------------ bounds

BOUNDS = {
    "Relu twice": ("a = Relu(x) y = Relu(a)", "Relu"),
    "Relu, Clip": ("a = Relu(x) y = Clip(a, lo, hi)", "Clip"),
    "Clip, Relu": ("a = Clip(x, lo, hi) y = Relu(a)", "Clip"),
    "Clip, Clip apart": ("a = Clip(x, lo, hi) y = Clip(a, more, most)", "Clip"),
    "Clip without a minimum": ('a = Clip(x, "", hi) y = Clip(a, lo)', "Clip"),
    "Min, Max": ("a = Max(x, lo) y = Min(hi, a)", "Clip"),
    "Max, Min": ("a = Min(x, hi) y = Max(a, lo)", "Clip"),
    "bounds that cross": ("a = Max(x, hi) y = Min(a, lo)", "Max Min"),
    "bounds along an axis": ("a = Max(x, each) y = Min(a, hi)", "Max Min"),
    "Clip whose bounds cross": ("a = Clip(x, hi, lo) y = Relu(a)", "Clip Relu"),
    "Neg twice": ("a = Neg(x) b = Neg(a) y = Exp(b)", "Exp"),
    "to the first power": ("a = Pow(x, c1) y = Neg(a)", "Neg"),
    "to another power": ("y = Pow(x, hi)", "Pow"),
}


@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("name", BOUNDS)
def test_bounds(name: str, kind: str) -> None:
    body, after = BOUNDS[name]
    number = np.float32 if kind == "float" else np.float64
    held: dict[str, Any] = {"lo": -1, "hi": 2, "more": 3, "most": 5, "c1": 1}
    used = {key: number(value) for key, value in held.items() if key in body}
    if "each" in body:
        used["each"] = np.array([1, 2, 0], number)
    becomes(f"({kind}[2,3] x) => ({kind}[2,3] y) {{{body}}}", after, **used)


def test_bounds_before_opset_11_are_attributes() -> None:
    text = "(float[3] x) => (float[3] y) {a = Relu(x) y = Clip<max=6.0>(a)}"
    becomes(text, "Clip<min=0.0,max=6.0>", opset=9)


def test_integers_have_no_clip_before_opset_12() -> None:
    text = "(int64[3] x) => (int64[3] y) {a = Max(x, lo) y = Min(a, hi)}"
    assert (
        operators(apply_to(CLEAN_UP, graph(text, opset=11, lo=INT(0), hi=INT(5)))[0]) == "Max Min"
    )


QDQ = """(float[N,4] x) => (float[N,4] y) {{
    a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z)
    c = QuantizeLinear(b, {0}) d = DequantizeLinear(c, {0}) y = Relu(d)
}}"""


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantizing_twice_is_quantizing_once(kind: Any) -> None:
    after = "QuantizeLinear DequantizeLinear Relu"
    becomes(QDQ.format("s, z"), after, s=np.float32(0.05), z=kind(3))
    more = {"s": np.float32(0.05), "z": kind(3), "t": np.float32(0.051), "w": kind(4)}
    for other in ("t, z", "s, w"):
        used = {key: value for key, value in more.items() if key in f"s, z, {other}".split(", ")}
        keeps(QDQ.format(other), "QuantizeLinear DequantizeLinear " * 2 + "Relu", **used)


@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_dequantized_is_quantized_to_the_same(bits: int) -> None:
    """The proof that the rule rests on, over all values and many scales."""
    values = np.arange(-(2**bits), 2**bits).astype(np.float32)
    for scale in np.float32(np.geomspace(1e-30, 1e30, 301)):
        assert (np.rint(values * scale / scale) == values).all()


# -------------------------------------------------------------------------- padding, counting

PADS = {
    "into a Conv": ("c = Pad(x, p, zero) y = Conv(c, w)", "Conv<pads=[1,2,1,0]>", "2,4,6,5"),
    "into a Conv that pads": (
        "c = Pad(x, p) y = Conv<pads=[1,1,1,1]>(c, w)",
        "Conv<pads=[2,3,2,1]>",
        "2,4,8,7",
    ),
    "ones stay": ("c = Pad(x, p, one) y = Conv(c, w)", "Pad Conv", "2,4,6,5"),
    "edges stay": ('c = Pad<mode="edge">(x, p) y = Conv(c, w)', "Pad Conv", "2,4,6,5"),
    "channels stay": ("c = Pad(x, q) y = Conv(c, v)", "Pad Conv", "2,4,4,3"),
    "cropping stays": ("c = Pad(x, n) y = Conv(c, w)", "Pad Conv", "2,4,2,3"),
    "into the mean": (
        "c = Pad(x, p1) y = AveragePool<kernel_shape=[2,2]>(c)",
        "AveragePool<count_include_pad=1,pads=[1,1,0,0]>",
        "2,3,6,5",
    ),
    "not into a mean that does not count its own": (
        "c = Pad(x, p1) y = AveragePool<kernel_shape=[2,2],pads=[0,0,1,1]>(c)",
        "Pad AveragePool",
        "2,3,7,6",
    ),
    "into the maximum": (
        "c = Pad(x, p1, inf) y = MaxPool<kernel_shape=[2,2]>(c)",
        "MaxPool<pads=[1,1,0,0]>",
        "2,3,6,5",
    ),
    "zeros ahead of a maximum stay": (
        "c = Pad(x, p1) y = MaxPool<kernel_shape=[2,2]>(c)",
        "Pad MaxPool",
        "2,3,6,5",
    ),
    "twice": ("c = Pad(x, p) y = Pad(c, p1)", "Pad", "2,3,9,8"),
    "twice with other values": ("c = Pad(x, p, one) y = Pad(c, p1)", "Pad Pad", "2,3,9,8"),
}


@pytest.mark.parametrize("name", PADS)
def test_padding(name: str) -> None:
    body, after, shape = PADS[name]
    held = {
        "p": array(0, 0, 1, 2, 0, 0, 1, 0),
        "p1": array(0, 0, 1, 1, 0, 0, 0, 0),
        "q": array(0, 1, 0, 0, 0, 0, 0, 0),
        "n": array(0, 0, -1, 0, 0, 0, -1, 0),
        "zero": np.float32(0),
        "one": np.float32(1),
        "inf": np.float32(-np.inf),
        "w": np.arange(4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3) % 5,
        "v": np.arange(4 * 4 * 3 * 3, dtype=np.float32).reshape(4, 4, 3, 3) % 5,
    }
    words = body.replace(",", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    becomes(f"(float[2,3,6,5] x) => (float[{shape}] y) {{{body}}}", after, **used)


def test_a_window_of_nothing_but_padding_is_refused() -> None:
    text = """(float[1,1,4,4] x) => (float[1,1,7,7] y) {
        c = Pad(x, p) y = AveragePool<kernel_shape=[2,2]>(c)
    }"""
    model = graph(text, p=array(0, 0, 2, 2, 0, 0, 2, 2))
    check_refused(CLEAN_UP, model, "would be padded by as much as its kernel is long")


COUNTING = {
    "one size": (
        "s = Shape(x) g = Gather(s, i1) y = Unsqueeze(g, zero)",
        "Shape<start=1,end=2>",
        "int64[1]",
    ),
    "two sizes": ("s = Shape(x) y = Gather(s, from1)", "Shape<start=1>", "int64[2]"),
    "out of order": ("s = Shape(x) y = Gather(s, back)", "Shape Gather", "int64[2]"),
    "a slice": ("s = Shape(x) y = Slice(s, one, two)", "Shape<start=1,end=2>", "int64[1]"),
    "no size is -1": (
        "s = Shape(x) e = Equal(s, m1) w = Where(e, ones, s) y = Neg(w)",
        "Shape Neg",
        "int64[3]",
    ),
    "a size may be 1": (
        "s = Shape(x) e = Equal(s, p1) y = Where(e, two, s)",
        "Shape Equal Where",
        "int64[3]",
    ),
    "a mean": (
        "m = ReduceMean<axes=[1,-1],keepdims=0>(x) y = Unsqueeze(m, both)",
        "ReduceMean<axes=[1,-1],keepdims=1>",
        "float[N,1,1]",
    ),
    "a mean that drops its axes": (
        "m = ReduceMax<axes=[2]>(x) y = Squeeze(m, two)",
        "ReduceMax<axes=[2],keepdims=0>",
        "float[N,M]",
    ),
    "other axes": (
        "m = ReduceSum<keepdims=0>(x, one) y = Unsqueeze(m, two)",
        "ReduceSum Unsqueeze",
        "float[N,K,1]",
    ),
    "a product of one": ("m = ReduceProd<axes=[1]>(unit) y = Neg(m)", "Neg", "float[N,1,K]"),
    "the largest of one, without its axis": (
        "m = ReduceMax<axes=[1],keepdims=0>(unit) y = Neg(m)",
        "Squeeze Neg",
        "float[N,K]",
    ),
    "a sum of one": ("m = ReduceSum(unit, one) y = Neg(m)", "Neg", "float[N,1,K]"),
    "a sum of one integer": (
        "i = Cast<to=7>(unit) m = ReduceSum(i, one) y = Neg(m)",
        "Cast ReduceSum Neg",
        "int64[N,1,K]",
    ),
    "the largest of one integer": (
        "i = Cast<to=7>(unit) m = ReduceMax<axes=[1]>(i) y = Neg(m)",
        "Cast Neg",
        "int64[N,1,K]",
    ),
    "a sum of one short integer": (
        "i = Cast<to=6>(unit) m = ReduceSum(i, one) y = Neg(m)",
        "Cast Neg",
        "int32[N,1,K]",
    ),
    "a length of one": ("y = ReduceL2<axes=[1]>(unit)", "ReduceL2", "float[N,1,K]"),
    "a sum over more": ("y = ReduceSum(unit, both)", "ReduceSum", "float[N,1,1]"),
    "the largest": (
        "m = ArgMax<axis=1,keepdims=0>(x) y = Unsqueeze(m, one)",
        "ArgMax<axis=1,keepdims=1>",
        "int64[N,1,K]",
    ),
    "a mask": ("b = Greater(x, f0) m = And(b, t) y = Not(m)", "Greater Not", "bool[N,M,K]"),
    "a mask that masks": (
        "b = Greater(x, f0) m = And(b, f) y = Not(m)",
        "Greater And Not",
        "bool[N,M,K]",
    ),
    "the other choice": (
        "b = Greater(x, f0) n = Not(b) y = Where(n, x, f0)",
        "Greater Where",
        "float[N,M,K]",
    ),
    "no choice": ("b = IsNaN(x) n = Not(b) d = Where(n, x, x) y = Neg(d)", "Neg", "float[N,M,K]"),
    "no choice, but for the shape": (
        "b = IsNaN(x) y = Where(b, unit, unit)",
        "IsNaN Where",
        "float[N,M,K]",
    ),
    "a choice made": ("a = Where(t, x, f0) y = Neg(a)", "Neg", "float[N,M,K]"),
}


@pytest.mark.parametrize("name", COUNTING)
def test_counting(name: str) -> None:
    body, after, made = COUNTING[name]
    held = {
        "i1": INT(1),
        "zero": array(0),
        "one": array(1),
        "two": array(2),
        "from1": array(1, 2),
        "back": array(2, 0),
        "m1": array(-1, -1, -1),
        "p1": array(1, 1, 1),
        "ones": array(1, 1, 1),
        "both": array(1, 2),
        "f0": np.float32(0),
        "t": np.array([True]),
        "f": np.array([False]),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    more = ", float[N,1,K] unit" if "unit" in words else ""
    becomes(f"(float[N,M,K] x{more}) => ({made} y) {{{body}}}", after, **used)


# ------------------------------------------------------------------------ layouts, broadcasting

LAYOUTS = {
    "a unit axis beside a view": (
        "2,1,12",
        "a = Reshape(x, t) y = Transpose<perm=[1,0,2]>(a)",
        "Reshape",
    ),
    "a unit axis alone": ("3,1,2,4", "y = Transpose<perm=[1,2,0,3]>(u)", "Transpose"),
    "joined, moved, parted": (
        "2,3,4,5",
        "a = Reshape(k, joined) b = Transpose<perm=[0,2,1]>(a) y = Reshape(b, parted)",
        "Transpose<perm=[0,1,3,2]>",
    ),
    "parted otherwise": (
        "2,3,2,10",
        "a = Reshape(k, joined) b = Transpose<perm=[0,2,1]>(a) y = Reshape(b, other)",
        "Reshape Transpose Reshape",
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    shape, body, after = LAYOUTS[name]
    inputs = {"x": "float[12,2] x", "u": "float[2,3,1,4] u", "k": "float[2,3,5,4] k"}
    read = next(key for key in inputs if f"({key}" in body)
    held = {
        "t": array(1, 2, 12),
        "joined": array(6, 5, 4),
        "parted": array(2, 3, 4, 5),
        "other": array(2, 3, 2, 10),
    }
    used = {key: value for key, value in held.items() if f" {key})" in body}
    becomes(f"({inputs[read]}) => (float[{shape}] y) {{{body}}}", after, **used)


def test_heads_of_attention_with_a_free_batch() -> None:
    text = """(float[B,8,3,4] x) => (float[B,3,4,8] y) {
        a = Transpose<perm=[0,2,1,3]>(x) b = Reshape(a, s) c = Transpose<perm=[0,2,1]>(b)
        d = Shape<end=1>(x) e = Concat<axis=0>(d, t) y = Reshape(c, e)
    }"""
    becomes(text, "Transpose<perm=[0,2,3,1]>", s=array(-1, 8, 4), t=array(3, 4, 8))


BROADCASTS = {
    "what the other covers": ("a = Expand(u, s) y = Add(x, a)", "Add"),
    "by a computed shape": ("d = Shape(x) a = Expand(u, d) y = Add(x, a)", "Add"),
    "a fill": ("d = Shape(x) a = ConstantOfShape<value=value>(d) y = Add(x, a)", "Add"),
    "both": ("a = Expand(u, s) b = Neg(a) y = Add(b, a)", "Expand Neg Add"),
    "what the other does not": ("a = Expand(u, larger) y = Add(x, a)", "Expand Add"),
    "one element, repeated": ("a = Tile(u, four) y = Add(x, a)", "Add"),
    "several elements, repeated": ("a = Tile(v, four) y = Add(z, a)", "Tile Add"),
}


@pytest.mark.parametrize("name", BROADCASTS)
def test_what_broadcasts_by_itself(name: str) -> None:
    body, after = BROADCASTS[name]
    body = body.replace("<value=value>", "<value = float[1] {2.0}>")
    held = {"s": array(2, 3, 4), "larger": array(5, 2, 3, 4), "four": array(1, 4)}
    used = {key: value for key, value in held.items() if f" {key})" in body}
    inputs = "float[3,1] u" if "(x" not in body else "float[2,3,4] x, float[3,1] u"
    inputs = inputs if "(u" in body else "float[2,3,4] x"
    inputs = "float[2,3,8] z, float[3,2] v" if "(z" in body else inputs
    made = "5,2,3,4" if "larger" in body else "2,3,8" if "(z" in body else "2,3,4"
    becomes(f"({inputs}) => (float[{made}] y) {{{body}}}", after, **used)


def test_an_operand_of_one_value_is_a_scalar() -> None:
    text = "(float[N,3,4] x) => (float[N,3,4] y) {y = Mul(x, c)}"
    result = becomes(text, "Mul", c=np.full((3, 4), 2, np.float32))
    assert [list(tensor.dims) for tensor in result.graph.initializer] == [[]]
    text = "(float[3,1] x) => (float[3,4] y) {y = Mul(x, c)}"
    keeps(text, "Mul", c=np.full((3, 4), 2, np.float32))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_state_of_zeros_is_no_state(op: str, gates: int) -> None:
    states = 'e, "", h, h' if op == "LSTM" else 'e, "", h'
    states = states.replace("e, ", '"", ')
    text = f"""(float[5,B,3] x) => (float[5,1,B,2] y) {{
        s = Shape<start=1,end=2>(x) t = Concat<axis=0>(o, s, w) h = Expand(z, t)
        y = {op}<hidden_size=2>(x, W, R, {states})
    }}"""
    held = {
        "W": np.ones((1, gates * 2, 3), np.float32),
        "R": np.ones((1, gates * 2, 2), np.float32),
        "o": array(1),
        "w": array(2),
    }
    becomes(text, op, **held, z=np.float32(0))
    result, _ = apply_to(CLEAN_UP, graph(text, **held, z=np.float32(1)))
    assert operators(result).endswith(f"Expand {op}")


# ------------------------------------------------------------------------------------- zeros

ZEROS = {
    "ahead of a Softmax": ("a = Add(x, z) y = Softmax(a)", "Softmax"),
    "ahead of integers": (
        "a = Add(x, z) q = QuantizeLinear(a, s, o) y = Cast<to=1>(q)",
        "QuantizeLinear Cast",
    ),
    "ahead of integers of a scale that is computed": (
        "a = Add(x, z) r = Relu(a) q, s1, o1 = DynamicQuantizeLinear(r) y = Cast<to=1>(q)",
        "Relu DynamicQuantizeLinear Cast",
    ),
    "through views": (
        "a = Add(z, x) b = Transpose<perm=[1,0]>(a) y = Sigmoid(b)",
        "Transpose Sigmoid",
    ),
    "a minus zero taken off": ("a = Sub(x, m) y = Exp(a)", "Exp"),
    "ahead of a sum with a constant": ("a = Add(x, z) y = Add(a, c)", "Add"),
    "ahead of a layer with a bias": ("a = Add(x, z) y = Gemm(a, w, c)", "Gemm"),
    "twice": ("a = Add(x, z) b = Neg(a) d = Add(b, z) y = Exp(d)", "Neg Exp"),
}


@pytest.mark.parametrize("name", ZEROS)
def test_a_zero_that_nothing_can_tell(name: str) -> None:
    body, after = ZEROS[name]
    held: dict[str, Any] = {
        "z": np.zeros(3, np.float32),
        "m": np.full(3, -0.0, np.float32),
        "c": np.array([1, 0, -2], np.float32),
        "w": np.eye(3, dtype=np.float32),
        "s": np.float32(0.5),
        "o": np.uint8(7),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    becomes(f"(float[3,3] x) => (float[3,3] y) {{{body}}}", after, **used)


TOLD = {
    "an output": ("y = Add(x, z)", "the output 'y' could tell"),
    "an output further down": ("a = Add(x, z) b = Neg(a) y = Relu(b)", "the output 'y' could tell"),
    "a divisor": ("a = Add(x, z) y = Div(x, a)", "Div of 'y' could tell"),
    "a reciprocal": ("a = Add(x, z) b = Reciprocal(a) y = Exp(b)", "Reciprocal of 'b' could tell"),
    "a sum with -0": ("a = Add(x, z) b = Add(a, m) y = Neg(b)", "the output 'y' could tell"),
    "a number taken from a constant": ("a = Add(x, z) b = Sub(m, a) y = Neg(b)", "the output 'y'"),
}


@pytest.mark.parametrize("name", TOLD)
def test_a_zero_that_something_can_tell(name: str) -> None:
    body, reason = TOLD[name]
    held: dict[str, Any] = {
        "z": np.zeros(3, np.float32),
        "m": np.array([-0.0, 1, 2], np.float32),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    check_refused(CLEAN_UP, graph(f"(float[3,3] x) => (float[3,3] y) {{{body}}}", **used), reason)


BIASES = {
    "ahead of a layer with a bias": (
        "a = Conv(x, w, z) r = Relu(a) b = Conv(r, w, c) y = Neg(b)",
        "Conv Relu Conv Neg",
    ),
    "and so on": (
        "a = Conv(x, w, z) r = Relu(a) b = Conv(r, w, z) y = Softmax<axis=1>(b)",
        "Conv Relu Conv Softmax",
    ),
    "of a ConvTranspose": ("a = ConvTranspose(x, w, z) y = Exp(a)", "ConvTranspose Exp"),
}


@pytest.mark.parametrize("name", BIASES)
def test_a_bias_of_zeros_that_nothing_can_tell(name: str) -> None:
    body, after = BIASES[name]
    held: dict[str, Any] = {
        "w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
        "z": np.zeros(3, np.float32),
        "c": np.array([1, 0, -2], np.float32),
    }
    used = {key: value for key, value in held.items() if f" {key})" in body or key == "w"}
    result = becomes(f"(float[2,3,4,4] x) => (float[2,3,4,4] y) {{{body}}}", after, **used)
    assert "z" not in {tensor.name for tensor in result.graph.initializer}


@pytest.mark.parametrize(("opset", "inputs"), [(10, 3), (11, 2)])
def test_a_gemm_may_lack_its_bias_from_opset_11_on(opset: int, inputs: int) -> None:
    text = "(float[2,3] x) => (float[2,3] y) {a = Gemm(x, w, z) y = Exp(a)}"
    held: dict[str, Any] = {"w": np.eye(3, dtype=np.float32), "z": np.zeros(3, np.float32)}
    result = check(CLEAN_UP, graph(text, opset=opset, **held), "Gemm Exp", exact=True)
    assert len(result.graph.node[0].input) == inputs


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Conv(x, w, z)", "the output 'y' could tell"),
        ("a = Conv(x, w, z) y = Reciprocal(a)", "Reciprocal of 'y' could tell"),
        ("a = Conv(x, w, z) b = Conv(a, w, m) y = Neg(b)", "the output 'y' could tell"),
    ],
)
def test_a_bias_of_zeros_that_something_can_tell(body: str, reason: str) -> None:
    held: dict[str, Any] = {
        "w": np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1),
        "z": np.zeros(3, np.float32),
        "m": np.full(3, -0.0, np.float32),
    }
    used = {key: value for key, value in held.items() if f" {key})" in body or key == "w"}
    text = f"(float[2,3,4,4] x) => (float[2,3,4,4] y) {{{body}}}"
    check_refused(CLEAN_UP, graph(text, **used), reason)


def test_a_bias_that_is_zero_in_part_stays() -> None:
    text = "(float[2,3,4,4] x) => (float[2,3,4,4] y) {a = Conv(x, w, c) y = Exp(a)}"
    held: dict[str, Any] = {
        "w": np.ones((3, 3, 1, 1), np.float32),
        "c": np.array([0, 1, 0], np.float32),
    }
    result = check(CLEAN_UP, graph(text, **held), "Conv Exp")
    assert len(result.graph.node[0].input) == 3


# ---------------------------------------------------------------------------- normalizations

RMS = "p = Pow(x, two) m = ReduceMean<axes=[-1]>(p) e = Add(m, eps) r = Sqrt(e) "
CENTRED = "c = ReduceMean<axes=[-1]>(x) d = Sub(x, c) p = Pow(d, two) m = ReduceMean<axes=[-1]>(p) "
WHOLE = {
    "a scale of ones": (RMS + "n = Div(x, r) f = Mul(n, ones) y = Exp(f)", "Div Mul Exp"),
    "on the left": (RMS + "n = Div(x, r) f = Mul(ones, n) y = Exp(f)", "Div Mul Exp"),
    "a shift of zeros": (
        CENTRED + "e = Add(m, eps) r = Sqrt(e) n = Div(d, r) f = Mul(n, ones) g = Add(f, zeros)"
        " y = Exp(g)",
        "Div Mul Add Exp",
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_ends_a_normalization_stays(name: str) -> None:
    body, end = WHOLE[name]
    held: dict[str, Any] = {
        "two": np.float32(2),
        "eps": np.float32(1e-5),
        "ones": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.float32),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    model = graph(f"(float[N,4] x) => (float[N,4] y) {{{body}}}", **used)
    check_refused(CLEAN_UP, model, "which runtimes compute as one operator while whole")
    assert operators(model).endswith(end)


# --------------------------------------------------------------------------------- quotients

QUOTIENTS = {
    "a reciprocal": ("q = Reciprocal(z) y = Mul(x, q)", "Div"),
    "on the left": ("q = Reciprocal(z) y = Mul(q, x)", "Div"),
    "one over it": ("q = Div(one, z) y = Mul(x, q)", "Div"),
    "one in one axis": ("q = Div(vector, z) y = Mul(x, q)", "Div"),
    "two over it": ("q = Div(two, z) y = Mul(x, q)", "Div Mul"),
    "one in more axes": ("q = Div(more, z) y = Mul(x, q)", "Div Mul"),
    "more axes that are read on": (
        "q = Div(more, z) p = Mul(x, q) y = Softmax(p)",
        "Div Mul Softmax",
    ),
    "read by another": ("q = Reciprocal(z) a = Mul(x, q) y = Add(a, q)", "Reciprocal Mul Add"),
}


@pytest.mark.parametrize("name", QUOTIENTS)
@pytest.mark.parametrize("kind", ["float", "double", "float16"])
def test_a_product_with_a_reciprocal_is_a_quotient(name: str, kind: str) -> None:
    body, after = QUOTIENTS[name]
    number = {"float": np.float32, "double": np.float64, "float16": np.float16}[kind]
    held: dict[str, Any] = {
        "one": np.array(1, number),
        "vector": np.ones(1, number),
        "two": np.array(2, number),
        "more": np.ones((1, 1, 1), number),
    }
    used = {key: value for key, value in held.items() if f"({key}," in body}
    shape = "1,3,4" if "more" in used else "3,4"
    text = f"({kind}[3,4] x, {kind}[3,1] z) => ({kind}[{shape}] y) {{{body}}}"
    model = graph(text, **used)
    result, applied = apply_to(CLEAN_UP, model)
    assert operators(result) == after
    assert [rewrite.rule for rewrite in applied.rewrites] == ["DivideAtOnce"] * (after == "Div")


def test_quotients_of_what_ends_the_numbers_are_the_same() -> None:
    text = "(float[6,1] x, float[1,7] z) => (float[6,7] y) {q = Reciprocal(z) y = Mul(x, q)}"
    edges = np.array([0, -0.0, 1, -3, np.inf, np.nan], np.float32).reshape(6, 1)
    divisors = np.array([[0, -0.0, np.inf, -np.inf, np.nan, 2, -4]], np.float32)
    result, _ = apply_to(CLEAN_UP, graph(text))
    results = [
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"x": edges, "z": divisors}
        )[0]
        for model in (graph(text), result)
    ]
    np.testing.assert_array_equal(*results)
    assert (np.signbit(results[0]) == np.signbit(results[1]))[~np.isnan(results[0])].all()


def test_integers_have_no_reciprocal() -> None:
    text = "(int64[3] x, int64[3] z) => (int64[3] y) {q = Div(one, z) y = Mul(x, q)}"
    assert operators(apply_to(CLEAN_UP, graph(text, one=np.int64(1)))[0]) == "Div Mul"


# -------------------------------------------------------------------------------- views around

V = "v = Reshape(x, flat) "
GELU = "a = Mul(v, half) b = Pow(v, three) c = Add(v, b) d = Tanh(c) e = Mul(a, d) "
AROUND = {
    "a chain": (V + "a = Tanh(v) b = Mul(a, half) y = Reshape(b, back)", "Tanh Mul"),
    "a gate": (V + GELU + "y = Reshape(e, back)", "Mul Pow Add Tanh Mul"),
    "two of them": (
        V + "a = Tanh(v) b = Reshape(a, back) c = Exp(a) d = Reshape(c, back) y = Sub(b, d)",
        "Tanh Exp Sub",
    ),
    "other views": (
        "f = Flatten<axis=2>(x) a = Tanh(f) y = Reshape(a, back)",
        "Tanh",
    ),
    "bounds": (V + "a = Clip(v, low, half) y = Reshape(a, back)", "Clip"),
    "a choice": (
        V + "b = IsNaN(v) a = Where(b, half, v) y = Reshape(a, back)",
        "IsNaN Where",
    ),
}
AROUND_HELD: dict[str, Any] = {
    "flat": array(-1, 4),
    "back": array(2, 3, 4),
    "other": array(3, 2, 4),
    "half": np.float32(0.5),
    "three": np.float32(3),
    "low": np.float32(-0.25),
    "each": np.arange(4, dtype=np.float32),
    "deep": np.full((1, 1, 1), 2, np.float32),
}


def around(body: str) -> onnx.ModelProto:
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in AROUND_HELD.items() if key in words}
    shape = "3,2,4" if "other" in words else "2,3,4"
    more = ", float[6,4] z" if "z" in words else ""
    return graph(f"(float[2,3,4] x{more}) => (float[{shape}] y) {{{body}}}", **used)


@pytest.mark.parametrize("name", AROUND)
def test_views_around_what_looks_at_each_element_alone(name: str) -> None:
    body, after = AROUND[name]
    result = check(CLEAN_UP, around(body), after, exact=True)
    assert not apply_to(CLEAN_UP, result)[1].rewrites


STAYS = {
    "another shape": V + "a = Tanh(v) y = Reshape(a, other)",
    "another shape that is read on": V + "a = Tanh(v) w = Reshape(a, other) y = Softmax(w)",
    "a number for each channel": V + "a = Add(v, each) y = Reshape(a, back)",
    "another input": V + "a = Add(v, z) y = Reshape(a, back)",
    "what sees its neighbours": V + "a = Softmax(v) y = Reshape(a, back)",
    "a reader of another kind": V + "a = Tanh(v) b = Softmax(a) c = Add(a, b) y = Reshape(c, back)",
}


@pytest.mark.parametrize("name", STAYS)
def test_views_around_anything_else_stay(name: str) -> None:
    model = around(STAYS[name])
    _, applied = apply_to(CLEAN_UP, model)
    assert "DropViewsAround" not in {rewrite.rule for rewrite in applied.rewrites}
    keeps_operators = [node.op_type for node in model.graph.node]
    assert operators(check(CLEAN_UP, model, " ".join(keeps_operators))).count("Reshape") == 2


def test_a_number_that_adds_axes_stays_between_views() -> None:
    text = """(float[24] x) => (float[24] y) {
        v = Reshape(x, box) a = Add(v, deep) b = Tanh(a) y = Reshape(b, line)
    }"""
    held = {"box": array(2, 3, 4), "line": array(24), "deep": AROUND_HELD["deep"]}
    assert operators(apply_to(CLEAN_UP, graph(text, **held))[0]) == "Reshape Add Tanh Reshape"
    read_on = text.replace("y = Reshape(b, line)", "w = Reshape(b, line) y = Softmax(w)")
    after = "Reshape Add Tanh Reshape Softmax"  # also where no shape that is declared tells
    assert operators(apply_to(CLEAN_UP, graph(read_on, **held))[0]) == after


def test_a_view_that_is_an_output_stays() -> None:
    text = """(float[2,3,4] x) => (float[6,4] v, float[2,3,4] y) {
        v = Reshape(x, flat) a = Tanh(v) y = Reshape(a, back)
    }"""
    held = {"flat": array(-1, 4), "back": array(2, 3, 4)}
    assert operators(apply_to(CLEAN_UP, graph(text, **held))[0]) == "Reshape Tanh Reshape"


def test_symbolic_sizes_between_views() -> None:
    text = """(float[N,3,4] x) => (float[N,3,4] y) {
        v = Reshape(x, flat) a = Tanh(v) y = Reshape(a, back)
    }"""
    held = {"flat": array(-1, 4), "back": array(-1, 3, 4)}
    assert operators(apply_to(CLEAN_UP, graph(text, **held))[0]) == "Tanh"


# --------------------------------------------------------------------------- a Softmax of one

ONE = "(float[N,4,1,6] q, float[N,4,6,{1}] k) => (float[N,4,1,{1}] y) {{{0}}}"
ONES = {
    "both scales": (
        "a = Mul(q, c) b = Mul(d, k) m = MatMul(a, b) y = Softmax(m)",
        "MatMul Softmax",
    ),
    "the first": ("a = Mul(q, c) m = MatMul(a, k) y = Softmax(m)", "MatMul Softmax"),
    "the second": ("b = Mul(k, d) m = MatMul(q, b) y = Softmax<axis=-2>(m)", "MatMul Softmax"),
    "none": ("m = MatMul(q, k) y = Softmax(m)", "MatMul Softmax"),
    "a scale of 0": ("a = Mul(q, zero) m = MatMul(a, k) y = Softmax(m)", "Mul MatMul Softmax"),
    "an infinite one": (
        "a = Mul(q, infinite) m = MatMul(a, k) y = Softmax(m)",
        "Mul MatMul Softmax",
    ),
    "no number": ("a = Mul(q, six) m = MatMul(a, k) y = Softmax(m)", "Mul MatMul Softmax"),
}


@pytest.mark.parametrize("name", ONES)
def test_scales_ahead_of_a_softmax_of_one(name: str) -> None:
    body, after = ONES[name]
    held: dict[str, Any] = {
        "c": np.float32(0.45),
        "d": np.full(1, 0.3, np.float32),
        "zero": np.float32(0),
        "infinite": np.float32(np.inf),
        "six": np.arange(1, 7, dtype=np.float32),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    becomes(ONE.format(body, 1), after, **used)


def test_scales_ahead_of_a_softmax_of_two_stay() -> None:
    body = "a = Mul(q, c) m = MatMul(a, k) y = Softmax(m)"
    keeps(ONE.format(body, 2), "Mul MatMul Softmax", c=np.float32(0.45))


def test_scales_in_half_precision_stay() -> None:
    text = ONE.format("a = Mul(q, c) m = MatMul(a, k) y = Softmax(m)", 1).replace(
        "float", "float16"
    )
    keeps(text, "Mul MatMul Softmax", c=np.float16(0.45))


def test_a_softmax_of_one_that_is_no_number_stays_none() -> None:
    model = graph(ONE.format(ONES["both scales"][0], 1), c=np.float32(0.45), d=np.float32(0.3))
    result, _ = apply_to(CLEAN_UP, model)
    feed = {"q": np.ones((3, 4, 1, 6), np.float32), "k": np.ones((3, 4, 6, 1), np.float32)}
    feed["q"][0, 0, 0, 0], feed["k"][1, 0, 0, 0] = np.nan, np.inf
    results = [
        ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, feed
        )[0]
        for each in (model, result)
    ]
    np.testing.assert_array_equal(*results)
    assert np.isnan(results[0]).sum() == 2


# ----------------------------------------------------------------------------------- control

IF = """(float[3] x) => (float[3] y) {{
    t = Exp(x)
    r = If({0}) <
        then_branch = g () => (float[3] p) {{n = Neg(t) a = Add(n, w) p = Relu(a)}},
        else_branch = h () => (float[3] v) {{s, u = Split<axis=0>(t, k) v = Concat<axis=0>(u, s)}}
    >
    q = Neg(x) y = Sub(r, q)
}}"""


@pytest.mark.parametrize(
    ("condition", "after"),
    [(True, "Exp Neg Add Relu Neg Sub"), (False, "Exp Split Concat Neg Sub")],
)
def test_the_branch_that_runs_takes_the_place_of_an_if(condition: bool, after: str) -> None:
    weights: dict[str, Any] = {"w": np.ones(3, np.float32) * 3, "k": array(1, 2)}
    model = graph(IF.format("c"), c=np.array(condition), **weights)
    result = check(CLEAN_UP, model, after, exact=True)
    names = [name for node in result.graph.node for name in node.output]
    assert len(set(names)) == len(names)


def test_an_if_decided_by_a_shape() -> None:
    text = """(float[N,1,8] x) => (float[N,8] y) {
        s = Shape(x) d = Gather(s, one) c = Equal(d, one)
        r = If(c) <
            then_branch = g () => (float[N,8] p) {p = Squeeze(x, axes)},
            else_branch = h () => (float[N,1,8] q) {q = Identity(x)}
        >
        y = Softmax(r)
    }"""
    becomes(text, "Squeeze Softmax", one=INT(1), axes=array(1))


def test_an_if_that_gives_back_what_is_there() -> None:
    text = """(float[3] x) => (float[3] y) {
        a = Exp(x)
        r = If(c) <
            then_branch = g () => (float[3] p) {p = Identity(a)},
            else_branch = h () => (float[3] q) {q = Identity(w)}
        >
        y = Neg(r)
    }"""
    becomes(text, "Exp Neg", c=np.array(True), w=(3,))


def test_an_if_that_the_caller_decides_stays() -> None:
    text = IF.format("c").replace("(float[3] x)", "(float[3] x, bool c)")
    keeps(text, "Exp If Neg Sub", w=np.ones(3, np.float32) * 3, k=array(1, 2))


# ---------------------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("f = CastLike(c, x) y = Add(x, f)", "Add"),
        ("m = Mod(i, j) k = Gather(t, m) y = Add(x, k)", "Add"),
        ("s = ReduceL2<axes=[1]>(u) n = Clip(s, eps) d = Div(u, n) y = MatMul(x, d)", "MatMul"),
        ("a = Sin(u) b = Cos(u) d = Sub(a, b) y = MatMul(x, d)", "MatMul"),
        ("p = Pow(u, two) e = Exp(p) y = MatMul(x, e)", "MatMul"),
    ],
)
def test_constants_are_what_onnx_runtime_computes(body: str, after: str) -> None:
    held: dict[str, Any] = {
        "c": np.array(2.5, np.float64),
        "i": array(5, 7, 8),
        "j": array(3, 3, 3),
        "t": np.arange(3, dtype=np.float32),
        "u": (3, 3),
        "eps": np.float32(1e-6),
        "two": np.float32(2),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    becomes(f"(float[2,3] x) => (float[2,3] y) {{{body}}}", after, **used)


def test_what_is_rounded_to_half_on_different_ways_stays() -> None:
    """By way of float32, 1 + 2⁻¹¹ + 2⁻⁴⁰ is rounded twice; 1.5 is 1.5 on any way."""
    text = "(float16[4] x) => (float16[4] y) {h = Cast<to=10>(c) y = Add(x, h)}"
    model = graph(text, c=np.full(4, 1 + 2.0**-11 + 2.0**-40))
    check_refused(CLEAN_UP, model, "the value of Cast of 'h' is up to the runtime")
    becomes(text, "Add", c=np.full(4, 1.5))


def test_a_chain_of_constants_is_weighed_as_a_whole() -> None:
    """What the table grows by, its index and shape give back."""
    text = """(float[N,6,6] x) => (float[N,6,6] y) {
        g = Gather(table, index) r = Reshape(g, s) t = Transpose<perm=[2,0,1]>(r) y = Add(x, t)
    }"""
    held: dict[str, Any] = {
        "table": np.arange(9, dtype=np.float32).reshape(9, 1),
        "s": array(6, 6, 1),
    }
    strict = make("clean-up", {"fold_budget": "0"})
    model = graph(text, **held, index=(np.arange(36, dtype=INT) * 5) % 9)
    result = check(strict, model, "Add", exact=True)
    assert result.ByteSize() <= model.ByteSize()


def test_what_other_rewrites_save_pays_for_a_larger_constant() -> None:
    text = """(float[N,40] x) => (float[N,40] y) {
        a = Add(x, v) b = Mul(a, w) e = Expand(s, n) f = Concat<axis=0>(e, e) g = Add(b, k)
        h = MatMul(g, f) y = Neg(h)
    }"""
    twins = np.arange(40 * 60, dtype=np.float32).reshape(60, 40)[:, None]
    held: dict[str, Any] = {"v": twins, "w": twins.copy(), "k": twins.copy()}
    strict = make("clean-up", {"fold_budget": "0"})
    text = text.replace("float[N,40] x", "float[60,N,40] x").replace(
        "float[N,40] y", "float[60,N,40] y"
    )
    model = graph(text, **held, s=np.float32(2), n=array(20, 40))
    result, _ = apply_to(strict, model)
    assert operators(result) == "Add Mul Add MatMul Neg"
    assert result.ByteSize() <= model.ByteSize()
    assert not apply_to(strict, result)[1].rewrites


def test_a_constant_alone_may_not_make_the_file_larger() -> None:
    text = """(float[N,2,6,6] x) => (float[N,2,6,6] y) { r = Resize(m, , s) y = Add(x, r) }"""
    scales = np.array([1, 1, 3, 3], np.float32)
    model = graph(text, m=np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), s=scales)
    check_refused(CLEAN_UP, model, "bytes larger")
    check(make("clean-up", {"fold_budget": "512"}), model, "Add", exact=True)


def test_a_list_that_is_shorter_as_an_attribute_takes_what_was_saved() -> None:
    text = "(float[N,40] x) => (float[M] y, float[N,40] z) {{ {} y = Reshape(x, s) z = Add(x, k) }}"
    listed = "s = Constant<value_ints=[" + ",".join(["1"] * 39) + ",-1]>()"
    held: dict[str, Any] = {"k": np.arange(40, dtype=np.float32)}
    alone = text.format(listed).replace("float[M] y", "float[" + "1," * 39 + "M] y")
    result, _ = apply_to(CLEAN_UP, graph(alone, **held))
    assert operators(result) == "Constant Reshape Add"
    twins = alone.replace(
        "z = Add(x, k)", "i = Identity(x) a_long_name = Add(i, k2) z = Add(a_long_name, k)"
    )
    model = graph(twins, **held, k2=held["k"].copy(), k3=np.zeros(200, np.float32))
    result, _ = apply_to(CLEAN_UP, model)
    assert operators(result) == "Reshape Add Add"
    assert result.ByteSize() <= model.ByteSize()


REPLAYED = {
    "Pad into a Conv": "c = Pad(x, p) y = Conv(c, w)",
    "equal layers": "a = Conv(x, w) b = Conv(x, w) y = Mul(a, b)",
    "slices": "a = Slice(x, p0, p2, p1) b = Slice(x, p2, p4, p1) c = Sub(a, b) y = Conv(c, w2)",
}


@pytest.mark.parametrize("name", REPLAYED)
def test_equal_to_the_bit_in_small_integers(name: str) -> None:
    body = REPLAYED[name]
    held: dict[str, Any] = {
        "p": array(0, 0, 1, 1, 0, 0, 1, 1),
        "p0": array(0),
        "p1": array(1),
        "p2": array(2),
        "p4": array(4),
        "w": (4, 4, 1, 1),
        "w2": (4, 2, 1, 1),
    }
    words = body.replace(",", " ").replace("(", " ").replace(")", " ").split()
    used = {key: value for key, value in held.items() if key in words}
    check_replay(CLEAN_UP, graph(f"(float[N,4,H,W] x) => (float[N,4,I,J] y) {{{body}}}", **used))
