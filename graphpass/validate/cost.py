"""How expensive it is to run a model, for deciding what is run, and sizes to count with.

Which feeds are run depends on it, and reports of two runs must not differ: nothing is timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx

from graphpass.ir.cost import Shape, node_costs
from graphpass.validate.feeds.given import require_symbols
from graphpass.validate.feeds.sizes import classify, first_bindings, size_of
from graphpass.validate.feeds.specs import input_specs


def work(model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> float:
    """Estimate the work of one run: multiply-adds, and for other operators elements written.

    Where the shape of a result cannot be inferred, each weight is taken to be used as often as
    the square root of the elements of the largest input: between once, as behind a Flatten, and
    once for each, as at the first Conv. Bodies of loops count once.
    """
    reuse = math.sqrt(max((math.prod(shape) for shape in shapes.values()), default=1))
    total = 0.0
    for node in node_costs(model, shapes):
        if node.multiply_adds is None:
            total += node.weight_elements * reuse
        else:
            total += max(node.multiply_adds or math.prod(node.output or (0,)), 0)
    return total


def natural_shapes(
    model: onnx.ModelProto, bind: Mapping[str, int] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return shapes for the inputs of a model: those declared, a batch of 1, `bind` for symbols.

    Other symbols get the first size that one of their kind is tried with. Raises `InputsError`
    where there is no such symbol.
    """
    specs = [spec for spec in input_specs(model) if not spec.overridable]
    classes = classify(specs)
    require_symbols(bind or {}, classes)
    bindings = next(first_bindings(classes, bind or {}))
    return {
        spec.name: tuple(size_of(dim, bindings) for dim in spec.dims)
        for spec in specs
        if spec.dims is not None
    }
