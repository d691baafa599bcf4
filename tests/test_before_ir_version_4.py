"""Before IR version 4 every initializer is listed among the inputs: rules do there what they do."""

from __future__ import annotations

from collections import Counter

import onnx
import onnxruntime as ort
import pytest

from graphpass.rewrite.registry import make
from graphpass.rewrite.rule import Pass
from graphpass.testing import apply_to
from tests.passes.test_free_batch import FREED as BATCHES
from tests.passes.test_free_batch import network
from tests.passes.test_free_resolution import FREED as SIZES
from tests.passes.test_free_resolution import built
from tests.validate.cases import cases


def of_ir_version_3(model: onnx.ModelProto) -> onnx.ModelProto:
    old = onnx.ModelProto()
    old.CopyFrom(model)
    old.ir_version = 3
    listed = {value.name for value in old.graph.input}
    for weight in old.graph.initializer:
        if weight.name not in listed:
            value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            old.graph.input.append(value)
    return old


@pytest.mark.parametrize(
    ("model", "steps"), [pytest.param(m, s, id=name) for name, m, s in cases()]
)
def test_every_rule_does_what_it_does_later(
    model: onnx.ModelProto, steps: tuple[Pass, ...]
) -> None:
    _, later = apply_to(list(steps), model)
    result, old = apply_to(list(steps), of_ir_version_3(model))
    assert Counter(r.rule for r in old.rewrites) == Counter(r.rule for r in later.rewrites)
    listed = {value.name for value in result.graph.input}
    assert {weight.name for weight in result.graph.initializer} <= listed
    ort.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", BATCHES)
def test_a_batch_is_freed_as_later(kind: str) -> None:
    nodes, outputs, constants, _ = BATCHES[kind]
    model = network(nodes, outputs, constants)
    _, later = apply_to(make("free-batch"), model)
    _, old = apply_to(make("free-batch"), of_ir_version_3(model))
    assert old.notes == later.notes


@pytest.mark.parametrize("kind", SIZES)
def test_a_resolution_is_freed_as_later(kind: str) -> None:
    model = built(kind, (12, 12))
    _, later = apply_to(make("free-resolution"), model)
    _, old = apply_to(make("free-resolution"), of_ir_version_3(model))
    assert old.notes == later.notes
