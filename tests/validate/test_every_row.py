"""Of a table that tokens pick from, every row is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphpass
from graphpass.rewrite.window import Window
from graphpass.testing import graph
from graphpass.validate import Runtime
from graphpass.validate.window.check import check_windows
from graphpass.validate.window.every_row import with_every_row

BEFORE = "g = Gather(E, i) y = MatMul(g, W)"
RNG = np.random.default_rng(0)
E = RNG.normal(size=(500, 8)).astype(np.float32)
W = RNG.normal(size=(8, 6)).astype(np.float32)
PRODUCT = (E.astype(np.float64) @ W).astype(np.float32)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=1) as running:
        yield running


def model(body: str, **held: Any) -> onnx.ModelProto:
    return graph(f"(int64[N,3] i) => (float[N,3,M] y) {{{body}}}", **held)


def window(table: np.ndarray, before: str = BEFORE, after: str = "y = Gather(T, i)") -> Window:
    return Window(model(before, E=E, W=W), model(after, T=table), ("i",), "y")


@pytest.mark.parametrize("row", [None, 0, 3, 250, 499])
def test_one_wrong_row_is_caught(row: int | None, runtime: Runtime) -> None:
    table = PRODUCT.copy()
    if row is not None:
        table[row, 2] *= 1.01
    for seed in range(3):
        (verdict,) = check_windows([window(table)], runtime, seed=seed)
        assert verdict.status == ("ok" if row is None else "differs")
        assert verdict.bound == "elementwise"


def test_what_a_pass_made_is_looked_at_as_a_whole() -> None:
    result = graphpass.optimize(model(BEFORE, E=E, W=W), "move-linear")
    (rewrite,) = result.report.passes[0].rewrites
    assert rewrite.rule == "GatherOfProducts" and rewrite.proof is not None
    assert rewrite.proof.exact.startswith("equal, wrong with probability < 2^-4")


@pytest.mark.parametrize(
    "before",
    [
        "g = Gather(E, i) s = ReduceSum(g, a) y = Mul(s, W)",  # it mixes rows
        "g = Gather(E, i) c = Cast<to=1>(i) y = Add(g, c)",  # tokens are numbers, too
        "g = Gather<axis=1>(E, i) y = MatMul(W, g)",
        "y = MatMul(E, W)",
    ],
)
def test_other_windows_stay_as_they_are(before: str) -> None:
    given = window(PRODUCT, before)
    assert with_every_row(given) is given


def test_tables_of_other_sizes_stay_as_they_are() -> None:
    given = window(PRODUCT[:9])
    assert with_every_row(given) is given


def test_of_a_table_that_is_too_large_as_many_rows_as_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("graphpass.validate.window.every_row._MOST_ELEMENTS", 80)
    found = with_every_row(window(PRODUCT))
    for side in (found.before, found.after):
        (tokens,) = (numpy_helper.to_array(t) for t in side.graph.initializer if t.name == "i")
        assert len(set(tokens.tolist())) == 10 and tokens.max() > 10


def test_the_bias_of_each_row_goes_along(runtime: Runtime) -> None:
    before = "g = Gather(E, i) h = MatMul(g, W) k = Add(h, b) y = Relu(k)"
    bias = RNG.normal(size=6).astype(np.float32)
    held = (np.maximum(PRODUCT.astype(np.float64) + bias, 0)).astype(np.float32)
    held[77, 1] += 1
    given = Window(model(before, E=E, W=W, b=bias), window(held).after, ("i",), "y")
    assert not with_every_row(given).before.graph.input
    (verdict,) = check_windows([given], runtime)
    assert verdict.status == "differs"
