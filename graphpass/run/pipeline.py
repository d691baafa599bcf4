"""Apply pass after pass, check what came of it, keep it or find what was wrong.

Each rewrite is checked on its own, the model as a whole once all passes are through. Only where
that fails, which a rewrite has to slip through its own check for, everything is done again with a
check after each pass, and the pass that fails is bisected: replaying its first n rewrites is
deterministic, so a binary search over n finds one with which the model is wrong and without which
it is not. What is wrong is undone and quarantined, the rest is replayed and checked again.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import onnx

from graphpass.errors import DifferenceError, GraphpassError, RuleError, RuntimeUnavailableError
from graphpass.ir.model import Model
from graphpass.report.data import Check, PassReport, Quarantined
from graphpass.report.summary import counted
from graphpass.rewrite.applied import Applied, Rewrite, SpoiltError, described
from graphpass.rewrite.choice import Chooser
from graphpass.rewrite.driver import apply
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.rule import Pass
from graphpass.run.judge import Judge
from graphpass.run.proving import prove

_log = logging.getLogger(__name__)

# Passes make work for each other: the whole list is run again until a round changes nothing.
MAX_ROUNDS = 8
# A rule that was caught this often is wrong as such, and not tried further in its pass.
_STRIKES = 3
# A pass that is still wrong after so many attempts is undone as a whole.
_MAX_ATTEMPTS = 32

# Told what is being done, and how much of the whole is done (0 to 1).
Progress = Callable[[str, float], None]


class _InDoubtError(Exception):
    """The model is wrong, and more than one pass may have made it so."""


@dataclass
class _State:
    """What is remembered of a pass; `before`: the model that it is applied to."""

    step: Pass
    report: PassReport
    before: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    interface_may_change: Interface = Interface.NOTHING
    quarantine: set[tuple[str, str]] = field(default_factory=set)
    over: bool = False  # it was undone as a whole and is not run again
    has_run: bool = False  # its `run` has done its work
    settled_at: int = -1  # the version of the model that it has nothing more to do on

    @classmethod
    def of(cls, step: Pass) -> _State:
        return cls(step, PassReport(step.name, step.options))

    @property
    def by_hand(self) -> bool:
        """Whether the pass changes the model other than by rules, now."""
        return self.step.is_by_hand and not self.has_run


class Pipeline:
    """Runs passes over a model, which is changed in place, each of them through the judge."""

    def __init__(
        self,
        model: Model,
        judge: Judge,
        steps: Sequence[Pass],
        *,
        strict: bool = False,
        max_rewrites: int | None = None,
        left_out: frozenset[str] = frozenset(),
        keep_windows: bool = False,
        progress: Progress | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        """`strict`: stop at the first thing that would have to be undone.

        `left_out`: names of nodes that no rewrite may touch.
        `keep_windows`: keep the nodes before and after also of rewrites that are right. `chooser`:
        decides on rules that are a choice; None: what is less work by counting.
        """
        self.model = model
        self.judge = judge
        self.strict = strict
        self.max_rewrites = max_rewrites
        self.left_out = left_out
        self.keep_windows = keep_windows
        self.chooser = chooser
        self.progress = progress or (lambda text, done: None)
        self.rounds = 0
        self.settled = False
        self.interface_may_change = Interface.NOTHING
        # the model before the first pass, and after each that changed it: what latency blames
        self._version = 0  # of the model: how often a pass changed it
        self._held = 0, _copy(model.proto)
        self.stages: list[tuple[str, onnx.ModelProto]] = [("", self._held[1])]
        self._states = [_State.of(step) for step in steps]
        self._unchecked: list[_State] = []  # passes that were kept since the last check
        self._careful = False  # whether each pass is checked before the next one begins

    @property
    def reports(self) -> list[PassReport]:
        """What each pass did."""
        return [state.report for state in self._states]

    @property
    def by_hand(self) -> list[PassReport]:
        """What those passes did that change the model other than by rules."""
        return [state.report for state in self._states if state.by_hand]

    @property
    def declared(self) -> list[PassReport]:
        """What those passes did that declare to change the interface."""
        return [state.report for state in self._states if state.step.changes_interface]

    @property
    def lossy(self) -> list[PassReport]:
        """What those passes did that may compute less precisely."""
        declared = [(Interface.of(s.step.changes_interface), s.report) for s in self._states]
        return [report for may, report in declared if Interface.PRECISION in may]

    def run(self) -> None:
        """Run the passes in order, and again until nothing changes.

        Raises `DifferenceError` where `strict` and something is wrong.
        """
        undone = [(state.quarantine.copy(), state.over) for state in self._states]
        try:
            self._run_rounds()
        except _InDoubtError:
            self._start_over(undone)
            self._run_rounds()
        self._require_proof()

    def _run_rounds(self) -> None:
        while not self.settled and self.rounds < MAX_ROUNDS:
            if self.rounds:
                # as the next run on what is delivered will see it, inferred shapes included
                self.model.reread(names=True)
            self.rounds += 1
            changed = [self._run(index, state) for index, state in enumerate(self._states)]
            self.settled = not any(changed)
        if self._unchecked:
            self.progress("the whole model", 1.0)
            self._require_ok(self._check(self._unchecked[-1]))

    def _start_over(self, undone: Sequence[tuple[set[tuple[str, str]], bool]]) -> None:
        """Forget everything but what was left out from the beginning."""
        self._careful = True
        self.model.restore(self.stages[0][1])
        self._version += 1
        self._held = self._version, self.stages[0][1]
        del self.stages[1:]
        self.rounds, self.settled = 0, False
        self.interface_may_change = Interface.NOTHING
        self._unchecked.clear()
        self._states[:] = [_State.of(state.step) for state in self._states]
        for state, (quarantine, over) in zip(self._states, undone, strict=True):
            state.quarantine, state.over = quarantine, over

    def _snapshot(self) -> onnx.ModelProto:
        """Return a copy of the model as it is, the same one until a pass changes it."""
        version, held = self._held
        if version != self._version:
            held = _copy(self.model.proto)
            self._held = self._version, held
        return held

    def _require_ok(self, check: Check) -> None:
        """Note a check for all passes that it answers for; raise where one of them is to blame."""
        if not check.ok:
            raise _InDoubtError
        for state in self._unchecked:
            state.report.check = check
        self._unchecked.clear()

    def leave_out(self, reports: Sequence[PassReport]) -> None:
        """Begin where another run ended: what it undid is not tried."""
        for state, report in zip(self._states, reports, strict=True):
            state.quarantine.update(entry.rewrite.key for entry in report.quarantined)
            state.over = bool(report.reason)

    @property
    def unproven(self) -> bool:
        """Whether nothing was run beside what it replaces: not the model, nor any rewrite."""
        proofs = (rewrite.proof for report in self.reports for rewrite in report.rewrites)
        return bool(self.judge.not_run) and not any(p is not None and p.was_run for p in proofs)

    def _require_proof(self) -> None:
        """Raise where the original does not run, and no rewrite on its own does either."""
        if self.judge.runs or not self.judge.validates or not self.unproven:
            return
        undone = [entry.reason for report in self.reports for entry in report.quarantined]
        undone += [report.reason for report in self.reports if report.reason]
        # a pass that failed of the same limit says nothing new
        limit = f" within {self.judge.options.time_limit_s or 0:g} s"
        known = not undone or (limit in undone[0] and limit in self.judge.not_run)
        why = "" if known else f", and {undone[0]}"
        raise RuntimeUnavailableError(f"{self.judge.not_run}{why}")

    def _run(self, index: int, state: _State) -> bool:
        """Run one pass; return whether it changed the model."""
        left = self._rewrites_left()
        if state.over or left == 0 or state.settled_at == self._version:
            return False
        self.progress(state.step.name, (index + 0.1) / len(self._states))
        state.before = self._snapshot()
        declared = Interface.of(state.step.changes_interface)
        state.interface_may_change = self.interface_may_change | declared
        try:
            return self._apply_and_check(state, left)
        except GraphpassError as error:
            if self._unchecked:  # what it failed on may be what another pass left behind
                raise _InDoubtError from error
            if not isinstance(error, RuleError):
                raise
            self._undo(state, str(error))
            return False

    def _apply_and_check(self, state: _State, left: int | None) -> bool:
        caught: Counter[str] = Counter()
        for _ in range(_MAX_ATTEMPTS):
            try:
                applied = self._apply(
                    state, left, windows=self.judge.validates or self.keep_windows
                )
            except SpoiltError as error:
                failure = error.failure
                self._leave_out(state, [Quarantined(failure.rewrite, failure.reason)])
                continue
            self._note_failures(state, applied)
            state.report.refusals = applied.refusals
            if not applied.changed:
                state.settled_at = self._version
                return False
            if wrong := self._wrong_windows(state, applied):
                self._leave_out(state, wrong)
                continue
            if self.judge.not_run and state.by_hand:
                self._undo(state, "it changes the model other than by rules, which cannot be run")
                return False
            if not (self._careful or state.by_hand):
                self._keep(state, applied)
                return True
            check = self._check(state)
            if self._unchecked:
                self._require_ok(check)
            if check.ok:
                self._keep(state, applied, check)
                return True
            found, check = self._find(state, applied, check)
            state.report.check = check
            if found is None:
                self._undo(state, check.reason)
                return False
            self._leave_out(state, self._culprits(found, check.reason, applied, caught))
        raise RuleError(f"it is still wrong without {len(state.quarantine)} of its rewrites")

    def _note_failures(self, state: _State, applied: Applied) -> None:
        """Report the places where a rule failed; the model is as if it had not been tried there."""
        failed = [Quarantined(entry.rewrite, entry.reason) for entry in applied.failures]
        state.report.quarantined.extend(failed)
        state.quarantine.update(entry.rewrite.key for entry in failed)
        if failed and self.strict:
            if self._unchecked:  # it may have stumbled on what another pass left behind
                raise _InDoubtError
            self._undo(state, described(applied.failures[0]))

    def _apply(self, state: _State, limit: int | None, *, windows: bool = False) -> Applied:
        start = time.perf_counter()
        try:
            with self.judge.evaluating():
                return apply(
                    state.step,
                    self.model,
                    limit=limit,
                    quarantine=frozenset(state.quarantine),
                    left_out=self.left_out,
                    windows=windows,
                    first_number=1 + self._rewrites_kept(),
                    by_hand=state.by_hand,
                    time_limit_s=self.judge.options.time_limit_s,
                    chooser=self.chooser,
                )
        finally:
            state.report.apply_s += time.perf_counter() - start

    def _wrong_windows(self, state: _State, applied: Applied) -> list[Quarantined]:
        """Check each rewrite on its own; return those that do not equal what they replace."""
        if not self.judge.validates:
            return []
        start = time.perf_counter()
        wrong = prove(applied, state.step, self.judge)
        state.report.check_s += time.perf_counter() - start
        return wrong

    def _check(self, state: _State) -> Check:
        start = time.perf_counter()
        try:
            return self.judge.check(
                self.model.proto, interface_may_change=state.interface_may_change
            )
        finally:
            state.report.checks += 1
            state.report.check_s += time.perf_counter() - start

    def _keep(self, state: _State, applied: Applied, check: Check | None = None) -> None:
        """Keep what a pass did; without `check` it is checked with that of the passes to come."""
        report = state.report
        report.outcome = "kept"
        kept = counted(len(applied.rewrites), "rewrite")
        seconds = report.apply_s + report.check_s
        _log.info("%s: %s, %.1f s so far", report.name, kept, seconds)
        for rewrite in applied.rewrites:
            after = ", ".join(rewrite.after) or "nothing"
            _log.debug("%s: %s → %s", rewrite.rule, ", ".join(rewrite.before), after)
        for refusal in applied.refusals:
            _log.debug("%s: %s stays: %s", refusal.rule, refusal.node, refusal.reason)
        for note in applied.notes:
            _log.info("%s: %s", report.name, note)
        if not self.keep_windows:
            applied.rewrites[:] = [
                r if r.window is None else dataclasses.replace(r, window=None, further=())
                for r in applied.rewrites
            ]
        report.rewrites.extend(applied.rewrites)
        report.notes.extend(applied.notes)
        if check is None:
            self._unchecked.append(state)
        else:
            report.check = check
        self.interface_may_change = state.interface_may_change
        self._version += 1
        self.stages.append((report.name, self._snapshot()))
        whole = self.max_rewrites is None and not state.by_hand
        if whole:  # rules were applied until none fitted
            state.settled_at = self._version
        state.has_run = state.step.is_by_hand and not state.step.repeats

    def _undo(self, state: _State, reason: str) -> None:
        """Put the model back to before the pass. What it did in an earlier round was checked."""
        self.model.restore(state.before)
        _log.warning("%s was undone: %s", state.step.name, reason)
        state.over = True
        state.report.reason = reason
        if state.report.outcome == "unchanged":
            state.report.outcome = "rolled back"
        if self.strict:
            raise DifferenceError(f"pass {state.step.name}: {reason}")

    def _leave_out(self, state: _State, wrong: Sequence[Quarantined]) -> None:
        """Put the model back and see to it that `wrong` is not tried again."""
        for entry in wrong:
            place = f"{entry.rewrite.rule} at '{entry.rewrite.site}'"
            _log.warning("%s: %s was undone: %s", state.step.name, place, entry.reason)
        state.report.quarantined.extend(wrong)
        state.quarantine.update(entry.rewrite.key for entry in wrong)
        self.model.restore(state.before)
        if self.strict:
            first = wrong[0]
            self._undo(state, f"{first.rewrite.rule} at '{first.rewrite.site}': {first.reason}")

    # -------------------------------------------------------------- finding what was wrong

    def _find(self, state: _State, applied: Applied, check: Check) -> tuple[Rewrite | None, Check]:
        """Return a rewrite with which the model is wrong and without which it is not.

        None where there is none: the pass changed something outside of its rules, or nothing
        can be compared whatever it did. With it, what the check said.
        """
        if check.status == "not comparable" and not check.comparisons:
            return None, check
        if state.by_hand:
            by_hand = self._replay(state, 0)
            if not by_hand.ok:
                return None, by_hand
        good, bad = 0, len(applied.rewrites)
        while bad - good > 1:
            middle = (good + bad) // 2
            self.progress(f"{state.step.name}: searching the wrong rewrite", 0.5)
            tried = self._replay(state, middle)
            good, bad, check = (middle, bad, check) if tried.ok else (good, middle, tried)
        return (applied.rewrites[bad - 1] if bad else None), check

    def _replay(self, state: _State, count: int) -> Check:
        self.model.restore(state.before)
        self._apply(state, count)
        return self._check(state)

    def _culprits(
        self, found: Rewrite, reason: str, applied: Applied, caught: Counter[str]
    ) -> list[Quarantined]:
        """Return what to leave out: the rewrite found, in time all of its rule."""
        caught[found.rule] += 1
        culprits = [Quarantined(found, reason)]
        if caught[found.rule] >= _STRIKES:
            reason = f"its rule was wrong at {_STRIKES} other places"
            culprits.extend(
                Quarantined(rewrite, reason)
                for rewrite in applied.rewrites
                if rewrite.rule == found.rule and rewrite.key != found.key
            )
        return culprits

    def _rewrites_kept(self) -> int:
        return sum(len(report.rewrites) for report in self.reports)

    def _rewrites_left(self) -> int | None:
        return None if self.max_rewrites is None else self.max_rewrites - self._rewrites_kept()


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    return copied
