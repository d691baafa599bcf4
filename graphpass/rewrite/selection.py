"""Which nodes rewrites may touch: all, or those that patterns of the user leave."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from graphpass.errors import UsageError
from graphpass.ir.proto_walk import all_nodes
from graphpass.wording import nearest

if TYPE_CHECKING:
    import onnx

_REGEX = "re:"


@dataclass(frozen=True)
class Selection:
    """Patterns for names of nodes: `only` those of one of them, and none of `exclude`.

    A pattern is a glob (`/features/*`, where `*` takes `/` as well), or after `re:` a regular
    expression for the whole name. A node without a name goes by that of its first output. What
    rewrites make is not left out. Raises `UsageError` for what is no regular expression.
    """

    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for pattern in (*self.only, *self.exclude):
            _matcher(pattern)

    def left_out(self, model: onnx.ModelProto) -> frozenset[str]:
        """Return the names of the nodes that are to stay as they are."""
        if not (self.only or self.exclude):
            return frozenset()
        only, exclude = (_any(patterns) for patterns in (self.only, self.exclude))
        names = set(_names(model))
        return frozenset(n for n in names if exclude(n) or (bool(self.only) and not only(n)))

    def without_effect(self, model: onnx.ModelProto) -> list[str]:
        """Say of each pattern that no node has such a name, one sentence each."""
        names = list(_names(model))
        return [
            f"{option} {pattern!r}: no node has such a name{nearest(pattern, names)}"
            for option, patterns in (("--only-node", self.only), ("--exclude-node", self.exclude))
            for pattern in patterns
            if not any(map(_matcher(pattern), names))
        ]


def _names(model: onnx.ModelProto) -> Iterable[str]:
    for node in all_nodes(model):
        yield node.name or next(iter(node.output), "")


def _any(patterns: Sequence[str]) -> Callable[[str], bool]:
    matchers = [_matcher(pattern) for pattern in patterns]
    return lambda name: any(matches(name) for matches in matchers)


def _matcher(pattern: str) -> Callable[[str], bool]:
    if not pattern.startswith(_REGEX):
        return lambda name: fnmatchcase(name, pattern)
    try:
        expression = re.compile(pattern.removeprefix(_REGEX))
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from None
    return lambda name: expression.fullmatch(name) is not None
