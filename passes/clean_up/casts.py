"""Casts that change nothing, alone or together."""

from __future__ import annotations

from typing import Any

from graphpass import Node, Op, Rule, Tensor, any_, dtype, is_output, readers
from graphpass.ir.questions import cast_type

# what each type is held by without loss
_WIDER = {
    "bool": ("uint8", "int8", "int32", "int64", "float16", "float32", "float64"),
    "uint8": ("int32", "int64", "float16", "float32", "float64"),
    "int8": ("int32", "int64", "float16", "float32", "float64"),
    "int32": ("int64", "float64"),
    "float16": ("float32", "float64"),
    "float32": ("float64",),
}


class DropCast(Rule):
    """Cast(x, type of x) = x."""

    pattern = Op(("Cast", "CastLike"), any_("x"), ..., bind="node")

    def rewrite(self, node: Node, x: Tensor) -> Any:
        kind = cast_type(node)
        return x if kind is not None and kind == dtype(x) else None


class MergeCasts(Rule):
    """Cast(Cast(x, wider type), t) = Cast(x, t), and x where t is the type of x."""

    pattern = Op("Cast", Op("Cast", any_("x"), bind="inner", shared=True), bind="outer")

    def rewrite(self, outer: Node, inner: Node, x: Tensor) -> Any:
        source, wide, final = dtype(x), cast_type(inner), cast_type(outer)
        if source is None or str(wide) not in _WIDER.get(str(source), ()):
            return None
        if final == source:
            return x
        if _stays(inner) or str(final) not in (*_WIDER, "int64", "float64"):
            return None
        return Op("Cast", x, **outer.attrs)


def _stays(node: Node) -> bool:
    """Whether `node` is needed elsewhere too."""
    return is_output(node.outputs[0]) or len(readers(node.outputs[0])) > 1


CAST_RULES = (DropCast(), MergeCasts())

__all__ = ["CAST_RULES"]
