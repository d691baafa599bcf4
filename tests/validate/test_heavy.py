"""What heavy models and windows cost less, and that nothing is lost by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpass.rewrite.window import Window
from graphpass.storage.wire import read_skeleton
from graphpass.testing import graph
from graphpass.validate import RunError, Runtime, Validator
from graphpass.validate.process.channel import Value
from graphpass.validate.process.pieces import Piece, pieces_of
from graphpass.validate.window.check import check_windows

from .models import convnet

CHAIN = "(float[N,64] x) => (float[N,64] y)"


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=1) as runtime:
        yield runtime


@pytest.fixture(autouse=True)
def few_bytes_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphpass.validate.process.pieces._WHOLE_BYTES", 20_000)
    monkeypatch.setattr("graphpass.validate.process.pieces._PIECE_BYTES", 18_000)


def heavy(text: str) -> onnx.ModelProto:
    return graph(text, V=(64, 64), W=(64, 64), U=(64, 64))


def skeleton(folder: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    onnx.save(model, path)
    return read_skeleton(path)


def operators(pieces: list[Piece]) -> list[list[str]]:
    return [[node.op_type for node in piece.model.graph.node] for piece in pieces]


# Pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "a = MatMul(x, V) b = Relu(a) c = MatMul(b, W) d = Relu(c) y = MatMul(d, U)",
            [["MatMul", "Relu"], ["MatMul", "Relu"], ["MatMul"]],
        ),
        # what is made of weights is made again where it is read, and not handed on
        (
            "t = Transpose(V) a = MatMul(x, t) c = MatMul(a, W) d = MatMul(c, t) y = MatMul(d, U)",
            [["Transpose", "MatMul"], ["MatMul"], ["Transpose", "MatMul"], ["MatMul"]],
        ),
        # a value that several pieces read
        (
            "a = MatMul(x, V) b = MatMul(a, W) c = Add(a, b) d = MatMul(c, U) y = Add(d, a)",
            [["MatMul"], ["MatMul", "Add"], ["MatMul", "Add"]],
        ),
    ],
)
def test_pieces_give_what_the_whole_gives(
    text: str, expected: list[list[str]], tmp_path: Path, runtime: Runtime
) -> None:
    cut = skeleton(tmp_path, heavy(f"{CHAIN} {{{text}}}"))
    pieces = pieces_of(cut)
    assert operators(pieces) == expected
    feeds: dict[str, Value] = {"x": np.random.default_rng(0).standard_normal((3, 64), np.float32)}
    with runtime.load(cut) as session, runtime.load(cut, whole=True) as whole:
        np.testing.assert_array_equal(
            session.run(feeds).outputs["y"], whole.run(feeds).outputs["y"]
        )
        assert session.shapes(feeds) == {"y": [3, 64]}
    with runtime.load(cut, level="all") as session, runtime.load(cut) as plain:
        found, expected_y = (np.asarray(s.run(feeds).outputs["y"]) for s in (session, plain))
        np.testing.assert_allclose(found, expected_y, rtol=1e-3, atol=1e-2)


def test_results_come_in_their_order_also_from_the_middle(tmp_path: Path, runtime: Runtime) -> None:
    text = """(float[N,64] x, bool c) => (float[N,64] z, float[N,64] y, float[N,64] a) {
        a = MatMul(x, V)
        y = If(c) <then_branch = t () => (float[N,64] p) { p = MatMul(a, W) },
                   else_branch = e () => (float[N,64] q) { q = Neg(x) }>
        z = MatMul(y, U) }"""
    cut = skeleton(tmp_path, heavy(text))
    assert operators(pieces_of(cut)) == [["MatMul"], ["If"], ["MatMul"]]
    x = np.random.default_rng(0).standard_normal((2, 64)).astype(np.float32)
    feeds: dict[str, Value] = {"x": x, "c": np.array(True)}
    with runtime.load(cut) as session, runtime.load(cut, whole=True) as whole:
        found, expected = session.run(feeds).outputs, whole.run(feeds).outputs
    assert list(found) == ["z", "y", "a"]
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    "text",
    [
        f"{CHAIN} {{a = MatMul(x, V) r = RandomUniformLike(a) b = MatMul(r, W) y = MatMul(b, U)}}",
        f"{CHAIN} {{a = MatMul(x, V) b = vendor.Op(a) c = MatMul(b, W) y = MatMul(c, U)}}",
        "(float[N,64] x, float[64,64] V) => (float[N,64] y)"
        " {a = MatMul(x, V) b = MatMul(a, W) y = MatMul(b, U)}",
        # half precision would be handed on
        f"{CHAIN} {{a = MatMul(x, V) h = Cast<to=10>(a) w = Cast<to=10>(W) b = MatMul(h, w)"
        " e = Cast<to=1>(b) y = MatMul(e, U)}",
    ],
)
def test_what_remembers_or_would_show_is_not_cut(text: str, tmp_path: Path) -> None:
    model = heavy(text)
    model.opset_import.add(domain="vendor", version=1)
    assert pieces_of(skeleton(tmp_path, model)) == []


def test_what_is_light_is_not_cut(tmp_path: Path) -> None:
    model = graph(f"{CHAIN} {{a = MatMul(x, V) y = MatMul(a, V)}}", V=(64, 64))
    assert pieces_of(skeleton(tmp_path, model)) == []


def test_what_a_piece_does_not_take_the_whole_refuses(tmp_path: Path, runtime: Runtime) -> None:
    text = "a = MatMul(x, V) b = MatMul(a, W) y = MatMul(b, U)"
    cut = skeleton(tmp_path, heavy(f"{CHAIN} {{{text}}}"))
    with runtime.load(cut) as session:
        with pytest.raises(RunError, match="x"):
            session.run({"x": np.zeros((2, 3), np.float32)})
        run = session.run({"x": np.zeros((2, 64), np.float32)})
    assert np.shape(np.asarray(run.outputs["y"])) == (2, 64)


def test_a_network_in_pieces_is_judged_as_a_whole_one(tmp_path: Path) -> None:
    original = skeleton(tmp_path, convnet(depth=6))
    right = skeleton(tmp_path, convnet(depth=6, folded=True))
    wrong = skeleton(tmp_path, convnet(depth=6, folded=True, weight_error=0.01))
    assert len(pieces_of(original)) > 1
    with Validator(original) as validator:
        assert validator.check(original).status == "equal"
        assert validator.check(right).status == "within tolerance"
        assert validator.check(wrong).status == "differs"


# Costly models


@pytest.fixture
def all_is_costly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphpass.validate.search._CHEAP_COST", 0)
    monkeypatch.setattr("graphpass.validate.search._COSTLY_COST", 0)
    monkeypatch.setattr("graphpass.validate.search._FEWER_FEEDS", ((0, 0),))


@pytest.mark.usefixtures("all_is_costly")
def test_a_costly_model_runs_once_as_users_run_it() -> None:
    with Validator(convnet()) as validator:
        verdict = validator.check(convnet(folded=True))
        assert verdict.status == "within tolerance"
        (feed,) = {c.feed for c in verdict.comparisons}
        assert feed == "normal, N=1, H=64, W=64, default optimization"
        wrong = validator.check(convnet(folded=True, weight_error=0.01))
        assert wrong.status == "differs"
        assert "default optimization" not in wrong.reason  # it was run both ways


# Heavy windows


@pytest.fixture
def all_is_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphpass.validate.window.heavy.HEAVY_BYTES", -1)


def window(before: str, after: str, **scaled: float) -> Window:
    texts = (f"(float[N,8] x) => (float[?,?] y) {{{text}}}" for text in (before, after))
    sides = [graph(text, W=(8, 5), big=(8,), b=(5,)) for text in texts]
    for side in sides:
        for tensor in side.graph.initializer:
            if tensor.name in scaled:
                array = numpy_helper.to_array(tensor) * scaled[tensor.name]
                tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return Window(sides[0], sides[1], ("x",), "y")


@pytest.mark.usefixtures("all_is_heavy")
def test_a_heavy_window_is_acquitted_one_side_after_the_other(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[list[str]] = []
    load = Runtime.load

    def noted(self: Runtime, model: onnx.ModelProto, *rest: object, **more: object) -> object:
        loaded.append([node.op_type for node in model.graph.node])
        return load(self, model, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "load", noted)
    (verdict,) = check_windows(
        [window("y = Gemm(x, W, b)", "m = MatMul(x, W) y = Add(m, b)")], runtime
    )
    assert (verdict.status, verdict.bound) == ("ok", "norm")
    assert loaded == [["Gemm"], ["MatMul", "Add"]]


@pytest.mark.usefixtures("all_is_heavy")
def test_where_sums_cancel_a_heavy_window_is_looked_at_as_others_are(runtime: Runtime) -> None:
    right = window("a = Add(x, big) y = Sub(a, big)", "y = Identity(x)", big=1e4)
    wrong = window("a = Add(x, big) y = Sub(a, big)", "y = Neg(x)", big=1e4)
    first, second = check_windows([right, wrong], runtime)
    assert (first.status, first.bound) == ("ok", "elementwise")
    assert second.status == "differs"


@pytest.mark.usefixtures("all_is_heavy")
@pytest.mark.parametrize("wrong", ["m = MatMul(x, W) y = Sub(m, b)", "y = MatMul(x, W)"])
def test_a_wrong_heavy_window_is_caught(wrong: str, runtime: Runtime) -> None:
    (verdict,) = check_windows([window("y = Gemm(x, W, b)", wrong)], runtime)
    assert (verdict.status, verdict.bound) == ("differs", "elementwise")


@pytest.mark.usefixtures("all_is_heavy")
def test_a_shift_that_cancels_a_mean_on_zeros_is_no_reason_for_a_closer_look(
    runtime: Runtime,
) -> None:
    model = graph(
        "(float[N,8] x) => (float[?,?] y) {m = MatMul(x, W) a = Add(m, k) y = Sub(a, k)}",
        W=(8, 5),
        k=(5,),
    )
    after = graph("(float[N,8] x) => (float[?,?] y) {y = MatMul(x, W)}", W=(8, 5), k=(5,))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    after.graph.initializer[0].CopyFrom(held["W"])
    (verdict,) = check_windows([Window(model, after, ("x",), "y")], runtime)
    assert (verdict.status, verdict.bound) == ("ok", "norm")
