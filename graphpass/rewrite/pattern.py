"""Both sides of a rule: the pattern that is looked for and the term that takes its place.

    Op("BatchNormalization", Op("Conv", any_("x"), const("weight")), const("scale"), …)

As a pattern, `Op` matches a node and its inputs what feeds it. As a term, its inputs are tensors
and weights that the pattern bound, numpy arrays, None for an omitted input, or further `Op`s, and
its keywords are the attributes of the new node.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import EllipsisType
from typing import Any


class Pattern:
    """What may stand at an input: `Op`, `any_`, `const`, `optional` or `either`."""

    def names(self) -> Iterator[str]:
        """Yield the names that a match binds, in reading order; a name may come twice."""
        raise NotImplementedError


class Op(Pattern):
    """An operator with its inputs, as a pattern or as a term.

    As a pattern: `op` may be a tuple of operators; `bind` names the node for `rewrite`;
    `commutative` also tries the two inputs exchanged; `shared` allows further readers of the
    node, which then stays for them; `...` as the last input stands for any further inputs.
    As a term: `attributes` are those of the new node (None: leave out), `domain` its domain.
    """

    def __init__(
        self,
        op: str | tuple[str, ...],
        *inputs: Any,
        bind: str | None = None,
        domain: str = "",
        commutative: bool = False,
        shared: bool = False,
        **attributes: Any,
    ) -> None:
        self.ops = (op,) if isinstance(op, str) else op
        self.open = bool(inputs) and isinstance(inputs[-1], EllipsisType)
        self.inputs = inputs[:-1] if self.open else inputs
        self.bind = bind
        self.domain = domain
        self.commutative = commutative
        self.shared = shared
        self.attributes = attributes

    def names(self) -> Iterator[str]:
        """Yield the names bound here and below."""
        if self.bind is not None:
            yield self.bind
        for part in self.inputs:
            yield from part.names()

    def __repr__(self) -> str:
        return f"{'|'.join(self.ops)}({', '.join(map(repr, self.inputs))})"


class any_(Pattern):  # noqa: N801 - reads as a word of the pattern language
    """Any tensor; the same name twice means the same tensor."""

    def __init__(self, name: str) -> None:
        self.name = name

    def names(self) -> Iterator[str]:
        """Yield the name."""
        yield self.name

    def __repr__(self) -> str:
        return self.name


class const(Pattern):  # noqa: N801
    """A constant, however it is written; bound as a `Weight`.

    `quiet`: a computed tensor is another structure, not worth a refusal.
    """

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.name = name
        self.quiet = quiet

    def names(self) -> Iterator[str]:
        """Yield the name."""
        yield self.name

    def __repr__(self) -> str:
        return f"const {self.name}"


class optional(Pattern):  # noqa: N801
    """An input that may be missing; its names are then bound to None."""

    def __init__(self, part: Pattern) -> None:
        self.part = part

    def names(self) -> Iterator[str]:
        """Yield the names of the part."""
        yield from self.part.names()

    def __repr__(self) -> str:
        return f"[{self.part!r}]"


class either(Pattern):  # noqa: N801
    """The first alternative that fits; names that only the others bind are None."""

    def __init__(self, *alternatives: Pattern) -> None:
        self.alternatives = alternatives

    def names(self) -> Iterator[str]:
        """Yield the names of every alternative."""
        for part in self.alternatives:
            yield from part.names()

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.alternatives))
