"""Level 2: each rewrite on its own, its nodes before and after on the same inputs.

The bound is derived from the window, element by element (see `magnitude`), so that the one wrong
rewrite among hundreds is found whatever the rest of the network does to its error. Windows of a
pass are joined into a few models and run together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.validate.process.channel import Array
from graphpass.validate.process.runtime import RunError, Runtime, Session
from graphpass.validate.window.alike import form_of, same_function
from graphpass.validate.window.bounds import allowed_error, judge, judge_stacked
from graphpass.validate.window.dilated import undilated
from graphpass.validate.window.every_row import with_every_row
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
# how a window is called, and with its side a node of it, where it is joined with others
_MARK = re.compile(r"(?<![\w/])w(\d+)/(?:before/|after/)?(?:abs/)?(?:@\d+)?")
_NODE = re.compile(r"Name:'w\d+/\w+/@\d+' ")
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
    found: set[str] = set()
    if shapes is not None:
        found.update(*(inputs_of(w) for w in windows if w is not None and needs_real_shapes(w)))
    real = (shapes(found) if shapes is not None and found else None) or {}
    probe_work = min(PROBE_WORK, _ALL_PROBE_WORK / max(len(windows), 1))
    terms = Terms(rtol, atol, probe_work, real or None, symbols or {})
    known = {index: window for index, window in enumerate(windows) if window is not None}
    owners: dict[tuple[str, ...], int] = {}
    owner_of = {
        index: owners.setdefault(
            (*same_function(window), *(str(real.get(name)) for name in inputs_of(window))), index
        )
        for index, window in known.items()
    }

    def checked(indices: Collection[int]) -> dict[int, Prepared]:
        made = {
            index: prepare(undilated(with_every_row(known[index], seed)), index, terms)
            for index in indices
        }
        return _checked(made, runtime, seed, shapes)

    done = checked(owners.values())
    # what one of them does not pass, all that are the same are asked for themselves
    done |= checked(
        [i for i, owner in owner_of.items() if i not in done and not _passed(done[owner])]
    )
    verdicts = [WindowVerdict("not run", reason="the types of its tensors are unknown")] * len(
        windows
    )
    for index, owner in owner_of.items():
        item = done.get(index, done[owner])
        verdict = item.verdict
        verdicts[index] = verdict if verdict.ok else replace(verdict, shapes=item.shapes)
    return verdicts


def _passed(item: Prepared) -> bool:
    return item.verdict.status == "ok"


def _checked(
    prepared: dict[int, Prepared],
    runtime: Runtime,
    seed: int,
    shapes: Callable[[Collection[str]], Mapping[str, Sequence[int]]] | None,
) -> dict[int, Prepared]:
    """Run windows together; what does not run, at the sizes of the network, then at any."""
    failed = _run_all(prepared, runtime, seed)
    for index, error in failed.items():
        prepared[index].verdict = WindowVerdict("not run", reason=_plain(error))
    if shapes is not None:
        prepared |= _at_real_shapes(prepared, runtime, seed, shapes)
    for index, error in failed.items():
        if not prepared[index].verdict.was_run and error.kind == "run":
            prepared[index] = _at_any_sizes(prepared[index], index, runtime, seed)
    return prepared


def _at_real_shapes(
    prepared: Mapping[int, Prepared],
    runtime: Runtime,
    seed: int,
    shapes: Callable[[Collection[str]], Mapping[str, Sequence[int]]],
) -> dict[int, Prepared]:
    """Run what did not run yet at the sizes of a run of the network; return what runs there."""
    late = {
        index: item
        for index, item in prepared.items()
        if not item.verdict.was_run and not needs_real_shapes(item.window)
    }
    names = {name for item in late.values() for name in inputs_of(item.window)}
    known = shapes(names) if names else {}
    others = {
        index: prepare(item.window, index, replace(item.terms, shapes=known), real=True)
        for index, item in late.items()
    }
    others = {index: item for index, item in others.items() if item.shapes != late[index].shapes}
    failed = _run_all(others, runtime, seed)
    return {i: item for i, item in others.items() if item.verdict.was_run and i not in failed}


def _at_any_sizes(item: Prepared, index: int, runtime: Runtime, seed: int) -> Prepared:
    """Run a window on its own with one choice of sizes after the other; as it is if none fits."""
    other = prepare(item.window, index, item.terms)
    while _run_all({index: other}, runtime, seed):
        fed = other.fed
        while other.fed == fed:
            if len(other.sizes) == 1:
                return item  # with the reason at the most natural sizes
            other = prepare(item.window, index, item.terms, other.sizes[1:])
    return other if other.verdict.was_run else item


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


def _run_all(prepared: Mapping[int, Prepared], runtime: Runtime, seed: int) -> dict[int, RunError]:
    """Run windows in groups; return those that do not run, and what ONNX Runtime says of it."""
    told = {index: item for index, item in prepared.items() if item.verdict.was_run}
    failed: dict[int, RunError] = {}
    for group in _groups(told):
        failed |= _check_group({index: told[index] for index in group}, runtime, seed)
    return failed


def _check_group(group: Mapping[int, Prepared], runtime: Runtime, seed: int) -> dict[int, RunError]:
    """Run windows together, without those that do not run; return these.

    What is alike to one that does not run at its sizes is taken for another.
    """
    try:
        _run_group(list(group.values()), runtime, seed)
    except RunError as error:
        if len(group) == 1:
            ((index, item),) = group.items()
            if item.magnitudes is None:
                return {index: error}
            item.magnitudes = None  # the bound may have no kernel where the window has
            return _check_group(group, runtime, seed)
        apart = _apart(group, error)
        if not apart:
            return dict.fromkeys(group, error)
        return {i: e for part in apart for i, e in _check_group(part, runtime, seed).items()}
    return {}


def _apart(group: Mapping[int, Prepared], error: RunError) -> list[dict[int, Prepared]]:
    """Take out what is alike to the window that an error names; none is left where all are.

    Where it names none, the two halves.
    """
    indices = list(group)
    named = [int(number) for number in _MARK.findall(str(error)) if int(number) in group]
    if named and error.kind in ("load", "run"):
        form = form_of(group[named[0]].window, sizes=False)
        like = [index for index in indices if form_of(group[index].window, sizes=False) == form]
        parts = [[index for index in indices if index not in set(like)], like]
        if parts[0]:
            return [{index: group[index] for index in part} for part in parts]
        if error.kind == "run":
            return []
    middle = len(indices) // 2
    parts = [indices[:middle], indices[middle:]]
    return [{index: group[index] for index in part} for part in parts]


def _plain(error: RunError) -> str:
    """Return what ONNX Runtime says without the names that windows have here."""
    return _MARK.sub("", _NODE.sub("", str(error)))


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
