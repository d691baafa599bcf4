"""pool-in-steps: the mean of the means of equally many is the mean."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.errors import UsageError
from graphpass.ir.model import Model
from graphpass.rewrite.registry import make
from graphpass.rewrite.rule import Pass
from graphpass.targets.fit import fit
from graphpass.targets.profile import load
from graphpass.testing import (
    apply_to,
    check,
    check_refused,
    check_replay,
    check_untouched,
    graph,
    session,
)


def steps(side: int) -> Pass:
    return make("pool-in-steps", {"side": str(side)})


def pooled(sizes: str, opset: int = 17, batch: str = "N") -> onnx.ModelProto:
    ones = ",".join("1" for _ in sizes.split(","))
    text = f"(float[{batch},3,{sizes}] x) => (float[{batch},3,{ones}] y)"
    return graph(f"{text} {{ y = GlobalAveragePool(x) }}", opset=opset)


@pytest.mark.parametrize("opset", [7, 11, 17, 19, 22])
@pytest.mark.parametrize(
    ("sizes", "side", "poolings"),
    [
        ("8,6", 7, 1),
        ("14,14", 7, 1),
        ("5,14", 7, 1),
        ("36,4", 3, 3),
        ("20", 4, 1),
        ("4,6,10", 5, 1),
    ],
)
def test_in_as_many_steps_as_it_takes(sizes: str, side: int, poolings: int, opset: int) -> None:
    expected = "AveragePool " * poolings + "GlobalAveragePool"
    check(steps(side), pooled(sizes, opset), expected)


def test_exact_where_the_division_is() -> None:
    check_replay(steps(4), pooled("8,16"))


def test_what_fits_stays() -> None:
    check_untouched(steps(7), pooled("7,7"))


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ("13,14", "pools over 13 rows or columns, which no window of 2 to 7 tiles"),
        ("14,H", "the size of 'x', which GlobalAveragePool of 'y' pools, is not known"),
    ],
)
def test_refused(sizes: str, reason: str) -> None:
    check_refused(steps(7), pooled(sizes), reason)


def test_a_rank_that_is_not_known_is_refused() -> None:
    model = pooled("14,14")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    check_refused(steps(7), model, "the rank of 'x' is not known")


def test_nan_infinities_and_large_sums() -> None:
    model = pooled("4,4")
    after = apply_to(steps(2), model)[0]
    x = np.full((3, 3, 4, 4), 2e37, np.float32)
    x[0, 0, 0, 0], x[0, 1, 3, 3], x[0, 2, 1, 2] = np.nan, np.inf, -np.inf
    x[2] = -0.0
    one, other = (session(m).run(None, {"x": x})[0] for m in (model, after))
    np.testing.assert_allclose(other, one, rtol=1e-6)
    assert np.isnan(other[0, 0]).all() and other[0, 1] == np.inf and other[0, 2] == -np.inf


def test_a_side_is_two_or_more() -> None:
    with pytest.raises(UsageError, match="needs a side of 2 or more, and not 1"):
        steps(1)


def test_a_chip_with_small_pools_takes_it() -> None:
    profile = load("rknn")
    model = pooled("28,14", batch="2")
    assert [m.operator for m in fit(Model.load(model), profile, {}).misfits] == [
        "GlobalAveragePool"
    ]
    with graphpass.optimize(model, profile.passes) as result:
        assert not fit(Model.load(result.model), profile, {}).misfits
