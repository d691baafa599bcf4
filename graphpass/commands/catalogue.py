"""`graphpass passes`: what there is, and what one pass does."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

from graphpass.report.terminal import print_table, say
from graphpass.rewrite import registry
from graphpass.rewrite.registry import make
from graphpass.rewrite.rule import Pass
from graphpass.rewrite.survey import Survey

if TYPE_CHECKING:
    from rich.console import Console

    from graphpass.testing.fixture import Fixture


def show(console: Console, name: str | None) -> None:
    """Print the list of passes and pipelines, or one pass. Raises `UsageError`."""
    if name is not None:
        _show_pass(console, make(name))
        return
    rows = ((known, make(known).summary) for known in registry.pass_types())
    print_table(console, ("pass", ""), rows)
    console.print()
    listed = ((pipeline, ", ".join(steps)) for pipeline, steps in registry.PIPELINES.items())
    print_table(console, ("pipeline", ""), listed)


def _show_pass(console: Console, step: Pass) -> None:
    say(console, step.name, style="bold")
    say(console, inspect.cleandoc(type(step).__doc__ or ""))
    options = list(options_of(step))
    if options:
        say(console, "\nOptions", style="bold")
        for line in options:
            say(console, f"  {line}")
    if step.laws:
        say(console, "\nLaws", style="bold")
    for rule in step.laws:
        choice = None if isinstance(rule, Survey) else rule.choice or step.choice
        when = "" if choice is None else f" ({choice.told})"
        say(console, f"  {rule.name}{when}: {rule.law}")
    example = _example(step.name)
    if example is not None:
        say(console, f"\nExample ({example.name})", style="bold")
        say(console, example.text.strip())
        say(console, f"⇒ {example.header['after']}")


def options_of(step: Pass) -> Iterator[str]:
    """Yield each option of a pass with its type, default and meaning."""
    for option in dataclasses.fields(step):
        kind = option.type if isinstance(option.type, str) else option.type.__name__
        told = option.metadata.get("help", "")
        default = getattr(step, option.name)
        yield f"{option.name} ({kind}, default {default})" + (f": {told}" if told else "")


def _example(name: str) -> Fixture | None:
    """Return the shortest fixture that shows the pass at work, if fixtures are at hand."""
    from graphpass.testing import fixture

    if fixture.default_folder() is None:
        return None
    cases = [case for case in fixture.find(None, [name]) if case.header.get("after")]
    alone = [case for case in cases if len(case.pass_names) == 1]
    return min(alone or cases, key=lambda case: len(case.text), default=None)
