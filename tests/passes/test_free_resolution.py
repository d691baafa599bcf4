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

from graphpass.errors import UsageError
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check_refused, check_untouched, graph, session

Sizes = tuple[int, ...]
Constants = Callable[[Sizes], dict[str, Any]]

K = {"k": (4, 3, 3, 3), "t": (4, 4, 2, 2), "m": (2, 8, 3, 3), "c": (4, 4, 3, 3)}
CONV = "a = Conv<pads=[1,1,1,1]>(x, k) r = Relu(a)"
DOWN = "d = Conv<pads=[1,1,1,1], strides=[2,2]>(r, c)"
NEAREST = '<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
CORNERS = '<mode="linear", coordinate_transformation_mode="align_corners">'
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
    "a cut that goes to the end": (
        f"{CONV} y = Slice(r, ones, ends, axes)",
        "4,{0}-1,{1}-1",
        lambda s: {"ones": _ints(1, 1), "ends": _ints(*s), "axes": _ints(2, 3)},
        1,
    ),
    "every second pixel": (
        "a = Slice(x, zeros, ends, axes, twos) b = Slice(x, ones, ends, axes, twos)"
        " j = Concat<axis=1>(a, b) y = Conv<pads=[1,1,1,1]>(j, f)",
        "2,{0}//2,{1}//2",
        lambda s: {
            "zeros": _ints(0, 0),
            "ones": _ints(1, 1),
            "twos": _ints(2, 2),
            "ends": _ints(*s),
            "axes": _ints(2, 3),
            "f": (2, 6, 3, 3),
        },
        2,
    ),
    "an image and its mirror": (
        f"{CONV} q = Slice(r, last, first, width, back) y = Add(r, q)",
        "4,{0},{1}",
        lambda s: {
            "last": _ints(-1),
            "first": _ints(-(2**62)),
            "width": _ints(3),
            "back": _ints(-1),
        },
        1,
    ),
    "corners aligned": (
        f"{CONV} y = Resize{CORNERS}(r, , , up)",
        "4,{0}*2,{1}*2",
        lambda s: {"up": _ints(1, 4, 2 * s[0], 2 * s[1])},
        1,
    ),
    "corners aligned by a factor": (
        f"{CONV} y = Resize{CORNERS}(r, , by)",
        "4,{0}*2,{1}*2",
        lambda s: {"by": np.array([1, 1, 2, 2], np.float32)},
        1,
    ),
    "context resized to the map": (
        f"{CONV} g = GlobalAveragePool(r) u = Resize{LINEAR}(g, , , up) y = Concat<axis=1>(r, u)",
        "8,{0},{1}",
        lambda s: {"up": _ints(1, 4, *s)},
        1,
    ),
    "context repeated over the map": (
        f"{CONV} g = GlobalAveragePool(r) e = Expand(g, all) o = Tile(g, times)"
        " y = Concat<axis=1>(r, e, o)",
        "12,{0},{1}",
        lambda s: {"all": _ints(1, 4, *s), "times": _ints(1, 1, *s)},
        1,
    ),
    "context of as many places as are counted": (
        f"{CONV} g = GlobalAveragePool(r) n = Shape(r) e = Expand(g, n) y = Concat<axis=1>(r, e)",
        "8,{0},{1}",
        lambda s: {},
        1,
    ),
    "zeros beside the map": (
        f"{CONV} e = ConstantOfShape(all) f = Exp(e) y = Concat<axis=1>(r, f)",
        "6,{0},{1}",
        lambda s: {"all": _ints(1, 2, *s)},
        1,
    ),
    "a number for all places": (
        f"{CONV} e = Expand(one, all) f = Sqrt(e) y = Sub(r, f)",
        "4,{0},{1}",
        lambda s: {"all": _ints(*s), "one": np.array([[2.0]], np.float32)},
        1,
    ),
}

# kind: (nodes, output, constants by size, what varies, why the rest does not); 8x12 natively
PARTLY: dict[str, tuple[str, str, Constants, str, str]] = {
    "a line of text": (
        f"{CONV} p = MaxPool<kernel_shape=[{{0}},1]>(r) q = Squeeze(p, two)"
        " n = Transpose<perm=[2,0,1]>(q) y = MatMul(n, v)",
        "{1},1,5",
        lambda s: {"two": _ints(2), "v": (4, 5)},
        "width",
        "height cannot: Squeeze of 'q' drops an axis that has more places at other sizes",
    ),
    "columns as features": (
        f"{CONV} n = Transpose<perm=[3,0,1,2]>(r) q = Reshape(n, u) y = MatMul(q, v)",
        "{1},1,5",
        lambda s: {"u": _ints(s[1], 1, 4 * s[0]), "v": (4 * s[0], 5)},
        "width",
        "height cannot: Reshape of 'q' joins the places of the image with other axes",
    ),
    "a bias for each row": (
        f"{CONV} y = Add(r, e)",
        "1,4,{0},{1}",
        lambda s: {"e": (1, 4, s[0], 1)},
        "width",
        "height cannot: Add of 'y' has a value of its own for each of 8 places",
    ),
    "a matrix for each column": (
        f"{CONV} y = MatMul(r, v)",
        "1,4,{0},7",
        lambda s: {"v": (s[1], 7)},
        "height",
        "width cannot: MatMul of 'y' works along axis 3 of 'r'",
    ),
    "tokens of height and width": (
        f"{CONV} u = Reshape(r, flat) y = Transpose<perm=[0,2,1]>(u)",
        "1,{0}*{1},4",
        lambda s: {"flat": _ints(1, 4, s[0] * s[1])},
        "height",
        "width cannot: Reshape of 'u' makes one axis of several dimensions of the image",
    ),
    "boxes, two for each place": (
        f"{CONV} n = Transpose<perm=[0,2,3,1]>(r) y = Reshape(n, flat)",
        "1,{0}*{1}*2,2",
        lambda s: {"flat": _ints(1, -1, 2)},
        "height",
        "width cannot: Reshape of 'y' makes one axis of several dimensions of the image",
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
    varies = "varies" if rank == 1 else "vary"
    steps = SIGNALS[kind][4]
    told = f", in steps of {steps}" if steps > 1 else ""
    assert applied.notes == [f"{names} of 'x' {varies}{told}"], applied.refusals
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
    "a size whatever the image's": (
        f"{CONV} y = Resize{LINEAR}(r, , , up)",
        "1,4,10,14",
        {"up": _ints(1, 4, 10, 14)},
        "Resize of 'y' resizes the map to a constant size",
    ),
    "a mask for each pixel": (
        f"{CONV} y = Where(seen, r, none)",
        "1,4,12,12",
        {"seen": np.eye(12)[None, None] > 0, "none": np.float32(0)},
        "Where of 'y' takes 'seen' of shape [1, 1, 12, 12]",
    ),
    "a grid that says where to look": (
        f"{CONV} y = GridSample(r, g)",
        "1,4,5,5",
        {"g": (1, 5, 5, 2)},
        "GridSample of 'y' is not known to work at any resolution",
    ),
    "boxes that are cut out": (
        f"{CONV} y = RoiAlign<output_height=2, output_width=2>(r, boxes, which)",
        "2,4,2,2",
        {"boxes": (2, 4), "which": _ints(0, 0)},
        "RoiAlign of 'y' is not known to work at any resolution",
    ),
    "the best of all places": (
        f"{CONV} u = Reshape(r, flat) y, i = TopK(u, three)",
        "1,4,3",
        {"flat": _ints(1, 4, -1), "three": _ints(3)},
        "TopK of 'y' sorts pixels",
    ),
    "a place of its own for each token": (
        f"{CONV} u = Reshape(r, flat) n = Transpose<perm=[0,2,1]>(u) y = Add(n, e)",
        "1,144,4",
        {"flat": _ints(1, 4, 144), "e": (1, 144, 4)},
        "Add of 'y' takes 'e' of shape [1, 144, 4]",
    ),
    "attention over all places": (
        f"{CONV} u = Reshape(r, flat) n = Transpose<perm=[0,2,1]>(u) q = MatMul(n, u)"
        " p = Softmax<axis=-1>(q) y = MatMul(p, n)",
        "1,144,4",
        {"flat": _ints(1, 4, 144)},
        "MatMul of 'q' multiplies with a matrix of pixels",
    ),
    "a dense layer over the map": (
        f"{CONV} v = Flatten(r) y = Gemm(v, w)",
        "1,5",
        {"w": (576, 5)},
        "Flatten of 'v' flattens a map of 12x12",
    ),
    "a ConvTranspose to a size": (
        f"{CONV} y = ConvTranspose<strides=[2,2], output_shape=[24,24]>(r, c)",
        "1,4,24,24",
        {},
        "ConvTranspose of 'y' is not known to work at any resolution",
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
    check_refused(make("free-resolution", {"axes": "all"}), model, reason)


def partly(kind: str, sizes: Sizes) -> onnx.ModelProto:
    nodes, output, constants, _, _ = PARTLY[kind]
    shape = ",".join(str(eval(part)) for part in output.format(*sizes).split(","))
    text = f"(float[1,3,{sizes[0]},{sizes[1]}] x) => (float[{shape}] y) {{{{ {nodes} }}}}"
    return graph(text.format(*sizes), seed=1, **{**K, **constants(sizes)})


def partly_sizes(kind: str) -> list[Sizes]:
    """Return sizes of which only what varies is another than natively."""
    return [(s, 12) if PARTLY[kind][3] == "height" else (8, s) for s in (8, 12, 20, 28)]


@pytest.mark.parametrize("kind", PARTLY)
def test_where_one_dimension_alone_can_vary_it_does_and_the_other_is_told(kind: str) -> None:
    *_, dimension, why = PARTLY[kind]
    native = partly(kind, (8, 12))
    freed, applied = apply_to(make("free-resolution"), native)
    assert applied.notes[-1].startswith(f"{dimension} of 'x' varies; {why}"), applied.notes
    onnx.checker.check_model(freed, full_check=True)
    wanted = ["height", 12] if dimension == "height" else [8, "width"]
    dims = freed.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == [1, 3, *wanted]
    for sizes in partly_sizes(kind):
        np.testing.assert_allclose(
            answer(freed, sizes), answer(partly(kind, sizes), sizes), rtol=1e-4, atol=1e-5
        )
    asked, applied = apply_to(make("free-resolution", {"axes": dimension}), native)
    assert asked == freed
    assert applied.notes[-1] == f"{dimension} of 'x' varies"
    if "one axis of several" in why:
        return  # either can vary, if the other does not
    other = "width" if dimension == "height" else "height"
    check_refused(make("free-resolution", {"axes": other}), native, why.partition(": ")[2])


def test_axes_that_no_input_has_are_refused() -> None:
    with pytest.raises(UsageError, match="any, all, or of length, height, width, depth, joined"):
        make("free-resolution", {"axes": "widht"})
    model = partly("a line of text", (8, 12))
    check_refused(
        make("free-resolution", {"axes": "depth"}),
        model,
        "the input has height and width, and not all of 'depth'",
    )


def test_a_volume_of_frames_varies_in_height_and_width() -> None:
    def frames(height: int, width: int) -> onnx.ModelProto:
        return graph(
            f"(float[1,3,4,{height},{width}] x) => (float[1,4,4,{height},{width}] y) {{"
            "t = Transpose<perm=[0,2,1,3,4]>(x) f = Reshape(t, apart)"
            "c = Conv<pads=[1,1,1,1]>(f, k) y = Reshape(c, together) }",
            seed=1,
            k=K["k"],
            apart=_ints(4, 3, height, width),
            together=_ints(1, 4, 4, height, width),
        )

    freed, applied = apply_to(make("free-resolution"), frames(8, 12))
    assert applied.notes[-1].startswith("height and width of 'x' vary; depth cannot: Conv of 'c'")
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 10, 6)).astype(np.float32)
    (found,) = session(freed).run(["y"], {"x": image})
    (expected,) = session(frames(10, 6)).run(["y"], {"x": image})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_pooled_head_that_is_reshaped_pools_the_whole_map() -> None:
    def pooled(height: int, width: int) -> onnx.ModelProto:
        return graph(
            f"(float[1,3,{height},{width}] x) => (float[1,5] y) {{ {CONV}"
            f" p = AveragePool<kernel_shape=[{height},{width}]>(r) v = Reshape(p, flat)"
            " y = Gemm(v, w) }",
            seed=1,
            k=K["k"],
            flat=_ints(-1, 4),
            w=(4, 5),
        )

    freed, applied = apply_to(make("free-resolution"), pooled(8, 12))
    assert applied.notes[-1] == "height and width of 'x' vary", applied.refusals
    expected = answer(pooled(20, 14), (20, 14))
    np.testing.assert_allclose(answer(freed, (20, 14)), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_image_is_told() -> None:
    sentence = graph("(int64[1,9] x) => (float[1,9,3] y) { y = Gather(w, x) }", w=(7, 3))
    check_refused(make("free-resolution"), sentence, "no input of the network is an image")
    numbers = graph("(float[1,9] x) => (float[1,9] y) { y = Relu(x) }")
    check_refused(make("free-resolution"), numbers, "nothing slides over 'x': it is no image")


def test_a_refusal_at_another_size_names_that_size() -> None:
    nodes = f"{CONV} s = Shape(r) h = Gather(s, two) n = Range(zero, h, one) f = Cast<to=1>(n)"
    model = graph(
        f"(float[1,3,8,12] x) => (float[1,8,1] y) {{ {nodes}"
        " u = Unsqueeze(f, axes) p = ReduceMean<axes=[1,3], keepdims=0>(r) y = MatMul(p, b) }",
        k=K["k"],
        two=np.array(2),
        zero=np.array(0),
        one=np.array(1),
        axes=_ints(0, 2),
        b=(8, 1),
    )
    _, applied = apply_to(make("free-resolution", {"axes": "all"}), model)
    assert applied.refusals and "7919" not in applied.refusals[0].reason


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
