"""The words of a rule: `Op` on both sides, and what may stand at an input of a pattern.

    Op("BatchNormalization", Op("Conv", any_("x"), const("weight")), const("scale"), …)

In a pattern, `Op` matches a node and its inputs what feeds it. What `rewrite` returns is written
in `Op` as well, over tensors, weights and arrays: see `term`. A pattern is read once, when its
rule is defined (see `form`): what makes no sense is an error there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any


class Pattern:
    """What may stand at an input: `Op`, `any_`, `const`, `optional`, `either` or `each`."""

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """The patterns inside this one, in reading order."""
        return ()

    def names(self) -> Iterator[str]:
        """Yield the names that a match binds, in reading order; a name may come twice."""
        for part in self.parts:
            yield from part.names()


class Op(Pattern):
    """An operator with its inputs, in a pattern or in a term.

    Both: `domain` of the operator, `attributes` by name.
    In a pattern: `op` may be a tuple of operators, or `...` for any; each of `attributes` must
    have that value, given or by default of the schema; `bind` names the node for `rewrite`;
    `commutative` also tries the two inputs exchanged; `shared` allows further readers of the
    node, which then stays for them; `all_outputs`, at the root: `rewrite` returns one term for
    each output; `...` as the last input stands for any further inputs.
    In a term: an attribute that is None is left out, and one that is an input in the model's opset
    (the axes of Squeeze, the sizes of Split) becomes that; `outputs`: how many there are, which
    `op[0]`, `op[1]`, … and `*op` are; `domain` may be a pair with the version to import; `like`:
    a node whose doc_string and metadata it gets. The same object twice is the same node.
    """

    def __init__(
        self,
        op: str | tuple[str, ...] | EllipsisType,
        *inputs: Any,
        bind: str | None = None,
        domain: str | tuple[str, int] = "",
        commutative: bool = False,
        shared: bool = False,
        all_outputs: bool = False,
        outputs: int = 1,
        like: Any = None,
        **attributes: Any,
    ) -> None:
        self.ops = () if isinstance(op, EllipsisType) else (op,) if isinstance(op, str) else op
        self.open = bool(inputs) and isinstance(inputs[-1], EllipsisType)
        self.inputs = inputs[:-1] if self.open else inputs
        self.bind = bind
        self.domain = domain if isinstance(domain, str) else domain[0]
        self.version = None if isinstance(domain, str) else domain[1]
        self.commutative = commutative
        self.shared = shared
        self.all_outputs = all_outputs
        self.outputs = outputs
        self.like = like
        self.attributes = attributes

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """Its inputs."""
        return self.inputs

    def names(self) -> Iterator[str]:
        """Yield the names bound here and below."""
        if self.bind is not None:
            yield self.bind
        yield from super().names()

    def __getitem__(self, index: int) -> Output:
        if not 0 <= index < self.outputs:
            raise IndexError(f"{self!r} has {self.outputs} outputs; say outputs=… for more")
        return Output(self, index)

    def __iter__(self) -> Iterator[Output]:
        return (Output(self, index) for index in range(self.outputs))

    def __repr__(self) -> str:
        return f"{'|'.join(self.ops) or '…'}({', '.join(map(repr, self.inputs))})"


@dataclass(frozen=True, eq=False)
class Output:
    """One output of an `Op` that has several, in a term."""

    op: Op
    index: int


class Beyond:
    """A term that stands for more than the pattern covers: `nodes`, each above the match's root.

    What a rule finds by following a graph as far as it likes, no pattern can write down. `nodes`
    are those between the match and what `term` reads, a node after its readers.
    """

    def __init__(self, term: Any, nodes: Sequence[Any]) -> None:
        self.term = term
        self.nodes = list(nodes)


class Body:
    """A body of a node as an attribute of a term: a copy that reads others than it did.

    `instead`: by id, what it reads in the place of what it read from outside, or in the place of
    an input, which it has no more; written as operands of a term. `outputs`: which of its outputs
    stay, by their places; all of them without it. `holds`: weights in `instead` become initializers
    of the body itself, where a runtime can prepare them, and not of the graph around it.
    """

    def __init__(
        self,
        graph: Any,
        instead: Mapping[int, Any],
        outputs: Sequence[int] | None = None,
        *,
        holds: bool = False,
    ) -> None:
        self.graph = graph
        self.instead = instead
        self.outputs = outputs
        self.holds = holds


class any_(Pattern):  # noqa: N801 - reads as a word of the pattern language
    """Any tensor; the same name twice means the same tensor or an equal constant."""

    def __init__(self, name: str) -> None:
        self.name = name

    def names(self) -> Iterator[str]:
        """Yield the name."""
        yield self.name

    def __repr__(self) -> str:
        return self.name


class const(Pattern):  # noqa: N801
    """A constant, however it is written; bound as a `Weight`. The same name twice: equal ones.

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

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """What the input is where it is there."""
        return (self.part,)

    def __repr__(self) -> str:
        return f"[{self.part!r}]"


class either(Pattern):  # noqa: N801
    """The first alternative that fits; names that only the others bind are None."""

    def __init__(self, *alternatives: Pattern) -> None:
        self.alternatives = alternatives

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """The alternatives."""
        return self.alternatives

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.alternatives))


class each(Pattern):  # noqa: N801
    """All inputs from here on, as many as there are; its names are bound to lists.

    `each("xs")` takes any tensor; `each(Op("Relu", any_("xs"), bind="relus"))` asks the same of
    every input. Of an omitted input in between, None is bound.
    """

    def __init__(self, part: str | Pattern) -> None:
        self.part = any_(part) if isinstance(part, str) else part

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """What each input is."""
        return (self.part,)

    def __repr__(self) -> str:
        return f"*{self.part!r}"


class siblings(Pattern):  # noqa: N801
    """The root of a pattern: all places that fit `part` and compute on the same tensor `of`.

    There are at least two. `of` is bound to the tensor, every other name to a list with an entry
    for each sibling, in the order of the graph. `rewrite` returns a list with a term for each, or
    None for one that stays. Siblings that something stands in the way of are left out.
    """

    def __init__(self, part: Pattern, *, of: str) -> None:
        self.part = part
        self.of = of

    @property
    def parts(self) -> tuple[Pattern, ...]:
        """What each sibling is."""
        return (self.part,)

    def __repr__(self) -> str:
        return f"siblings of {self.of}: {self.part!r}"
