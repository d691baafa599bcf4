"""As few Transposes as there can be, decided for all nodes that are tied to each other at once.

Along a residual stream no single move pays: an Add takes two tensors, the layer normalization
behind it reads the sum twice. What pays is to move the whole stream. Every node that works in any
layout stays or goes over to the other one; where a tensor is wanted in a layout in which it is not
made, there is one Transpose. The fewest of these are a minimum cut (Ford & Fulkerson, 1956), found
as a maximum flow (Dinic, 1970).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from graphpass import (
    Graph,
    Node,
    Op,
    Tensor,
    constant,
    is_output,
    operator,
    producer,
    rank,
    readers,
)
from graphpass.ir.questions import RefusedError
from graphpass.rewrite.survey import Several, Survey

from .heads import POINTWISE
from .transposes import drops_layout, in_layout, inverse, is_agnostic, moved, permutation

_STAYS, _GOES = 0, 1  # the two ends of the flow; nodes of the graph come after them


class FewestTransposes(Survey):
    """f(Transpose(x, p), y) = Transpose(f(x, Transpose(y, p⁻¹)), p), where fewer are left in all.

    A matrix product goes over to the layout in which its matrices are transposed: (x·y)ᵀ = yᵀ·xᵀ.
    """

    stands_or_falls = True  # where one node stays, it does not pay for the others to go over

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Several]:
        """Yield the nodes that change their layout, producers first, permutation by permutation."""
        for order in _orders(scope):
            for node in _chosen(scope, order):
                yield _in_other_layout(node, order)


def _orders(scope: Graph) -> list[list[int]]:
    turned = [node for node in scope.nodes if node.outputs and operator(node) == "Transpose"]
    found = [tuple(order) for node in turned if (order := _order(node)) is not None]
    return [list(order) for order in dict.fromkeys(found)]


def _order(node: Node) -> list[int] | None:
    """Return the permutation of a Transpose; None where it is a parameter of its function."""
    try:
        return permutation(node)
    except RefusedError:
        return None


def _in_other_layout(node: Node, order: list[int]) -> Several:
    """Return what takes the place of `node` once the nodes before it have gone over."""
    back = inverse(order)
    terms: dict[int, Any] = {}
    through: dict[Node, None] = {}
    for place in in_layout(node):
        x = node.inputs[place]
        if id(x) in terms:
            continue
        above = producer(x)
        if above is not None and _is_turn(above, order, node.graph):
            terms[id(x)] = above.inputs[0]
            through[above] = None
        else:
            below = next((r for r in readers(x) if _is_turn(r, back, node.graph)), None)
            terms[id(x)] = below.outputs[0] if below else Op("Transpose", x, perm=back)
            if below:  # stays, and is looked at together with what reads it from now on
                through[below] = None
    into = {place: terms[id(node.inputs[place])] for place in in_layout(node)}
    inner = moved(node, order, into)
    whole = inner if drops_layout(node) else Op("Transpose", inner, perm=order)
    return Several([node, *through], [(node.outputs[0], whole)])


def _is_turn(node: Node, order: Sequence[int], graph: Graph) -> bool:
    return operator(node) == "Transpose" and node.graph is graph and _order(node) == list(order)


def _goes_over(node: Node, order: Sequence[int]) -> bool:
    """Whether `node` computes the same in the layout of `order`, all it reads being in it."""
    try:
        if operator(node) == "MatMul":
            fits = _swaps_matrices(order) and not any(constant(x) for x in node.inputs)
        else:
            fits = is_agnostic(node, order)
        places = in_layout(node) if fits else []
    except RefusedError:  # an attribute is a parameter of its function
        return False
    # what works element by element has the rank of the Transposes that it is tied to
    ranks = (len(order), None) if operator(node) in POINTWISE else (len(order),)
    return bool(places) and all(rank(node.inputs[place]) in ranks for place in places)


def _swaps_matrices(order: Sequence[int]) -> bool:
    count = len(order)
    return list(order) == [*range(count - 2), count - 1, count - 2]


def _chosen(scope: Graph, order: list[int]) -> list[Node]:
    """Return the nodes that go over to the other layout, none where that saves no Transpose."""
    near = _around(scope, order)
    members = [node for node in scope.nodes if node in near] if near else []
    chosen: set[Node] = set()
    for part in _tied(members):
        network = _Network(scope, order, part)
        before = network.turns
        if before and network.cut() < before:
            chosen.update(network.over())
    return [node for node in members if node in chosen]


def _around(scope: Graph, order: list[int]) -> set[Node]:
    """Return the nodes that may go over and are tied to Transposes: the others save none."""
    ends = (order, inverse(order))
    # what was replaced a moment ago reads and makes nothing any more
    turned = [n for n in scope.nodes if operator(n) == "Transpose" and n.outputs]
    turned = [node for node in turned if _order(node) in ends]
    waiting = [tensor for node in turned for tensor in (node.inputs[0], node.outputs[0])]
    seen, members = {id(tensor) for tensor in waiting}, dict[Node, bool]()
    while waiting:
        tensor = waiting.pop()
        for node in (*tensor.inputs, *tensor.outputs):
            if node in members or node.graph is not scope or not node.outputs:
                continue
            members[node] = _goes_over(node, order)
            if members[node]:
                tied = (*(node.inputs[place] for place in in_layout(node)), node.outputs[0])
                new = [tensor for tensor in tied if id(tensor) not in seen]
                seen.update(map(id, new))
                waiting += new
    return {node for node, goes in members.items() if goes}


def _tied(members: list[Node]) -> list[list[Node]]:
    """Group nodes that read what another one makes, or the same tensor."""
    groups: dict[Node, Node] = {node: node for node in members}

    def root(node: Node) -> Node:
        while groups[node] is not node:
            groups[node] = groups[groups[node]]
            node = groups[node]
        return node

    first: dict[int, Node] = {}
    for node in members:
        for tensor in (*(node.inputs[place] for place in in_layout(node)), *node.outputs[:1]):
            groups[root(first.setdefault(id(tensor), node))] = root(node)
    parts: dict[Node, list[Node]] = {}
    for node in members:
        parts.setdefault(root(node), []).append(node)
    return list(parts.values())


class _Network:
    """Nodes that are tied, as a flow network: what lies on the side of `_GOES` goes over.

    An edge is cut, and costs its capacity, where it leads from what goes to what stays.
    """

    def __init__(self, scope: Graph, order: list[int], nodes: list[Node]) -> None:
        self.scope, self.order, self.back = scope, order, inverse(order)
        self.number = {node: 2 + index for index, node in enumerate(nodes)}
        self.edges: list[list[int]] = [[] for _ in range(2 + len(nodes))]
        self.heads: list[int] = []
        self.room: list[int] = []
        self.read: list[tuple[Tensor, set[int]]] = []
        self.turns = 0  # Transposes that there are as long as everything stays
        self.endless = 1 + 2 * sum(1 + len(node.inputs) for node in nodes)
        tensors: dict[int, Tensor] = {}
        for node in nodes:
            made = [] if drops_layout(node) else node.outputs[:1]
            for tensor in (*(node.inputs[place] for place in in_layout(node)), *made):
                tensors[id(tensor)] = tensor
        for tensor in tensors.values():
            self._add(tensor)

    def _add(self, tensor: Tensor) -> None:
        """Let it cost one where `tensor` is made in one layout and read in the other."""
        maker = self._maker(tensor)
        wanted = {self._wanted(reader, tensor) for reader in readers(tensor)}
        wanted |= {_STAYS} if is_output(tensor) else set()
        self.read.append((tensor, wanted))
        # as long as all that may go over stays
        self.turns += wanted != {_GOES} if maker == _GOES else _GOES in wanted
        any_goes, all_go = self._fresh(), self._fresh()
        for end in wanted:
            self._edge(end, any_goes, self.endless)
            self._edge(all_go, end, self.endless)
        self._edge(any_goes, maker, 1)
        self._edge(maker, all_go, 1)

    def _maker(self, tensor: Tensor) -> int:
        above = producer(tensor)
        if above is None or above.graph is not self.scope:
            return _STAYS
        if above in self.number and not drops_layout(above):
            return self.number[above]
        return _GOES if self._starts(above) else _STAYS

    def _wanted(self, reader: Node, tensor: Tensor) -> int:
        if reader.graph is not self.scope:
            return _STAYS
        if reader in self.number:
            inside = any(reader.inputs[place] is tensor for place in in_layout(reader))
            return self.number[reader] if inside else _STAYS
        ends = operator(reader) == "Transpose" and _order(reader) == self.back
        return _GOES if ends and not self._starts(reader) else _STAYS

    def _starts(self, node: Node) -> bool:
        """Whether a Transpose leads into these nodes; one that is its own inverse may lead out."""
        if operator(node) != "Transpose" or _order(node) != self.order:
            return False
        return self.order != self.back or any(
            reader in self.number for reader in readers(node.outputs[0])
        )

    def _fresh(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def _edge(self, tail: int, head: int, room: int) -> None:
        if tail in (head, _STAYS) or head == _GOES:
            return  # never cut
        self.edges[tail].append(len(self.heads))
        self.edges[head].append(len(self.heads) + 1)
        self.heads += [head, tail]
        self.room += [room, 0]

    def cut(self) -> int:
        """Return how many Transposes are left at least: the largest flow."""
        flow = 0
        while (level := self._levels())[_STAYS] is not None:
            begun = [0] * len(self.edges)
            while pushed := self._push(level, begun):
                flow += pushed
        return flow

    def over(self) -> list[Node]:
        """Return the nodes that go over: as few as make the cut."""
        level = self._levels()
        return [node for node, number in self.number.items() if level[number] is not None]

    def _levels(self) -> list[int | None]:
        """Return how far each lies from `_GOES`, along edges with room; None beyond the cut."""
        level: list[int | None] = [None] * len(self.edges)
        level[_GOES] = 0
        waiting = deque([_GOES])
        while waiting:
            at = waiting.popleft()
            for edge in self.edges[at]:
                if self.room[edge] and level[self.heads[edge]] is None:
                    level[self.heads[edge]] = (level[at] or 0) + 1
                    waiting.append(self.heads[edge])
        return level

    def _push(self, level: list[int | None], begun: list[int]) -> int:
        """Send flow along one path that leads from level to level; return how much."""
        path: list[int] = []
        at = _GOES
        while at != _STAYS:
            while begun[at] < len(self.edges[at]):
                edge = self.edges[at][begun[at]]
                if self.room[edge] and level[self.heads[edge]] == (level[at] or 0) + 1:
                    break
                begun[at] += 1
            if begun[at] < len(self.edges[at]):
                path.append(edge)
                at = self.heads[edge]
            elif path:
                at = self.heads[path.pop() ^ 1]
                begun[at] += 1
            else:
                return 0
        pushed = min(self.room[edge] for edge in path)
        for edge in path:
            self.room[edge] -= pushed
            self.room[edge ^ 1] += pushed
        return pushed


__all__ = ["FewestTransposes"]
