from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphpass.validate.noise import (
    arithmetic_epsilon,
    base_tolerance,
    may_be_random,
    moved_by_ulp,
    noisy_model,
)
from graphpass.validate.process.runtime import Runtime

from .models import Array, convnet, parse

EPSILON = 2.0**-23


@pytest.mark.parametrize(
    ("text", "epsilon"),
    [
        ("g (float[3] x) => (float[3] y) { y = Relu (x) }", 2.0**-23),
        ("g (double[3] x) => (double[3] y) { y = Relu (x) }", 2.0**-52),
        ("g (float16[3] x) => (float16[3] y) { y = Relu (x) }", 2.0**-10),
        ("g (int64[3] x) => (int64[3] y) { y = Neg (x) }", 2.0**-23),
        (
            "g (float[3] x) => (float[3] y) { h = Cast <to=10> (x) y = Cast <to=1> (h) }",
            2.0**-10,
        ),
        (
            "g (float[3] x, bool c) => (float[3] y) { y = If (c) <"
            "then_branch = t () => (float[3] a) { b = Cast <to=16> (x) a = Cast <to=1> (b) },"
            "else_branch = e () => (float[3] d) { d = Relu (x) }> }",
            2.0**-7,
        ),
    ],
)
def test_the_coarsest_arithmetic_counts(text: str, epsilon: float) -> None:
    assert arithmetic_epsilon(parse(text)) == epsilon


def test_the_base_is_a_few_ulps() -> None:
    assert base_tolerance(2.0**-23) == pytest.approx(1.9e-6, rel=0.01)
    assert base_tolerance(2.0**-10) == pytest.approx(3.9e-3, rel=0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_inputs_move_by_one_ulp(dtype: Any) -> None:
    x: Array = np.random.default_rng(0).standard_normal(1000).astype(dtype)
    moved = moved_by_ulp({"x": x}, 0.0, 1)
    assert moved is not None
    y = np.asarray(moved["x"])
    assert y.dtype == x.dtype
    steps = np.abs(y.astype(float) - x.astype(float)) / np.spacing(np.abs(x)).astype(float)
    assert steps.min() > 0 and steps.max() <= 2
    again = moved_by_ulp({"x": x}, 0.0, 1)
    assert again is not None and np.asarray(again["x"]).tobytes() == y.tobytes()


def test_zeros_move_in_proportion_to_the_rest() -> None:
    moved = moved_by_ulp({"x": np.array([0, 100, 100, 100], np.float32)}, EPSILON, 0)
    assert moved is not None
    assert 0 < abs(np.asarray(moved["x"])[0]) < 100 * 2 * EPSILON
    moved = moved_by_ulp({"x": np.zeros(2, np.float32)}, EPSILON, 0)
    assert moved is not None
    np.testing.assert_allclose(np.abs(np.asarray(moved["x"])), EPSILON)


def test_inputs_move_by_an_ulp_of_the_coarsest_arithmetic() -> None:
    moved = moved_by_ulp({"x": np.ones(10, np.float32)}, 2.0**-10, 0)
    assert moved is not None
    np.testing.assert_allclose(np.abs(np.asarray(moved["x"]) - 1), 2.0**-10, rtol=1e-3)


def test_only_floats_move() -> None:
    values = {"i": np.arange(3), "b": np.ones(2, bool), "s": np.array(["a"], object), "n": None}
    assert moved_by_ulp(values, EPSILON, 0) is None
    moved = moved_by_ulp({**values, "q": [np.ones(2, np.float32)]}, EPSILON, 0)
    assert moved is not None
    assert moved["i"] is values["i"]
    [item] = moved["q"]  # type: ignore[misc]
    assert not np.array_equal(np.asarray(item), np.ones(2))


@pytest.mark.parametrize(
    ("op", "random"),
    [
        ("y = Relu (x)", False),
        ("y = RandomNormalLike (x)", True),
        ("y = Bernoulli (x)", True),
        ("y = vendor.Relu (x)", True),
        ("y = local.twice (x)", False),
    ],
)
def test_what_may_be_random_is_known_from_the_graph(op: str, random: bool) -> None:
    model = parse(
        f"g (float[3] x) => (float[3] y) {{ {op} }}"
        ' <domain: "local", opset_import: ["" : 17]> twice (a) => (b) { b = Add (a, a) }',
        '"vendor" : 1',
        '"local" : 1',
    )
    assert may_be_random(model) == random


def test_noise_inside_moves_outputs_by_a_few_ulps() -> None:
    model = convnet()
    noisy = noisy_model(model, 0)
    assert noisy is not None
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    with Runtime() as runtime:
        outputs = []
        for candidate in (model, noisy):
            with runtime.load(candidate) as session:
                outputs.append(np.asarray(session.run({"x": x}).outputs["y"]))
    distance = np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max()
    assert 1e-8 < distance < 1e-5


@pytest.mark.parametrize("type_", ["float16", "double"])
def test_noise_inside_keeps_the_type(type_: str) -> None:
    model = parse(f"g ({type_}[3,3] x) => ({type_}[3,3] y) {{ y = MatMul (x, x) }}")
    noisy = noisy_model(model, 0)
    assert noisy is not None
    x = np.ones((3, 3), "float64" if type_ == "double" else type_)
    with Runtime() as runtime, runtime.load(noisy) as session:
        y = np.asarray(session.run({"x": x}).outputs["y"])
    assert y.dtype == x.dtype
    assert 0 < np.abs(y - 3).max() < 0.01


def test_noise_gets_into_subgraphs_and_no_name_collides() -> None:
    model = parse(
        "g (float[3] x, bool c) => (float[3] y) { noise1 = Add (x, x) y = If (c) <"
        "then_branch = t () => (float[3] a) { a = Mul (noise1, x) },"
        "else_branch = e () => (float[3] d) { d = Relu (x) }> }"
    )
    noisy = noisy_model(model, 0)
    assert noisy is not None
    with Runtime() as runtime, runtime.load(noisy) as session:
        outputs = session.run({"x": np.ones(3, np.float32), "c": np.array(True)}).outputs
    assert 0 < np.abs(np.asarray(outputs["y"]) - 2).max() < 1e-6


def test_a_model_of_integers_has_no_noise_inside() -> None:
    assert noisy_model(parse("g (int64[3] x) => (int64[3] y) { y = Mul (x, x) }"), 0) is None
