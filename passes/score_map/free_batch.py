"""`free-batch`: a network that treats the rows of its batch one by one takes any number of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import onnx

from graphpass import Graph, Pass, Tensor, require
from graphpass.follow.image_input import images
from graphpass.ir.inference import infer_shapes
from graphpass.ir.questions import RefusedError
from graphpass.ir.reader import value_type
from graphpass.rewrite.edit import Editor
from graphpass.rewrite.interface import Interface

from .batch_rows import Batch, Changes, Rows
from .batch_walk import follow


@dataclass(frozen=True)
class FreeBatch(Pass):
    """A network that treats images one by one takes any number of them.

    The batch is followed through every node. What names its size takes it as it comes, and a
    constant state is repeated for each row. Refused, with the node, is what mixes rows, moves the
    batch to where something sums over it, or is not known to keep them apart.
    """

    name: ClassVar[str] = "free-batch"
    changes_interface: ClassVar[Interface] = Interface.SIZES

    def run(self, graph: Graph) -> list[str]:
        """Prove that rows do not meet, let nothing fix their number, declare the batch symbolic."""
        if graph.parent is not None or graph.is_function:
            return []
        inputs = _batched(graph)
        require(inputs, "no input of the network has a batch: none has more than one axis")
        size = inputs[0].shape[0]
        count = size if isinstance(size, int) else 1
        name = size if isinstance(size, str) else _fresh(graph)
        shapes = _shapes(graph, inputs, count)
        _note_ranks(graph, shapes)
        batch = _followed(Batch(graph, inputs[0], count, name, shapes), inputs)
        outputs = [tensor for tensor in graph.outputs if id(tensor) in batch.rows]
        if not isinstance(size, int) and not batch.changes and _say_so(outputs, batch):
            return []
        with Editor(graph) as edit:
            changes = Changes(batch, edit)
            for change, _ in batch.changes:
                change(changes)
        for tensor in (*inputs, *outputs):
            if tensor.shape is not None:
                axis = batch.rows[id(tensor)].axis
                tensor.shape = [*tensor.shape[:axis], name, *tensor.shape[axis + 1 :]]
        listed = ", ".join(f"'{tensor.name}'" for tensor in inputs)
        return [*(note for _, note in batch.changes), f"the batch of {listed} varies"]


def _followed(batch: Batch, inputs: list[Tensor]) -> Batch:
    """Follow the batch; where rows come to lie among others and meet, give them their own axis."""
    rows = {id(tensor): Rows(0) for tensor in inputs}
    batch.rows.update(rows)
    try:
        follow(batch)
    except RefusedError as error:
        other = replace(batch, rows=dict(rows), counted=set(), changes=[], moves=True)
        try:
            follow(other)
        except RefusedError:
            raise error from None
        return other
    return batch


def _note_ranks(graph: Graph, shapes: Mapping[str, Any]) -> None:
    """Let tensors of unknown shape have at least the rank that they have with a fixed batch."""
    for node in graph.nodes:
        for tensor in node.outputs:
            if tensor.shape is None and shapes.get(tensor.name) is not None:
                tensor.shape = [None] * len(shapes[tensor.name])


def _batched(graph: Graph) -> list[Tensor]:
    """Return the inputs whose first axis is the batch: that of the image, or of the first input."""
    held = {tensor.name for tensor in graph.proto.initializer}
    free = [t for t in graph.inputs if t.shape and len(t.shape) > 1 and t.name not in held]
    first = images(graph)
    if not free:
        return []
    size = (first if len(first) == 1 else free)[0].shape[0]
    return [tensor for tensor in free if tensor.shape[0] == size]


def _fresh(graph: Graph) -> str:
    """Return a name for the batch that no other axis has."""
    taken = {dim for t in (*graph.inputs, *graph.outputs) for dim in t.shape or ()}
    return next(name for name in _names() if name not in taken)


def _names() -> Iterator[str]:
    yield from ("N", "batch")
    count = 0
    while True:
        count += 1
        yield f"batch_{count}"


def _say_so(outputs: list[Tensor], batch: Batch) -> bool:
    """Whether the outputs declare already that their batch varies."""
    return all(
        tensor.shape is None or not isinstance(tensor.shape[batch.rows[id(tensor)].axis], int)
        for tensor in outputs
    )


def _shapes(graph: Graph, inputs: list[Tensor], count: int) -> dict[str, Any]:
    """Return the shape of every tensor where the batch has `count` rows."""
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    model.graph.CopyFrom(graph.proto)
    model.opset_import.extend(
        onnx.OperatorSetIdProto(domain=domain, version=version)
        for domain, version in graph.opsets.items()
    )
    names = {tensor.name for tensor in inputs}
    sizes = {tensor.shape[0] for tensor in inputs}
    for value in model.graph.input:
        if value.name in names:
            value.type.tensor_type.shape.dim[0].dim_value = count
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in sizes:
                dim.dim_value = count
    inferred = infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: value_type(value.type)[1] for value in values}
