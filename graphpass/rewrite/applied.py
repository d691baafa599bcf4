"""What a pass did to a model, for whoever checks, undoes or reports it."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from pathlib import Path

from graphpass.errors import RuleError
from graphpass.ir.refusal import CONDITION, RefusedError
from graphpass.rewrite.rule import Rule
from graphpass.rewrite.survey import Survey
from graphpass.rewrite.window import Window, WindowVerdict


@dataclass(frozen=True)
class Rewrite:
    """One rule applied at one place. `site` names the tensor that was computed anew.

    `window`: its nodes before and after, until they were checked; `proof`: what came of that.
    `further`: the windows of what else it computes anew, where it replaces several nodes.
    `is_removal`: it only removes what nothing reads, so that there is nothing to run.
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
    is_removal: bool = False

    @property
    def windows(self) -> tuple[Window | None, ...]:
        """All windows: one for each tensor that is computed anew."""
        return (self.window, *self.further)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies this rewrite when the pass is run again."""
        return self.rule, self.site


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

    @classmethod
    def of(
        cls, rule: Rule | Survey, site: str, before: tuple[str, ...], error: Exception
    ) -> Failure:
        """Return what is known of an exception in a rule or survey."""
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        if not isinstance(error, RuleError):
            last = traceback.extract_tb(error.__traceback__)[-1]
            what += f" (in {last.name}, {Path(last.filename).name} line {last.lineno})"
        return cls(Rewrite(0, rule.name, rule.law, site, before, ()), what)


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
