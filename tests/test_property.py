"""Any small model, default pipeline, nobody validates: it stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphpass import optimize
from tests.drawn_models import BATCH, drawn


def _newest_opset() -> int:
    """Return the newest opset that both ONNX and the installed ONNX Runtime know."""
    for opset in range(onnx.defs.onnx_opset_version(), 22, -1):
        try:
            _run(drawn(0, 1, opset, True), np.zeros((BATCH, 3, 4, 4), np.float32))
        except Exception:  # not released, or no kernel
            continue
        return opset
    return 22


_ULPS = 2.0**-23 * 64  # roundings of a dozen layers, relative to what they are made of


def _run(model: onnx.ModelProto, x: Any) -> list[Any]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(model.SerializeToString(), options).run(None, {"x": x}))


def _check(seed: int, nodes: int, opset: int, fixed: bool) -> None:
    model = drawn(seed, nodes, opset, fixed)
    rng = np.random.default_rng(seed)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    x = rng.normal(size=[BATCH, *(dim.dim_value for dim in dims[1:])]).astype(np.float32)
    try:
        onnx.checker.check_model(model, full_check=True)
        expected = _run(model, x)
    except Exception:  # no kernel, or not a model that ONNX Runtime or ONNX take
        assume(False)
        return
    # how far the original's own outputs go where its input moves by a few ulps
    sign = rng.choice([-1, 1], x.shape)
    moved = _run(model, (x * (1 + _ULPS / 8 * sign)).astype(np.float32))
    result = optimize(model, validate=False)
    after = result.model
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    for entry in result.report.passes:
        assert entry.outcome in ("kept", "unchanged") and not entry.quarantined, entry
    for before, noisy, now in zip(expected, moved, _run(after, x), strict=True):
        assert now.shape == before.shape and now.dtype == before.dtype
        scale = np.abs(before).max(initial=1.0)
        floor = np.abs(noisy - before).max(initial=0.0)
        assert np.abs(now - before).max(initial=0.0) <= 10 * floor + _ULPS * scale
    broken = x.copy()
    broken.flat[0] = np.nan
    for before, now in zip(_run(model, broken), _run(after, broken), strict=True):
        assert np.isnan(now[np.isnan(before)]).all()
    again = optimize(after, validate=False)
    assert not again.changed, [str(r) for p in again.report.passes for r in p.rewrites]


_OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 17, 18, *range(20, _newest_opset() + 1))
_MODELS = given(
    seed=st.integers(0, 2**32),
    nodes=st.integers(1, 14),
    opset=st.sampled_from(_OPSETS),
    fixed=st.booleans(),
)
_QUIET = [HealthCheck.filter_too_much, HealthCheck.too_slow]


@_MODELS
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=_QUIET)
def test_any_small_model_stays_what_it_was(seed: int, nodes: int, opset: int, fixed: bool) -> None:
    _check(seed, nodes, opset, fixed)


@pytest.fixture(scope="module")
def _asked_for(pytestconfig: pytest.Config) -> None:
    if "slow" not in pytestconfig.getoption("markexpr"):
        pytest.skip("takes minutes: run with -m slow")


@pytest.mark.slow
@pytest.mark.usefixtures("_asked_for")
@_MODELS
@settings(max_examples=5000, deadline=None, suppress_health_check=_QUIET)
def test_thousands_of_them(seed: int, nodes: int, opset: int, fixed: bool) -> None:
    _check(seed, nodes, opset, fixed)
