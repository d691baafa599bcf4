"""Follow an image through a network at one size, node by node; see `places`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from graphpass import Graph, Node, Tensor, label, operator
from graphpass.ir.inference import infer_shapes
from graphpass.ir.mixing import mixed_axes
from graphpass.ir.operators import Trait, has, of_node
from graphpass.ir.questions import RefusedError
from graphpass.ir.reader import value_type
from graphpass.ir.shapes import moved

from .batch_operators import place_after
from .place_fills import FILLS, elementwise
from .place_operators import HANDLERS
from .place_reshapes import reshape
from .places import Axes, Axis, FixedSizeError, Followed, Places, Uniform, count_of, places_in


def follow(
    graph: Graph,
    image: Tensor,
    shape: Sequence[int],
    spatial: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    native: Followed | None = None,
) -> Followed:
    """Follow `image`, of sizes `shape` and with places along the axes `spatial`.

    `shapes`: those of all tensors natively. Raises FixedSizeError with the node in the way.
    """
    found = Followed(graph, image, shapes, native)
    found.axes[id(image)] = tuple(
        Places(spatial.index(axis), size) if axis in spatial else size
        for axis, size in enumerate(shape)
    )
    for index, node in enumerate(graph.nodes):
        try:
            _visit(found, node)
        except RefusedError as error:
            raise FixedSizeError(str(error), index) from None
    return found


def _visit(found: Followed, node: Node) -> None:
    found.evaluate(node)
    _refuse_bodies(found, node)
    op = operator(node)
    held = [index for index, tensor in enumerate(node.inputs) if found.holds_places(tensor)]
    if op == "CastLike":
        held = [index for index in held if index == 0]
    if op in ("Shape", "Size"):
        return
    if not held:
        _fill(found, node)
        return
    inputs = [() if not t.name else found.axes_of(t) for t in node.inputs]
    together = has(node, Trait.BROADCASTING) or op == "Concat"
    unknown = [t.name for t, axes in zip(node.inputs, inputs, strict=True) if axes is None]
    if unknown and together:
        raise FixedSizeError(f"the shape of '{unknown[0]}' at {label(node)} is not known")
    known = [() if axes is None else axes for axes in inputs]
    made = _made(found, node, known, held)
    for tensor, axes in zip(node.outputs, made, strict=False):
        if any(count_of(axis) < 1 for axis in axes):
            raise FixedSizeError(f"nothing of the image is left after {label(node)}")
        found.axes[id(tensor)] = axes
        if found.native is None:
            _require_inferred(found, node, tensor, axes)


def _fill(found: Followed, node: Node) -> None:
    """Note what a node of no places makes once for each place: equal elements along an axis."""
    inputs = [() if not t.name else found.axes_of(t) for t in node.inputs]
    known = [axes for axes in inputs if axes is not None]
    together = has(node, Trait.BROADCASTING) or has(node, Trait.ELEMENTWISE)
    alike = any(isinstance(axis, Uniform) for axes in known for axis in axes)
    lost = len(known) < len(inputs) or any(
        _has_grown(found, tensor) for tensor in node.inputs if tensor.name
    )
    if len(known) == len(inputs) and (operator(node) in FILLS or (alike and together)):
        try:
            made = FILLS.get(operator(node), elementwise)(found, node, known)
        except FixedSizeError:
            pass  # nothing is known of its axes, beside their native sizes
        else:
            found.axes.update({id(t): axes for t, axes in zip(node.outputs, made, strict=False)})
            return
    if lost and found.native is not None:
        found.unknown.update(map(id, node.outputs))


def _has_grown(found: Followed, tensor: Tensor) -> bool:
    """Whether a tensor of equal elements has more of them than natively."""
    axes = found.axes.get(id(tensor), ())
    natively = found.natively(tensor)
    return any(
        isinstance(axis, Uniform) and axis.count != count_of(before)
        for axis, before in zip(axes, natively, strict=False)
    )


def _plain(found: Followed, node: Node, inputs: list[Axes]) -> list[Axes]:
    """Return the axes for operators that do not care whether elements are equal."""
    grown = [t.name for t in node.inputs if t.name and _has_grown(found, t)]
    if grown:
        raise FixedSizeError(f"{label(node)} reads '{grown[0]}', which grows with the image")
    return [
        tuple(axis.count if isinstance(axis, Uniform) else axis for axis in axes) for axes in inputs
    ]


def _made(found: Followed, node: Node, inputs: list[Axes], held: list[int]) -> Sequence[Axes]:
    op = operator(node)
    if op in ("Expand", "Tile"):
        return FILLS[op](found, node, inputs)
    broadcasting = has(node, Trait.BROADCASTING) or has(node, Trait.ELEMENTWISE)
    if broadcasting and mixed_axes(node, held[0]) is not None:
        return elementwise(found, node, inputs)
    if op != "Concat":
        inputs = _plain(found, node, inputs)
    if op in HANDLERS:
        return HANDLERS[op](found, node, inputs)
    if op in ("Reshape", "Flatten"):
        return reshape(found, node, inputs)
    if op in ("Squeeze", "Unsqueeze"):
        return [_moved(node, inputs[0])]
    return _apart(found, node, inputs, held)


def _apart(found: Followed, node: Node, inputs: list[Axes], held: list[int]) -> Sequence[Axes]:
    """Return the axes after an operator that works on each place alone."""
    placed: dict[int, Places] = {}
    for index in held:
        mixed = mixed_axes(node, index) if of_node(node) is not None else None
        if mixed is None:
            raise FixedSizeError(f"{label(node)} is not known to work at any size")
        for axis, places in places_in(inputs[index]).items():
            if axis in mixed:
                raise FixedSizeError(
                    f"{label(node)} works along axis {axis} of '{node.inputs[index].name}', where "
                    "the places of the image lie"
                )
            place = place_after(found, node, index, axis)
            if placed.setdefault(place, places) != places:
                raise FixedSizeError(f"{label(node)} joins maps of different sizes")
    outputs = []
    for tensor in node.outputs:
        axes: list[Axis] = [
            axis.count if isinstance(axis, Uniform) else axis for axis in found.natively(tensor)
        ]
        if not axes:
            raise FixedSizeError(f"the shape of '{tensor.name}' at {label(node)} is not known")
        for place, places in placed.items():
            if place < len(axes):
                axes[place] = places
        outputs.append(tuple(axes))
    return outputs


def _moved(node: Node, axes: Axes) -> Axes:
    marks = moved(node, list(range(len(axes))))
    if marks is None:
        raise FixedSizeError(f"{label(node)} drops whichever axes have size 1")
    gone = places_in(axes).keys() - {mark for mark in marks if mark is not None}
    if gone:
        raise FixedSizeError(f"{label(node)} drops an axis that has more places at other sizes")
    return tuple(1 if mark is None else axes[mark] for mark in marks)


def _require_inferred(found: Followed, node: Node, tensor: Tensor, axes: Axes) -> None:
    """Require that what was followed natively is what ONNX infers."""
    inferred = found.shapes.get(tensor.name)
    if inferred is not None and list(inferred) != [count_of(axis) for axis in axes]:
        raise FixedSizeError(f"{label(node)} makes {list(inferred)} in a way that is not followed")


def _refuse_bodies(found: Followed, node: Node) -> None:
    for body in node.graph.subgraphs_of(node):
        for scope in body.scopes():
            for inner in scope.nodes:
                for tensor in inner.inputs:
                    if found.holds_places(tensor):
                        raise FixedSizeError(f"{label(node)} reads the map in a body of its own")


def native_shapes(graph: Graph, image: Tensor, shape: Sequence[int]) -> dict[str, list[int]]:
    """Return the shapes of all tensors where `image` has `shape`; what varies otherwise is 1."""
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    model.graph.CopyFrom(graph.proto)
    model.opset_import.extend(
        onnx.OperatorSetIdProto(domain=domain, version=version)
        for domain, version in graph.opsets.items()
    )
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for index, dim in enumerate(dims):
            if value.name == image.name:
                dim.dim_value = shape[index]
            elif not dim.HasField("dim_value"):
                dim.dim_value = 1
    for value in model.graph.output:
        if any(not dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim):
            value.type.tensor_type.ClearField("shape")
    inferred = infer_shapes(model).graph
    found: dict[str, list[int]] = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        sizes: Any = value_type(value.type)[1]
        if sizes is not None and all(isinstance(size, int) for size in sizes):
            found[value.name] = sizes
    return found


__all__ = ["follow", "native_shapes"]
