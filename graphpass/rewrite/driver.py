"""Apply the rules of a pass to a model until none fits.

Greedy: what it did may make a shape known or let another rule pay, so that it begins anew until
nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from graphpass.errors import RuleError
from graphpass.ir.model import Model, collection_paused
from graphpass.ir.refusal import RefusedError
from graphpass.ir.writer import unwritten
from graphpass.rewrite.applied import Applied, Refusal
from graphpass.rewrite.choice import ByCost, Chooser
from graphpass.rewrite.fixpoint import Fixpoint, Orders
from graphpass.rewrite.guard import guarded
from graphpass.rewrite.rule import Pass
from graphpass.storage.reference import reference_of, tensors

# How often a pass may begin anew, since what it did made a shape known or another rule pay.
_MOST_ROUNDS = 32


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
    orders = Orders(
        limit,
        quarantine,
        left_out,
        windows,
        first_number,
        progress or (lambda: None),
        ByCost() if chooser is None else chooser,
    )
    with guarded(f"pass {step.name}", time_limit_s):
        return _apply(step, model, orders, by_hand)


@collection_paused()
def _apply(step: Pass, model: Model, orders: Orders, by_hand: bool) -> Applied:
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
            Fixpoint(step, model, scopes, applied, orders).reach(spare_bytes)
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


def _file_bytes(proto: onnx.ModelProto) -> int:
    """Return about how long the file of a skeleton is, with the weights that it refers to."""
    held = (reference_of(tensor) for tensor in tensors(proto))
    return int(proto.ByteSize()) + sum(found.length for found in held if found is not None)
