"""Damage what a rule made of its match, in every way in which rules have been wrong before.

`damages` yields a window with its `after` damaged; `changes_the_function` decides, independently
of ONNX Runtime and of the bound, whether it computes something else: in float64, with ONNX's
own reference implementation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphpass.ir.model import Model
from graphpass.ir.proto_walk import all_graphs
from graphpass.rewrite.applied import Rewrite
from graphpass.rewrite.choice import Everything
from graphpass.rewrite.driver import apply
from graphpass.rewrite.rule import Pass
from graphpass.rewrite.window import Window
from graphpass.storage.wire import tensor_array
from graphpass.validate.window.every_row import with_every_row

Array = npt.NDArray[Any]
Random = np.random.Generator
Damage = Callable[[ModelProto, Random], bool]  # in place; False: there is nothing to damage so


def windows(model: ModelProto, steps: tuple[Pass, ...]) -> list[Rewrite]:
    """Return the rewrites that `steps` make, each with its window, all weights in it."""
    loaded = Model.load(model)
    found = []
    for step in steps:
        for rewrite in apply(step, loaded, windows=True, chooser=Everything()).rewrites:
            if rewrite.window is not None:
                first, *further = [None if w is None else _whole(w) for w in rewrite.windows]
                found.append(dataclasses.replace(rewrite, window=first, further=tuple(further)))
    return found


def _whole(window: Window) -> Window:
    sides = []
    for side in (window.before, window.after):
        copied = _copy(side)
        for tensor in copied.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(tensor_array(tensor), tensor.name))
        sides.append(copied)
    return dataclasses.replace(window, before=sides[0], after=sides[1])


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


# ------------------------------------------------------------------------ damage to the weights


def one_element(change: Callable[[Any, Random], Any], *, bias: bool = False) -> Damage:
    """Return a damage to one element that is not zero, of the largest constant or of a bias."""

    def damage(model: ModelProto, rng: Random) -> bool:
        tensor = _bias(model) if bias else _largest(model)
        if tensor is None:
            return False
        array = numpy_helper.to_array(tensor).copy()
        places = np.flatnonzero(array)
        if not len(places):
            return False
        place = int(rng.choice(places))
        array.flat[place] = change(array.flat[place], rng)
        return _set(tensor, array)

    return damage


def _largest(model: ModelProto) -> TensorProto | None:
    read = {name for node in model.graph.node for name in node.input}
    found = [t for t in model.graph.initializer if t.name in read and t.data_type in _FLOATS]
    return max(found, key=lambda tensor: int(np.prod(tensor.dims)), default=None)


def _bias(model: ModelProto) -> TensorProto | None:
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            return next((t for t in model.graph.initializer if t.name == node.input[2]), None)
    return None


def _ulps(count: int) -> Callable[[Any, Random], Any]:
    return lambda value, rng: value + rng.choice([-1, 1]) * count * np.spacing(np.abs(value))


def one_scale(change: Callable[[Array, Random], Array], least_axes: int = 1) -> Damage:
    """Return a damage to a whole weight."""

    def damage(model: ModelProto, rng: Random) -> bool:
        tensor = _weight(model, rng, least_axes)
        if tensor is None:
            return False
        array = numpy_helper.to_array(tensor)
        changed = change(array, rng)
        return changed.shape == array.shape and _set(tensor, changed)

    return damage


def _transposed(array: Array, rng: Random) -> Array:
    turned: Array = array.swapaxes(-1, -2).reshape(array.shape)
    return turned


def _weight(model: ModelProto, rng: Random, least_axes: int = 0) -> TensorProto | None:
    """Draw a float constant that a node reads."""
    read = {name for node in model.graph.node for name in node.input}
    found = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name in read and tensor.data_type in _FLOATS and len(tensor.dims) >= least_axes
    ]
    return found[int(rng.integers(len(found)))] if found else None


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _set(tensor: TensorProto, array: Array) -> bool:
    kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, kind), tensor.name))
    return True


def mixed_groups(model: ModelProto, rng: Random) -> bool:
    """Give each group the filters of the next."""
    for node in model.graph.node:
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type in ("Conv", "ConvTranspose") and group > 1:
            tensor = next((t for t in model.graph.initializer if t.name == node.input[1]), None)
            if tensor is not None:
                array = numpy_helper.to_array(tensor)
                return _set(tensor, np.roll(array, len(array) // group, axis=0))
    return False


def dropped_bias(model: ModelProto, rng: Random) -> bool:
    """Leave the last input of a Conv or Gemm out, or add nothing but zeros."""
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            del node.input[2]
            return True
        if node.op_type in ("Add", "Sub"):
            for tensor in model.graph.initializer:
                if tensor.name in node.input and tensor.data_type in _FLOATS:
                    return _set(tensor, np.zeros(tuple(tensor.dims)))
    return False


# -------------------------------------------------------------------- damage to the structure


def shifted_pads(model: ModelProto, rng: Random) -> bool:
    """Move pads by one: before the first element what belongs behind the last."""
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "AveragePool", "MaxPool"):
            continue
        pads = next((a for a in node.attribute if a.name == "pads"), None)
        weight = next((t.dims for t in model.graph.initializer if t.name in node.input[1:2]), ())
        axes = len(pads.ints) // 2 if pads is not None else len(weight) - 2
        if axes < 1:
            continue
        moved = list(pads.ints) if pads is not None else [0] * (2 * axes)
        axis = int(rng.integers(axes))
        moved[axis] += 1
        moved[axis + axes] -= min(1, moved[axis + axes])
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", moved)])
        return True
    return False


def wrong_attribute(model: ModelProto, rng: Random) -> bool:
    """Change an attribute: a number by one, a list by one element or in its order."""
    found = [
        attribute
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type in (AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT)
        and attribute.name not in ("pads", "allowzero", "training_mode", "momentum", "spatial")
    ]
    if not found:
        return False
    attribute = found[int(rng.integers(len(found)))]
    if attribute.type == AttributeProto.INT:
        attribute.i += 1 if attribute.i <= 0 or attribute.name == "group" else -1
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = 1.5 * attribute.f + 0.5
    elif attribute.name == "perm" and len(attribute.ints) > 1:
        one, other = rng.choice(len(attribute.ints), 2, replace=False)
        attribute.ints[one], attribute.ints[other] = attribute.ints[other], attribute.ints[one]
    elif attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] += 1
    return True


def wrong_axis(model: ModelProto, rng: Random) -> bool:
    """Change one element of a constant that says axes or a shape."""
    read = {name for node in model.graph.node for name in node.input}
    found = [
        tensor
        for tensor in model.graph.initializer
        if tensor.name in read and tensor.data_type == TensorProto.INT64
    ]
    if not found:
        return False
    tensor = found[int(rng.integers(len(found)))]
    array = numpy_helper.to_array(tensor).copy()
    if not array.size:
        return False
    with np.errstate(over="ignore"):  # the largest there is, as the end of a Slice
        array.flat[int(rng.integers(array.size))] += int(rng.choice([-1, 1]))
    return _set(tensor, array)


def skipped_operator(model: ModelProto, rng: Random) -> bool:
    """Let the readers of a node read what it read."""
    nodes = model.graph.node
    found = [node for node in nodes if node.op_type not in ("Identity", "Shape", "Constant")]
    if not found:
        return False
    node = found[int(rng.integers(len(found)))]
    del node.attribute[:]
    del node.input[1:]
    del node.output[1:]
    node.op_type, node.domain = "Identity", ""
    return True


def swapped_operands(model: ModelProto, rng: Random) -> bool:
    """Swap the operands of a difference, quotient, power or product of matrices."""
    for node in model.graph.node:
        if node.op_type in ("Sub", "Div", "Pow", "MatMul", "Concat") and len(node.input) > 1:
            node.input[0], node.input[1] = node.input[1], node.input[0]
            return True
    return False


def appended(op: str, *constants: float) -> Damage:
    """Return a damage that leaves one operator too many at the end."""

    def damage(model: ModelProto, rng: Random) -> bool:
        graph = model.graph
        output = graph.output[0]
        kind = output.type.tensor_type.elem_type
        if kind not in _FLOATS:
            return False
        for node in graph.node:
            node.output[:] = ["inner" if name == output.name else name for name in node.output]
        names = []
        for index, value in enumerate(constants):
            array = np.asarray(value, helper.tensor_dtype_to_np_dtype(kind))
            names.append(f"constant{index}")
            graph.initializer.append(numpy_helper.from_array(array, names[-1]))
        graph.node.append(NodeProto(op_type=op, input=["inner", *names], output=[output.name]))
        return True

    return damage


AFTER: Mapping[str, Damage] = {
    "one weight by 1 %": one_element(lambda value, rng: value * 1.01),
    "one weight by 0.01 %": one_element(lambda value, rng: value * 1.0001),
    "one weight by 16 ulp": one_element(_ulps(16)),
    "one weight is NaN": one_element(lambda value, rng: np.nan),
    "one weight is zero": one_element(lambda value, rng: 0.0),
    "one weight has the wrong sign": one_element(lambda value, rng: -value),
    "one bias by 1 %": one_element(lambda value, rng: value * 1.01, bias=True),
    "one bias by 16 ulp": one_element(_ulps(16), bias=True),
    "weights by 16 ulp": one_scale(lambda array, rng: array + 16 * np.spacing(np.abs(array))),
    "weights of the wrong channel": one_scale(lambda array, rng: np.roll(array, 1, axis=0)),
    "kernel transposed": one_scale(_transposed, 2),
    "kernel flipped": one_scale(lambda array, rng: array[..., ::-1], 3),
    "groups mixed": mixed_groups,
    "bias dropped": dropped_bias,
    "pads off by one": shifted_pads,
    "wrong axis or shape": wrong_axis,
    "wrong attribute": wrong_attribute,
    "operator left out": skipped_operator,
    "operands swapped": swapped_operands,
    "activation left over": appended("Relu"),
    "result by 16 ulp": appended("Mul", 1 + 16 * 2.0**-23),
    "result by 1e-4": appended("Mul", 1 + 1e-4),
    "result shifted by 1e-3": appended("Add", 1e-3),
}


# ------------------------------------------------------------- damage to what the rule computes


def _channelwise(position: int, change: Callable[[Array], Array]) -> Damage:
    def damage(model: ModelProto, rng: Random) -> bool:
        for node in model.graph.node:
            if node.op_type == "BatchNormalization":
                for tensor in model.graph.initializer:
                    if tensor.name == node.input[position]:
                        return _set(tensor, change(numpy_helper.to_array(tensor)))
        return False

    return damage


def _without_epsilon(model: ModelProto, rng: Random) -> bool:
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            kept = [a for a in node.attribute if a.name != "epsilon"]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("epsilon", 0.0)])
            return True
    return False


# Each as if the rule had read another model: its result is put beside the window of the right one.
FOLDED: Mapping[str, Damage] = {
    "epsilon forgotten": _without_epsilon,
    "scale of the wrong channel": _channelwise(1, lambda array: np.roll(array, 1)),
    "shift forgotten": _channelwise(2, np.zeros_like),
    "mean forgotten": _channelwise(3, np.zeros_like),
    "mean with the wrong sign": _channelwise(3, np.negative),
    "variance of the wrong channel": _channelwise(4, lambda array: np.roll(array, 1)),
    "variance instead of its root": _channelwise(4, np.square),
}

DAMAGES = (*AFTER, *FOLDED)

# Errors of the size of rounding errors: where a window rounds as much itself, nobody can tell.
TINY = frozenset(name for name in DAMAGES if "ulp" in name)


def damages(
    model: ModelProto, steps: tuple[Pass, ...], rewrite: Rewrite, seed: int
) -> Iterator[tuple[str, Window]]:
    """Yield each damage that there is to one rewrite of `steps` on `model`."""
    assert rewrite.window is not None
    for number, (name, damage) in enumerate(AFTER.items()):
        after = _copy(rewrite.window.after)
        if damage(after, np.random.default_rng([seed, number])):
            yield name, dataclasses.replace(rewrite.window, after=after)
    for name, damage in FOLDED.items() if seed == 0 else ():
        other = _copy(model)
        if damage(other, np.random.default_rng(seed)):
            found = [r for r in windows(other, steps) if r.key == rewrite.key]
            if found and found[0].window is not None:
                yield name, dataclasses.replace(rewrite.window, after=found[0].window.after)


# ---------------------------------------------------------------------------- what is a change


def changes_the_function(window: Window, damaged: Window, seed: int = 0) -> bool | None:
    """Whether two results of a rule compute something else; None where the damaged cannot run.

    In float64 where no operator converts numbers, on normally distributed inputs.
    """
    whole = with_every_row(window), with_every_row(damaged)
    if whole != (window, damaged) and not any(side.before.graph.input for side in whole):
        found = _differ(*whole, {})
        if found or found is None:
            return found
    feed = _feed(window, np.random.default_rng(seed))
    if not (found := _differ(window, damaged, feed)) and found is not None:
        # the largest of many is hardly ever negative
        below = {k: -np.abs(v) if v.dtype.kind == "f" else v for k, v in feed.items()}
        return _differ(window, damaged, below)
    return found


def _differ(window: Window, damaged: Window, feed: Mapping[str, Array]) -> bool | None:
    expected = _evaluated(window.after, feed)
    try:
        found = _evaluated(damaged.after, feed)
    except Exception:  # whatever the reference implementation raises
        return None
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return True
    if expected.dtype.kind != "f":
        return not np.array_equal(expected, found)
    if not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return True
    if not np.array_equal(expected[~np.isfinite(expected)], found[~np.isfinite(found)], True):
        return True
    numbers = np.isfinite(expected)
    scale = float(np.abs(expected[numbers]).max(initial=0.0))
    return bool((np.abs(expected - found)[numbers] > 1e-12 * scale).any())


def can_be_evaluated(window: Window) -> bool:
    """Whether the reference implementation runs what the rule made."""
    try:
        _evaluated(window.after, _feed(window, np.random.default_rng(0)))
    except Exception:  # whatever it raises
        return False
    return True


def _feed(window: Window, rng: Random) -> dict[str, Array]:
    values = {v.name: v for v in (*window.before.graph.input, *window.after.graph.input)}
    feed = {}
    for name in sorted(values):
        tensor = values[name].type.tensor_type
        shape = [dim.dim_value or 2 for dim in tensor.shape.dim]
        kind = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        array = rng.normal(size=shape) if kind.kind == "f" else rng.integers(0, 3, shape)
        feed[name] = array.astype(kind)
    return feed


def _evaluated(model: ModelProto, feed: Mapping[str, Array]) -> Array:
    names = {value.name for value in model.graph.input}
    given = {name: array for name, array in feed.items() if name in names}
    if not any(node.op_type in _CONVERTING for node in model.graph.node):
        model = _copy(model)
        for tensor in (t for graph in all_graphs(model) for t in graph.initializer):
            if tensor.data_type in _FLOATS:
                array = numpy_helper.to_array(tensor).astype(np.float64)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        for value in (*model.graph.input, *model.graph.output):
            if value.type.tensor_type.elem_type in _FLOATS:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        given = {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array
            for name, array in given.items()
        }
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        model = _copy(model)
        model.opset_import[0].version = max(model.opset_import[0].version, 19)  # none for older
    with np.errstate(all="ignore"):
        outputs: list[Any] = list(ReferenceEvaluator(model).run(None, given))
    return np.asarray(outputs[0])


_CONVERTING = {"Cast", "CastLike", "DequantizeLinear", "QuantizeLinear", "Constant"}
