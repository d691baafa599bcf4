"""Each rewrite of a pass on its own: compared with what it replaces, and proven where it can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphpass.report.data import Quarantined
from graphpass.rewrite.applied import Applied
from graphpass.rewrite.rule import Pass
from graphpass.rewrite.window import WindowVerdict
from graphpass.run.judge import Judge
from graphpass.validate.exact.check import Site, with_exact

_REMOVED = WindowVerdict("not run", reason="nothing reads it: there is nothing to compare")


def prove(applied: Applied, step: Pass, judge: Judge) -> list[Quarantined]:
    """Note at each rewrite what came of its checks; return those that nothing can answer for."""
    rules = {rule.name: rule for rule in step.laws}
    compared = [rewrite for rewrite in applied.rewrites if not rewrite.is_removal]
    verdicts = iter(judge.check_windows([w for rewrite in compared for w in rewrite.windows]))
    worst = [_worst([next(verdicts) for _ in rewrite.windows]) for rewrite in compared]
    exactly = judge.check_exactly([Site(rules.get(r.rule), r.rule, r.windows) for r in compared])
    proofs = iter([with_exact(*pair) for pair in zip(worst, exactly, strict=True)])
    applied.rewrites[:] = [
        replace(rewrite, proof=_REMOVED if rewrite.is_removal else next(proofs))
        for rewrite in applied.rewrites
    ]
    proven = [(r, r.proof) for r in applied.rewrites if r.proof is not None and not r.is_removal]
    wrong = [Quarantined(rewrite, proof.reason) for rewrite, proof in proven if not proof.ok]
    if wrong or not judge.not_run:
        return wrong
    return [
        Quarantined(rewrite, f"its window cannot be run either: {proof.reason}")
        for rewrite, proof in proven
        if proof.status == "not run"
    ]


def _worst(verdicts: Sequence[WindowVerdict]) -> WindowVerdict:
    """Return the verdict that counts for all: what differs, what was not run, what was farthest."""
    order = {"differs": 2, "not run": 1}
    return max(verdicts, key=lambda verdict: (order.get(verdict.status, 0), verdict.ratio))
