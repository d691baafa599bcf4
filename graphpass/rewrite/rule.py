"""What a pass is made of: rules, each one pattern, one pure function, one law."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import onnx

from graphpass.errors import RuleError
from graphpass.ir.nodes import Graph
from graphpass.rewrite.choice import Choice
from graphpass.rewrite.form import Form, read
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.pattern import Op, either, siblings
from graphpass.rewrite.survey import Survey

Term = Any  # what `graphpass.rewrite.term` reads: an Op, a tensor, a Weight, an array, or several


class Rule:
    """`pattern` = `rewrite(…)`; the first line of the docstring states the law.

    `rewrite` gets what the pattern bound, by name, and returns the term that takes the place of
    the matched nodes. It decides everything before anything is changed: `require(condition,
    reason)` refuses with one sentence; returning None says that the structure is another one. A
    rule that follows the graph further than its pattern returns `Beyond(term, nodes)`.
    A rule keeps no state. A rule with options is a frozen dataclass.
    `choice`: set where the law holds, but one runtime gets slower by it and another one faster:
    with --tune each site is measured, and without it this says what becomes of it.
    """

    pattern: ClassVar[Op | either | siblings]
    choice: ClassVar[Choice | None] = None
    form: ClassVar[Form]  # the pattern as it was read

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if getattr(cls, "pattern", None) is None:
            raise RuleError(f"rule {cls.__name__} needs a `pattern`: an Op or either(Op, …)")
        if "rewrite" not in cls.__dict__:
            raise RuleError(f"rule {cls.__name__} needs a `rewrite` method")
        if not (cls.__dict__.get("__doc__") or "").strip():
            raise RuleError(f"rule {cls.__name__} needs a docstring whose first line is its law")
        try:
            cls.form = read(cls.pattern)
        except RuleError as error:
            raise RuleError(f"rule {cls.__name__}: {error}") from None
        names = cls.form.names
        parameters = list(inspect.signature(cls.rewrite).parameters)[1:]
        if sorted(names) != sorted(parameters):
            raise TypeError(
                f"rule {cls.__name__}: the pattern binds {', '.join(names)} "
                f"but rewrite takes {', '.join(parameters)}"
            )

    # `*_` makes type checkers accept the parameters that each rule gives its own
    def rewrite(self, *_: Any, **bound: Any) -> Term | None:
        """Return the term that equals the match, None for another structure, or refuse."""
        raise NotImplementedError

    @property
    def law(self) -> str:
        """The equation that the rule rests on."""
        return inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]

    @property
    def name(self) -> str:
        """The rule's name in reports."""
        return type(self).__name__

    @property
    def roots(self) -> frozenset[str]:
        """The operators that the pattern can begin at; "*" where that is any."""
        return self.form.roots


@dataclass(frozen=True)
class Pass:
    """A named step of a pipeline: rules that are applied until none fits, or a `run` of its own.

    A subclass sets `name`, and `rules` (a tuple, or a property where they depend on options),
    `run` or `convert`. Its dataclass fields are its options. `changes_interface`: what it may
    change of inputs and outputs of the model (`Interface`; True: anything). `repeats`: whether
    `run` is called in each round of a pipeline; otherwise not again once it has changed something.
    `sweeps`: whether nodes and initializers that nothing reads are removed first. `required`:
    whether a model on which it cannot do what it is for is not delivered. `surveys`: what is looked
    for in whole scopes before the rules are applied. `choice`: of all its rules that do not say it
    themselves.
    """

    name: ClassVar[str]
    rules: ClassVar[tuple[Rule, ...]] = ()
    changes_interface: ClassVar[Interface | bool] = False
    repeats: ClassVar[bool] = False
    sweeps: ClassVar[bool] = False
    required: ClassVar[bool] = False
    surveys: ClassVar[tuple[Survey, ...]] = ()
    choice: ClassVar[Choice | None] = None

    @property
    def laws(self) -> tuple[Survey | Rule, ...]:
        """All that it rewrites by."""
        return (*self.surveys, *self.rules)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if cls.choice is not None and {"run", "convert"} & cls.__dict__.keys():
            raise RuleError(f"pass {cls.__name__} changes by hand, which has no sites to choose")
        if not isinstance(cls.__dict__.get("name"), (str, property)):
            raise RuleError(f"pass {cls.__name__} needs a `name`")
        if any(base is not Pass and issubclass(base, Pass) for base in cls.__bases__):
            raise RuleError(f"pass {cls.__name__} inherits from a pass: use its rules instead")
        if not {"rules", "run", "convert"} & cls.__dict__.keys():
            raise RuleError(f"pass {cls.__name__} needs `rules` or a `run` method")

    def run(self, graph: Graph) -> list[str]:
        """Change `graph` by hand and return one line for each change; rules are applied after.

        It is called once for each scope: the main graph, bodies (`graph.parent` is the graph
        around one) and functions (`graph.is_function`). Either all of what it does to them takes
        place or nothing. Inputs and outputs may change where `changes_interface` says so.
        """
        return []

    def convert(self, proto: onnx.ModelProto) -> list[str]:
        """Change a whole model, for what a graph has no words for; one line for each change.

        `proto` is a skeleton of its own: large weights are references, which stay as they are. It
        takes the place of the model where lines come back. What may change besides nodes is what
        `changes_interface` says.
        """
        return []

    @property
    def is_by_hand(self) -> bool:
        """Whether the pass changes the model other than by rules."""
        return bool({"run", "convert"} & type(self).__dict__.keys())

    @property
    def options(self) -> dict[str, Any]:
        """Its options, by name."""
        return asdict(self)

    @property
    def version(self) -> str:
        """What tells one version of the pass from another, where its package does not."""
        return ""

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]
