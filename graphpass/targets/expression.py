"""Limits in a profile, as arithmetic on what is known of a node: `kernel_h * kernel_w <= 4096`.

A profile is data that anybody may have written: an expression is read with Python's own parser,
and nothing but numbers, names, arithmetic, comparisons and four functions is taken.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from graphpass.errors import UsageError

_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "max": max,
    "min": min,
}
_OPERATORS: Final[Mapping[type, Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}


class UnknownValueError(Exception):
    """A name in an expression has no value for this node; the text is the name."""


@dataclass(frozen=True)
class Expression:
    """A condition on a node. `names`: what it asks of the node, in the order of the text."""

    text: str
    names: tuple[str, ...]
    _tree: ast.expr = field(repr=False, compare=False)

    @classmethod
    def read(cls, text: str, known: frozenset[str]) -> Expression:
        """Return the expression that `text` is. Raises `UsageError` with what is wrong in it."""
        try:
            tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise UsageError(f"{text!r} is no condition") from None
        names = tuple(dict.fromkeys(_names(tree, text)))
        if unknown := [name for name in names if name not in known]:
            raise UsageError(
                f"{text!r} asks for {unknown[0]!r}, which is not known of nodes; known are"
                f" {', '.join(sorted(known))}"
            )
        return cls(text, names, tree)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Return whether it holds. Raises `UnknownValueError` where a value decides and is None."""
        return bool(_value(self._tree, values))


def _names(tree: ast.AST, text: str) -> Iterator[str]:
    """Yield the names in an expression, refusing what is not arithmetic."""
    if isinstance(tree, ast.Name):
        yield tree.id
        return
    if isinstance(tree, ast.Call):
        known = isinstance(tree.func, ast.Name) and tree.func.id in _FUNCTIONS and not tree.keywords
        if not known:
            raise UsageError(f"{text!r} calls what is not {', '.join(_FUNCTIONS)}")
        for argument in tree.args:
            yield from _names(argument, text)
        return
    if isinstance(tree, ast.Constant):
        if not isinstance(tree.value, (bool, int, float, str)):
            raise UsageError(f"{text!r} holds {tree.value!r}, which is no number, text or truth")
        return
    kinds = (ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Tuple, ast.List)
    if not isinstance(tree, kinds):
        raise UsageError(f"{text!r} is more than arithmetic and comparisons")
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.expr):
            yield from _names(child, text)
        elif not isinstance(child, (ast.And, ast.Or, ast.expr_context, *_OPERATORS)):
            raise UsageError(f"{text!r} is more than arithmetic and comparisons")


def _value(tree: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.Name):
        value = values.get(tree.id)
        if value is None:
            raise UnknownValueError(tree.id)
        return value
    if isinstance(tree, (ast.Tuple, ast.List)):
        return [_value(item, values) for item in tree.elts]
    if isinstance(tree, ast.BoolOp):
        decides = isinstance(tree.op, ast.Or)
        for part in tree.values:
            if bool(_value(part, values)) is decides:
                return decides
        return not decides
    if isinstance(tree, ast.UnaryOp):
        return _OPERATORS[type(tree.op)](_value(tree.operand, values))
    if isinstance(tree, ast.BinOp):
        return _OPERATORS[type(tree.op)](_value(tree.left, values), _value(tree.right, values))
    if isinstance(tree, ast.Call):
        assert isinstance(tree.func, ast.Name)
        return _FUNCTIONS[tree.func.id](*(_value(argument, values) for argument in tree.args))
    assert isinstance(tree, ast.Compare)
    left = _value(tree.left, values)
    for step, part in zip(tree.ops, tree.comparators, strict=True):
        right = _value(part, values)
        if not _OPERATORS[type(step)](left, right):
            return False
        left = right
    return True
