"""What the rows are that a dense layer works on: images, or steps, positions, regions."""

from __future__ import annotations

from graphpass import Node, Tensor, attribute, label, operator, producer, rank, readers, require
from graphpass.ir.refusal import POSITIONS
from graphpass.ir.shapes import RESHAPES

from .heads import ALONG_AXIS, BROADCAST, POINTWISE, flattens

_KEEPS_ROWS = (
    *POINTWISE,
    *ALONG_AXIS,
    "BatchNormalization",
    "Gemm",
    "LayerNormalization",
    "MatMul",
)
_RECURRENT = ("GRU", "LSTM", "RNN")
_REGIONS = ("MaxRoiPool", "RoiAlign")
_WALK = 1000  # nodes followed from a dense layer to where its rows come from
_STEPS = 3  # layers with one weight: fewer are branches of one network


def require_images(layer: Node, matrix: Tensor, x: Tensor) -> None:
    """Refuse a layer whose rows, `x`, are regions of an image, or steps of an unrolled cell."""
    steps = sum(_multiplies(reader, matrix) for reader in readers(matrix))
    require(
        steps < _STEPS,
        f"the rows of '{x.name}' are not images, but steps: {steps} layers share the weights "
        f"'{matrix.name}' of {label(layer)}",
        POSITIONS,
    )
    require(
        not _follows_trips(layer, x),
        f"the rows of '{x.name}' are not images, but steps: {label(layer)} runs in each trip of a "
        "loop",
        POSITIONS,
    )
    regions = _regions(x)
    require(
        regions is None,
        f"the rows of '{x.name}' are not images, but regions: {label(regions or layer)} cuts them",
        POSITIONS,
    )


def _multiplies(node: Node, matrix: Tensor) -> bool:
    return operator(node) in ("Gemm", "MatMul") and node.inputs[1] is matrix


def _regions(x: Tensor) -> Node | None:
    """Return what cuts regions out of a map for what `x` is computed from."""
    seen: set[int] = set()
    waiting = [x]
    while waiting and len(seen) < _WALK:
        node = producer(waiting.pop())
        if node is None or id(node) in seen:
            continue
        if operator(node) in _REGIONS:
            return node
        seen.add(id(node))
        waiting.extend(node.inputs)
    return None


def _follows_trips(layer: Node, x: Tensor) -> bool:
    """Whether `x` comes from the state, the element or the number of a trip, other than as a map.

    Of a Loop or Scan, that is: the bodies of an If have no inputs.
    """
    of_trips: set[int] = set()
    scope = layer.graph
    while scope.parent is not None:
        of_trips.update(id(tensor) for tensor in scope.inputs)
        scope = scope.parent
    seen: set[int] = set()
    waiting = [x] if of_trips else []
    while waiting and len(seen) < _WALK:
        tensor = waiting.pop()
        if id(tensor) in of_trips:
            return True
        if id(tensor) in seen or (rank(tensor) or 0) > 2:
            continue
        seen.add(id(tensor))
        node = producer(tensor)
        waiting.extend(() if node is None else node.inputs)
    return False


def recurrent(y: Tensor) -> Node | None:
    """Return the recurrent layer whose steps, each an output of its own, `y` holds."""
    for _ in range(_WALK):
        node = producer(y)
        if node is None:
            return None
        if operator(node) in _RECURRENT:
            return node if node.outputs[0] is y else None
        if operator(node) not in (*RESHAPES, *POINTWISE, "Transpose"):
            return None
        y = node.inputs[0]
    return None


def makes_rows_of_map(source: Node | None, layer: Node) -> bool:
    """Whether `source` flattens a map for `layer`."""
    if source is None or operator(source) != "Flatten" or source.graph is not layer.graph:
        return False
    axes = rank(source.inputs[0])
    return axes is None or (axes > 2 and flattens(source.inputs[0], source))


def merging_view(layer: Node) -> Node | None:
    """Return the view that makes the rows of `layer` of a tensor of three axes or more."""
    x = layer.inputs[0]
    for _ in range(_WALK):
        node = producer(x)
        if node is None:
            return None
        op = operator(node)
        if op in RESHAPES:
            axes = rank(node.inputs[0])
            if axes is not None and axes < 3:
                return None
            return None if flattens(node.inputs[0], node) else node
        if op in BROADCAST:
            x = next((t for t in node.inputs if producer(t) is not None), node.inputs[0])
        elif op in _KEEPS_ROWS and not (op == "Gemm" and attribute(node, "transA")):
            x = node.inputs[0]
        else:
            return None
    # layers that were converted end in a Flatten: so long a chain is one of refused layers
    require(
        False, f"too many layers lie between '{layer.inputs[0].name}' and the nearest feature map"
    )
    return None
