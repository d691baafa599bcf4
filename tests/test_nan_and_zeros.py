"""What NaN and −0 become, rule by rule, without any validation: what they became before.

Three things are left to ONNX Runtime's kernels (docs/proof.md): whether a maximum or minimum over a
window or over axes keeps NaN, which zero a sum of zeros is, and which one a Where takes: its kernel
makes 0 of a −0 where the condition is true, and leaves it where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from graphpass.ir.operators import Trait, traits
from graphpass.rewrite.rule import Pass
from graphpass.testing import apply_to, graph
from tests.validate.cases import cases

FEEDS = ("one NaN", "some NaN", "NaN throughout", "some −0", "−0 throughout")
SEEDS = 3
SUMS = Trait.SUM | Trait.CONTRACTION
# drop-channels takes 0·x for 0, whatever x is: that is what it is asked for
ZERO_TIMES_NAN = "a branch of zeros with a bias"


def fed(model: onnx.ModelProto, kind: str, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or 2 for dim in dims]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind != "f":
            found[value.name] = rng.integers(0, 2, shape).astype(dtype)
            continue
        array = rng.normal(size=shape).astype(dtype)
        special = -0.0 if "−0" in kind else np.nan
        share = {"one": 0.0, "some": 0.1}.get(kind.split()[0], 1.0)
        array[rng.random(shape) < share] = special
        if kind == "one NaN" and array.size:
            array.reshape(-1)[rng.integers(0, array.size)] = special
        found[value.name] = array
    return found


def loaded(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def operators(model: onnx.ModelProto) -> Iterator[Trait]:
    for node in model.graph.node:
        yield traits(node.op_type, node.domain)


@pytest.mark.parametrize(
    ("model", "steps"), [pytest.param(m, s, id=name) for name, m, s in cases()]
)
def test_a_rule_keeps_nan_and_the_sign_of_zeros(
    request: pytest.FixtureRequest, model: onnx.ModelProto, steps: tuple[Pass, ...]
) -> None:
    result, applied = apply_to(list(steps), model)
    if not applied.rewrites:
        return  # passes without rules: their own tests
    before, after = loaded(model), loaded(result)
    found = list(operators(model))
    picks = any(Trait.PICKS in f and f & (Trait.REDUCTION | Trait.POOL) for f in found)
    picks = picks or request.node.callspec.id == ZERO_TIMES_NAN
    sums = any(f & SUMS for f in found) or any(n.op_type == "Where" for n in model.graph.node)
    for kind in FEEDS:
        if picks if "NaN" in kind else sums:
            continue
        for seed in range(SEEDS):
            feed = fed(model, kind, seed)
            for one, other in zip(before.run(None, feed), after.run(None, feed), strict=True):
                if not isinstance(one, np.ndarray) or one.dtype.kind != "f":
                    continue
                assert np.array_equal(np.isnan(one), np.isnan(other)), kind
                zeros = (one == 0) & (other == 0)
                assert not (np.signbit(one) ^ np.signbit(other))[zeros].any(), kind


def test_where_of_onnx_runtime_has_its_own_zeros() -> None:
    """What is left to its kernel: when that is mended, nothing has to be left to it any more."""
    zero = np.array([-0.0], np.float32)
    for condition, kept in ((True, False), (False, True)):
        model = graph("(float[1] x, float[1] k, bool[1] b) => (float[1] y) {y = Where(b, x, k)}")
        feed = {"x": zero, "k": zero, "b": np.array([condition])}
        feed["k" if condition else "x"] = np.ones(1, np.float32)
        assert np.signbit(loaded(model).run(None, feed)[0])[0] == kept
