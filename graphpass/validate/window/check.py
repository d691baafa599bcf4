"""Level 2: each rewrite on its own, its nodes before and after on the same inputs.

The bound is derived from the window, element by element (see `magnitude`), so that the one wrong
rewrite among hundreds is found whatever the rest of the network does to its error. Windows of a
pass are joined into a few models and run together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.validate.process.channel import Array
from graphpass.validate.process.runtime import RunError, Runtime, Session
from graphpass.validate.window.bounds import allowed_error, judge, judge_stacked
from graphpass.validate.window.dilated import undilated
from graphpass.validate.window.feeds import KINDS, Draws
from graphpass.validate.window.heavy import acquits, is_heavy
from graphpass.validate.window.joined import joined
from graphpass.validate.window.prepare import (
    PROBE_WORK,
    Fed,
    Prepared,
    Terms,
    inputs_of,
    needs_real_shapes,
    picks_otherwise,
    prepare,
)

_WEIGHT_BYTES = 192 << 20  # that one joined model may refer to
_COMPUTED_BYTES = 64 << 20  # of what goes there and comes back
_COPIES = 16  # bytes of one input element: itself, before, after, bound
_ALL_PROBE_WORK = 2e8  # multiplications for the probes of all windows: less than the network's


def check_windows(
    windows: Sequence[Window | None],
    runtime: Runtime,
    *,
    seed: int = 0,
    rtol: float = 0.0,
    atol: float = 0.0,
    shapes: Callable[[Collection[str]], Mapping[str, Sequence[int]]] | None = None,
    symbols: Mapping[str, int] | None = None,
) -> list[WindowVerdict]:
    """Run each window before and after on the same inputs and compare against its own bound.

    `rtol` (of the output's largest magnitude) and `atol` are allowed beyond the bound. `shapes`
    gives those that values have in one run of the network, in which `symbols` have these sizes,
    for windows that run with no others.
    A window that ONNX Runtime cannot run is "not run": a later level has to answer for it.
    """
    verdicts = [WindowVerdict("not run", reason="the types of its tensors are unknown")] * len(
        windows
    )
    prepared: dict[int, Prepared] = {}
    probe_work = min(PROBE_WORK, _ALL_PROBE_WORK / max(len(windows), 1))
    found: set[str] = set()
    if shapes is not None:
        found.update(*(inputs_of(w) for w in windows if w is not None and needs_real_shapes(w)))
    real = (shapes(found) if shapes is not None and found else None) or None
    terms = Terms(rtol, atol, probe_work, real, symbols or {})
    for index, window in enumerate(windows):
        if window is not None:
            prepared[index] = prepare(undilated(window), index, terms)
    told = {index: item for index, item in prepared.items() if item.verdict.was_run}
    for group in _groups(told):
        _check_group([prepared[index] for index in group], runtime, seed)
    if shapes is not None:
        prepared |= _at_real_shapes(prepared, runtime, seed, shapes)
    for index, item in prepared.items():
        verdicts[index] = item.verdict
        if not item.verdict.ok:
            verdicts[index] = replace(item.verdict, shapes=item.shapes)
    return verdicts


def _at_real_shapes(
    prepared: Mapping[int, Prepared],
    runtime: Runtime,
    seed: int,
    shapes: Callable[[Collection[str]], Mapping[str, Sequence[int]]],
) -> dict[int, Prepared]:
    """Run what no sizes made up fit at those of a run of the network; return what was run so."""
    late = {
        index: item
        for index, item in prepared.items()
        if not item.verdict.was_run and not needs_real_shapes(item.window)
    }
    names = {name for item in late.values() for name in inputs_of(item.window)}
    known = shapes(names) if names else {}
    done = {}
    for index, item in late.items():
        other = prepare(item.window, index, replace(item.terms, shapes=known), real=True)
        if other.verdict.was_run and other.shapes != item.shapes:
            _check_group([other], runtime, seed)
            if other.verdict.was_run:
                done[index] = other
    return done


def _groups(prepared: Mapping[int, Prepared]) -> Iterator[list[int]]:
    """Join windows of the same operator sets as long as they are small together."""
    group: list[int] = []
    weights, computed, opsets = 0, 0, ""
    for index, item in prepared.items():
        own = str(sorted((o.domain, o.version) for o in item.window.before.opset_import))
        # without inputs, what comes back is made of the weights
        own_computed = _COPIES * _fed_elements(item) if item.shapes else 2 * item.weight_bytes
        weights, computed = weights + item.weight_bytes, computed + own_computed
        is_full = weights > _WEIGHT_BYTES or computed > _COMPUTED_BYTES
        if group and (is_full or own != opsets):
            yield group
            group, weights, computed = [], item.weight_bytes, own_computed
        group.append(index)
        opsets = own
    if group:
        yield group


def _fed_elements(item: Prepared) -> int:
    """Return how many elements a window is fed at once, of inputs whose values count."""
    if not item.fed.probes:
        return item.elements
    ((shape, _),) = item.fed.inputs
    if not shape:  # of rank 0, all of it is one element
        return item.elements
    rows = max(shape[0], item.fed.probes)
    if item.fed.stack_axis is not None:
        rows = 3 * shape[0] + item.fed.probes * (2 if item.fed.is_sampled else 1)
    return item.elements * rows // max(shape[0], 1)


def _check_group(group: Sequence[Prepared], runtime: Runtime, seed: int) -> None:
    try:
        _run_group(group, runtime, seed)
    except RunError as error:
        if len(group) > 1:
            middle = len(group) // 2
            _check_group(group[:middle], runtime, seed)
            _check_group(group[middle:], runtime, seed)
        elif group[0].magnitudes is not None:
            group[0].magnitudes = None  # the bound may have no kernel where the window has
            _check_group(group, runtime, seed)
        else:
            group[0].verdict = _retried(group[0], runtime, seed, error)


def _retried(item: Prepared, runtime: Runtime, seed: int, error: RunError) -> WindowVerdict:
    """Try a window with other sizes; where none fits it is "not run"."""
    if error.kind != "run" or len(item.sizes) == 1:
        return WindowVerdict("not run", reason=str(error))
    index = int(item.mark[1:-1])
    other = prepare(item.window, index, item.terms, item.sizes[1:])
    _check_group([other], runtime, seed)
    if other.verdict.status == "not run":
        return WindowVerdict("not run", reason=str(error))  # of the most natural sizes
    return other.verdict


def _run_group(group: Sequence[Prepared], runtime: Runtime, seed: int) -> None:
    draws = Draws(seed)
    group = [item for item in group if not (is_heavy(item) and acquits(item, runtime, draws))]
    stacked = [item for item in group if item.fed.stack_axis is not None]
    if stacked:
        batch = _Batch(stacked)
        with runtime.load(batch.model, whole=True) as session:
            batch.run_stacked(session, draws)
    computing = [item for item in group if not item.exact and item.fed.stack_axis is None]
    if computing:
        batch = _Batch(computing)
        with runtime.load(batch.model, whole=True) as session:
            for kind in _kinds(computing):
                batch.run(kind, computing, session, draws)
    moving = [item for item in group if item.exact]
    if moving:
        # elements that only move do so whatever they are, once no two are the same
        picking = [item for item in moving if picks_otherwise(item.window)]
        strict = [item for item in moving if not picks_otherwise(item.window)]
        batch = _Batch(moving)
        with runtime.load(batch.model, whole=True) as session:
            batch.run("normal", moving, session, draws)
            if strict:
                batch.run("non-finite", strict, session, draws)
            if picking:  # the largest of many is hardly ever negative
                batch.run("negative", picking, session, draws)


def _kinds(items: Sequence[Prepared]) -> list[str]:
    sampled = any(item.fed.is_sampled for item in items)
    return [kind for kind in KINDS if kind != "columns" or sampled]


class _Batch:
    """Windows that run together: one model, whose inputs are shared by windows fed the same."""

    def __init__(self, items: Sequence[Prepared]) -> None:
        owners: dict[Fed, Prepared] = {}
        self._items = items
        self._owners = [owners.setdefault(item.fed, item) for item in items]
        self.model = joined(items, self._owners)

    def run(self, kind: str, judged: Sequence[Prepared], session: Session, draws: Draws) -> None:
        """Run on inputs of one kind."""
        drawn = {item.mark: draws.of(item, kind) for item in self._items}
        feeds = self._feeds(lambda item: drawn[item.mark].values)
        outputs = session.run(feeds).outputs
        for item in judged:
            judge(item, drawn[item.mark], *_sides(item, outputs))

    def run_stacked(self, session: Session, draws: Draws) -> None:
        """Run all kinds of inputs at once, where that makes no difference."""
        drawn = {
            item.mark: [draws.of(item, kind) for kind in _kinds([item])] for item in self._items
        }
        feeds = self._feeds(
            lambda item: {
                name: _stacked([draw.values[name] for draw in drawn[item.mark]], item)
                for name in item.shapes
            }
        )
        outputs = session.run(feeds).outputs
        for item in self._items:
            before, after, size = _sides(item, outputs)
            before, after = _unstacked(before, item), _unstacked(after, item)
            size = None if size is None else _unstacked(size, item)
            judge_stacked(item, drawn[item.mark], before, after, size)

    def _feeds(self, values: Callable[[Prepared], Mapping[str, Array]]) -> dict[str, Array]:
        owners = {owner.mark: owner for owner in self._owners}.values()
        return {
            owner.mark + name: array for owner in owners for name, array in values(owner).items()
        }


def _stacked(arrays: Sequence[Array], item: Prepared) -> Array:
    rows: Array = np.concatenate(arrays)
    return rows if item.fed.stack_axis == 0 else np.swapaxes(rows, 0, -1)


def _unstacked(array: Array, item: Prepared) -> Array:
    return array if item.fed.stack_axis == 0 else np.swapaxes(array, 0, -1)


def _sides(item: Prepared, outputs: Mapping[str, Any]) -> tuple[Array, Array, Array | None]:
    """Return the output before and after, and how large its sums are, where that is known."""
    before, after, size = (
        outputs.get(f"{item.mark}{side}/{item.window.output}")
        for side in ("before", "after", "before/abs")
    )
    return np.asarray(before), np.asarray(after), None if size is None else np.asarray(size)


@dataclass(frozen=True)
class Example:
    """A window on one feed: its inputs, both outputs, and how far they may be apart."""

    inputs: dict[str, Array]
    before: Array
    after: Array
    allowed: Array

    @property
    def differs(self) -> bool:
        """Whether the two outputs are further apart than allowed: what a reproducer shows."""
        if self.before.dtype != self.after.dtype or self.before.shape != self.after.shape:
            return True
        if self.before.dtype.kind != "f":
            return not np.array_equal(self.before, self.after)
        finite = np.isfinite(self.before) & np.isfinite(self.after)
        if not np.array_equal(self.before[~finite], self.after[~finite], equal_nan=True):
            return True
        error = np.abs(self.before[finite].astype(np.float64) - self.after[finite])
        return bool((error > np.broadcast_to(self.allowed, self.before.shape)[finite]).any())


def example(
    window: Window,
    kind: str,
    runtime: Runtime,
    *,
    seed: int = 0,
    rtol: float = 0,
    atol: float = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Example | None:
    """Run a window once more on inputs of one kind, as it was run; None where it cannot be run.

    `shapes`: those of its inputs where they were not made up.
    """
    sizes: Sequence[tuple[int, int]] | None = None
    while sizes is None or sizes:
        item = prepare(window, 0, Terms(rtol, atol, shapes=shapes or None), sizes)
        sizes = item.sizes[1:]
        draw = Draws(seed).of(item, kind or "normal")
        feeds = {item.mark + name: array for name, array in draw.values.items()}
        try:
            with runtime.load(_Batch([item]).model, whole=True) as session:
                outputs = session.run(feeds).outputs
        except RunError:
            continue
        before, after, size = _sides(item, outputs)
        allowed = np.zeros(())
        if not item.exact and before.dtype.kind not in "iubOSU":
            everywhere = np.ones(before.shape, bool)
            allowed = allowed_error(item, before, size, everywhere, draw.active, draw.kind)[0]
            allowed = allowed.reshape(before.shape) if allowed.ndim else allowed
        return Example(draw.values, before, after, allowed)
    return None
