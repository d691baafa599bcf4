"""A dilated convolution is looked at in one of the phases that its map falls into."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from graphpass.rewrite.window import Window
from graphpass.testing import graph
from graphpass.validate import Runtime
from graphpass.validate.window.check import check_windows
from graphpass.validate.window.dilated import undilated

CONV = "Conv<dilations=[6,9],pads=[6,9,6,9]>"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=1) as runtime:
        yield runtime


def model(text: str) -> onnx.ModelProto:
    return graph(
        f"(float[N,3,P,Q] x) => (float[?,?,?,?] y) {{{text}}}",
        W=(4, 3, 3, 3),
        V=(4, 4, 1, 1),
        b=(4,),
        k=(4, 1, 1),
        row=(44,),
        shift=(4,),
    )


def window(text: str, after: str | None = None) -> Window:
    return Window(model(text), model(text if after is None else after), ("x",), "y")


def attributes(side: onnx.ModelProto) -> list[tuple[list[int], list[int]]]:
    given = [{a.name: list(a.ints) for a in node.attribute} for node in side.graph.node]
    return [(found["dilations"], found.get("pads", [])) for found in given if "dilations" in found]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"y = {CONV}(x, W, b)", [([1, 1], [1, 1, 1, 1])]),
        (f"c = {CONV}(x, W) r = Relu(c) y = Mul(r, k)", [([1, 1], [1, 1, 1, 1])]),
        ("y = Conv<dilations=[4,1]>(x, W)", [([1, 1], [])]),
        ("y = Conv<dilations=[4,6],pads=[4,3,4,3]>(x, W)", [([1, 2], [1, 1, 1, 1])]),
        (
            "c = Conv<dilations=[4,4],pads=[4,4,4,4]>(x, W)"
            " y = Conv<dilations=[1,1],pads=[0,0,0,0]>(c, V)",
            [([1, 1], [1, 1, 1, 1]), ([1, 1], [0, 0, 0, 0])],
        ),
    ],
)
def test_what_all_share_is_taken_out(text: str, left: list[tuple[list[int], list[int]]]) -> None:
    assert attributes(undilated(window(text)).before) == left


@pytest.mark.parametrize(
    "text",
    [
        "y = Conv<pads=[6,6,6,6]>(x, W)",
        "y = Conv<dilations=[6,6],pads=[1,1,1,1]>(x, W)",
        "y = Conv<dilations=[6,6],strides=[2,2]>(x, W)",
        'y = Conv<dilations=[6,6],auto_pad="SAME_UPPER">(x, W)',
        f"c = {CONV}(x, W) y = Mul(c, row)",
        f"c = {CONV}(x, W) y = MaxPool<kernel_shape=[2,2]>(c)",
        f"c = {CONV}(x, W) y = Transpose<perm=[0,1,3,2]>(c)",
        f"c = {CONV}(x, W) d = Add(c, k) y = Conv<pads=[1,1,1,1]>(d, V)",
        f"n = Neg(W) y = {CONV}(x, n)",
    ],
)
def test_where_pixels_would_meet_others_it_stays(text: str) -> None:
    given = window(text)
    assert undilated(given) is given


def test_a_phase_of_the_map_is_the_map_of_the_phase() -> None:
    rng = np.random.default_rng(0)
    whole = window(f"c = {CONV}(x, W, b) y = Mul(c, k)")
    image = rng.standard_normal((2, 3, 36, 45)).astype(np.float32)
    (expected,) = run(whole.before, image)
    small = undilated(whole).before
    for row in range(6):
        (found,) = run(small, np.ascontiguousarray(image[:, :, row::6, row + 2 :: 9]))
        np.testing.assert_allclose(
            found, expected[:, :, row::6, row + 2 :: 9], rtol=1e-5, atol=1e-5
        )


def run(side: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(side.SerializeToString())
    found: list[np.ndarray] = session.run(None, {"x": image})
    return found


def test_it_is_run_small_and_what_is_wrong_is_caught(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = f"c = {CONV}(x, W, b) y = Mul(c, k)"
    right = model(f"y = {CONV}(x, W, b)")
    held = {tensor.name: tensor for tensor in right.graph.initializer}
    factor = numpy_helper.to_array(held["k"]).astype(np.float64)
    for name, shape in (("W", (4, 1, 1, 1)), ("b", (4,))):
        array = numpy_helper.to_array(held[name]) * factor.reshape(shape)
        held[name].CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))
    wrong = {"lost pads": ("pads", [0, 0, 0, 0]), "lost dilation": ("dilations", [1, 1])}
    damaged = {}
    for name, (attribute, ints) in wrong.items():
        damaged[name] = onnx.ModelProto()
        damaged[name].CopyFrom(right)
        (given,) = (a for a in damaged[name].graph.node[0].attribute if a.name == attribute)
        given.ints[:] = ints
    damaged["one weight"] = onnx.ModelProto()
    damaged["one weight"].CopyFrom(right)
    weights = next(t for t in damaged["one weight"].graph.initializer if t.name == "W")
    array = numpy_helper.to_array(weights).copy()
    array[3, 2, 0, 1] *= 1.001
    weights.CopyFrom(numpy_helper.from_array(array, "W"))

    sizes: list[int] = []
    original = type(runtime).load

    def load(self: Runtime, joined: onnx.ModelProto, *rest: object, **more: object) -> object:
        session = original(self, joined, *rest, **more)  # type: ignore[arg-type]
        run = session.run

        def counted(feeds: dict[str, np.ndarray]) -> object:
            sizes.extend(array.shape[-1] for array in feeds.values())
            return run(feeds)

        monkeypatch.setattr(session, "run", counted)
        return session

    monkeypatch.setattr(Runtime, "load", load)
    (verdict,) = check_windows([Window(model(before), right, ("x",), "y")], runtime)
    assert verdict.status == "ok"
    assert sizes and max(sizes) == 3
    for name, side in damaged.items():
        (verdict,) = check_windows([Window(model(before), side, ("x",), "y")], runtime)
        assert verdict.status == "differs", name
