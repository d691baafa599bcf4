"""Which nodes have their turn, and which rules begin at one: the work grows with the rewrites."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from graphpass.ir.nodes import Node, Tensor
from graphpass.ir.questions import operator, producer
from graphpass.rewrite.form import ANY_OPERATOR, operators
from graphpass.rewrite.pattern import Op, Pattern, either
from graphpass.rewrite.rule import Rule

# A tensor with more readers than this is shared by accident: they are not looked at again.
_WIDE = 64


class Worklist:
    """The nodes at which a rule may begin, each once, in the order in which they came."""

    def __init__(self, rules: Sequence[Rule], is_dead: Callable[[Node], bool]) -> None:
        """`is_dead`: whether a node has gone in the meantime."""
        self._rules = rules
        self._is_dead = is_dead
        self._roots = {root for rule in rules for root in rule.roots}
        self._depth = max((rule.form.depth for rule in rules), default=0)
        self._present: set[str] = set()
        self._by_root: dict[str, list[Rule]] = {}
        self._waiting: deque[Node] = deque()
        self._queued: set[int] = set()

    def index(self, operators: set[str]) -> None:
        """Arrange by root the rules that can match, now that there are these operators as well."""
        if operators <= self._present:
            return
        self._present |= operators
        self._by_root = {}
        for rule in self._rules:
            if _may_occur(rule.form.root, self._present):
                for root in rule.roots:
                    self._by_root.setdefault(root, []).append(rule)

    @property
    def has_rules(self) -> bool:
        """Whether any rule can match."""
        return bool(self._by_root)

    def rules_at(self, node: Node) -> tuple[Rule, ...]:
        """Return the rules that begin at a node like this one."""
        by_root = self._by_root
        return *by_root.get(operator(node), ()), *by_root.get(ANY_OPERATOR, ())

    def __iter__(self) -> Iterator[Node]:
        """Yield node after node, those that are queued in the meantime too, until none waits."""
        while self._waiting:
            node = self._waiting.popleft()
            self._queued.discard(id(node))
            yield node

    def queue(self, nodes: Iterable[Node]) -> None:
        """Put nodes on the list."""
        for node in nodes:
            if id(node) in self._queued or self._roots.isdisjoint((operator(node), ANY_OPERATOR)):
                continue
            if not self._is_dead(node):
                self._queued.add(id(node))
                self._waiting.append(node)

    def queue_around(self, tensors: Iterable[Tensor]) -> None:
        """Queue what computes `tensors`, and all that read them."""
        for tensor in tensors:
            source = producer(tensor)
            if source is not None:
                self.queue([source])
            if len(tensor.outputs) <= _WIDE:
                self.queue(tensor.outputs)

    def queue_near(self, nodes: Iterable[Node]) -> None:
        """Queue `nodes` and all whose pattern may reach back to one of them."""
        level = list(nodes)
        for _ in range(self._depth + 1):
            self.queue(level)
            level = [
                reader
                for node in level
                for tensor in node.outputs
                if len(tensor.outputs) <= _WIDE
                for reader in tensor.outputs
            ]


def _may_occur(pattern: Pattern, present: set[str]) -> bool:
    """Whether a graph of these operators can hold `pattern`."""
    if isinstance(pattern, either):
        return any(_may_occur(part, present) for part in pattern.alternatives)
    if isinstance(pattern, Op):
        if pattern.ops and present.isdisjoint(operators(pattern)):
            return False
        return all(_may_occur(part, present) for part in pattern.parts)
    return True
