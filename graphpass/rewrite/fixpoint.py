"""The rules of a pass at work until none fits: removals, surveys, then site by site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from graphpass.errors import GraphpassError, RuleError
from graphpass.ir.model import Model
from graphpass.ir.nodes import Constant, Graph, Node
from graphpass.ir.questions import is_output, is_unread, label, operator, producer
from graphpass.ir.refusal import RefusedError
from graphpass.rewrite.applied import Applied, Failure, Refusal, Rewrite, SpoiltError
from graphpass.rewrite.building import Builder, Built
from graphpass.rewrite.choice import Chooser, Offer
from graphpass.rewrite.making import built_by, proposed
from graphpass.rewrite.match import Match, computing, match
from graphpass.rewrite.rule import Pass, Rule
from graphpass.rewrite.site import site_windows
from graphpass.rewrite.surgery import Surgeon
from graphpass.rewrite.survey import Proposal, Several, Survey, Twin
from graphpass.rewrite.window import Window, capture, capture_constants
from graphpass.rewrite.worklist import Worklist


@dataclass(frozen=True)
class Orders:
    """What whoever runs a pass asks for (see `driver.apply`)."""

    limit: int | None
    quarantine: frozenset[tuple[str, str]]
    left_out: frozenset[str]
    windows: bool
    first_number: int
    progress: Callable[[], None]
    chooser: Chooser


class Fixpoint:
    """The rules of one pass at work in the scopes of one model."""

    def __init__(
        self, step: Pass, model: Model, scopes: list[Graph], applied: Applied, orders: Orders
    ) -> None:
        """`applied`: what is done is noted there, behind what was done before."""
        self._step = step
        self._scopes = scopes
        self._applied = applied
        self._orders = orders
        self._quarantine = orders.quarantine | {f.rewrite.key for f in applied.failures}
        self._builder = Builder(model.store, lambda: model.names, model.proto.ir_version)
        self._surgeon = Surgeon(self._builder.fresh)
        rules = [rule for rule in step.rules if self._is_tried(rule)]
        self._nodes = Worklist(rules, self._surgeon.is_dead)
        self._nodes.index({operator(node) for scope in scopes for node in scope.nodes})
        self._refused: dict[tuple[int, str], tuple[Node, Refusal]] = {}

    def _is_tried(self, rule: Rule) -> bool:
        choice = rule.choice or self._step.choice
        return choice is None or self._orders.chooser.tries(choice)

    def reach(self, spare_bytes: int) -> None:
        """Apply everything until nothing fits; `spare_bytes`: see `Survey.find`."""
        if not (self._nodes.has_rules or self._step.sweeps or self._step.surveys):
            return
        for scope in self._scopes:
            self._nodes.queue(scope.nodes)
        if self._step.sweeps:
            self._sweep()
        nodes = sum(len(scope.nodes) for scope in self._scopes)
        most = len(self._applied.rewrites) + 100 * nodes + 1000
        done = -1
        while len(self._applied.rewrites) > done:
            # what rules made may be equal or constant, and what surveys did lets rules fit
            done = len(self._applied.rewrites)
            for survey in self._step.surveys:
                self._look_at_all(survey, spare_bytes)
            spare_bytes = 0
            self._drain(most)
            self._surgeon.close(self._scopes)
            if not self._step.surveys or self._is_full():
                break
        self._applied.refusals.extend(
            refusal for node, refusal in self._refused.values() if node.outputs
        )

    def _drain(self, most: int) -> None:
        """Visit the nodes on the list, and those that come onto it; `most` rewrites in all."""
        for node in self._nodes:
            if self._is_full():
                break
            if node.outputs and not self._surgeon.is_dead(node):
                self._visit(node)
            if len(self._applied.rewrites) > most:
                last = self._applied.rewrites[-1]
                raise RuleError(f"rule {last.rule} does not come to an end (last at '{last.site}')")

    def _sweep(self) -> None:
        """Remove what nothing reads, each node and initializer as a rewrite of its own."""
        for scope in self._scopes:
            for node in reversed(scope.nodes):
                if self._is_left_out([node]):
                    continue
                if not self._surgeon.is_dead(node) and is_unread(node):
                    site = next(tensor.name for tensor in node.outputs if tensor.name)
                    self._remove("UnreadNode", site, label(node), node)
            for tensor in list(scope.initializers):
                if not (self._surgeon.is_dead(tensor) or tensor.outputs or is_output(tensor)):
                    self._remove("UnreadInitializer", tensor.name, f"'{tensor.name}'", tensor)

    def _remove(self, rule: str, site: str, shown: str, what: Node | Constant) -> None:
        if self._is_full() or (rule, site) in self._quarantine:
            return
        if isinstance(what, Constant):
            self._surgeon.remove_constant(what)
        else:
            self._surgeon.remove(what)
        law = "what nothing reads = nothing"
        self._note(rule, law, site, (shown,), (), is_removal=True)

    def _look_at_all(self, survey: Survey, spare_bytes: int) -> None:
        """Do what a survey finds, scope by scope, outer ones first."""
        if survey.stands_or_falls and any(rule == survey.name for rule, _ in self._quarantine):
            return
        for index, scope in enumerate(self._scopes):
            where = f"'{scope.name}'" if scope.name else "the graph"
            if (survey.name, where) in self._quarantine:
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
        if (survey.name, _site(node)) in self._quarantine or self._is_left_out(nodes):
            return
        try:
            found, built = proposed(proposal, self._builder)
            windows = capture(found, built) if self._orders.windows else []
            self._commit_or_spoil(survey, found, built, windows)
        except RefusedError as refusal:
            refused = Refusal.of(survey.name, label(node), refusal)
            self._refused[id(node), survey.name] = (node, refused)
        except (GraphpassError, MemoryError):
            raise
        except Exception as error:
            self._note_failure(survey, _site(node), (label(node),), error)

    def _merge_constants(self, survey: Survey, gone: Constant, kept: Constant) -> None:
        if (survey.name, gone.name) in self._quarantine:
            return
        reader: Node = gone.outputs[0]
        window = capture_constants(reader.graph, gone, kept) if self._orders.windows else None
        try:
            again = self._surgeon.merge_constants(gone, kept)
        except RefusedError as refusal:
            refused = Refusal.of(survey.name, f"'{gone.name}'", refusal)
            self._refused[id(reader), survey.name] = (reader, refused)
            return
        before, after = (f"'{gone.name}'",), (f"'{kept.name}'",)
        self._note(survey.name, survey.law, gone.name, before, after, [window])
        self._nodes.queue_near(again)

    def _is_full(self) -> bool:
        limit = self._orders.limit
        return limit is not None and len(self._applied.rewrites) >= limit

    def _note(
        self,
        rule: str,
        law: str,
        site: str,
        before: tuple[str, ...],
        after: tuple[str, ...],
        windows: Sequence[Window | None] = (),
        is_removal: bool = False,
    ) -> None:
        number = self._orders.first_number + len(self._applied.rewrites)
        window = windows[0] if windows else None
        further = tuple(windows[1:])
        self._applied.rewrites.append(
            Rewrite(number, rule, law, site, before, after, window, None, further, is_removal)
        )
        self._orders.progress()

    def _visit(self, node: Node) -> None:
        for rule in self._nodes.rules_at(node):
            if self._refused:
                self._refused.pop((id(node), rule.name), None)
            if self._quarantine and (rule.name, _site(node)) in self._quarantine:
                continue
            found = self._match(rule, node)
            if isinstance(found, Node):
                self._nodes.queue([found])
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
        left_out = self._orders.left_out
        return bool(left_out) and any((node.name or _site(node)) in left_out for node in nodes)

    def _try(self, rule: Rule, found: Match) -> bool:
        if self._is_left_out(found.nodes):
            return False
        if found.blockers:
            return self._refuse(rule, found, found.blockers[0])
        try:
            built = built_by(rule, found, self._builder)
            if built is None or self._is_left_out(found.nodes):
                return False
            self._choose(rule, found, built)
            windows = capture(found, built) if self._orders.windows else []
        except RefusedError as refusal:
            return self._refuse(rule, found, refusal)
        except Exception as error:
            if isinstance(error, MemoryError) or (
                isinstance(error, GraphpassError) and not isinstance(error, RuleError)
            ):
                raise  # weights that cannot be read are no rule's fault
            labels = tuple(label(node) for node in found.nodes)
            return self._note_failure(rule, _site(found.root), labels, error)
        try:
            self._commit_or_spoil(rule, found, built, windows)
        except RefusedError as refusal:
            return self._refuse(rule, found, refusal)
        return True

    def _choose(self, rule: Rule, found: Match, built: Built) -> None:
        """Let the chooser look at a rewrite that is a choice. Raises `RefusedError`."""
        choice = rule.choice or self._step.choice
        if choice is not None:
            windows = partial(site_windows, found, built)
            self._orders.chooser.decide(
                Offer(self._step.name, rule.name, _site(found.root), choice, windows)
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
            raise SpoiltError(Failure.of(rule, *place, error)) from error

    def _note_failure(
        self, rule: Rule | Survey, site: str, before: tuple[str, ...], error: Exception
    ) -> bool:
        failure = Failure.of(rule, site, before, error)
        self._applied.failures.append(failure)
        self._quarantine |= {failure.rewrite.key}
        return False

    def _refuse(self, rule: Rule, found: Match, refused: RefusedError) -> bool:
        refusal = Refusal.of(rule.name, label(found.root), refused)
        self._refused[id(found.root), rule.name] = (found.root, refusal)
        return False

    def _commit(
        self, rule: Rule | Survey, found: Match, built: Built, windows: list[Window | None]
    ) -> None:
        site = _site(found.root)
        pairs = zip(found.results, built.results, strict=True)
        changed = [result for result, made in pairs if made is not None and made is not result]
        before = tuple(label(node) for node in computing(changed, found.nodes))
        around = [tensor for node in found.nodes for tensor in node.inputs]
        again = self._surgeon.commit(found, built)
        self._builder.remember(built)
        inner = [scope for body in built.bodies for scope in body.scopes()]
        self._scopes.extend(inner)
        made = [*built.nodes, *(node for scope in inner for node in scope.nodes)]
        self._nodes.index({operator(node) for node in made})
        self._nodes.queue_near(again)
        self._nodes.queue(made)
        self._nodes.queue_around(around)
        after = tuple(label(node) for node in built.nodes)
        self._note(rule.name, rule.law, site, before, after, windows)


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


def _site(node: Node) -> str:
    return str(node.outputs[0].name) if node.outputs else ""
