"""What looks at a whole scope at once, where a rule looks at one place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

from graphpass.errors import RuleError
from graphpass.ir.nodes import Graph, Node, Tensor
from graphpass.ir.questions import is_output
from graphpass.ir.refusal import RefusedError


class Twin(NamedTuple):
    """Two nodes that compute the same, or two initializers that hold the same: `gone` goes."""

    gone: Any
    kept: Any

    def outputs(self) -> list[tuple[Tensor, Tensor]]:
        """Return those outputs of a node that something reads, each with what takes its place."""
        pairs = zip(self.gone.outputs, self.kept.outputs, strict=False)
        return [(old, new) for old, new in pairs if old.name and (old.outputs or is_output(old))]


class Fold(NamedTuple):
    """A node whose first output is `value`: a term, as a rule's `rewrite` returns one."""

    node: Node
    value: Any


class Several(NamedTuple):
    """Tensors that are computed anew together, each with its term, and the nodes that go for it.

    A node comes after its readers.
    """

    nodes: Sequence[Node]
    values: Sequence[tuple[Tensor, Any]]


class Refused(NamedTuple):
    """A node where the survey's law fits and something stands in the way."""

    node: Node
    refusal: RefusedError


Proposal = Twin | Fold | Several | Refused


class Survey:
    """Finds rewrites in a whole scope, in time linear in its nodes.

    The first line of the docstring states the law. `find` yields one proposal after the other;
    each takes place before the next one is asked for, unless it is refused or quarantined. A
    survey keeps no state from one scope to the next. `stands_or_falls`: whether its proposals pay
    only together, so that none is made any more once one of them was undone.
    """

    stands_or_falls: ClassVar[bool] = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "find" not in cls.__dict__:
            raise RuleError(f"survey {cls.__name__} needs a `find` method")
        if not (cls.__dict__.get("__doc__") or "").strip():
            raise RuleError(f"survey {cls.__name__} needs a docstring whose first line is its law")

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Proposal]:
        """Yield what is to be rewritten in `scope`, not looking into the bodies inside it.

        `spare_bytes`: by how much the file is shorter already than when the pass began.
        """
        raise NotImplementedError

    @property
    def law(self) -> str:
        """The equation that the survey rests on."""
        return inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]

    @property
    def name(self) -> str:
        """The survey's name in reports."""
        return type(self).__name__


__all__ = ["Fold", "Proposal", "Refused", "Several", "Survey", "Twin"]
