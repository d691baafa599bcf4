"""Sizes in terms of each other: what is shared is followed once, and nothing overflows."""

from __future__ import annotations

import time

import pytest

from graphpass.ir.model import Model
from graphpass.ir.shapes import values
from graphpass.testing import graph


def doubled(op: str, levels: int) -> Model:
    """Return a model that computes a size from itself twice, `levels` times."""
    attributes = "<axis = 0>" if op == "Concat" else ""
    lines = [f"k{i + 1} = {op}{attributes}(k{i}, k{i})" for i in range(levels)]
    body = "\n".join(lines)
    text = f"(float[N,2] x) => (int64[M] k{levels}) {{ k0 = Shape<start = 0, end = 1>(x)\n{body} }}"
    return Model.load(graph(text))


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div", "Concat"])
def test_a_size_that_is_read_twice_is_followed_once(op: str) -> None:
    model = doubled(op, 60)
    start = time.process_time()
    values(model.graph.outputs[0])
    assert time.process_time() - start < 2
