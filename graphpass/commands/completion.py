"""What a shell is told that completes values: passes, pipelines, targets, files."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def files(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Let the shell complete paths, also where a URL or `-` would do."""
    return [CompletionItem(incomplete, type="file")]


def pass_lists(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the last name of a list with commas."""
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + name) for name in _passes() if name.startswith(last)]


def one_of(names: Callable[[], Iterable[str]]) -> Completion:
    """Complete names; `names` is asked when somebody wants them."""

    def complete(
        context: click.Context, parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names() if name.startswith(incomplete)]

    return complete


def _passes() -> Iterable[str]:
    from graphpass.rewrite.registry import pass_types

    return pass_types()


def _pipelines() -> Iterable[str]:
    from graphpass.rewrite.registry import PIPELINES

    return PIPELINES


def _targets() -> Iterable[str]:
    from graphpass.targets.profile import names

    return names()


passes, pipelines, targets = one_of(_passes), one_of(_pipelines), one_of(_targets)
