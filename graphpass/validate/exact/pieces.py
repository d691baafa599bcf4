"""Operators of several pieces: the size of a number says which, its residue goes along.

On each piece they are polynomials. And operators that are no polynomials at all: what is computed
for them is an arbitrary function, so that what is equal then is equal for any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphpass.ir.operators import Trait, traits
from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import Number, UnknownError, Value
from graphpass.validate.exact.step import Step
from graphpass.validate.exact.windows import Grid


def chosen(step: Step, where: Array, one: Number, other: Number) -> Number:
    """Return one number or the other, element by element."""
    return step.numbers.like(
        np.where(where, one.residue, other.residue),
        np.where(where, one.size, other.size),
        (one, other),
    )


def _largest(step: Step, values: list[Any], sign: int = 1) -> Value:
    if all(isinstance(value, np.ndarray) for value in values):
        found = values[0]
        for value in values[1:]:
            found = np.maximum(found, value) if sign > 0 else np.minimum(found, value)
        return found
    if not all(isinstance(value, Number) for value in values):
        raise UnknownError(f"{step.op} of different types")
    found = values[0]
    for value in values[1:]:
        found = chosen(step, sign * found.size >= sign * value.size, found, value)
    return found


def _relu(step: Step) -> Value:
    return _largest(step, [step.number(), step.known(0)])


def _clip(step: Step) -> Value:
    value, low, high = step.input(0), step.input(1), step.input(2)
    if step.attribute("min") is not None:
        low = step.known(step.attribute("min"))
    if step.attribute("max") is not None:
        high = step.known(step.attribute("max"))
    if low is not None:
        value = _largest(step, [value, low])
    return value if high is None else _largest(step, [value, high], -1)


def _leaky(step: Step) -> Value:
    return _sloped(step, step.known(np.float32(step.attribute("alpha", 0.01))))


def _prelu(step: Step) -> Value:
    return _sloped(step, step.number(1))


def _sloped(step: Step, slope: Number) -> Number:
    value = step.number()
    sloped = step.numbers.multiply(value, slope)
    return chosen(step, np.broadcast_to(value.size >= 0, sloped.shape), value, sloped)


def _abs(step: Step) -> Value:
    if isinstance(step.input(0), np.ndarray):
        return np.abs(step.whole(0))
    value = step.number()
    sign = np.where(value.size < 0, -1, 1)
    return step.numbers.like(value.residue * sign, value.size * sign, (value,))


def _hard_sigmoid(step: Step) -> Number:
    alpha, beta = step.attribute("alpha", 0.2), step.attribute("beta", 0.5)
    scaled = step.numbers.multiply(step.number(), step.known(np.float32(alpha)))
    raised = step.numbers.add(scaled, step.known(np.float32(beta)))
    found = _largest(step, [raised, step.known(0)])
    limited: Number = _largest(step, [found, step.known(1)], -1)
    return limited


def _hard_swish(step: Step) -> Number:
    numbers, value = step.numbers, step.number()
    sixth = numbers.scaled(value, np.asarray(6.0), down=True)
    found = _largest(step, [numbers.add(sixth, step.known(0.5)), step.known(0)])
    return numbers.multiply(value, _largest(step, [found, step.known(1)], -1))


def _reduce_largest(step: Step, sign: int) -> Value:
    axes = step.listed("axes", 1)
    value = step.input(0)
    if isinstance(value, np.ndarray):
        raise UnknownError(f"{step.op} of integers")
    number = step.number()
    if not axes and step.attribute("noop_with_empty_axes", 0):
        return number
    along = tuple(sorted(axis % len(number.shape) for axis in axes or range(len(number.shape))))
    kept = [axis for axis in range(len(number.shape)) if axis not in along]
    found = number.moved(
        lambda a: a.transpose(*kept, *along).reshape(*(a.shape[axis] for axis in kept), -1)
    )
    found = _picked(found, sign)
    return (
        found.moved(lambda a: np.expand_dims(a, along)) if step.attribute("keepdims", 1) else found
    )


def _picked(number: Number, sign: int = 1) -> Number:
    """Return the largest along the last axis."""
    place = np.argmax(sign * number.size, axis=-1)[..., None]
    return number.moved(lambda array: np.take_along_axis(array, place, -1)[..., 0])


def _max_pool(step: Step) -> Value:
    if len(step.node.output) > 1:
        raise UnknownError("a MaxPool that says where")
    number = step.number()
    grid = Grid.of(step, list(step.attribute("kernel_shape")), number.shape[2:])
    residue = grid.patches(number.residue, 0.0)
    size = grid.patches(number.size, -np.inf)
    flat = step.numbers.like(
        residue.reshape(*residue.shape[: len(number.shape)], -1),
        size.reshape(*residue.shape[: len(number.shape)], -1),
        (number,),
    )
    return _picked(flat)


def _global_max(step: Step) -> Value:
    number = step.number()
    found = _picked(number.moved(lambda a: a.reshape(*a.shape[:2], -1)))
    return found.moved(lambda a: a.reshape(*a.shape, *[1] * (len(number.shape) - 2)))


def _cast(step: Step) -> Value:
    from onnx.helper import tensor_dtype_to_np_dtype

    if step.op == "CastLike":
        like = step.input(1)
        if not isinstance(like, (Number, np.ndarray)):
            raise UnknownError("a CastLike of a sequence")
        kind = np.dtype(like.dtype)
    else:
        kind = np.dtype(tensor_dtype_to_np_dtype(step.attribute("to")))
    value = step.input(0)
    if isinstance(value, np.ndarray):
        if kind.kind in "iub" and value.dtype.kind in "iub":
            return value.astype(kind)
        if kind.kind in "OSU" or value.dtype.kind in "OSU":
            raise UnknownError("a Cast of strings")
        return step.numbers.of(value, kind)
    number = step.number()
    if kind.kind in "iub" or kind.kind in "OSU":
        raise UnknownError("a Cast of floats to integers")
    if kind.itemsize >= number.dtype.itemsize:
        return Number(number.residue, number.size, kind, number.degree, number.arbitrary)
    found = step.numbers.arbitrary("Cast", kind.name.encode(), number)
    return Number(found.residue, found.size, kind, found.degree, found.arbitrary)


_COMPARED: dict[str, Callable[..., Any]] = {
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "Less": np.less,
    "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal,
    "Mod": np.mod,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
}


def elementwise(step: Step) -> Value:
    """Compute any other operator that makes one element of one, or of those at the same place."""
    if step.op == "Not":
        return np.logical_not(step.whole(0))
    given = [value for value in step.inputs if value is not None]
    if all(isinstance(value, np.ndarray) for value in given):
        if step.op not in _COMPARED or step.attribute("fmod", 0):
            raise UnknownError(f"{step.op} of integers")
        return _COMPARED[step.op](*given)
    if step.op in _COMPARED or step.op in ("IsNaN", "IsInf"):
        raise UnknownError(f"{step.op} of floats")
    if not all(isinstance(value, Number) for value in given):
        raise UnknownError(f"{step.op} of different types")
    return step.numbers.arbitrary(step.op, step.salt, *given)


def is_elementwise(op: str, domain: str) -> bool:
    """Whether an operator may be taken for an arbitrary function of elements."""
    return bool(traits(op, domain) & (Trait.ELEMENTWISE | Trait.BROADCASTING))


PIECES: dict[str, Callable[[Step], Any]] = {
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Abs": _abs,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Max": lambda step: _largest(step, list(step.inputs)),
    "Min": lambda step: _largest(step, list(step.inputs), -1),
    "ReduceMax": lambda step: _reduce_largest(step, 1),
    "ReduceMin": lambda step: _reduce_largest(step, -1),
    "MaxPool": _max_pool,
    "GlobalMaxPool": _global_max,
    "Cast": _cast,
    "CastLike": _cast,
}
