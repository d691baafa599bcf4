"""Sizes in terms of each other: what is shared is followed once, and nothing overflows."""

from __future__ import annotations

import time
from importlib import import_module
from typing import Any

import pytest

from graphpass import integers
from graphpass.ir.model import Model
from graphpass.testing import graph

shared: Any = import_module("graphpass.passes.shared.sizes")
Size, values = shared.Size, shared.values


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
    start = time.monotonic()
    values(model.graph.outputs[0])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("op", "levels", "expected"),
    [
        ("Add", 10, [Size(1024, ("N",))]),
        ("Add", 70, None),  # 2^70 is no int64
        ("Mul", 3, [Size(1, ("N",) * 8)]),
        ("Mul", 12, None),
        ("Concat", 3, [Size(1, ("N",))] * 8),
        ("Concat", 12, None),
    ],
)
def test_what_cannot_be_a_size_is_not_known(
    op: str, levels: int, expected: list[Any] | None
) -> None:
    output = doubled(op, levels).graph.outputs[0]
    assert integers(output) is None
    found = values(output)
    if expected is not None:
        assert found == expected
    else:
        assert found is None or all(name.startswith("?") for size in found for name in size.names)
