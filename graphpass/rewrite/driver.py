"""Apply the rules of a pass to a model until none fits.

Greedy, with a worklist: rules are indexed by the operator that they begin at, and a rewrite puts
only the nodes near it back on the list, so that the work grows with nodes plus rewrites.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from graphpass.errors import GraphpassError, RuleError
from graphpass.ir.model import Model, collection_paused
from graphpass.ir.nodes import Constant, Graph, Node
from graphpass.ir.questions import RefusedError, is_output, is_unread, label, operator, producer
from graphpass.rewrite.match import Match, match
from graphpass.rewrite.pattern import Op, either, optional
from graphpass.rewrite.rule import Pass, Rule
from graphpass.rewrite.surgery import Built, Surgeon
from graphpass.rewrite.window import Window, WindowVerdict, capture

_WIDE = (
    64  # a tensor with more readers than this is shared by accident: they are not looked at again
)


@dataclass(frozen=True)
class Rewrite:
    """One rule applied at one place. `site` names the tensor that was computed anew.

    `window`: its nodes before and after, until they were checked; `proof`: what came of that.
    """

    number: int
    rule: str
    law: str
    site: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    window: Window | None = None
    proof: WindowVerdict | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What identifies this rewrite when the pass is run again."""
        return self.rule, self.site

    @property
    def is_removal(self) -> bool:
        """Whether it only removes what nothing reads, so that there is nothing to run."""
        return self.rule in ("UnreadNode", "UnreadInitializer")


@dataclass(frozen=True)
class Refusal:
    """A place where a rule's operators fit and something stood in the way."""

    rule: str
    node: str
    reason: str


@dataclass
class Applied:
    """What a pass did to a model."""

    rewrites: list[Rewrite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether the model is another one now."""
        return bool(self.rewrites or self.notes)


@collection_paused()
def apply(
    step: Pass,
    model: Model,
    *,
    limit: int | None = None,
    quarantine: frozenset[tuple[str, str]] = frozenset(),
    windows: bool = False,
    first_number: int = 1,
    progress: Callable[[], None] | None = None,
) -> Applied:
    """Run `step` over every scope of `model`, which is changed in place.

    `limit`: stop after so many rewrites. `quarantine`: (rule, site) pairs to leave alone.
    `windows`: keep each rewrite's nodes before and after as two small models. Raises `RuleError`
    where a rule fails with an exception of its own or never comes to an end.
    """
    applied = Applied()
    if "run" in type(step).__dict__:
        for scope in model.scopes():
            try:
                applied.notes.extend(step.run(scope))
            except RefusedError as refusal:
                where = scope.name or "the graph"
                applied.refusals.append(Refusal(step.name, where, str(refusal)))
        model.adopt()
    done, noted = -1, len(applied.refusals)
    while (step.rules or step.sweeps) and len(applied.rewrites) > done:
        if done >= 0:
            # a rewrite may have made a shape known that lets another rule fit, or far away one pay
            model.reread()
            del applied.refusals[noted:]
        done = len(applied.rewrites)
        # not held beyond this line: it has the graph, which reading again lets go of
        _Run(step, model, applied, limit, quarantine, windows, first_number, progress).to_fixpoint()
        if len(applied.rewrites) > done:
            model.touch()
        model.sync()
    if step.changes_interface and applied.changed:
        model.change_interface()
    return applied


class _Run:
    def __init__(
        self,
        step: Pass,
        model: Model,
        applied: Applied,
        limit: int | None,
        quarantine: frozenset[tuple[str, str]],
        windows: bool,
        first_number: int,
        progress: Callable[[], None] | None,
    ) -> None:
        self.model = model
        self.applied = applied
        self.limit = limit
        self.quarantine = quarantine
        self.windows = windows
        self.first_number = first_number
        self.progress = progress or (lambda: None)
        self.scopes = model.scopes()
        self.rules = step.rules
        self.roots = {root for rule in step.rules for root in rule.roots}
        self.present: set[str] = set()
        self.by_root: dict[str, list[Rule]] = {}
        self._index({operator(node) for scope in self.scopes for node in scope.nodes})
        self.sweeps = step.sweeps
        self.depth = max((_depth(rule.pattern) for rule in step.rules), default=0)
        self.surgeon = Surgeon(model.store, lambda: model.names, model.proto.ir_version)
        self.waiting: deque[Node] = deque()
        self.queued: set[int] = set()
        self.refused: dict[tuple[int, str], tuple[Node, Refusal]] = {}

    def _index(self, operators: set[str]) -> None:
        """Arrange by root the rules that can match, now that there are these operators as well."""
        if operators <= self.present:
            return
        self.present |= operators
        self.by_root = {}
        for rule in self.rules:
            if _may_occur(rule.pattern, self.present):
                for root in rule.roots:
                    self.by_root.setdefault(root, []).append(rule)

    def to_fixpoint(self) -> None:
        if not (self.by_root or self.sweeps):
            return
        for scope in self.scopes:
            self._queue(scope.nodes)
        if self.sweeps:
            self._sweep()
        nodes = sum(len(scope.nodes) for scope in self.scopes)
        most = len(self.applied.rewrites) + 100 * nodes + 1000
        while self.waiting:
            node = self.waiting.popleft()
            self.queued.discard(id(node))
            if self._is_full():
                break
            if node.outputs and not self.surgeon.is_dead(node):
                self._visit(node)
            if len(self.applied.rewrites) > most:
                last = self.applied.rewrites[-1]
                raise RuleError(f"rule {last.rule} does not come to an end (last at '{last.site}')")
        self.applied.refusals.extend(
            refusal for node, refusal in self.refused.values() if not self.surgeon.is_dead(node)
        )
        self.surgeon.close(self.scopes)

    def _sweep(self) -> None:
        """Remove what nothing reads, each node and initializer as a rewrite of its own."""
        for scope in self.scopes:
            for node in reversed(scope.nodes):
                if not self.surgeon.is_dead(node) and is_unread(node):
                    site = next(tensor.name for tensor in node.outputs if tensor.name)
                    self._remove("UnreadNode", site, label(node), node)
            for tensor in list(scope.initializers):
                if not (self.surgeon.is_dead(tensor) or tensor.outputs or is_output(tensor)):
                    self._remove("UnreadInitializer", tensor.name, f"'{tensor.name}'", tensor)

    def _remove(self, rule: str, site: str, shown: str, what: Node | Constant) -> None:
        if self._is_full() or (rule, site) in self.quarantine:
            return
        if isinstance(what, Constant):
            self.surgeon.remove_constant(what)
        else:
            self.surgeon.remove(what)
        number = self.first_number + len(self.applied.rewrites)
        law = "what nothing reads = nothing"
        self.applied.rewrites.append(Rewrite(number, rule, law, site, (shown,), ()))
        self.progress()

    def _is_full(self) -> bool:
        return self.limit is not None and len(self.applied.rewrites) >= self.limit

    def _visit(self, node: Node) -> None:
        for rule in self.by_root.get(operator(node), ()):
            if self.refused:
                self.refused.pop((id(node), rule.name), None)
            if self.quarantine and (rule.name, node.outputs[0].name) in self.quarantine:
                continue
            found = match(rule.pattern, node)
            if found is not None and self._try(rule, found):
                return

    def _try(self, rule: Rule, found: Match) -> bool:
        if found.blockers:
            return self._refuse(rule, found, found.blockers[0])
        try:
            term = rule.rewrite(**found.bound)
            if term is None:
                return False
            built = self.surgeon.build(found, term)
            self._commit(rule, found, built)
        except RefusedError as refusal:
            return self._refuse(rule, found, str(refusal))
        except (GraphpassError, MemoryError):  # weights that cannot be read are no rule's fault
            raise
        except Exception as error:
            raise RuleError(
                f"rule {rule.name} failed at {label(found.root)}: {type(error).__name__}: {error}"
            ) from error
        return True

    def _refuse(self, rule: Rule, found: Match, reason: str) -> bool:
        refusal = Refusal(rule.name, label(found.root), reason)
        self.refused[id(found.root), rule.name] = (found.root, refusal)
        return False

    def _commit(self, rule: Rule, found: Match, built: Built) -> None:
        site = found.root.outputs[0].name
        before = tuple(label(node) for node in found.nodes)
        window = capture(found, built) if self.windows else None
        around = [tensor for node in found.nodes for tensor in node.inputs]
        again = self.surgeon.commit(found, built)
        self._index({operator(node) for node in built.nodes})
        self.applied.rewrites.append(
            Rewrite(
                self.first_number + len(self.applied.rewrites),
                rule.name,
                rule.law,
                site,
                before,
                tuple(label(node) for node in built.nodes),
                window,
            )
        )
        self._queue_near(again)
        for tensor in around:
            source = producer(tensor)
            if source is not None:
                self._queue([source])
            if len(tensor.outputs) <= _WIDE:
                self._queue(tensor.outputs)
        self.progress()

    def _queue_near(self, nodes: Iterable[Node]) -> None:
        """Queue `nodes` and all whose pattern may reach back to one of them."""
        level = list(nodes)
        for _ in range(self.depth + 1):
            self._queue(level)
            level = [
                reader
                for node in level
                for tensor in node.outputs
                if len(tensor.outputs) <= _WIDE
                for reader in tensor.outputs
            ]

    def _queue(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            if operator(node) not in self.roots or id(node) in self.queued:
                continue
            if not self.surgeon.is_dead(node):
                self.queued.add(id(node))
                self.waiting.append(node)


def _may_occur(pattern: object, present: set[str]) -> bool:
    """Whether a graph of these operators can hold `pattern`."""
    if isinstance(pattern, either):
        return any(_may_occur(part, present) for part in pattern.alternatives)
    if isinstance(pattern, Op):
        prefix = f"{pattern.domain}::" if pattern.domain else ""
        return any(f"{prefix}{op}" in present for op in pattern.ops) and all(
            _may_occur(part, present) for part in pattern.inputs
        )
    return True


def _depth(pattern: object) -> int:
    if isinstance(pattern, optional):
        return _depth(pattern.part)
    if isinstance(pattern, either):
        return max(_depth(part) for part in pattern.alternatives)
    if isinstance(pattern, Op):
        return 1 + max((_depth(part) for part in pattern.inputs), default=0)
    return 0


__all__ = ["Applied", "Graph", "Refusal", "Rewrite", "apply"]
