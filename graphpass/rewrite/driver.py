"""Apply the rules of a pass to a model until none fits.

Greedy, with a worklist: rules are indexed by the operator that they begin at, and a rewrite puts
only the nodes near it back on the list, so that the work grows with nodes plus rewrites.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx

from graphpass.errors import GraphpassError, RuleError
from graphpass.ir.model import Model, collection_paused
from graphpass.ir.nodes import Constant, Graph, Node
from graphpass.ir.questions import is_output, is_unread, label, operator, producer
from graphpass.ir.refusal import CONDITION, RefusedError
from graphpass.ir.writer import unwritten
from graphpass.rewrite.choice import ByCost, Chooser, Offer
from graphpass.rewrite.form import ANY_OPERATOR, operators
from graphpass.rewrite.guard import guarded
from graphpass.rewrite.making import built_by
from graphpass.rewrite.match import Match, computing, match
from graphpass.rewrite.pattern import Op, Pattern, either
from graphpass.rewrite.rule import Pass, Rule
from graphpass.rewrite.site import site_windows
from graphpass.rewrite.surgery import Built, Surgeon
from graphpass.rewrite.survey import Proposal, Refused, Several, Survey, Twin
from graphpass.rewrite.term import Operand, read
from graphpass.rewrite.window import Window, WindowVerdict, capture, capture_constants
from graphpass.storage.reference import reference_of, tensors

# A tensor with more readers than this is shared by accident: they are not looked at again.
_WIDE = 64
# How often a pass may begin anew, since what it did made a shape known or another rule pay.
_MOST_ROUNDS = 32
REMOVAL = "what nothing reads = nothing"  # the law of what the driver itself removes


@dataclass(frozen=True)
class Rewrite:
    """One rule applied at one place. `site` names the tensor that was computed anew.

    `window`: its nodes before and after, until they were checked; `proof`: what came of that.
    `further`: the windows of what else it computes anew, where it replaces several nodes.
    """

    number: int
    rule: str
    law: str
    site: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    window: Window | None = None
    proof: WindowVerdict | None = None
    further: tuple[Window | None, ...] = ()

    @property
    def windows(self) -> tuple[Window | None, ...]:
        """All windows: one for each tensor that is computed anew."""
        return (self.window, *self.further)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies this rewrite when the pass is run again."""
        return self.rule, self.site

    @property
    def is_removal(self) -> bool:
        """Whether it only removes what nothing reads, so that there is nothing to run."""
        return self.law == REMOVAL


@dataclass(frozen=True)
class Refusal:
    """A place where a rule's operators fit and something stood in the way.

    `reason`: one sentence; `code`: its kind, for programs; `advice`: what can be done, or empty.
    """

    rule: str
    node: str
    reason: str
    code: str = CONDITION.code
    advice: str = ""

    @classmethod
    def of(cls, rule: str, node: str, refusal: RefusedError) -> Refusal:
        """Return what `refusal` says, for a report."""
        return cls(rule, node, refusal.reason, refusal.kind.code, refusal.kind.advice)


@dataclass(frozen=True)
class Failure:
    """A place where a rule failed with an exception; it was left as it is, and is not tried again.

    `rewrite`: what it was about to do, nothing after; `reason`: the exception and where it arose.
    """

    rewrite: Rewrite
    reason: str


class SpoiltError(RuleError):
    """A rule failed half-way through a change: the model is of no use until it is restored."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(described(failure))
        self.failure = failure


def described(failure: Failure) -> str:
    """Say in one sentence which rule failed where."""
    rewrite = failure.rewrite
    return f"rule {rewrite.rule} failed at {rewrite.before[0]}: {failure.reason}"


@dataclass
class Applied:
    """What a pass did to a model, and where one of its rules failed.

    `edited`: whether it changed the model by hand; `notes` are what it says of that.
    """

    rewrites: list[Rewrite] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    edited: bool = False

    @property
    def changed(self) -> bool:
        """Whether the model is another one now."""
        return bool(self.rewrites or self.edited or self.notes)


def apply(
    step: Pass,
    model: Model,
    *,
    limit: int | None = None,
    quarantine: frozenset[tuple[str, str]] = frozenset(),
    left_out: frozenset[str] = frozenset(),
    windows: bool = False,
    first_number: int = 1,
    progress: Callable[[], None] | None = None,
    by_hand: bool = True,
    time_limit_s: float | None = None,
    chooser: Chooser | None = None,
) -> Applied:
    """Run `step` over every scope of `model`, which is changed in place.

    `limit`: stop after so many rewrites. `quarantine`: (rule, site) pairs to leave alone.
    `left_out`: names of nodes that no rewrite may touch (see `Selection`); what a pass does other
    than by rewrites is not held back. `windows`: keep each rewrite's nodes before and after as two
    small models. `by_hand`: False to apply its rules alone, since its `run` has done its work
    before. `time_limit_s`: for all of it.
    `chooser`: decides on rules that are a choice; None: what is less work by counting.
    Raises `RuleError` where the pass does anything but return (see `guarded`) or never comes to an
    end, `SpoiltError` where a rule fails half-way through a change; one that fails before it has
    changed anything costs its site alone (see `Applied.failures`).
    """
    with guarded(f"pass {step.name}", time_limit_s):
        return _apply(
            step,
            model,
            limit,
            quarantine,
            left_out,
            windows,
            first_number,
            progress,
            by_hand,
            ByCost() if chooser is None else chooser,
        )


@collection_paused()
def _apply(
    step: Pass,
    model: Model,
    limit: int | None,
    quarantine: frozenset[tuple[str, str]],
    left_out: frozenset[str],
    windows: bool,
    first_number: int,
    progress: Callable[[], None] | None,
    by_hand: bool,
    chooser: Chooser,
) -> Applied:
    applied = Applied()
    if by_hand and step.is_by_hand:
        _run_by_hand(step, model, applied)
    done, noted, rounds = -1, len(applied.refusals), 0
    original_bytes = _file_bytes(model.proto) if step.surveys else 0
    while (step.rules or step.sweeps or step.surveys) and len(applied.rewrites) > done:
        rounds += 1
        if rounds > _MOST_ROUNDS:
            last = applied.rewrites[-1]
            raise RuleError(
                f"it does not settle: begun anew {_MOST_ROUNDS} times, rule {last.rule} still"
                f" changes '{last.site}'"
            )
        if done >= 0:
            # a rewrite may have made a shape known that lets another rule fit, or far away one pay
            model.reread()
            del applied.refusals[noted:]
        done = len(applied.rewrites)
        spare_bytes = original_bytes - _file_bytes(model.proto) if done and step.surveys else 0
        with model.rewriting() as scopes:
            # not held beyond this: it has the graph, which reading again lets go of
            _Run(
                step,
                model,
                scopes,
                applied,
                limit,
                quarantine,
                left_out,
                windows,
                first_number,
                progress,
                chooser,
            ).to_fixpoint(spare_bytes)
    return applied


def _run_by_hand(step: Pass, model: Model, applied: Applied) -> None:
    if "convert" in type(step).__dict__:
        _convert(step, model, applied)
    if "run" not in type(step).__dict__:
        return
    with model.editing(interface=bool(step.changes_interface)) as graph:
        for scope in model.scopes():
            try:
                applied.notes.extend(step.run(scope) or ())
            except RefusedError as refusal:
                where = scope.name or "the graph"
                applied.refusals.append(Refusal.of(step.name, where, refusal))
                begun = unwritten(scope)
                if begun:
                    raise RuleError(
                        f"it refuses after it has changed {begun}: decide first, or use an Editor"
                    ) from None
    applied.edited = applied.edited or graph.is_touched


def _convert(step: Pass, model: Model, applied: Applied) -> None:
    changed = onnx.ModelProto()
    changed.CopyFrom(model.proto)
    try:
        notes = step.convert(changed)
    except RefusedError as refusal:
        applied.refusals.append(Refusal.of(step.name, "the model", refusal))
        return
    if notes:
        model.restore(changed)
        applied.notes.extend(notes)
        applied.edited = True


class _Run:
    def __init__(
        self,
        step: Pass,
        model: Model,
        scopes: list[Graph],
        applied: Applied,
        limit: int | None,
        quarantine: frozenset[tuple[str, str]],
        left_out: frozenset[str],
        windows: bool,
        first_number: int,
        progress: Callable[[], None] | None,
        chooser: Chooser,
    ) -> None:
        self.step = step
        self.chooser = chooser
        self.model = model
        self.applied = applied
        self.limit = limit
        self.quarantine = quarantine | {failure.rewrite.key for failure in applied.failures}
        self.left_out = left_out
        self.windows = windows
        self.first_number = first_number
        self.progress = progress or (lambda: None)
        self.scopes = scopes
        self.rules = tuple(rule for rule in step.rules if self._is_tried(rule))
        self.roots = {root for rule in self.rules for root in rule.roots}
        self.present: set[str] = set()
        self.by_root: dict[str, list[Rule]] = {}
        self._index({operator(node) for scope in self.scopes for node in scope.nodes})
        self.sweeps = step.sweeps
        self.surveys = step.surveys
        self.depth = max((rule.form.depth for rule in self.rules), default=0)
        self.surgeon = Surgeon(model.store, lambda: model.names, model.proto.ir_version)
        self.waiting: deque[Node] = deque()
        self.queued: set[int] = set()
        self.refused: dict[tuple[int, str], tuple[Node, Refusal]] = {}

    def _is_tried(self, rule: Rule) -> bool:
        choice = rule.choice or self.step.choice
        return choice is None or self.chooser.tries(choice)

    def _index(self, operators: set[str]) -> None:
        """Arrange by root the rules that can match, now that there are these operators as well."""
        if operators <= self.present:
            return
        self.present |= operators
        self.by_root = {}
        for rule in self.rules:
            if _may_occur(rule.form.root, self.present):
                for root in rule.roots:
                    self.by_root.setdefault(root, []).append(rule)

    def to_fixpoint(self, spare_bytes: int) -> None:
        """Apply everything until nothing fits; `spare_bytes`: see `Survey.find`."""
        if not (self.by_root or self.sweeps or self.surveys):
            return
        for scope in self.scopes:
            self._queue(scope.nodes)
        if self.sweeps:
            self._sweep()
        nodes = sum(len(scope.nodes) for scope in self.scopes)
        most = len(self.applied.rewrites) + 100 * nodes + 1000
        done = -1
        while len(self.applied.rewrites) > done:
            # what rules made may be equal or constant, and what surveys did lets rules fit
            done = len(self.applied.rewrites)
            for survey in self.surveys:
                self._look_at_all(survey, spare_bytes)
            spare_bytes = 0
            self._drain(most)
            self.surgeon.close(self.scopes)
            if not self.surveys or self._is_full():
                break
        self.applied.refusals.extend(
            refusal for node, refusal in self.refused.values() if node.outputs
        )

    def _drain(self, most: int) -> None:
        """Visit the nodes on the list, and those that come onto it; `most` rewrites in all."""
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

    def _sweep(self) -> None:
        """Remove what nothing reads, each node and initializer as a rewrite of its own."""
        for scope in self.scopes:
            for node in reversed(scope.nodes):
                if self._is_left_out([node]):
                    continue
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
        self.applied.rewrites.append(Rewrite(number, rule, REMOVAL, site, (shown,), ()))
        self.progress()

    def _look_at_all(self, survey: Survey, spare_bytes: int) -> None:
        """Do what a survey finds, scope by scope, outer ones first."""
        for index, scope in enumerate(self.scopes):
            where = f"'{scope.name}'" if scope.name else "the graph"
            if (survey.name, where) in self.quarantine:
                continue
            try:
                for proposal in survey.find(scope, 0 if index else spare_bytes):
                    if self._is_full():
                        return
                    self._adopt(survey, proposal)
            except (GraphpassError, MemoryError):
                raise
            except Exception as error:  # while it looked: what it found until then is whole
                self._note_failure(survey, where, (where,), error)

    def _adopt(self, survey: Survey, proposal: Proposal) -> None:
        """Let a proposal take place, unless it is refused or quarantined."""
        if isinstance(proposal, Twin) and isinstance(proposal.gone, Constant):
            self._merge_constants(survey, proposal.gone, proposal.kept)
            return
        node = _node_of(proposal)
        nodes = proposal.nodes if isinstance(proposal, Several) else [node]
        if (survey.name, _site(node)) in self.quarantine or self._is_left_out(nodes):
            return
        try:
            if isinstance(proposal, Refused):
                raise proposal.refusal
            if isinstance(proposal, Twin):
                pairs = proposal.outputs()
                found = Match([node], {}, [node, proposal.kept], [], [old for old, _ in pairs])
                terms: Sequence[Operand | None] = [new for _, new in pairs]
            elif isinstance(proposal, Several):
                results = [old for old, _ in proposal.values]
                roots = list({id(made): made for made in map(producer, results) if made}.values())
                found = Match(roots, {}, list(proposal.nodes), [], results)
                terms = read([new for _, new in proposal.values], len(results))
            else:
                found = Match([node], {}, [node], [], [node.outputs[0]])
                terms = [proposal.value]
            built = self.surgeon.build(found, terms)
            windows = capture(found, built) if self.windows else []
            self._commit_or_spoil(survey, found, built, windows)
        except RefusedError as refusal:
            refused = Refusal.of(survey.name, label(node), refusal)
            self.refused[id(node), survey.name] = (node, refused)
        except (GraphpassError, MemoryError):
            raise
        except Exception as error:
            self._note_failure(survey, _site(node), (label(node),), error)

    def _merge_constants(self, survey: Survey, gone: Constant, kept: Constant) -> None:
        if (survey.name, gone.name) in self.quarantine:
            return
        reader: Node = gone.outputs[0]
        window = capture_constants(reader.graph, gone, kept) if self.windows else None
        try:
            again = self.surgeon.merge_constants(gone, kept)
        except RefusedError as refusal:
            refused = Refusal.of(survey.name, f"'{gone.name}'", refusal)
            self.refused[id(reader), survey.name] = (reader, refused)
            return
        number = self.first_number + len(self.applied.rewrites)
        shown = f"'{gone.name}'", f"'{kept.name}'"
        self.applied.rewrites.append(
            Rewrite(number, survey.name, survey.law, gone.name, shown[:1], shown[1:], window)
        )
        self._queue_near(again)
        self.progress()

    def _is_full(self) -> bool:
        return self.limit is not None and len(self.applied.rewrites) >= self.limit

    def _visit(self, node: Node) -> None:
        for rule in (*self.by_root.get(operator(node), ()), *self.by_root.get(ANY_OPERATOR, ())):
            if self.refused:
                self.refused.pop((id(node), rule.name), None)
            if self.quarantine and (rule.name, _site(node)) in self.quarantine:
                continue
            found = self._match(rule, node)
            if isinstance(found, Node):
                self._queue([found])
            elif found is not None and self._try(rule, found):
                return

    def _match(self, rule: Rule, node: Node) -> Match | Node | None:
        try:
            return match(rule.form, node)
        except (GraphpassError, MemoryError):
            raise
        except Exception as error:
            self._note_failure(rule, _site(node), (label(node),), error)
            return None

    def _is_left_out(self, nodes: Iterable[Node]) -> bool:
        if not self.left_out:
            return False
        return any((node.name or _site(node)) in self.left_out for node in nodes)

    def _try(self, rule: Rule, found: Match) -> bool:
        if self._is_left_out(found.nodes):
            return False
        if found.blockers:
            return self._refuse(rule, found, found.blockers[0])
        try:
            built = built_by(rule, found, self.surgeon)
            if built is None or self._is_left_out(found.nodes):
                return False
            self._choose(rule, found, built)
            windows = capture(found, built) if self.windows else []
        except RefusedError as refusal:
            return self._refuse(rule, found, refusal)
        except Exception as error:
            # weights that cannot be read are no rule's fault
            if isinstance(error, (GraphpassError, MemoryError)) and not isinstance(
                error, RuleError
            ):
                raise
            labels = tuple(label(node) for node in found.nodes)
            return self._note_failure(rule, _site(found.root), labels, error)
        try:
            self._commit_or_spoil(rule, found, built, windows)
        except RefusedError as refusal:
            return self._refuse(rule, found, refusal)
        return True

    def _choose(self, rule: Rule, found: Match, built: Built) -> None:
        """Let the chooser look at a rewrite that is a choice. Raises `RefusedError`."""
        choice = rule.choice or self.step.choice
        if choice is not None:
            windows = partial(site_windows, found, built)
            self.chooser.decide(
                Offer(self.step.name, rule.name, _site(found.root), choice, windows)
            )

    def _commit_or_spoil(
        self, rule: Rule | Survey, found: Match, built: Built, windows: list[Window | None]
    ) -> None:
        place = _site(found.root), tuple(label(node) for node in found.nodes)
        try:
            self._commit(rule, found, built, windows)
        except (RefusedError, GraphpassError, MemoryError):
            raise
        except Exception as error:
            raise SpoiltError(_failure(rule, *place, error)) from error

    def _note_failure(
        self, rule: Rule | Survey, site: str, before: tuple[str, ...], error: Exception
    ) -> bool:
        failure = _failure(rule, site, before, error)
        self.applied.failures.append(failure)
        self.quarantine |= {failure.rewrite.key}
        return False

    def _refuse(self, rule: Rule, found: Match, refused: RefusedError) -> bool:
        refusal = Refusal.of(rule.name, label(found.root), refused)
        self.refused[id(found.root), rule.name] = (found.root, refusal)
        return False

    def _commit(
        self, rule: Rule | Survey, found: Match, built: Built, windows: list[Window | None]
    ) -> None:
        site = _site(found.root)
        pairs = zip(found.results, built.results, strict=True)
        changed = [result for result, made in pairs if made is not None and made is not result]
        before = tuple(label(node) for node in computing(changed, found.nodes))
        around = [tensor for node in found.nodes for tensor in node.inputs]
        again = self.surgeon.commit(found, built)
        inner = [scope for body in built.bodies for scope in body.scopes()]
        self.scopes.extend(inner)
        made = [*built.nodes, *(node for scope in inner for node in scope.nodes)]
        self._index({operator(node) for node in made})
        self.applied.rewrites.append(
            Rewrite(
                self.first_number + len(self.applied.rewrites),
                rule.name,
                rule.law,
                site,
                before,
                tuple(label(node) for node in built.nodes),
                windows[0] if windows else None,
                further=tuple(windows[1:]),
            )
        )
        self._queue_near(again)
        self._queue(made)
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
            if id(node) in self.queued or self.roots.isdisjoint((operator(node), ANY_OPERATOR)):
                continue
            if not self.surgeon.is_dead(node):
                self.queued.add(id(node))
                self.waiting.append(node)


def _node_of(proposal: Proposal) -> Node:
    """Return the node that a proposal is named after."""
    if isinstance(proposal, Twin):
        gone: Node = proposal.gone
        return gone
    if isinstance(proposal, Several):
        first = producer(proposal.values[0][0])
        assert first is not None
        return first
    return proposal.node


def _is_no_fault(error: Exception) -> bool:
    """Whether an error is not the rule's: weights that cannot be read, no memory left."""
    return isinstance(error, (GraphpassError, MemoryError)) and not isinstance(error, RuleError)


def _file_bytes(proto: onnx.ModelProto) -> int:
    """Return about how long the file of a skeleton is, with the weights that it refers to."""
    held = (reference_of(tensor) for tensor in tensors(proto))
    return int(proto.ByteSize()) + sum(found.length for found in held if found is not None)


def _site(node: Node) -> str:
    return str(node.outputs[0].name) if node.outputs else ""


def _failure(rule: Rule | Survey, site: str, before: tuple[str, ...], error: Exception) -> Failure:
    what = f"{type(error).__name__}: {error}".removesuffix(": ")
    if not isinstance(error, RuleError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        what += f" (in {last.name}, {Path(last.filename).name} line {last.lineno})"
    return Failure(Rewrite(0, rule.name, rule.law, site, before, ()), what)


def _may_occur(pattern: Pattern, present: set[str]) -> bool:
    """Whether a graph of these operators can hold `pattern`."""
    if isinstance(pattern, either):
        return any(_may_occur(part, present) for part in pattern.alternatives)
    if isinstance(pattern, Op):
        if pattern.ops and present.isdisjoint(operators(pattern)):
            return False
        return all(_may_occur(part, present) for part in pattern.parts)
    return True


__all__ = [
    "Applied",
    "Failure",
    "Graph",
    "Refusal",
    "Rewrite",
    "SpoiltError",
    "apply",
    "described",
]
