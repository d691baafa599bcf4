"""Compute a window exactly, node by node, with nothing of what rewrites models.

Every operator has a definition of its own here, over residues (see `field`). What has none is an
`UnknownError` that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from graphpass.storage.wire import tensor_array
from graphpass.validate.exact.moves import MOVES
from graphpass.validate.exact.number import Number, Numbers, UnknownError, Value
from graphpass.validate.exact.pieces import PIECES, elementwise, is_elementwise
from graphpass.validate.exact.recurrent import recurrent
from graphpass.validate.exact.resize import resize
from graphpass.validate.exact.step import Step
from graphpass.validate.exact.sums import SUMS

_TABLE: Mapping[str, Callable[[Step], Any]] = {
    **MOVES,
    **PIECES,
    **SUMS,
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
}


def evaluate(
    graph: onnx.GraphProto, given: Mapping[str, Value], numbers: Numbers, opset: int
) -> dict[str, Value]:
    """Return every value of a graph whose inputs and constants are `given`.

    Raises `UnknownError` where an operator has no exact definition here.
    """
    held: dict[str, Value] = dict(given)
    with np.errstate(all="ignore"):
        for node in graph.node:
            _run(node, held, numbers, opset)
    return held


def _run(node: onnx.NodeProto, held: dict[str, Value], numbers: Numbers, opset: int) -> None:
    inputs = [held.get(name) if name else None for name in node.input]
    step = Step(node, inputs, numbers, opset)
    try:
        found = _computed(step, held)
    except UnknownError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UnknownError(f"{node.op_type} here ({error})") from None
    for name, value in zip(node.output, found, strict=False):
        if name:
            held[name] = np.asarray(value) if isinstance(value, np.generic) else value


def _computed(step: Step, held: Mapping[str, Value]) -> list[Value]:
    node = step.node
    if node.domain in ("", "ai.onnx"):
        if node.op_type == "Constant":
            return [_constant(step)]
        if node.op_type == "If":
            return _branch(step, held)
        if node.op_type in _TABLE:
            found = _TABLE[node.op_type](step)
            return found if isinstance(found, list) else [found]
    if is_elementwise(node.op_type, node.domain):
        return [elementwise(step)]
    raise UnknownError(node.op_type)


def _constant(step: Step) -> Value:
    held = step.attribute("value")
    if held is not None:
        return taken(tensor_array(held), step.numbers)
    for name, kind in (("value_float", np.float32), ("value_floats", np.float32)):
        if step.attribute(name) is not None:
            return taken(np.asarray(step.attribute(name), kind), step.numbers)
    for name in ("value_int", "value_ints"):
        if step.attribute(name) is not None:
            return np.asarray(step.attribute(name), np.int64)
    raise UnknownError("a Constant of another kind")


def _branch(step: Step, held: Mapping[str, Value]) -> list[Value]:
    condition = bool(step.whole(0).reshape(-1)[0])
    body = step.attribute("then_branch" if condition else "else_branch")
    given = dict(held)
    for tensor in body.initializer:
        given[tensor.name] = taken(tensor_array(tensor), step.numbers)
    values = evaluate(body, given, step.numbers, step.opset)
    return [values[output.name] for output in body.output]


def taken(array: Any, numbers: Numbers, dtype: Any = None, degree: int = 0) -> Value:
    """Return an array as it is computed with."""
    if array.dtype.kind in "iubOSU":
        return array
    return numbers.of(array, dtype, degree)


def same(one: Value | None, other: Value | None, numbers: Numbers) -> bool:
    """Whether two values are of one type and shape and equal."""
    if isinstance(one, Number) and isinstance(other, Number):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return not numbers.field.reduce(one.residue - other.residue).any()
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            same(a, b, numbers) for a, b in zip(one, other, strict=True)
        )
    if one is None or other is None:
        raise UnknownError("a window that does not compute its output")
    return False
