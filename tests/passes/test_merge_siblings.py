"""merge-siblings: layers side by side, pieces of pixels, windows that do not overlap, shuffles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphpass.ir.cost import cost_of
from graphpass.rewrite.choice import ByCost, Everything
from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_refused,
    check_replay,
    check_untouched,
    graph,
    operators,
)

PASS = make("merge-siblings")


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


WEIGHTS: dict[str, Any] = {
    "V": (4, 6, 1, 1),
    "W": (5, 6, 1, 1),
    "U": (3, 6, 1, 1),
    "v": (4,),
    "w": (5,),
    "K": (4, 6, 3, 3),
    "L": (5, 6, 3, 3),
    "G": (4, 3, 1, 1),
    "H": (2, 3, 1, 1),
    "A": (6, 4),
    "B": (6, 5),
    "C": (6, 3),
    "At": (4, 6),
    "Bt": (5, 6),
    "row": (1, 5),
    "cube": (2, 6, 4),
    "a": (4,),
    "b": (5,),
    "one": (),
    "half": np.ones((5, 6, 1, 1), np.float16),
    "F": (5, 12, 3, 3),
    "F2": (5, 24, 2, 3),
    "Fg": (6, 6, 3, 3),
    "F1": (5, 12, 3),
    "T": (6, 4, 2, 2),
    "T3": (6, 4, 3, 3),
    "Tg": (6, 2, 2, 2),
    "Trect": (6, 4, 2, 3),
    "S": (6, 6, 1, 1),
    "Sg": (6, 3, 1, 1),
    "s": (6,),
    "D": (5, 6, 3, 3),
    "o": ints(0),
    "i": ints(1),
    "n": ints(2),
    "three": ints(3),
    "end": ints(2**63 - 1),
    "seven": ints(7),
    "h": ints(2),
    "hw": ints(2, 3),
    "zz": ints(0, 0),
    "zi": ints(0, 1),
    "iz": ints(1, 0),
    "ii": ints(1, 1),
    "ee": ints(2**31 - 1, 2**31 - 1),
    "ss": ints(2, 2),
    "parts": ints(0, 2, 3, 5, 4),
    "parts3": ints(0, 3, 2, 5, 4),
    "whole": ints(0, 6, 5, 4),
}


def model(
    body: str, x: str = "float[N,6,5,4] x", y: str = "y", opset: int = 17, **more: Any
) -> Any:
    held = {**WEIGHTS, **more}
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in held.items() if name in words}
    dims = ",".join("?" * len(x.partition("[")[2].partition("]")[0].split(",")))
    outputs = ", ".join(f"float[{dims}] {name}" for name in y.split())
    return graph(f"({x}) => ({outputs}) {{{body}}}", opset=opset, **used)


SEQUENCE = "float[N,7,6] x"
MATRIX = "float[N,6] x"

LAYERS = {
    "Convs of 1x1": (model("y = Conv(x, V) z = Conv(x, W)", y="y z"), "Conv Split"),
    "with a bias": (model("y = Conv(x, V, v) z = Conv(x, W, w)", y="y z"), "Conv Split"),
    "one with a bias": (model("y = Conv(x, V) z = Conv(x, W, w)", y="y z"), "Conv Split"),
    "three": (
        model(
            "a0 = Conv(x, V) y = Relu(a0) a1 = Neg(a0) z = Conv(x, W) u = Conv(x, U)", y="y a1 z u"
        ),
        "Conv Split Relu Neg",
    ),
    "of 3x3, padded, in strides": (
        model(
            "y = Conv<pads=[1,0,1,1], strides=[2,1]>(x, K)"
            "z = Conv<kernel_shape=[3,3], pads=[1,0,1,1], strides=[2,1]>(x, L)",
            y="y z",
        ),
        "Conv<pads=[1,0,1,1],strides=[2,1]> Split",
    ),
    "opset 11": (
        model("y = Conv(x, V) z = Conv(x, W)", y="y z", opset=11),
        "Conv Split<split=[4,5]>",
    ),
    "with an activation": (
        model("c = Conv(x, V, v) y = Relu(c) d = Conv(x, W, w) z = Relu(d)", y="y z"),
        "Conv Relu Split",
    ),
    "with the same slope": (
        model(
            "c = Conv(x, V) y = LeakyRelu<alpha=0.5>(c) d = Conv(x, W) z = LeakyRelu<alpha=0.5>(d)",
            y="y z",
        ),
        "Conv LeakyRelu<alpha=0.5> Split",
    ),
    "query, key, value": (
        model("y = MatMul(x, A) z = MatMul(x, B) u = MatMul(x, C)", SEQUENCE, "y z u"),
        "MatMul Split<axis=-1>",
    ),
    "with biases, either first": (
        model("c = MatMul(x, A) y = Add(c, a) d = MatMul(x, B) z = Add(b, d)", SEQUENCE, "y z"),
        "MatMul Add Split<axis=-1>",
    ),
    "Gemms": (
        model("y = Gemm(x, A, a) z = Gemm(x, B, b)", MATRIX, "y z"),
        "Gemm Split",
    ),
    "Gemms as torch writes them": (
        model("y = Gemm<transB=1>(x, At, a) z = Gemm<transB=1>(x, Bt, b)", MATRIX, "y z"),
        "Gemm<transB=1> Split",
    ),
    "Gemms with factors": (
        model(
            "y = Gemm<alpha=0.5, beta=2.0>(x, A, a) z = Gemm<alpha=0.5, beta=2.0>(x, B, b)",
            MATRIX,
            "y z",
        ),
        "Gemm<alpha=0.5,beta=2.0> Split",
    ),
    "two kinds": (
        model(
            "y = Conv(x, V) z = Conv(x, W) u = Conv<pads=[1,1,1,1]>(x, K)"
            "t = Conv<pads=[1,1,1,1]>(x, L)",
            y="y z u t",
        ),
        "Conv Split Conv Split",
    ),
}
PIXELS = {
    "Focus": (
        model(
            "p = Slice(x, zz, ee, hw, ss) q = Slice(x, iz, ee, hw, ss) r = Slice(x, zi, ee, hw, ss)"
            "t = Slice(x, ii, ee, hw, ss) k = Concat<axis=1>(p, q, r, t)"
            "y = Conv<pads=[1,1,1,1]>(k, F, w)",
            "float[N,3,8,6] x",
        ),
        "Conv<kernel_shape=[6,6],pads=[2,2,2,2],strides=[2,2]>",
    ),
    "one axis after the other, rows shared": (
        model(
            "e = Slice(x, o, end, h, n) d = Slice(x, i, end, h, n)"
            "p = Slice(e, o, end, three, n) q = Slice(d, o, end, three, n)"
            "r = Slice(e, i, end, three, n) t = Slice(d, i, end, three, n)"
            "k = Concat<axis=1>(p, q, r, t) y = Conv<pads=[1,1,1,1]>(k, F)",
            "float[N,3,8,6] x",
        ),
        "Conv<kernel_shape=[6,6]>",
    ),
    "an even kernel, padded on one side, in strides": (
        model(
            "k = SpaceToDepth<blocksize=2>(x) y = Conv<pads=[1,0,0,2], strides=[2,1]>(k, F2)",
            "float[N,6,12,10] x",
        ),
        "Conv<kernel_shape=[4,6],pads=[2,0,0,4],strides=[4,2]>",
    ),
    "a signal": (
        model(
            "p = Slice(x, o, end, h, four) q = Slice(x, i, end, h, four)"
            "r = Slice(x, n, end, h, four)"
            "t = Slice(x, three, end, h, four) k = Concat<axis=1>(t, q, r, p) y = Conv(k, F1)",
            "float[N,3,16] x",
            four=ints(4),
        ),
        "Conv<kernel_shape=[12],strides=[4]>",
    ),
}
TRANSPOSED = {
    "upsampling": (
        model("y = ConvTranspose<strides=[2,2]>(x, T)"),
        "Conv<kernel_shape=[1,1]> DepthToSpace<blocksize=2>",
    ),
    "with a bias, by 3": (
        model("y = ConvTranspose<strides=[3,3], kernel_shape=[3,3]>(x, T3, v)"),
        "Conv DepthToSpace<blocksize=3>",
    ),
    "opset 11": (model("y = ConvTranspose<strides=[2,2]>(x, T)", opset=11), "Conv DepthToSpace"),
}
SHUFFLED = {
    "behind a Conv": (
        model(
            "c = Conv(x, S, s) p = Reshape(c, parts) t = Transpose<perm=[0,2,1,3,4]>(p)"
            "y = Reshape(t, whole)"
        ),
        "Conv",
    ),
    "behind its activation": (
        model(
            "c = Conv(x, S, s) r = Relu(c) p = Reshape(r, parts3)"
            "t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, whole) y = Abs(q) z = Neg(q)",
            y="y z",
        ),
        "Conv Relu Abs Neg",
    ),
    "ahead of a Conv": (
        model(
            "p = Reshape(x, parts) t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, whole)"
            "y = Conv<pads=[1,1,1,1]>(q, D, w)"
        ),
        "Conv",
    ),
    "ahead of an activation and a Conv": (
        model(
            "p = Reshape(x, parts3) t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, whole)"
            "r = Relu(q) y = Conv(r, D)"
        ),
        "Relu Conv",
    ),
}
ALL = {**LAYERS, **PIXELS, **TRANSPOSED, **SHUFFLED}


@pytest.mark.parametrize(("before", "after"), ALL.values(), ids=ALL.keys())
def test_what_becomes_of_it(before: Any, after: str) -> None:
    check(PASS, before, after)
    check_replay(PASS, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_in_other_arithmetic(dtype: Any) -> None:
    kind = {np.float16: "float16", np.float64: "double"}[dtype]
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {name: rng.normal(size=(6, 4)).astype(dtype) for name in "AB"}
    text = f"({kind}[N,6] x) => ({kind}[N,4] y, {kind}[N,4] z)"
    check(PASS, graph(f"{text} {{y = MatMul(x, A) z = MatMul(x, B)}}", **weights), "MatMul Split")


KEPT = {
    "other windows": model("y = Conv(x, V) z = Conv<pads=[1,1,1,1]>(x, K)", y="y z"),
    "other strides": model("y = Conv(x, V) z = Conv<strides=[2,2]>(x, W)", y="y z"),
    "groups, whose filters would lie between each other": model(
        "y = Conv<group=2>(x, G) z = Conv<group=2>(x, H)", y="y z"
    ),
    "of different tensors": model("a0 = Relu(x) y = Conv(x, V) z = Conv(a0, W)", y="y z"),
    "another activation": model(
        "c = Conv(x, V) y = Relu(c) d = Conv(x, W) z = Sigmoid(d)", y="y z"
    ),
    "another slope": model(
        "c = Conv(x, V) y = LeakyRelu<alpha=0.5>(c) d = Conv(x, W) z = LeakyRelu(d)", y="y z"
    ),
    "an activation that one of them would lose": model(
        "c = Conv(x, V) y = Relu(c) z = Conv(x, W)", y="y z"
    ),
    "products of more axes": model(
        "y = MatMul(x, cube) z = MatMul(x, cube2)",
        SEQUENCE.replace("N", "2"),
        "y z",
        cube2=(2, 6, 5),
    ),
    "a bias for each row": model(
        "c = MatMul(x, A) y = Add(c, a) d = MatMul(x, B) z = Add(d, row)", SEQUENCE, "y z"
    ),
    "other factors": model("y = Gemm(x, A, a) z = Gemm<alpha=0.5>(x, B, b)", MATRIX, "y z"),
    "one matrix turned": model("y = Gemm(x, A, a) z = Gemm<transB=1>(x, Bt, b)", MATRIX, "y z"),
    "one without a bias, as beta counts": model("y = Gemm(x, A) z = Gemm(x, B, b)", MATRIX, "y z"),
    "one bias for all": model("y = Gemm(x, A, a) z = Gemm(x, B, one)", MATRIX, "y z"),
    "pieces of every second row": model(
        "p = Slice(x, o, end, h, n) q = Slice(x, i, end, h, n) k = Concat<axis=1>(p, q, p, q)"
        "y = Conv(k, F)",
        "float[N,3,8,6] x",
    ),
    "a piece twice": model(
        "p = Slice(x, zz, ee, hw, ss) q = Slice(x, iz, ee, hw, ss) r = Slice(x, zi, ee, hw, ss)"
        "k = Concat<axis=1>(p, q, r, r) y = Conv(k, F)",
        "float[N,3,8,6] x",
    ),
    "pieces that end before": model(
        "p = Slice(x, zz, most, hw, ss) q = Slice(x, iz, ee, hw, ss) r = Slice(x, zi, ee, hw, ss)"
        "t = Slice(x, ii, ee, hw, ss) k = Concat<axis=1>(p, q, r, t) y = Conv(k, F)",
        "float[N,3,8,6] x",
        most=ints(7, 5),
    ),
    "along the rows": model(
        "p = Slice(x, zz, ee, hw, ss) q = Slice(x, iz, ee, hw, ss) r = Slice(x, zi, ee, hw, ss)"
        "t = Slice(x, ii, ee, hw, ss) k = Concat<axis=2>(p, q, r, t) y = Conv(k, K)",
        "float[N,6,8,6] x",
    ),
    "windows that overlap": model("y = ConvTranspose<strides=[2,2]>(x, T3)"),
    "gaps between windows": model("y = ConvTranspose<strides=[3,3]>(x, T)"),
    "windows of two sizes": model("y = ConvTranspose<strides=[2,3]>(x, Trect)"),
    "what is cut away": model("y = ConvTranspose<strides=[2,2], pads=[1,0,0,0]>(x, T)"),
    "what is added": model("y = ConvTranspose<strides=[2,2], output_padding=[1,0]>(x, T)"),
    "groups of windows": model("y = ConvTranspose<strides=[2,2], group=2>(x, Tg)"),
    "an order of three axes": model(
        "c = Conv(x, S) p = Reshape(c, parts) t = Transpose<perm=[0,2,1,4,3]>(p)"
        "y = Reshape(t, turned)",
        turned=ints(0, 6, 4, 5),
    ),
    "channels that become pixels": model(
        "c = Conv(x, S) p = Reshape(c, parts) t = Transpose<perm=[0,2,1,3,4]>(p)"
        "y = Reshape(t, other)",
        other=ints(0, 3, 10, 4),
    ),
}


@pytest.mark.parametrize("before", KEPT.values(), ids=KEPT.keys())
def test_what_is_another_structure(before: Any) -> None:
    check_untouched(PASS, before)


FOCUS = "float[N,3,8,6] x"
REFUSED = {
    "a weight that others read": (
        model(
            "y = Conv(x, V) z = Conv(x, W) u = Conv(x2, W)",
            "float[N,6,5,4] x, float[N,6,5,4] x2",
            "y z u",
        ),
        "'W' has other readers",
    ),
    "pieces in groups": (
        model("k = SpaceToDepth<blocksize=2>(x) y = Conv<group=2>(k, Fg)", FOCUS),
        "has groups, which take other pieces",
    ),
    "pixels in between": (
        model(
            "k = SpaceToDepth<blocksize=2>(x) y = Conv<dilations=[2,1], pads=[1,1,1,1]>(k, F)",
            FOCUS,
        ),
        "leaves out pixels between",
    ),
    "pads by size": (
        model('k = SpaceToDepth<blocksize=2>(x) y = Conv<auto_pad="SAME_UPPER">(k, F)', FOCUS),
        "depends on the size of its input",
    ),
    "pieces that others read": (
        model(
            "p = Slice(x, zz, ee, hw, ss) q = Slice(x, iz, ee, hw, ss) r = Slice(x, zi, ee, hw, ss)"
            "t = Slice(x, ii, ee, hw, ss) k = Concat<axis=1>(p, q, r, t) y = Conv(k, F)"
            "z = Relu(k)",
            FOCUS,
            "y z",
        ),
        "has other readers, for which it stays",
    ),
    "a Conv in groups that are mixed": (
        model(
            "c = Conv<group=2>(x, Sg) p = Reshape(c, parts) t = Transpose<perm=[0,2,1,3,4]>(p)"
            "y = Reshape(t, whole)"
        ),
        "has groups, between which",
    ),
    "a reader in groups": (
        model(
            "p = Reshape(x, parts) t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, whole)"
            "y = Conv<group=2>(q, Sg)"
        ),
        "has groups, between which",
    ),
    "a shuffle of a weight that others read": (
        model(
            "c = Conv(x, S) p = Reshape(c, parts) t = Transpose<perm=[0,2,1,3,4]>(p)"
            "q = Reshape(t, whole) r = Conv(q, S) y = Add(r, q)"
        ),
        "'S' has other readers",
    ),
}


@pytest.mark.parametrize(("before", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(before: Any, reason: str) -> None:
    check_refused(PASS, before, reason)


def test_a_shuffle_that_a_fork_reads_stays() -> None:
    """Only the second Conv of a fork could take it: then it would be done for the first one."""
    before = model(
        "p = Reshape(x, parts) t = Transpose<perm=[0,2,1,3,4]>(p) q = Reshape(t, whole)"
        "y = Conv(q, D) z = Relu(q)",
        y="y z",
    )
    check_refused(PASS, before, "feeds 2 nodes")


# ------------------------------------------------------------------------- units of shuffles


def units(count: int = 3, channels: int = 8, end: str = "", opset: int = 17, **more: Any) -> Any:
    """Blocks as ShuffleNet v2 has them: half is passed on, half computed, then all shuffled."""
    half = channels // 2
    lines, last = ["a0 = Conv(x, F)"], f"a{count}"
    held: dict[str, Any] = {
        "F": (channels, channels, 1, 1),
        "parts": ints(0, 2, half, 5, 4),
        "whole": ints(0, channels, 5, 4),
        "sizes": ints(half, half),
        "E": (6, channels, 1, 1),
        **more,
    }
    split = f"split=[{half},{half}]>(a" if opset < 13 else ">(a"
    for k in range(count):
        sizes = "" if opset < 13 else ", sizes"
        lines.append(f"l{k}, r{k} = Split<axis=1, {split}{k}{sizes})".replace(", >", ">"))
        lines.append(f"b{k} = Conv(r{k}, W{k}, w{k}) c{k} = Relu(b{k})")
        lines.append(f"j{k} = Concat<axis=1>(l{k}, c{k})")
        lines.append(f"p{k} = Reshape(j{k}, parts) t{k} = Transpose<perm=[0,2,1,3,4]>(p{k})")
        lines.append(f"a{k + 1} = Reshape(t{k}, whole)")
        held |= {f"W{k}": (half, half, 1, 1), f"w{k}": (half,)}
    lines.append(end.replace("LAST", last) or f"y = Conv({last}, E)")
    words = set(" ".join(lines).replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in held.items() if name in words}
    outputs = "float[?,?,?,?] y" + (", float[?,?,?,?] z" if " z = " in f" {end}" else "")
    text = f"(float[N,{channels},5,4] x) => ({outputs}) {{{' '.join(lines)}}}"
    return graph(text, opset=opset, **used)


CLEAN = [PASS, make("clean-up")]
DEPTHWISE: dict[str, Any] = {"D": (8, 1, 3, 3), "d": (8,), "G": (3, 8, 1, 1)}


@pytest.mark.parametrize(
    "before",
    [
        units(),
        units(2, channels=12),
        units(4, channels=16),
        units(opset=11),
        units(
            2,
            end="y = Conv(LAST, E) r = Conv<group=8, pads=[1,1,1,1]>(LAST, D, d) z = Conv(r, G)",
            **DEPTHWISE,
        ),
    ],
    ids=["three", "halves of an even number", "many pieces", "opset 11", "a fork, one depthwise"],
)
def test_units_of_shuffles_read_what_was_computed(before: Any) -> None:
    result = check(CLEAN, before)
    assert "Transpose" not in operators(result) and "Reshape" not in operators(result)
    check_replay(CLEAN, before)


def test_what_units_write_becomes_less() -> None:
    before = units(4, channels=16)
    after = apply_to(CLEAN, before)[0]
    shapes = {"x": (1, 16, 5, 4)}
    old, new = (cost_of(model, shapes) for model in (before, after))
    assert new.multiply_adds == old.multiply_adds and new.uncounted == 0
    assert new.activation_bytes < 0.7 * old.activation_bytes


UNITS_REFUSED = {
    "another reader": (units(2, end="y = Conv(LAST, E) z = Relu(LAST)"), "reads what"),
    "a reader in groups": (
        units(2, end="y = Conv(LAST, E) z = Conv<group=2>(LAST, P)", P=(4, 4, 1, 1)),
        "in that order",
    ),
    "an output": (units(2, end="y = Conv(LAST, E) z = Identity(LAST)"), "in that order"),
    "a weight that others read": (
        units(2, end="q = Conv(LAST, E) y = Neg(q) z = Conv(x, E)"),
        "'E' has other readers",
    ),
}


@pytest.mark.parametrize(("before", "reason"), UNITS_REFUSED.values(), ids=UNITS_REFUSED.keys())
def test_units_whose_order_somebody_needs(before: Any, reason: str) -> None:
    applied = apply_to(PASS, before)[1]
    assert any(reason in refusal.reason for refusal in applied.refusals), applied.refusals
    check(PASS, before)


def test_a_view_of_all_channels_needs_their_order() -> None:
    """What looks like the beginning of a shuffle, and is read by a Concat, is none."""
    before = units(
        2,
        end="y = Conv(LAST, E) f = Reshape(LAST, flat) z = Concat<axis=1>(f, f)",
        flat=ints(0, 4, 10, 4),
    )
    applied = apply_to(PASS, before)[1]
    assert not applied.rewrites
    assert any("in that order" in refusal.reason for refusal in applied.refusals)


# ------------------------------------------------------------------------- without measuring


@pytest.mark.parametrize("name", [*LAYERS, *TRANSPOSED])
def test_more_to_write_is_not_even_tried_without_tune(name: str) -> None:
    before = ALL[name][0]
    result, applied = apply_to(PASS, before, ByCost())
    assert operators(result) == operators(before)
    assert not applied.refusals


@pytest.mark.parametrize("name", [*PIXELS, *SHUFFLED])
def test_less_to_do_needs_no_measuring(name: str) -> None:
    before, _ = ALL[name]
    counted, all_of_it = (apply_to(PASS, before, how)[0] for how in (ByCost(), Everything()))
    assert operators(counted) == operators(all_of_it)


def test_pieces_that_others_read_are_less_work_only_by_counting() -> None:
    """The four pieces stay for an output each: the Conv alone is as much work as before."""
    before = model(
        "p = Slice(x, zz, ee, hw, ss) q = Slice(x, iz, ee, hw, ss) r = Slice(x, zi, ee, hw, ss)"
        "t = Slice(x, ii, ee, hw, ss) k = Concat<axis=1>(p, q, r, t) y = Conv(k, F)",
        FOCUS,
        "y p q r t",
    )
    check(PASS, before)
