"""Operators that are polynomials: sums, products, their quotients by what is not zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from graphpass.validate.exact.field import Array
from graphpass.validate.exact.number import Number, Numbers, UnknownError, Value, require_moderate
from graphpass.validate.exact.step import Step
from graphpass.validate.exact.windows import Grid

_WHOLE: dict[str, Callable[..., Any]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}


def _arithmetic(step: Step) -> Value:
    one, other = step.input(0), step.input(1)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if step.op == "Div":
            if (other == 0).any():
                raise UnknownError("a division by zero")
            quotient = np.abs(one) // np.abs(other) * np.sign(one) * np.sign(other)
            return quotient.astype(one.dtype)
        return _WHOLE[step.op](one, other)
    left, right = step.number(0), step.number(1)
    if step.op == "Mul":
        return step.numbers.multiply(left, right)
    if step.op == "Div":
        if (right.residue == 0).any():
            raise UnknownError("a division by zero")
        return step.numbers.multiply(left, step.numbers.inverse(right))
    return step.numbers.add(left, right, -1 if step.op == "Sub" else 1)


def _sum(step: Step) -> Value:
    found = step.number(0)
    for index in range(1, len(step.inputs)):
        found = step.numbers.add(found, step.number(index))
    if step.op == "Mean":
        return step.numbers.scaled(found, np.asarray(len(step.inputs)), down=True)
    return found


def _negative(step: Step) -> Value:
    value = step.input(0)
    if isinstance(value, np.ndarray):
        return -value
    number = step.number()
    return number.moved(np.negative)


def _power(step: Step) -> Value:
    exponent = step.input(1)
    given = exponent.size if isinstance(exponent, Number) else step.whole(1)
    if given.size != 1 or float(given.reshape(-1)[0]) not in (0.5, 1, 2, 3, 4):
        return step.numbers.arbitrary("Pow", step.salt, step.number(0), step.number(1))
    power = float(given.reshape(-1)[0])
    if power == 0.5:
        return root(step.numbers, step.number())
    found = step.number()
    for _ in range(int(power) - 1):
        found = step.numbers.multiply(found, step.number())
    # an exponent of more axes makes more axes
    shape = np.broadcast_shapes(found.shape, given.shape)
    return found.moved(lambda array: np.broadcast_to(array, shape))


def root(numbers: Numbers, number: Number) -> Number:
    """Return the square root: that of a square where all are, or else an arbitrary function."""
    with np.errstate(invalid="ignore"):
        size = np.sqrt(number.size)
    whole = np.isfinite(size) & (np.abs(size) < 2.0**26)
    if whole.all() and (size * size == number.size).all():
        residue = numbers.field.residues(size)
        square = numbers.field.multiply(residue, residue)
        if not numbers.field.reduce(square - number.residue).any():
            return replace(number, residue=residue, size=size)
    return numbers.arbitrary("Sqrt", b"", number)


def _matmul(step: Step) -> Value:
    return matmul(step.numbers, step.number(0), step.number(1))


def matmul(numbers: Numbers, one: Number, other: Number) -> Number:
    """Return the matrix product, as numpy has it."""
    left, right = len(one.shape) == 1, len(other.shape) == 1
    a = one.moved(lambda array: array[None]) if left else one
    b = other.moved(lambda array: array[:, None]) if right else other
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    require_moderate(*batch, a.shape[-2], b.shape[-1])
    residue = numbers.field.matmul(a.residue, b.residue)
    size = np.matmul(a.size, b.size) if numbers.sizes else residue
    found = numbers.like(residue, size, (one, other), one.degree + other.degree)
    if left:
        found = found.moved(lambda array: array[..., 0, :])
    return found.moved(lambda array: array[..., 0]) if right else found


def _gemm(step: Step) -> Value:
    numbers = step.numbers
    a, b = step.number(0), step.number(1)
    if step.attribute("transA", 0):
        a = a.moved(np.transpose)
    if step.attribute("transB", 0):
        b = b.moved(np.transpose)
    found = matmul(numbers, a, b)
    alpha, beta = step.attribute("alpha", 1.0), step.attribute("beta", 1.0)
    if alpha != 1:
        found = numbers.multiply(found, step.known(np.float32(alpha)))
    if step.input(2) is None:
        return found
    bias = step.number(2)
    if beta != 1:
        bias = numbers.multiply(bias, step.known(np.float32(beta)))
    return numbers.add(found, bias)


def _conv(step: Step) -> Value:
    x, weight = step.number(0), step.number(1)
    group = step.attribute("group", 1)
    taps = list(weight.shape[2:])
    if list(step.attribute("kernel_shape", taps)) != taps:
        raise UnknownError("a Conv whose kernel_shape is not that of its weight")
    grid = Grid.of(step, taps, x.shape[2:])
    outputs, rows = weight.shape[0], x.shape[0]

    def columns(array: Array) -> Array:
        """Return [group, inputs of a group · taps, N · positions]."""
        seen = grid.patches(array, 0.0)
        axes = len(taps)
        shape = (rows, group, x.shape[1] // group, *seen.shape[2:])
        order = (1, 2, *range(3 + axes, 3 + 2 * axes), 0, *range(3, 3 + axes))
        turned = seen.reshape(shape).transpose(order)
        return np.ascontiguousarray(turned).reshape(
            group, x.shape[1] // group * math.prod(taps), -1
        )

    spatial = grid.positions(x.shape[2:])
    require_moderate(rows, x.shape[1], *spatial, *taps)
    each = weight.moved(lambda array: array.reshape(group, outputs // group, -1))
    found = matmul(step.numbers, each, x.moved(columns))
    found = found.moved(lambda array: np.moveaxis(array.reshape(outputs, rows, *spatial), 0, 1))
    return _biased(step, found)


def _biased(step: Step, found: Number) -> Number:
    if step.input(2) is None:
        return found
    axes = len(found.shape) - 2
    bias = step.number(2).moved(lambda array: array.reshape(-1, *[1] * axes))
    return step.numbers.add(found, bias)


def _conv_transpose(step: Step) -> Value:
    x, weight = step.number(0), step.number(1)
    axes, group = len(weight.shape) - 2, step.attribute("group", 1)
    if list(step.attribute("kernel_shape", weight.shape[2:])) != list(weight.shape[2:]):
        raise UnknownError("a ConvTranspose whose kernel_shape is not that of its weight")
    if step.attribute("output_shape") or step.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise UnknownError("a ConvTranspose to a given size")
    strides = step.attribute("strides", [1] * axes)
    dilations = step.attribute("dilations", [1] * axes)
    pads = step.attribute("pads", [0] * (2 * axes))
    extra = step.attribute("output_padding", [0] * axes)
    rows, inputs, outputs = x.shape[0], x.shape[1], weight.shape[1] * group
    pixels = x.moved(
        lambda a: (
            a.reshape(rows, group, inputs // group, -1)
            .transpose(1, 2, 0, 3)
            .reshape(group, inputs // group, -1)
        )
    )
    kernels = weight.moved(lambda a: a.reshape(group, inputs // group, -1).transpose(0, 2, 1))
    spread = matmul(step.numbers, kernels, pixels)  # [group, outputs · taps, N · pixels]
    taps, sizes = weight.shape[2:], x.shape[2:]
    full = [
        s * (n - 1) + d * (k - 1) + 1 + e
        for s, n, d, k, e in zip(strides, sizes, dilations, taps, extra, strict=True)
    ]

    def gathered(array: Array) -> Array:
        parts = array.reshape(outputs, math.prod(taps), rows, *sizes)
        total = np.zeros((rows, outputs, *full))
        for index, tap in enumerate(np.ndindex(*taps)):
            places = tuple(
                slice(d * t, d * t + s * (n - 1) + 1, s)
                for d, t, s, n in zip(dilations, tap, strides, sizes, strict=True)
            )
            seen = (slice(None), slice(None), *places)
            total[seen] += np.moveaxis(parts[:, index], 1, 0)
        ends = [n - pads[axes + axis] for axis, n in enumerate(full)]
        kept = tuple(slice(pads[axis], ends[axis]) for axis in range(axes))
        inside = (slice(None), slice(None), *kept)
        found: Array = total[inside]
        return found

    found = spread.moved(gathered)
    return _biased(step, replace(found, residue=step.numbers.field.reduce(found.residue)))


def _batch_normalization(step: Step) -> Value:
    numbers = step.numbers
    if step.attribute("training_mode", 0) or len([n for n in step.node.output if n]) > 1:
        raise UnknownError("a BatchNormalization in training")
    axes = len(step.number().shape) - 2
    scale, shift, mean, variance = (
        step.number(index).moved(lambda array: array.reshape(-1, *[1] * max(axes, 0)))
        for index in range(1, 5)
    )
    factor = _over_root(
        numbers, scale, variance, float(np.float32(step.attribute("epsilon", 1e-5)))
    )
    centred = numbers.add(step.number(), mean, -1)
    return numbers.add(numbers.multiply(centred, factor), shift)


def _over_root(numbers: Numbers, scale: Number, variance: Number, epsilon: float) -> Number:
    """Return s/√(v + ε); as it is drawn, the root is whole and s a multiple of it."""
    known = numbers.of(np.asarray(epsilon), variance.dtype)
    added = numbers.add(variance, known)
    deviation = root(numbers, replace(added, size=variance.size + epsilon))
    if not deviation.arbitrary:
        quotient = numbers.of(scale.size / deviation.size)
        back = numbers.field.multiply(quotient.residue, deviation.residue)
        if not numbers.field.reduce(back - scale.residue).any():
            return numbers.like(quotient.residue, quotient.size, (scale,))
    return numbers.multiply(scale, numbers.inverse(deviation))


def _axes(step: Step, rank: int) -> tuple[int, ...]:
    given = step.listed("axes", 1)
    return tuple(axis % rank for axis in (given if given else range(rank)))


def _reduce(step: Step) -> Value:
    value = step.input(0)
    if isinstance(value, np.ndarray):
        axes = _axes(step, value.ndim)
        ops: dict[str, Any] = {"ReduceSum": np.sum, "ReduceProd": np.prod}
        if step.op not in ops:
            raise UnknownError(f"{step.op} of integers")
        return ops[step.op](value, axis=axes, keepdims=bool(step.attribute("keepdims", 1))).astype(
            value.dtype
        )
    number = step.number()
    if not step.listed("axes", 1) and step.attribute("noop_with_empty_axes", 0):
        return number
    axes = _axes(step, len(number.shape))
    if step.op in ("ReduceSumSquare", "ReduceL2"):
        number = step.numbers.multiply(number, number)
    found = step.numbers.total(number, axes, keep=bool(step.attribute("keepdims", 1)))
    if step.op == "ReduceMean":
        count = math.prod(number.shape[axis] for axis in axes)
        return step.numbers.scaled(found, np.asarray(count), down=True)
    return root(step.numbers, found) if step.op == "ReduceL2" else found


def _global_average(step: Step) -> Value:
    number = step.number()
    found = step.numbers.total(number, tuple(range(2, len(number.shape))), keep=True)
    return step.numbers.scaled(found, np.asarray(math.prod(number.shape[2:])), down=True)


def _average_pool(step: Step) -> Value:
    number = step.number()
    taps = list(step.attribute("kernel_shape"))
    grid = Grid.of(step, taps, number.shape[2:])
    axes = len(taps)
    last = tuple(range(2 + axes, 2 + 2 * axes))
    residue = grid.patches(number.residue, 0.0).sum(axis=last)
    size = grid.patches(number.size, 0.0).sum(axis=last)
    found = step.numbers.like(step.numbers.field.reduce(residue), size, (number,))
    ones = np.ones((1, 1, *number.shape[2:]))
    count = grid.patches(ones, float(step.attribute("count_include_pad", 0))).sum(axis=last)
    return step.numbers.scaled(found, count, down=True)


def _softmax(step: Step) -> Value:
    numbers, number = step.numbers, step.number()
    rank = len(number.shape)
    axis = step.attribute("axis", 1 if step.opset < 13 else -1) % rank
    axes = tuple(range(axis, rank)) if step.opset < 13 else (axis,)
    raised = numbers.arbitrary("Exp", b"", number)
    total = numbers.total(raised, axes, keep=True)
    found = numbers.multiply(raised, numbers.inverse(total))
    return found if step.op == "Softmax" else numbers.arbitrary("Log", b"", found)


def _centred(numbers: Numbers, number: Number, axes: tuple[int, ...], epsilon: float) -> Number:
    """Return (x − mean) / √(variance + ε) along axes."""
    count = np.asarray(math.prod(number.shape[axis] for axis in axes))
    mean = numbers.scaled(numbers.total(number, axes, keep=True), count, down=True)
    centred = numbers.add(number, mean, -1)
    squares = numbers.total(numbers.multiply(centred, centred), axes, keep=True)
    variance = numbers.scaled(squares, count, down=True)
    added = numbers.add(variance, numbers.of(np.asarray(np.float32(epsilon)), number.dtype))
    deviation = numbers.arbitrary("Sqrt", b"", added)
    return numbers.multiply(centred, numbers.inverse(deviation))


def _layer_normalization(step: Step) -> Value:
    if len([name for name in step.node.output if name]) > 1:
        raise UnknownError("a LayerNormalization that gives its statistics")
    number = step.number()
    rank = len(number.shape)
    axes = tuple(range(step.attribute("axis", -1) % rank, rank))
    found = _centred(step.numbers, number, axes, step.attribute("epsilon", 1e-5))
    found = step.numbers.multiply(found, step.number(1))
    return found if step.input(2) is None else step.numbers.add(found, step.number(2))


def _instance_normalization(step: Step) -> Value:
    number = step.number()
    axes = tuple(range(2, len(number.shape)))
    found = _centred(step.numbers, number, axes, step.attribute("epsilon", 1e-5))
    scale, shift = (
        step.number(index).moved(lambda array: array.reshape(-1, *[1] * len(axes)))
        for index in (1, 2)
    )
    return step.numbers.add(step.numbers.multiply(found, scale), shift)


def _dequantize(step: Step) -> Value:
    codes, scale = step.whole(0).astype(np.int64), step.number(1)
    axis, rank = step.attribute("axis", 1), codes.ndim
    if step.attribute("block_size", 0):
        raise UnknownError("a DequantizeLinear by blocks")

    def along(array: Array) -> Array:
        if array.ndim == 0 or array.size == 1:
            return array.reshape(())
        return array.reshape(*[-1 if at == axis % rank else 1 for at in range(rank)])

    if step.input(2) is not None:
        codes = codes - along(step.whole(2).astype(np.int64))
    return step.numbers.multiply(step.numbers.of(codes, scale.dtype), scale.moved(along))


def _einsum(step: Step) -> Value:
    """Sum products of two operands, by residues of one that is split in two."""
    if len(step.inputs) != 2:
        raise UnknownError("an Einsum of more than two")
    one, other, field = step.number(0), step.number(1), step.numbers.field
    equation = step.attribute("equation")
    high = np.rint(other.residue / 8192)
    low = other.residue - high * 8192
    top = field.reduce(np.einsum(equation, one.residue, high))
    residue = field.reduce(top * 8192 + field.reduce(np.einsum(equation, one.residue, low)))
    size = np.einsum(equation, one.size, other.size)
    return step.numbers.like(residue, size, (one, other), one.degree + other.degree)


def _cumulated(step: Step) -> Value:
    if step.attribute("exclusive", 0) or step.attribute("reverse", 0):
        raise UnknownError("a CumSum from the end")
    axis = int(step.whole(1).reshape(-1)[0])
    value = step.input(0)
    if isinstance(value, np.ndarray):
        return np.cumsum(value, axis, dtype=value.dtype)
    found = step.number().moved(lambda array: np.cumsum(array, axis))
    return replace(found, residue=step.numbers.field.reduce(found.residue))


def _of_integers(step: Step) -> Value:
    """Multiply integers as they are; the sums of these fit int32 by definition."""
    codes = [step.whole(index).astype(np.float64) for index in (0, 1)]
    for index, place in ((0, 2), (1, 3)):
        if step.input(place) is not None:
            point = step.whole(place).astype(np.float64)
            if point.size != 1:
                raise UnknownError("zero points of each channel")
            codes[index] = codes[index] - point.reshape(())
    inner = replace_op(step, "Conv" if step.op == "ConvInteger" else "MatMul")
    given = [step.numbers.of(array) for array in codes]
    found: Number = SUMS[inner.op](replace(inner, inputs=given))
    return found.size.astype(np.int32)


def replace_op(step: Step, op: str) -> Step:
    """Return the step as one of another operator with the same attributes."""
    node = type(step.node)()
    node.CopyFrom(step.node)
    node.op_type = op
    return replace(step, node=node)


SUMS: dict[str, Callable[[Step], Any]] = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), _arithmetic),
    **dict.fromkeys(("Sum", "Mean"), _sum),
    "Neg": _negative,
    "Pow": _power,
    "Sqrt": lambda step: root(step.numbers, step.number()),
    "Reciprocal": lambda step: step.numbers.inverse(step.number()),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "BatchNormalization": _batch_normalization,
    "ReduceSum": _reduce,
    "ReduceMean": _reduce,
    "ReduceProd": _reduce,
    "ReduceSumSquare": _reduce,
    "ReduceL2": _reduce,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average_pool,
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
    "DequantizeLinear": _dequantize,
    "CumSum": _cumulated,
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), _of_integers),
}
