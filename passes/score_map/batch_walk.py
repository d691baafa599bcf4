"""Follow the batch from the inputs through every node: a proof that rows do not meet.

Row by row the freed network must compute what the original computes for a batch of its own. Each
node either does so as it is, or can be changed so that it does, or is the reason to refuse. An
operator that is not known to keep rows apart is refused.
"""

from __future__ import annotations

from graphpass import Node, Tensor, label, operator, require
from graphpass.ir.mixing import mixed_axes
from graphpass.ir.operators import Trait, has, is_training, of_node

from .batch_operators import HANDLERS, bound_axes, met_axes, place_after
from .batch_repeats import tile
from .batch_rows import ONE, Batch, Rows


def follow(batch: Batch) -> None:
    """Follow the batch through the graph. Raises RefusedError with the node that is in the way."""
    for node in batch.graph.nodes:
        _visit(batch, node)
    for output in batch.graph.outputs:
        _require_plain(batch, output)
    require(
        any(id(output) in batch.rows for output in batch.graph.outputs),
        f"no output of the network depends on '{batch.source.name}'",
    )


def _require_plain(batch: Batch, output: Tensor) -> None:
    require(
        id(output) not in batch.counted,
        f"the output '{output.name}' is computed from the size of the batch",
    )
    rows = batch.rows.get(id(output))
    require(
        rows is None or rows.plain,
        f"the output '{output.name}' has no axis for the batch alone",
    )


def _visit(batch: Batch, node: Node) -> None:
    _refuse_bodies(batch, node)
    held = [i for i, tensor in enumerate(node.inputs) if id(tensor) in batch.rows]
    counted = [i for i, tensor in enumerate(node.inputs) if id(tensor) in batch.counted]
    if not held and not counted:
        return
    op = operator(node)
    if op in ("Shape", "Size"):
        _count(batch, node)
        return
    if op == "CastLike" and held == [1]:
        return  # it takes a type from there, nothing else
    special = HANDLERS.get(op)
    found = special(batch, node, held) if special is not None else None
    if found is None and not held:
        _count(batch, node)
        return
    if found is None:
        require(
            not counted,
            f"{label(node)} computes with the size of the batch: '{node.inputs[counted[0]].name}'"
            if counted
            else "",
        )
        found = _row_by_row(batch, node, held)
    for tensor, rows in zip(node.outputs, found, strict=False):
        if rows is not None and tensor.name:
            batch.rows[id(tensor)] = rows


def _count(batch: Batch, node: Node) -> None:
    """Note which outputs hold the size of the batch. Refuses what is no arithmetic of shapes."""
    for tensor in node.outputs:
        found = batch.values(tensor)
        plain = found is not None and not any(
            batch.holds_count(size) or any(name.startswith("?") for name in size.names)
            for size in found
        )
        if not plain:
            batch.counted.add(id(tensor))
    arithmetic = (Trait.ELEMENTWISE, Trait.BROADCASTING, Trait.MOVEMENT, Trait.SIZES_ONLY)
    require(
        any(has(node, trait) for trait in arithmetic)
        or not any(id(tensor) in batch.counted for tensor in node.outputs),
        f"{label(node)} computes with the size of the batch",
    )


def _refuse_bodies(batch: Batch, node: Node) -> None:
    for body in node.graph.subgraphs_of(node):
        for scope in body.scopes():
            for inner in scope.nodes:
                for tensor in inner.inputs:
                    require(
                        id(tensor) not in batch.rows and id(tensor) not in batch.counted,
                        f"{label(node)} reads '{tensor.name}', which depends on the batch, in a "
                        "body of its own",
                    )


def _row_by_row(batch: Batch, node: Node, held: list[int]) -> list[Rows | None]:
    """Return where the rows lie after an operator that works on each of them alone."""
    require(
        held != [_STRETCHED.get(operator(node))],
        f"{label(node)} takes rows from '{node.inputs[held[-1]].name}' alone, and has the shape "
        "of its other inputs",
    )
    places = []
    for index in held:
        rows = batch.rows[id(node.inputs[index])]
        _require_unmixed(batch, node, index, rows)
        axis = place_after(batch, node, index, rows.axis)
        places.append(Rows(axis, rows.outer, rows.inner))
    require(
        len(set(places)) == 1,
        f"{label(node)} reads the batch on different axes of its inputs",
    )
    (rows,) = set(places)
    for index, tensor in enumerate(node.inputs):
        if index not in held and tensor.name:
            _require_met(batch, node, index, rows)
    return [rows] * len(node.outputs)


def _require_unmixed(batch: Batch, node: Node, index: int, rows: Rows) -> None:
    tensor = node.inputs[index]
    known = of_node(node) is not None
    mixed = mixed_axes(node, index) if known else None
    if mixed is None:
        training = known and is_training(node)
        weight = known and index and has(node, Trait.CONTRACTION)
        why = (
            "is in training: it uses statistics of the whole batch"
            if training
            else f"has a weight that depends on the batch, '{tensor.name}'"
            if weight
            else "is not known to treat the rows of a batch one by one"
        )
        require(False, f"{label(node)} {why}")
        return
    where = f"axis {rows.axis} of '{tensor.name}'"
    what = _MIXING.get(operator(node), "works along")
    require(
        rows.axis not in mixed,
        f"{label(node)} {what} {where}, where the rows of a batch lie: it would mix them",
    )


def _require_met(batch: Batch, node: Node, index: int, rows: Rows) -> None:
    """Require that what other inputs have beside the rows is the same for each of them."""
    tensor = node.inputs[index]
    sizes = batch.native(tensor)
    broadcast, bound = met_axes(batch, node, index), bound_axes(batch, node, index)
    for axis, place in (*broadcast.items(), *bound.items()):
        alike = axis in broadcast and sizes is not None and sizes[axis] == ONE
        if (
            place == rows.axis
            and axis in broadcast
            and not alike
            and tile(batch, node, index, axis, rows)
        ):
            continue
        require(
            place != rows.axis or alike,
            f"{label(node)} takes axis {axis} of '{tensor.name}', which does not depend on the "
            "batch, together with its rows",
        )


# this input is stretched to the shape that the others give, never the other way round
_STRETCHED = {"Gemm": 2, "PRelu": 1}
_MIXING = {
    **dict.fromkeys(("CumSum", "CumProd"), "sums up along"),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), "compares along"),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), "normalizes over"),
    **dict.fromkeys(("LayerNormalization", "MeanVarianceNormalization"), "normalizes over"),
    **dict.fromkeys(("Gemm", "MatMul", "Einsum"), "sums over"),
    **dict.fromkeys(("Gather", "Slice", "Split", "Squeeze"), "cuts or drops"),
    "BatchNormalization": "has statistics of",
    "Concat": "joins others to",
}
