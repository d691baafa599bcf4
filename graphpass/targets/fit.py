"""Does a model fit a target? Node by node: which limit fails, who says so, what would help."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from graphpass.ir.cost import node_costs
from graphpass.ir.model import Model
from graphpass.ir.nodes import Constant, Graph, Node
from graphpass.ir.questions import constant, label, operator, producer
from graphpass.ir.refusal import RefusedError
from graphpass.rewrite.registry import make
from graphpass.targets.expression import UnknownValueError
from graphpass.targets.facts import facts_of
from graphpass.targets.profile import Limit, Profile, Source

_CANNOT_BE_TOLD = "cannot be told"
_FIX_SIZES = "fix the sizes: optimize --set-shape NAME=SIZES"
_WRITES_OUT = "write-out"


@dataclass(frozen=True)
class Misfit:
    """A node that the target does not take. `reason`: one sentence with the values it has.

    `advice`: what would make it fit, where the reason does not say it.
    """

    node: str
    operator: str
    reason: str
    source: Source
    advice: str


@dataclass(frozen=True)
class Fit:
    """What a target takes of a model, and what not.

    `nodes_on`: how many of `nodes` it takes. `multiply_adds` of nodes that fit and in all, None
    where sizes are unknown. `partitions`: into how many pieces the nodes that fit fall, each of
    which can run in one go.
    """

    target: str
    nodes: int
    nodes_on: int
    misfits: tuple[Misfit, ...]
    multiply_adds_on: int | None
    multiply_adds: int | None
    partitions: int


def fit(model: Model, profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> Fit:
    """Say what `profile` takes of `model`. `shapes`: of the inputs, for counting multiply-adds.

    Nodes that compute constants count as part of what reads them: a compiler folds them.
    """
    scopes = model.scopes()
    nodes = [node for scope in scopes for node in scope.nodes if not _is_constant(node)]
    found = [(node, list(_misfits(node, profile))) for node in nodes]
    off = {id(node) for node, misfits in found if misfits}
    counted: dict[str, deque[int | None]] = {}  # several nodes may be of one name
    for entry in node_costs(model.proto, shapes):
        counted.setdefault(entry.node, deque()).append(entry.multiply_adds)
    costs = [counts.popleft() if (counts := counted.get(_key(node))) else 0 for node in nodes]
    on = [cost for node, cost in zip(nodes, costs, strict=True) if id(node) not in off]
    return Fit(
        profile.name,
        len(nodes),
        len(on),
        tuple(misfit for _, misfits in found for misfit in misfits),
        None if None in on else sum(filter(None, on)),
        None if None in costs else sum(filter(None, costs)),
        sum(_partitions(scope, off) for scope in scopes),
    )


def _key(node: Node) -> str:
    return str(node.name or node.outputs[0].name)


def _is_constant(node: Node) -> bool:
    return bool(node.outputs) and all(
        isinstance(tensor, Constant) or constant(tensor) is not None
        for tensor in node.outputs
        if tensor.name
    )


def _misfits(node: Node, profile: Profile) -> Iterator[Misfit]:
    name = operator(node)
    if profile.operators and name not in profile.operators:
        source = next(iter(profile.operators.values()))
        reason = f"{name} is not among the operators it takes"
        yield Misfit(label(node), name, reason, source, _instead_of(name))
        return
    values = facts_of(node)
    for limit in profile.limits:
        if limit.concerns(name) and (reason := _failure(limit, values)):
            advice = limit.advice or (_FIX_SIZES if _CANNOT_BE_TOLD in reason else "")
            yield Misfit(label(node), name, reason, limit.source, advice)


def _instead_of(name: str) -> str:
    """Say how to do without an operator that the target lacks."""
    written_out = {root for rule in make(_WRITES_OUT).rules for root in rule.roots}
    if name in written_out:
        return f"in smaller operators: optimize --passes '{_WRITES_OUT}{{operators={name}}}'"
    return f"the network has to do without {name}: nothing here says it in other operators"


def _failure(limit: Limit, values: Mapping[str, object]) -> str:
    """Return why a limit fails; empty where it holds."""
    try:
        if limit.when is not None and not limit.when.holds(values):
            return ""
        if limit.holds.holds(values):
            return ""
    except UnknownValueError as unknown:
        return f"{limit.holds.text} {_CANNOT_BE_TOLD}: {unknown} is not known"
    except (ArithmeticError, TypeError, RefusedError) as error:
        return f"{limit.holds.text} {_CANNOT_BE_TOLD}: {error}"
    shown = ", ".join(f"{name} = {values[name]}" for name in limit.holds.names)
    return f"{limit.holds.text} does not hold: {shown}"


def _partitions(graph: Graph, off: set[int]) -> int:
    """Count the pieces of `graph` that the target can run in one go.

    A node belongs to a piece with its producers unless a path between them leaves the target: a
    level grows where the target is entered again, and pieces are what hangs together in a level.
    """
    levels: dict[int, int] = {}
    pieces: dict[int, int] = {}  # union-find over nodes by identity

    def root(key: int) -> int:
        while pieces[key] != key:
            pieces[key] = pieces[pieces[key]]
            key = pieces[key]
        return key

    nodes = [node for node in graph.nodes if not _is_constant(node)]
    for node in nodes:  # producers come first
        sources = [source for t in node.inputs if (source := producer(t)) is not None]
        sources = [source for source in sources if id(source) in levels]
        is_on = id(node) not in off
        entered = [levels[id(s)] + (is_on and id(s) in off) for s in sources]
        level = levels[id(node)] = max(entered, default=0)
        if not is_on:
            continue
        pieces[id(node)] = id(node)
        for source in sources:
            if id(source) in pieces and levels[id(source)] == level:
                pieces[root(id(source))] = root(id(node))
    return len({root(key) for key in pieces})
