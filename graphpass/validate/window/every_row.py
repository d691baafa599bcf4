"""A table that tokens pick rows from, as a whole: all its rows are looked at, once each.

Tokens that are drawn name a few rows, and one wrong row among thousands is not one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from graphpass.ir.operators import Trait, traits
from graphpass.rewrite.window import Window

_MOST_ELEMENTS = 1 << 24  # of what is picked; of more, as many rows as that


def with_every_row(window: Window, seed: int = 0) -> Window:
    """Let tokens name all rows of the tables they pick from; as it is where they do more."""
    models = window.before, window.after
    inputs = {value.name: value for model in models for value in model.graph.input}
    if len(inputs) != 1:
        return window
    ((tokens, value),) = inputs.items()
    sizes = {_rows(model.graph, tokens) for model in models}
    rows = min(sizes)
    if len(sizes) > 1 or not rows:
        return window
    named = np.random.default_rng(seed).permutation(rows)
    widest = max(t.dims[-1] for m in models for t in m.graph.initializer if len(t.dims) == 2)
    if rows * widest > _MOST_ELEMENTS:
        named = named[: max(_MOST_ELEMENTS // widest, 1)]
    kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    held = numpy_helper.from_array(named.astype(kind), tokens)
    return Window(_naming(models[0], held), _naming(models[1], held), (), window.output)


def _rows(graph: onnx.GraphProto, tokens: str) -> int:
    """Return how many rows the tables have; 0 where a row is not all that a token decides on."""
    held = {tensor.name: tensor.dims for tensor in graph.initializer}
    picked: set[str] = set()
    rows: set[int] = set()
    for node in graph.node:
        if tokens in node.input:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            table: Sequence[int] = held.get(node.input[0], ())
            plain = node.op_type == "Gather" and axis == 0 and len(table) == 2
            if not plain or node.input[1] != tokens:
                return 0
            rows.add(table[0])
        elif not _is_row_by_row(node, held, picked):
            return 0
        picked.update(node.output)
    return rows.pop() if len(rows) == 1 else 0


def _is_row_by_row(node: onnx.NodeProto, held: dict[str, Sequence[int]], picked: set[str]) -> bool:
    if not picked.issuperset(node.input[:1]):
        return False
    others = [held.get(name) for name in node.input[1:]]
    if node.op_type == "MatMul":
        return all(dims is not None and len(dims) == 2 for dims in others)
    alike = bool(traits(node.op_type, node.domain) & (Trait.ELEMENTWISE | Trait.BROADCASTING))
    return alike and all(
        name in picked or (dims is not None and math.prod(dims[:-1]) == 1 and len(dims) <= 2)
        for name, dims in zip(node.input[1:], others, strict=True)
    )


def _naming(model: onnx.ModelProto, held: onnx.TensorProto) -> onnx.ModelProto:
    """Return a side whose tokens are `held`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.input[:]
    del changed.graph.value_info[:]
    changed.graph.initializer.append(held)
    for value in changed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return changed


__all__ = ["with_every_row"]
