"""Loops that would run for ever, or fill all memory, are not run unasked; honest ones are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphpass import optimize
from graphpass.cli import run
from graphpass.errors import RuntimeUnavailableError
from graphpass.testing import graph
from graphpass.validate.growth import GrowthError, limits_unasked
from graphpass.validate.process.runtime import Limits

PLENTY = Limits(300.0, 1 << 20)
BODY = """<body = b (int64 i, bool c, float[4] a) => (bool d, float[4] z) {
    d = Identity(c) z = Mul(a, k) }>"""
SCAN = "body = s (float[4] a, float[1] e) => (float[4] z, float[4] w) { z = Add(a, e) w = Neg(z) }"


def model(text: str, **values: object) -> onnx.ModelProto:
    made = graph(text)
    for name, value in {"yes": True, "k": np.float32(0.9), **values}.items():
        made.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return made


def loop(trips: object, x: str = "x") -> onnx.ModelProto:
    return model(
        f"(float[4] x) => (float[4] y) {{ y = Loop(trips, yes, {x}) {BODY} }}", trips=trips
    )


def nested(trips: int) -> onnx.ModelProto:
    outer = BODY.replace(
        "z = Mul(a, k)",
        "z = Loop(trips, c, a) <body = n (int64 j, bool c2, "
        "float[4] a2) => (bool d2, float[4] z2) { d2 = Identity(c2) z2 = Mul(a2, k) }>",
    )
    return model(f"(float[4] x) => (float[4] y) {{ y = Loop(trips, yes, x) {outer} }}", trips=trips)


def scanned(count: int) -> onnx.ModelProto:
    return model(
        f"(float[4] x, float[{count},1] r) => (float[4] y, float[{count},4] o) {{"
        f" y, o = Scan<num_scan_inputs = 1, {SCAN}>(x, r) }}"
    )


def stacked(trips: int) -> onnx.ModelProto:
    """A loop whose steps make a megabyte each, and all are kept."""
    return model(
        """(float[4] x) => (float[4] y, float[n,262144] o) { y, o = Loop(trips, yes, x)
            <body = b (int64 i, bool c, float[4] a) => (bool d, float[4] z, float[262144] w) {
                d = Identity(c) z = Mul(a, k) w = Expand(k, wide) }> }""",
        trips=trips,
        wide=[262144],
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (loop(2**40), "its loops run 2199023255552 nodes"),
        (loop(2**62), "its loops run .* nodes"),
        (nested(100_000), "its loops run .* nodes"),
        (scanned(100_000_000), "its loops run .* nodes"),
        (stacked(2000), "it makes 2001 MiB out of"),
    ],
)
def test_a_loop_of_too_many_steps_is_not_run(made: onnx.ModelProto, said: str) -> None:
    with pytest.raises(GrowthError, match=said):
        limits_unasked(made, PLENTY)
    with pytest.raises(RuntimeUnavailableError, match=said):
        optimize(made)


def test_it_is_written_without_being_run(tmp_path: Path) -> None:
    path, result = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(loop(2**40), path)
    assert run(["optimize", str(path), "-o", str(result), "--no-validate"]) == 0
    assert result.exists()


@pytest.mark.parametrize("made", [loop(1000), nested(100), scanned(1000), stacked(100)])
def test_an_honest_loop_is_run(made: onnx.ModelProto) -> None:
    assert optimize(made, latency=False).report.validated


@pytest.mark.parametrize(
    ("made", "is_loop"),
    [
        (loop(1000), True),  # what it carries may grow from step to step
        (model(f'(float[4] x) => (float[4] y) {{ y = Loop("", yes, x) {BODY} }}'), True),
        (model("(float[4] x) => (int64[1,n] y) { y = NonZero(x) }"), False),
    ],
)
def test_what_nobody_can_foresee_gets_less(made: onnx.ModelProto, is_loop: bool) -> None:
    limits = limits_unasked(made, PLENTY)
    assert limits == Limits(10.0 if is_loop else 300.0, 768)
    assert limits_unasked(made, Limits(5.0, 100)) == Limits(5.0, 100)


def test_strings_are_moved_without_a_proof() -> None:
    made = graph(
        """(string[2,3] x) => (string[2,3] y) {
            a = Transpose<perm = [1,0]>(x) b = Transpose<perm = [1,0]>(a) y = Identity(b) }"""
    )
    result = optimize(made, latency=False)
    assert result.report.output.nodes < 3 and result.report.validated


def test_a_string_is_no_number(tmp_path: Path) -> None:
    made = model("(float[4] x) => (float[4] y, string[n] s) { s = Expand(t, wide) y = Neg(x) }")
    for name, value in (("t", np.array(["text"], object)), ("wide", np.array([10]))):
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    assert optimize(made, latency=False).report.validated
    trips = loop(3)
    trips.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.array("3", object), "trips"))
    assert limits_unasked(trips, PLENTY).memory_mib == 768


def test_what_can_be_foreseen_gets_all() -> None:
    made = model("(float[4] x) => (float[4] y) { y = Mul(x, k) }")
    assert limits_unasked(made, PLENTY) == PLENTY


def test_weights_give_room() -> None:
    made = model(
        "(float[4] x) => (int64[1,n] y) { y = NonZero(x) }", w=np.zeros(1 << 26, np.float32)
    )
    assert limits_unasked(made, PLENTY) == Limits(300.0, 8 * 256)


def test_a_loop_that_never_ends_is_ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(f'(float[4] x) => (float[4] y) {{ y = Loop("", yes, x) {BODY} }}'), path)
    assert run(["optimize", str(path), "-o", str(tmp_path / "o.onnx")]) == 4
    assert (
        "did not finish running the model within 10 s, which is what loops get"
        in capsys.readouterr().err
    )


def test_a_loop_whose_value_doubles_is_ended(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    made = model(
        """(float[4] x) => (float[n] y) { y = Loop(trips, yes, x)
            <body = b (int64 i, bool c, float[m] a) => (bool d, float[l] z) {
                d = Identity(c) z = Concat<axis = 0>(a, a) }> }""",
        trips=60,
    )
    onnx.save(made, path)
    assert run(["optimize", str(path), "-o", str(tmp_path / "o.onnx")]) == 4
    assert "takes more memory than the limit of 768 MiB" in capsys.readouterr().err
