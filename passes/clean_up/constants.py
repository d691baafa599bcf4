"""Constants in disguise: Constant nodes and operators on constants become initializers.

How large the file may grow by that is decided for whole chains: what is stored for the ends of a
chain against all nodes and weights that go with it. 4 bytes expanded to 500 MB stay 4 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass import (
    Graph,
    Node,
    Op,
    Rule,
    Survey,
    Tensor,
    Weight,
    attribute,
    const,
    constant,
    dtype,
    is_output,
    label,
    operator,
    producer,
    readers,
    static_shape,
)
from graphpass.ir.refusal import LARGER, RefusedError
from graphpass.rewrite.survey import Fold, Refused

from .evaluate import SHAPES, compute, is_computable, is_static, sources

FOLD_BUDGET = 0  # bytes that one chain may make the file larger by, beyond what was saved elsewhere

_NODE_BYTES = 32  # what a Constant node takes besides its value
_SHARED_BYTES = 1024  # weights of this size make those that read them one chain
_MOST_LOOKED_AT = 4096  # nodes above the ends of a chain
# What chains that make much out of little may compute, all together. A few bytes of a file can
# stand for any number of large values: each is bounded (see `is_computable`), their sum is not.
_MOST_GROWN_BYTES = 1 << 29
_GROWN = 16  # times what a chain reads; more is much out of little
_LARGE_BYTES = 1 << 20  # what is smaller is folded in any case


@dataclass(frozen=True)
class ConstantToInitializer(Rule):
    """A Constant node = an initializer."""

    budget: int = FOLD_BUDGET

    pattern = Op("Constant", bind="node")

    def rewrite(self, node: Node) -> Any:
        value = _as_initializer(node)
        if value is None or _growth(node, value) > self.budget:
            return None  # a list of small integers is shorter as an attribute
        return value


def _as_initializer(node: Node) -> Weight | None:
    """Return what a Constant holds; None where it has to stay, and of other nodes."""
    if not node.outputs or operator(node) != "Constant":
        return None
    output = node.outputs[0]
    return constant(output) if node.graph.holds_initializers and not is_output(output) else None


def _growth(node: Node, value: Weight) -> int:
    return _stored_bytes(value, node.outputs[0].name) - _node_bytes(node)


@dataclass(frozen=True)
class SplitConstant(Rule):
    """Split(W) = its parts, where W goes with it."""

    budget: int = FOLD_BUDGET

    pattern = Op("Split", const("weight", quiet=True), ..., bind="node", all_outputs=True)

    def rewrite(self, node: Node, weight: Weight) -> Any:
        shapes = [static_shape(output) for output in node.outputs]
        if None in shapes or any(map(is_output, node.outputs)) or node.graph.is_function:
            return None
        axis = attribute(node, "axis") % max(weight.ndim, 1)
        lengths = [shape[axis] for shape in shapes if shape is not None]
        if not weight.ndim or sum(lengths) != weight.shape[axis]:
            return None
        freed, _ = _freed([node])
        growth = sum(_stored_bytes(_of_type(output), output.name) for output in node.outputs)
        larger = f"folding {label(node)} would make the file {growth - freed} bytes larger"
        if growth - freed > self.budget:
            raise RefusedError(larger, LARGER)
        return np.split(weight.array(), np.cumsum(lengths)[:-1], axis=axis)


class _Cost(NamedTuple):
    """How many bytes longer the file is after a fold, and how many nodes fewer it has."""

    growth: int
    fewer_nodes: int

    def is_within(self, budget: int) -> bool:
        """Whether the nodes that go are worth it; none go where an output becomes a Constant."""
        return self.growth <= (budget if self.fewer_nodes > 0 else 0)


@dataclass
class _Allowance:
    """What may be spent: `saved` bytes for all chains together, and `budget` for each."""

    budget: int
    saved: int

    def covers(self, cost: _Cost) -> bool:
        """Whether the file may grow by `cost`."""
        return cost.is_within(self.budget) or cost.is_within(self.saved)

    def spend(self, cost: _Cost) -> None:
        """Note what was folded; what is within the budget costs nothing of what was saved."""
        if cost.growth < 0 or not cost.is_within(self.budget):
            self.saved -= cost.growth


@dataclass
class _Chain:
    """Nodes on constants that hang together; `ends`: those whose value something else reads."""

    nodes: list[Node] = field(default_factory=list)
    ends: list[Node] = field(default_factory=list)
    cost: _Cost = field(default_factory=lambda: _Cost(0, 0))


@dataclass(frozen=True)
class FoldConstants(Survey):
    """f(constants) = its value, chain by chain, where the file as a whole grows by nothing.

    What the pass has saved elsewhere is spent for chains whose values are larger than what goes,
    the cheapest first; each may grow the file by `budget` beyond that.
    Where all that would be computed out of next to nothing is too much, none of it is.
    """

    budget: int = FOLD_BUDGET

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Fold | Refused]:
        """Yield the ends of the chains of constants in `scope`."""
        inside = _foldable(scope)
        held = [node.outputs[0] for node in inside.values()]  # so that no id comes again
        chains = _chains(inside)
        for chain in chains:
            chain.ends = [node for node in chain.nodes if _is_end(node, inside)]
            chain.cost = _cost(chain.ends)
        chains.sort(key=lambda chain: chain.cost.growth)
        left = _Allowance(self.budget, max(spare_bytes, 0))
        grown = {id(chain): _grown_bytes(chain) for chain in chains}
        too_much = sum(grown.values()) > _MOST_GROWN_BYTES
        for chain in chains:  # those first that make the file smaller
            # what read them, if only for its shape, may be gone by now, and they with it
            chain.nodes = [node for node in chain.nodes if node.outputs]
            chain.ends = [node for node in chain.ends if node.outputs]
            if too_much and grown[id(chain)]:
                mib = sum(grown.values()) >> 20
                many = f"the constants of the graph would take {mib} MiB to compute"
                yield from (Refused(node, RefusedError(many)) for node in chain.ends)
                continue
            if not left.covers(chain.cost):
                yield from _piece_by_piece(chain, inside, left)
                continue
            try:
                found = _values(chain.ends, inside)
            except RefusedError:
                yield from _piece_by_piece(chain, inside, left)
                continue
            left.spend(chain.cost)
            yield from (Fold(node, value) for node, value in zip(chain.ends, found, strict=True))
        yield from _written_out(scope, left)
        del held


def _piece_by_piece(
    chain: _Chain, inside: dict[int, Node], left: _Allowance
) -> Iterator[Fold | Refused]:
    """Fold what can be; what cannot stays, and what it reads is an end then."""
    for node in reversed(chain.nodes):
        if not _is_end(node, inside):
            continue
        key, cost = id(node.outputs[0]), _cost([node])
        if not left.covers(cost):
            larger = f"folding {label(node)} would make the file {cost.growth} bytes larger"
            yield Refused(node, RefusedError(larger, LARGER))
        else:
            try:
                (value,) = _values([node], inside)
            except RefusedError as refusal:
                yield Refused(node, refusal)
            else:
                left.spend(cost)
                yield Fold(node, value)
        del inside[key]


def _written_out(scope: Graph, left: _Allowance) -> Iterator[Fold]:
    """Spend what is left on Constant nodes that are shorter than an initializer is."""
    for node in scope.nodes:
        value = _as_initializer(node)
        if value is None:
            continue
        cost = _Cost(_growth(node, value), 1)
        if cost.growth > 0 and left.covers(cost):
            left.spend(cost)
            yield Fold(node, value)


def _values(ends: list[Node], inside: dict[int, Node]) -> list[Any]:
    """Return what the ends of a chain hold; a view of a weight is read when it is written."""
    views = {id(node): constant(node.outputs[0]) for node in ends}
    wanted = [node.outputs[0] for node in ends if views[id(node)] is None]
    found = compute(wanted, lambda tensor: id(tensor) in inside)
    return [views[id(node)] or found[id(node.outputs[0])] for node in ends]


def _foldable(scope: Graph) -> dict[int, Node]:
    """Return the nodes of `scope` whose first output is the same in every run, by id of that."""
    inside: dict[int, Node] = {}
    for node in scope.nodes:
        if not (node.outputs and node.inputs) or not node.outputs[0].name:
            continue
        output = node.outputs[0]
        read = sources(node)
        known = all(id(t) in inside or _is_leaf(t) for t in read)
        if constant(output) is None and (dtype(output) is None or static_shape(output) is None):
            continue
        is_known = known and (constant(output) is not None or is_computable(node))
        if is_known or (_may_count(output) and is_static(output)):
            inside[id(output)] = node
    return inside


def _is_leaf(tensor: Tensor) -> bool:
    if isinstance(tensor, gs.Constant):
        return True
    node = producer(tensor)
    return node is not None and operator(node) == "Constant" and constant(tensor) is not None


def _may_count(output: Tensor) -> bool:
    """Whether `output` may hold sizes: a look at the type spares following what it is made of."""
    kind = dtype(output)
    if output.shape == [0] or operator(output.inputs[0]) in SHAPES:
        return True
    return kind is not None and kind.kind == "i" and len(output.shape or ()) <= 1


def _chains(inside: dict[int, Node]) -> list[_Chain]:
    """Group nodes that read each other or the same large weight."""
    leader: dict[int, int] = {}

    def find(key: int) -> int:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    for key, node in inside.items():
        for tensor in node.inputs:
            weight = tensor.weight if isinstance(tensor, gs.Constant) else None
            is_shared = weight is not None and weight.nbytes >= _SHARED_BYTES
            if id(tensor) in inside or is_shared:
                leader[find(key)] = find(id(tensor))
    chains: dict[int, _Chain] = {}
    for key, node in inside.items():
        chains.setdefault(find(key), _Chain()).nodes.append(node)
    return list(chains.values())


def _is_end(node: Node, inside: dict[int, Node]) -> bool:
    """Whether something that stays reads the value of `node`."""
    if not node.outputs or id(node.outputs[0]) not in inside:
        return False  # it is gone, or has been decided on
    output = node.outputs[0]
    return is_output(output) or any(
        not reader.outputs or id(reader.outputs[0]) not in inside for reader in readers(output)
    )


# ------------------------------------------------------------------------------ what it costs


def _grown_bytes(chain: _Chain) -> int:
    """Return how much is computed on the way; 0 where that is little, or as much as is read."""
    made = sum(8 * math.prod(static_shape(node.outputs[0]) or ()) for node in chain.nodes)
    if made < _LARGE_BYTES:
        return 0
    read = {id(tensor): tensor for node in chain.nodes for tensor in sources(node)}
    held = [constant(tensor) for tensor in read.values() if _is_leaf(tensor)]
    return 0 if made <= _GROWN * sum(weight.nbytes for weight in held if weight) else made


def _cost(ends: list[Node]) -> _Cost:
    """Return what storing the values of `ends` instead of their nodes costs."""
    freed, nodes = _freed(ends)
    growth = -freed
    for node in ends:
        output = node.outputs[0]
        growth += _stored_bytes(constant(output) or _of_type(output), output.name)
        if is_output(output) or not node.graph.holds_initializers:
            growth += _NODE_BYTES  # it becomes a Constant node
            nodes -= 1
    return _Cost(growth, nodes)


def _of_type(tensor: Tensor) -> Weight:
    """Return a weight of the type of `tensor`, to look at its size."""
    shape, kind = static_shape(tensor), dtype(tensor)
    assert shape is not None and kind is not None
    return Weight(
        tensor.name,
        shape,
        onnx.helper.np_dtype_to_tensor_dtype(kind),
        lambda: np.broadcast_to(np.zeros((), kind), shape),
    )


def _freed(ends: Iterable[Node]) -> tuple[int, int]:
    """Return how many bytes and nodes go with `ends` and what only they need; at least that."""
    total = nodes = 0
    stack = list(ends)
    gone = {id(node) for node in stack}
    while stack and len(gone) < _MOST_LOOKED_AT:
        last = stack.pop()
        total, nodes = total + _node_bytes(last), nodes + 1
        for tensor in {id(source): source for source in last.inputs if source.name}.values():
            if is_output(tensor) or any(id(reader) not in gone for reader in readers(tensor)):
                continue
            source = producer(tensor)
            if isinstance(tensor, gs.Constant) and id(tensor) not in gone:
                gone.add(id(tensor))
                total += _stored_bytes(constant(tensor), tensor.name)
            elif source is not None and id(source) not in gone and len(source.outputs) == 1:
                gone.add(id(source))
                stack.append(source)
    return total, nodes


def _node_bytes(node: Node) -> int:
    names = [node.op, node.name or "", *(t.name for t in (*node.inputs, *node.outputs))]
    attributes = node.proto.attribute if node.proto is not None else ()
    return 2 * len(names) + sum(map(len, names)) + sum(map(_attribute_bytes, attributes))


def _attribute_bytes(attribute: onnx.AttributeProto) -> int:
    if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
        return _stored_bytes(Weight.of(attribute.t), "")
    return int(attribute.ByteSize())


def _stored_bytes(weight: Weight | None, name: str) -> int:
    """Return how long an initializer is."""
    assert weight is not None
    tensor = weight.tensor
    if tensor is not None and tensor.data_location != onnx.TensorProto.EXTERNAL:
        return int(tensor.ByteSize()) - len(tensor.name) + len(name) + 2
    return int(weight.nbytes) + 2 * weight.ndim + len(name) + 12


__all__ = ["FOLD_BUDGET", "ConstantToInitializer", "FoldConstants", "SplitConstant"]
