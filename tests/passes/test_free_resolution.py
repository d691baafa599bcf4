"""Sizes vary where that is proven, and what comes of it is the network built for another size.

Each kind of network is a recipe that can be followed for any size. What was made for one size and
then freed must give, at another, exactly what the network gives that was made for that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check_refused, check_untouched, graph, session

Sizes = tuple[int, ...]
Constants = Callable[[Sizes], dict[str, Any]]

K = {"k": (4, 3, 3, 3), "t": (4, 4, 2, 2), "m": (2, 8, 3, 3), "c": (4, 4, 3, 3)}
CONV = "a = Conv<pads=[1,1,1,1]>(x, k) r = Relu(a)"
DOWN = "d = Conv<pads=[1,1,1,1], strides=[2,2]>(r, c)"
NEAREST = '<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
LINEAR = '<mode="linear", coordinate_transformation_mode="half_pixel">'


def _ints(*values: int) -> Any:
    return np.array(values, np.int64)


# kind: (nodes, channels and factors of the output, constants by size, steps in which it varies)
FREED: dict[str, tuple[str, str, Constants, int]] = {
    "padded convolutions": (f"{CONV} y = Identity(r)", "4,{0},{1}", lambda s: {}, 1),
    "a pixel shuffle by Reshape": (
        "a = Conv<pads=[1,1,1,1]>(x, s) v = Reshape(a, apart) u = Transpose<perm=[0,1,4,2,5,3]>(v)"
        " y = Reshape(u, together)",
        "1,{0}*3,{1}*3",
        lambda s: {
            "s": (9, 3, 3, 3),
            "apart": _ints(1, 1, 3, 3, *s),
            "together": _ints(1, 1, 3 * s[0], 3 * s[1]),
        },
        1,
    ),
    "depth to space": (
        "a = Conv<pads=[1,1,1,1]>(x, s) y = DepthToSpace<blocksize=2>(a)",
        "1,{0}*2,{1}*2",
        lambda s: {"s": (4, 3, 3, 3)},
        1,
    ),
    "a U-Net that resizes to sizes": (
        f"{CONV} {DOWN} u = Resize{NEAREST}(d, , , up) j = Concat<axis=1>(r, u)"
        " y = Conv<pads=[1,1,1,1]>(j, m)",
        "2,{0},{1}",
        lambda s: {"up": _ints(1, 4, *s)},
        2,
    ),
    "logits resized to the image": (
        f"{CONV} {DOWN} y = Resize{LINEAR}(d, , , up)",
        "4,{0},{1}",
        lambda s: {"up": _ints(1, 4, *s)},
        2,
    ),
    "a Resize by three halves": (
        f"{CONV} y = Resize{LINEAR}(r, , , up)",
        "4,{0}*3//2,{1}*3//2",
        lambda s: {"up": _ints(1, 4, s[0] * 3 // 2, s[1] * 3 // 2)},
        2,
    ),
    "a Resize by a third": (
        f"{CONV} y = Resize{NEAREST}(r, , , up)",
        "4,{0}//3,{1}//3",
        lambda s: {"up": _ints(1, 4, s[0] // 3, s[1] // 3)},
        3,
    ),
    "a detection head through ConvTranspose": (
        f"{CONV} {DOWN} u = ConvTranspose<strides=[2,2]>(d, t) j = Add(r, u) y = Sigmoid(j)",
        "4,{0},{1}",
        lambda s: {},
        2,
    ),
    "a channel shuffle": (
        f"{CONV} v = Reshape(r, two) u = Transpose<perm=[0,2,1,3,4]>(v) b = Reshape(u, four)"
        " y = Conv<pads=[1,1,1,1]>(b, c)",
        "4,{0},{1}",
        lambda s: {"two": _ints(1, 2, 2, *s), "four": _ints(1, 4, *s)},
        1,
    ),
    "channels split into a sequence": (
        f"{CONV} q = SplitToSequence<axis=1>(r, three) a1 = SequenceAt(q, zero)"
        " b1 = SequenceAt(q, one) y = Concat<axis=1>(b1, a1)",
        "4,{0},{1}",
        lambda s: {"three": np.array([3, 1]), "zero": np.array(0), "one": np.array(1)},
        1,
    ),
    "squeeze and excitation by a window": (
        f"{CONV} p = AveragePool<kernel_shape=[{{0}},{{1}}]>(r) g = Conv(p, e) y = Mul(r, g)",
        "4,{0},{1}",
        lambda s: {"e": (4, 4, 1, 1)},
        1,
    ),
    "a pool behind a channel shuffle": (
        f"{CONV} v = Reshape(r, two) u = Transpose<perm=[0,2,1,3,4]>(v) b = Reshape(u, four)"
        " p = AveragePool<kernel_shape=[{0},{1}]>(b) y = Mul(b, p)",
        "4,{0},{1}",
        lambda s: {"two": _ints(1, 2, 2, *s), "four": _ints(1, 4, *s)},
        1,
    ),
    "instance normalization": (
        f"{CONV} y = InstanceNormalization(r, one, one)",
        "4,{0},{1}",
        lambda s: {"one": np.ones(4, np.float32)},
        1,
    ),
    "a border cut off": (
        f"{CONV} y = Slice(r, ones, ends, axes)",
        "4,{0}-2,{1}-2",
        lambda s: {"ones": _ints(1, 1), "ends": _ints(-1, -1), "axes": _ints(2, 3)},
        1,
    ),
}

SIGNALS: dict[str, tuple[str, str, str, dict[str, Any], int]] = {
    "a signal": (
        "1,3,{0}",
        "a = Conv<pads=[1,1], strides=[2]>(x, k) r = Relu(a) y = ConvTranspose<strides=[2]>(r, t)",
        "1,2,{0}",
        {"k": (4, 3, 3), "t": (4, 2, 2)},
        1,
    ),
    "a sequence model over a signal": (
        "1,3,{0}",
        "a = Conv<pads=[1,1]>(x, k) u = Transpose<perm=[2,0,1]>(a)"
        " y, h = GRU<hidden_size=3>(u, W, R)",
        "{0},1,1,3",
        {"k": (4, 3, 3), "W": (1, 9, 4), "R": (1, 9, 3)},
        1,
    ),
    "a bare signal": (
        "1,{0}",
        "u = Unsqueeze(x, one) a = Conv<pads=[1,1]>(u, k) r = Relu(a) y = Squeeze(r, zero)",
        "4,{0}",
        {"k": (4, 1, 3), "one": _ints(1), "zero": _ints(0)},
        1,
    ),
    "a volume": (
        "1,3,{0},{1},{2}",
        "a = Conv<pads=[1,1,1,1,1,1]>(x, k) p = MaxPool<kernel_shape=[1,2,2], strides=[1,2,2]>(a)"
        " y = Relu(p)",
        "1,4,{0},{1}//2,{2}//2",
        {"k": (4, 3, 3, 3, 3)},
        1,
    ),
}


def built(kind: str, sizes: Sizes) -> onnx.ModelProto:
    nodes, output, constants, _ = FREED[kind]
    shape = ",".join(str(eval(part)) for part in output.format(*sizes).split(","))
    text = f"(float[1,3,{sizes[0]},{sizes[1]}] x) => (float[1,{shape}] y) {{ {nodes} }}"
    text = text.replace("{0}", str(sizes[0])).replace("{1}", str(sizes[1]))
    return graph(text.replace("{{", "{").replace("}}", "}"), seed=1, **{**K, **constants(sizes)})


def signal(kind: str, sizes: Sizes) -> onnx.ModelProto:
    image, nodes, output, constants, _ = SIGNALS[kind]
    shape = ",".join(str(eval(part)) for part in output.format(*sizes).split(","))
    text = f"(float[{image.format(*sizes)}] x) => (float[{shape}] y) {{ {nodes} }}"
    return graph(text, seed=1, **constants)


def answer(model: onnx.ModelProto, sizes: Sizes) -> Any:
    channels = [3] * (len(model.graph.input[0].type.tensor_type.shape.dim) - 1 - len(sizes))
    image = np.random.default_rng(0).normal(size=(1, *channels, *sizes)).astype(np.float32)
    return session(model).run(["y"], {"x": image})[0]


@pytest.mark.parametrize("kind", FREED)
def test_what_was_made_for_one_size_is_right_at_others(kind: str) -> None:
    steps = FREED[kind][3]
    freed, applied = apply_to(make("free-resolution"), built(kind, (12, 12)))
    onnx.checker.check_model(freed, full_check=True)
    told = f", in steps of {steps}" if steps > 1 else ""
    assert applied.notes[-1] == f"height and width of 'x' vary{told}", applied.refusals
    dims = freed.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [1, 3, "height", "width"]
    declared = [d.dim_value for d in freed.graph.output[0].type.tensor_type.shape.dim]
    assert declared[2:] == [0, 0]
    for sizes in ((12, 12), (24, 24), (12, 36), (30, 18)):
        np.testing.assert_allclose(
            answer(freed, sizes), answer(built(kind, sizes), sizes), rtol=1e-4, atol=1e-5
        )
    check_untouched(make("free-resolution"), freed)


@pytest.mark.parametrize("kind", SIGNALS)
def test_signals_and_volumes_are_freed_likewise(kind: str) -> None:
    rank = SIGNALS[kind][0].count("{")
    freed, applied = apply_to(make("free-resolution"), signal(kind, (12, 8, 6)[:rank]))
    names = {1: "length", 3: "depth and height and width"}[rank]
    steps = SIGNALS[kind][4]
    told = f", in steps of {steps}" if steps > 1 else ""
    assert applied.notes == [f"{names} of 'x' vary{told}"], applied.refusals
    for sizes in ((12, 8, 6)[:rank], (20, 10, 14)[:rank]):
        np.testing.assert_allclose(
            answer(freed, sizes), answer(signal(kind, sizes), sizes), rtol=1e-4, atol=1e-5
        )


REFUSED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a bias for each pixel": (
        f"{CONV} y = Add(r, e)",
        "1,4,12,12",
        {"e": (1, 4, 12, 12)},
        "Add of 'y' takes 'e' of shape [1, 4, 12, 12]",
    ),
    "pixels as features": (
        f"{CONV} v = Reshape(r, t) y = MatMul(v, w)",
        "1,4,5",
        {"t": _ints(1, 4, 144), "w": (144, 5)},
        "MatMul of 'y' multiplies over pixels",
    ),
    "corners aligned": (
        f'{CONV} y = Resize<mode="linear", coordinate_transformation_mode="align_corners">'
        "(r, , , up)",
        "1,4,24,24",
        {"up": _ints(1, 4, 24, 24)},
        "Resize of 'y' aligns the corners of its map, and looks elsewhere in one of another size",
    ),
    "a map beside a constant one": (
        f"{CONV} y = Concat<axis=1>(r, e)",
        "1,5,12,12",
        {"e": (1, 1, 12, 12)},
        "Concat of 'y' has a value of its own for each of 12 positions",
    ),
    "an operator of somebody else": (
        f"{CONV} y = somebody.Mystery(r)",
        "1,4,12,12",
        {},
        "Mystery of 'y' is not known to work at any",
    ),
    "the brightest place": (
        f"{CONV} i = ArgMax<axis=3>(r) y = Cast<to=1>(i)",
        "1,4,12,1",
        {},
        "ArgMax of 'i' reduces height or width together with, or without, other axes",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_tied_to_one_size_is_refused(kind: str) -> None:
    nodes, shape, constants, reason = REFUSED[kind]
    model = graph(
        f"(float[1,3,12,12] x) => (float[{shape}] y) {{ {nodes} }}",
        domains={"somebody": 1},
        **{**K, **constants},
    )
    check_refused(make("free-resolution"), model, reason)


def test_symbolic_sizes_that_are_fixed_inside_are_freed() -> None:
    model = built("a U-Net that resizes to sizes", (16, 16))
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in ((0, "N"), (2, "H"), (3, "W")):
            value.type.tensor_type.shape.dim[axis].dim_param = name
    freed, applied = apply_to(make("free-resolution"), model)
    assert applied.notes[-1] == "height and width of 'x' vary, in steps of 2"
    shapes = [d.dim_param for d in freed.graph.output[0].type.tensor_type.shape.dim]
    assert shapes == ["N", "", "H", "W"]
    expected = answer(built("a U-Net that resizes to sizes", (24, 20)), (24, 20))
    np.testing.assert_allclose(answer(freed, (24, 20)), expected, rtol=1e-4, atol=1e-5)


def test_sizes_that_vary_already_are_left_alone() -> None:
    model = graph(
        "(float[N,3,H,W] x) => (float[N,4,H,W] y) { y = Conv<pads=[1,1,1,1]>(x, k) }", k=K["k"]
    )
    check_untouched(make("free-resolution"), model)


@pytest.mark.parametrize("kind", ["a pixel shuffle by Reshape", "a channel shuffle"])
@pytest.mark.parametrize("order", ["free-resolution,free-batch", "free-batch,free-resolution"])
def test_both_compose_in_either_order(kind: str, order: str) -> None:
    freed, _ = apply_to([make(name) for name in order.split(",")], built(kind, (12, 12)))
    dims = freed.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["N", 3, "height", "width"]
    images = np.random.default_rng(0).normal(size=(3, 3, 20, 28)).astype(np.float32)
    (found,) = session(freed).run(["y"], {"x": images})
    single = session(built(kind, (20, 28)))
    for row in range(3):
        (expected,) = single.run(["y"], {"x": images[row : row + 1]})
        np.testing.assert_allclose(found[row : row + 1], expected, rtol=1e-4, atol=1e-5)
