"""A pattern is read when its rule is defined: what makes no sense is an error with its mending."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import EllipsisType
from typing import Any

import onnx

from graphpass.errors import RuleError
from graphpass.rewrite.pattern import Op, Pattern, any_, const, each, either, optional, siblings

ANY_OPERATOR = "*"


@dataclass(frozen=True)
class Form:
    """A pattern that was read: what the matcher lays over nodes.

    `root`: an Op, or either of several. `roots`: the operators that it begins at. `names` in
    reading order. `of`: the tensor that siblings share, None where the pattern has one root;
    `paths`: the operators on each way from there down to a root. `depth` of nodes.
    """

    root: Op | either
    roots: frozenset[str]
    names: tuple[str, ...]
    depth: int
    all_outputs: bool = False
    of: str | None = None
    paths: tuple[tuple[frozenset[str], ...], ...] = field(default=())


def read(pattern: Any) -> Form:
    """Return `pattern` as the matcher takes it. Raises `RuleError` where it makes no sense."""
    root: Any = pattern.part if isinstance(pattern, siblings) else pattern
    of = pattern.of if isinstance(pattern, siblings) else None
    _check_root(root)
    _check_names(root)
    roots = list(_roots(root))
    whole = {part.all_outputs for part in roots}
    if len(whole) > 1:
        raise RuleError("all_outputs is for every alternative of the root, or for none")
    paths: tuple[tuple[frozenset[str], ...], ...] = ()
    if of is not None:
        if whole == {True}:
            raise RuleError("siblings have one output each: leave all_outputs out")
        paths = tuple(dict.fromkeys(_paths(root, of)))
        if not paths:
            raise RuleError(f"the siblings share {of!r}, but no any_({of!r}) is in their pattern")
    return Form(
        root,
        frozenset(name for part in roots for name in operators(part)),
        tuple(dict.fromkeys(root.names())),
        depth_of(root),
        whole == {True},
        of,
        paths,
    )


def operators(part: Op) -> frozenset[str]:
    """Return the full names of what `part` matches; `ANY_OPERATOR` where that is anything."""
    if not part.ops:
        return frozenset({ANY_OPERATOR})
    return frozenset(f"{part.domain}::{op}" if part.domain else op for op in part.ops)


def depth_of(part: Pattern) -> int:
    """Return how many nodes lie one above the other."""
    below = max(map(depth_of, part.parts), default=0)
    return below + isinstance(part, Op)


def _roots(root: Op | either) -> Iterator[Op]:
    if isinstance(root, Op):
        yield root
        return
    for part in root.alternatives:
        yield from _roots(part)  # type: ignore[arg-type]


def _paths(part: Pattern, of: str) -> Iterator[tuple[frozenset[str], ...]]:
    if isinstance(part, any_) and part.name == of:
        yield ()
    for inner in part.parts:
        for path in _paths(inner, of):
            yield (*path, operators(part)) if isinstance(part, Op) else path


# ------------------------------------------------------------------------------- what is an error


def _check_root(root: Any) -> None:
    if isinstance(root, either):
        for part in root.alternatives:
            _check_root(part)
        _check_either(root)
        return
    if not isinstance(root, Op):
        what = root if isinstance(root, Pattern) else type(root).__name__
        raise RuleError(f"a pattern begins with an Op, or either of several, not with {what!r}")
    if root.shared:
        raise RuleError(f"shared says nothing of {root!r}: the root of a pattern always goes")
    _check_op(root)


def _check_op(part: Op) -> None:
    if not all(isinstance(op, str) and op for op in part.ops):
        raise RuleError(f"the operators of {part!r} are names, such as Op(('Add', 'Sub'), …)")
    if part.outputs != 1:
        raise RuleError(f"outputs={part.outputs} of {part!r} is for terms; see all_outputs")
    if part.version is not None:
        raise RuleError(f"the domain of {part!r} is a name: a version to import is for terms")
    if part.bind is not None and not part.bind.isidentifier():
        raise RuleError(f"bind={part.bind!r} of {part!r} is no name for a parameter of rewrite")
    for index, inner in enumerate(part.inputs):
        _check_input(part, index, inner)
    for name, value in part.attributes.items():
        if value is None or isinstance(value, Pattern):
            raise RuleError(
                f"{name}={value!r} of {part!r} is no value: give the number, text or list that"
                " it must have, or look at it in rewrite"
            )
    if part.commutative:
        _check_commutative(part)
    if not part.domain:
        for op in part.ops:
            _check_operator(part, op)


def _check_input(part: Op, index: int, inner: Any) -> None:
    where = f"input {index} of {'|'.join(part.ops)}"
    if isinstance(inner, EllipsisType):
        raise RuleError(f"{where} is ...: it stands for all further inputs and comes last")
    if not isinstance(inner, Pattern):
        hint = "any_('name')" if isinstance(inner, str) else "const('name'), its value in rewrite"
        if inner is None:
            hint = "optional(any_('name')), and look in rewrite whether it is None"
        raise RuleError(f"{where} is {inner!r}, which is no pattern: write {hint}")
    if isinstance(inner, siblings):
        raise RuleError(f"{where} is siblings(…), which only a whole pattern can be")
    if isinstance(inner, each) and (part.open or index + 1 < len(part.inputs)):
        raise RuleError(f"{where} is each(…): it takes all further inputs and comes last")
    _check_part(inner, where)


def _check_part(part: Any, where: str) -> None:
    if isinstance(part, Op):
        if part.all_outputs:
            raise RuleError(f"all_outputs says nothing of {part!r}: it is for the root")
        _check_op(part)
    elif isinstance(part, (any_, const)):
        if not (isinstance(part.name, str) and part.name.isidentifier()):
            raise RuleError(f"{where}: {part.name!r} is no name for a parameter of rewrite")
    elif isinstance(part, either):
        _check_either(part)
        for inner in part.alternatives:
            _check_part(inner, where)
    elif isinstance(part, (optional, each)):
        word = type(part).__name__
        if isinstance(part.part, (optional, each)) or not isinstance(part.part, Pattern):
            raise RuleError(f"{where}: {word}(…) takes any_, const, Op or either")
        _check_part(part.part, where)
    else:
        raise RuleError(f"{where} is {part!r}, which is no pattern for an input")


def _check_either(part: either) -> None:
    if len(part.alternatives) < 2:
        raise RuleError(f"either({part!r}) has no alternative: leave either out")
    for index, choice in enumerate(part.alternatives):
        if not isinstance(choice, (Op, any_, const, either)):
            raise RuleError(
                f"{choice!r} is no alternative of either: write optional(either(…)) or each(…)"
                " around it"
            )
        if isinstance(choice, any_) and index + 1 < len(part.alternatives):
            raise RuleError(f"any_({choice.name!r}) fits everything: put it last in either(…)")


def _check_commutative(part: Op) -> None:
    if len(part.inputs) != 2 or part.open or any(isinstance(i, each) for i in part.inputs):
        raise RuleError(f"commutative exchanges two inputs, and {part!r} lists others")
    if all(isinstance(inner, any_) for inner in part.inputs):
        raise RuleError(f"commutative says nothing of {part!r}: its inputs are any tensors")


def _check_names(root: Op | either) -> None:
    """Refuse a name that stands for different kinds of things, or inside and outside of each."""
    kinds: dict[str, str] = {}
    lists: dict[str, int] = {}

    def look(part: Pattern, inside: int) -> None:
        for name, kind in _named(part):
            if kinds.setdefault(name, kind) != kind:
                raise RuleError(f"{name!r} is {kinds[name]} and {kind}: give one another name")
            if lists.setdefault(name, inside) != inside:
                raise RuleError(f"{name!r} is bound for each input and elsewhere: use two names")
        for inner in part.parts:
            look(inner, id(part) if isinstance(part, each) else inside)

    look(root, 0)


def _named(part: Pattern) -> Iterator[tuple[str, str]]:
    if isinstance(part, Op) and part.bind is not None:
        yield part.bind, "a node"
    if isinstance(part, any_):
        yield part.name, "a tensor"
    if isinstance(part, const):
        yield part.name, "a constant"


def _check_operator(part: Op, op: str) -> None:
    """Hold an operator of the standard domain against what ONNX has had in any opset."""
    if _fits(part, _newest(op)):
        return
    known = _ever(op)  # slow, and seldom needed
    if known is None:
        near = difflib.get_close_matches(op, {schema.name for schema in _history()}, 1)
        hint = f"did you mean {near[0]}? One" if near else "one"
        raise RuleError(f"ONNX has no operator {op!r}: {hint} of another domain needs domain=…")
    if _fits(part, known):
        return
    inputs, attributes = known
    for name in part.attributes:
        if name not in attributes:
            has = ", ".join(sorted(attributes)) or "none"
            raise RuleError(f"{op} has no attribute {name!r}; it has: {has}")
    raise RuleError(f"{op} has at most {inputs} inputs, and {part!r} lists {len(part.inputs)}")


def _fits(part: Op, known: tuple[int, frozenset[str]] | None) -> bool:
    if known is None:
        return False
    inputs, attributes = known
    needed = [i for i, x in enumerate(part.inputs, 1) if not isinstance(x, (each, optional))]
    return max(needed, default=0) <= inputs and attributes.issuperset(part.attributes)


@lru_cache(maxsize=1024)
def _newest(op: str) -> tuple[int, frozenset[str]] | None:
    """Return the most inputs and the attributes that an operator may have today."""
    try:
        schema = onnx.defs.get_schema(op)
    except onnx.defs.SchemaError:
        return None
    return schema.max_input, frozenset(schema.attributes)


def _ever(op: str) -> tuple[int, frozenset[str]] | None:
    """Return the same over all opsets."""
    found = [schema for schema in _history() if schema.name == op]
    if not found:
        return None
    attributes = frozenset(name for schema in found for name in schema.attributes)
    return max(schema.max_input for schema in found), attributes


def _history() -> list[onnx.defs.OpSchema]:
    schemas = onnx.defs.get_all_schemas_with_history()
    return [schema for schema in schemas if schema.domain == ""]
