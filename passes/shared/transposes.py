"""Transposes that change the layout (NHWC, NCHW) move down until they meet their inverse.

Exporters of Keras models put a Transpose before and after every Conv. What lies between two Convs
(an activation, a Pad, a residual Add) computes the same in either layout, so that both can go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from graphpass import (
    Node,
    Op,
    Rule,
    Tensor,
    Weight,
    any_,
    attribute,
    axes_of,
    const,
    constant,
    each,
    is_output,
    label,
    operator,
    opset,
    producer,
    rank,
    readers,
    require,
)
from graphpass.ir.operators import Trait, has, named
from graphpass.ir.questions import RefusedError, integers
from graphpass.ir.shapes import sizes
from graphpass.ir.sizes import Size, product

from .heads import ALONG_AXIS, BROADCAST, POINTWISE

# not ReduceMax and ReduceMin: what they make of NaN depends on the layout, in ONNX Runtime
_REDUCTIONS = named(Trait.REDUCTION | Trait.KEEPS_NAN)
_ALONG_AXIS = tuple(op for op in ALONG_AXIS if op != "LpNormalization")
_AGNOSTIC = frozenset((*POINTWISE, *BROADCAST, *_REDUCTIONS, *_ALONG_AXIS, "Concat", "Pad"))
_FEW_ELEMENTS = 4096  # below that a Transpose takes no longer than starting it
_BLOCK = 8  # elements
_NEAR = 64  # nodes looked at around a Transpose: more would not change where it goes


def permutation(node: Node) -> list[int] | None:
    """Return what a Transpose does: axis i of its output is axis p[i] of its input."""
    axes = attribute(node, "perm")
    if axes is not None:
        return list(axes)
    count = rank(node.inputs[0])
    return None if count is None else list(range(count))[::-1]


def inverse(order: Sequence[int]) -> list[int]:
    """Return the permutation that undoes `order`."""
    return [order.index(axis) for axis in range(len(order))]


def merged(inner: Node, outer: Node) -> list[int] | None:
    """Return the permutation of two Transposes as one.

    None where the inner one stays anyway, and where the one would run slower than the two.
    """
    first, second = permutation(inner), permutation(outer)
    if first is None or second is None:
        return None
    both = [first[axis] for axis in second]
    if both == sorted(both):
        return both
    if run_faster_apart(inner, outer):
        return None
    between = inner.outputs[0]
    goes = not is_output(between) and all(
        operator(reader) == "Transpose" and reader.graph is inner.graph
        for reader in readers(between)
    )
    return both if goes else None


def run_faster_apart(inner: Node, outer: Node) -> bool:
    """Whether ONNX Runtime moves whole blocks in each of two Transposes, and not in their product.

    It does where the last axes stay last, and where a single axis changes place; otherwise it
    moves element by element, which takes about ten times as long.
    """
    first, second, shape = permutation(inner), permutation(outer), sizes(inner.inputs[0])
    if first is None or second is None or shape is None:
        return False
    elements = product(shape)
    if not elements.names and elements.factor < _FEW_ELEMENTS:
        return False
    between = [shape[axis] for axis in first]
    both = [first[axis] for axis in second]
    return (
        _moves_blocks(first, shape)
        and _moves_blocks(second, between)
        and not _moves_blocks(both, shape)
    )


def _moves_blocks(order: Sequence[int], shape: Sequence[Size]) -> bool:
    wide = [axis for axis in order if shape[axis] != Size(1)]
    places = [sorted(wide).index(axis) for axis in wide]
    last: list[Size] = []
    for at in reversed(range(len(places))):
        if places[at] != at:
            break
        last.append(shape[wide[at]])
    block = product(last)
    if block.names or block.factor >= _BLOCK:
        return True
    # axes that stay beside each other are one; it changes place where the others are in order
    runs = [at for i, at in enumerate(places) if i == 0 or at != places[i - 1] + 1]
    others = [[at for at in runs if at != moved] for moved in runs]
    return not runs or any(rest == sorted(rest) for rest in others)


def _turned(name: str, bind: str) -> Op:
    return Op("Transpose", any_(name), bind=bind, shared=True)


# --------------------------------------------------------------------------------- the rules


class TransposeBelowPointwise(Rule):
    """f(Transpose(x, p)) = Transpose(f(x), p) for f that works element by element."""

    pattern = Op(POINTWISE, _turned("x", "transpose"), ..., bind="f")

    def rewrite(self, f: Node, transpose: Node, x: Tensor) -> Any:
        order = _pays(transpose, f)
        if order is None:
            return None
        return Op("Transpose", moved(f, order, {0: x}), perm=order)


class TransposeBelowConstant(Rule):
    """f(Transpose(x, p), c) = Transpose(f(x, Transpose(c, p⁻¹)), p) for f that broadcasts."""

    pattern = Op(
        BROADCAST, _turned("x", "transpose"), const("c", quiet=True), bind="f", commutative=True
    )

    def rewrite(self, f: Node, transpose: Node, x: Tensor, c: Weight) -> Any:
        order = _pays(transpose, f)
        if order is None:
            return None
        place = 0 if f.inputs[0] is transpose.outputs[0] else 1
        return Op("Transpose", moved(f, order, {place: x}), perm=order)


def _untransposed(c: Weight, order: Sequence[int]) -> Any:
    """Return c' with Transpose(c', order) = c, `c` taken to the rank of `order` as to broadcast."""
    if c.size == 1:
        return c
    shape = (*[1] * (len(order) - c.ndim), *c.shape)
    back = inverse(order)
    turned = [shape[axis] for axis in back]
    if sum(size > 1 for size in shape) == 1:
        return c.reshape(*turned)  # what has one axis lies as it lay
    return np.ascontiguousarray(c.array().reshape(shape).transpose(back))


class TransposeBelowTwo(Rule):
    """f(Transpose(x, p), Transpose(y, p)) = Transpose(f(x, y), p) for f that broadcasts."""

    pattern = Op(BROADCAST, _turned("x", "left"), _turned("y", "right"), bind="f")

    def rewrite(self, f: Node, left: Node, right: Node, x: Tensor, y: Tensor) -> Any:
        order = _pays(left, f)
        if order is None or permutation(right) != order:
            return None
        return Op("Transpose", moved(f, order, {0: x, 1: y}), perm=order)


class TransposeBelowPad(Rule):
    """Pad(Transpose(x, p), pads) = Transpose(Pad(x, pads of axis p⁻¹), p)."""

    pattern = Op("Pad", _turned("x", "transpose"), ..., bind="pad")

    def rewrite(self, pad: Node, transpose: Node, x: Tensor) -> Any:
        order = _pays(transpose, pad)
        if order is None:
            return None
        return Op("Transpose", moved(pad, order, {0: x}), perm=order)


def _pads(pad: Node) -> list[int] | None:
    """Return the begins and ends of all axes; None where they are computed or of some axes."""
    if len(pad.inputs) > 3 and pad.inputs[3].name:
        return None
    if opset(pad) < 2:
        return None
    if opset(pad) < 11:
        return list(attribute(pad, "pads"))
    return integers(pad.inputs[1]) if len(pad.inputs) > 1 else None


class TransposeBelowReduction(Rule):
    """ReduceMean(Transpose(x, p), axes) = Transpose(ReduceMean(x, p[axes]), p), and like it others.

    Without keepdims the Transpose is gone where the axes that are left have kept their order.
    """

    pattern = Op(_REDUCTIONS, _turned("x", "transpose"), ..., bind="reduction")

    def rewrite(self, reduction: Node, transpose: Node, x: Tensor) -> Any:
        order = _pays(transpose, reduction)
        if order is None:
            return None
        inner = moved(reduction, order, {0: x})
        return inner if drops_layout(reduction) else Op("Transpose", inner, perm=order)


class TransposeBelowAlongAxis(Rule):
    """Softmax(Transpose(x, p), axis) = Transpose(Softmax(x, p[axis]), p) as of opset 13."""

    pattern = Op(_ALONG_AXIS, _turned("x", "transpose"), bind="f")

    def rewrite(self, f: Node, transpose: Node, x: Tensor) -> Any:
        order = _pays(transpose, f)
        if order is None:
            return None
        return Op("Transpose", moved(f, order, {0: x}), perm=order)


class TransposeBelowConcat(Rule):
    """Concat(Transpose(a, p), Transpose(b, p), …, i) = Transpose(Concat(a, b, …, p[i]), p)."""

    pattern = Op(
        "Concat", each(Op("Transpose", any_("xs"), bind="turned", shared=True)), bind="concat"
    )

    def rewrite(self, concat: Node, turned: list[Node], xs: list[Tensor]) -> Any:
        order = _pays(turned[0], concat)
        if order is None or any(permutation(node) != order for node in turned):
            return None
        return Op("Transpose", moved(concat, order, dict(enumerate(xs))), perm=order)


def moved(f: Node, order: Sequence[int], into: Mapping[int, Any]) -> Op:
    """Return f' with Transpose(f'(…), order) = f(…), for `f` that works in any layout.

    `into`: by their place, the inputs whose Transposes by `order` are those of `f`. Constants that
    meet them axis by axis are transposed back.
    """
    op, count, back = operator(f), len(order), inverse(order)
    attrs: dict[str, Any] = dict(f.attrs)
    if op == "MatMul":  # (x·y)ᵀ = yᵀ·xᵀ
        return Op("MatMul", into[1], into[0])
    if op == "Concat":
        attrs = {"axis": order[attribute(f, "axis")]}
    if op == "Concat" or op in BROADCAST:
        operands = [
            into[place] if place in into else _untransposed(_weight(tensor), order)
            for place, tensor in enumerate(f.inputs)
        ]
        return Op(f.op, *operands, **attrs)
    if op in _ALONG_AXIS:
        return Op(f.op, into[0], **{**attrs, "axis": order[attribute(f, "axis")]})
    further = f.inputs[1:]
    if op == "Pad":
        pads = _pads(f) or []
        listed = [pads[side * count + axis] for side in (0, 1) for axis in back]
        return Op("Pad", into[0], None, *further[1:], **{**attrs, "pads": listed})
    if op in _REDUCTIONS:
        axes = sorted(order[axis] for axis in axes_of(f) or ())
        attrs.pop("axes", None)
        return Op(f.op, into[0], **attrs, axes=axes)
    return Op(f.op, into[0], *further, **attrs)


def _weight(tensor: Tensor) -> Weight:
    found = constant(tensor)
    assert found is not None
    return found


TRANSPOSE_RULES: tuple[Rule, ...] = (
    TransposeBelowPointwise(),
    TransposeBelowConstant(),
    TransposeBelowTwo(),
    TransposeBelowPad(),
    TransposeBelowReduction(),
    TransposeBelowAlongAxis(),
    TransposeBelowConcat(),
)


# ------------------------------------------------------------------------------ does it pay

# what was decided, by node: the order of the Transposes that are to move past it
_decided: WeakKeyDictionary[Node, list[int]] = WeakKeyDictionary()


def _pays(transpose: Node, f: Node) -> list[int] | None:
    """Return the permutation, if moving it down, past `f` and further, leaves fewer Transposes.

    Halfway there may be more of them. A plan that was begun is therefore carried to its end,
    and the next one takes it as done.
    """
    try:
        order = permutation(transpose)
        if order is None or not is_agnostic(f, order):
            return None
        if _decided.get(f) != order:
            plan = _Plan(f, order)
            if not plan.pays:
                return None
            _decided.update(dict.fromkeys(plan.members, order))
    except RefusedError:  # something near is a parameter of its function, or about to change
        return None
    return order


class _Plan:
    """What is to change its layout along with `f`, and the Transposes that go and come by that.

    It grows from `f` outwards, and no further than until it pays.
    """

    def __init__(self, f: Node, order: list[int]) -> None:
        self.graph = f.graph
        self.order = order
        self.back = inverse(order)
        # dictionaries are sets that have an order: the same plan in every run
        self.members: dict[Node, None] = {}
        self.sources: dict[Node, None] = {}  # Transposes above it, which go
        self.ends: set[Node] = set()  # inverse Transposes below it, which go
        self.borders: set[Tensor] = set()  # wanted in the old layout: to each comes a Transpose
        self._waiting: deque[Tensor] = deque()  # borders, until somebody has looked
        self._looked = 0
        self._join(f)
        while self._waiting and not self.pays:
            self._look(self._waiting.popleft())

    @property
    def pays(self) -> bool:
        """Whether there are fewer Transposes once all is moved."""
        return len(self.borders) < len(self.sources) + len(self.ends)

    def _look(self, tensor: Tensor) -> None:
        """Let what reads `tensor` join; a border it stays where somebody cannot."""
        stays = is_output(tensor)
        for reader in readers(tensor):
            if operator(reader) == "Transpose" and reader.graph is self.graph:
                # one of another order is merged with that which comes, and costs nothing
                if _settled(reader) == self.back:
                    self.ends.add(reader)
            elif not self._is_moved(reader) and not self._join(reader):
                stays = True
        if not stays:
            self.borders.discard(tensor)

    def _join(self, reader: Node) -> bool:
        """Take in `reader` and all that it computes with, up to Transposes; whether that can be."""
        members = {reader: None}
        sources: dict[Node, None] = {}
        waiting = [reader]
        while waiting:
            node = waiting.pop()
            self._looked += 1
            if self._looked > _NEAR or not is_agnostic(node, self.order):
                return False
            for x in _computed(node):
                above = producer(x)
                if above is None or above.graph is not node.graph or above.outputs[0] is not x:
                    return False
                if drops_layout(above):
                    return False
                if self._is_source(above):
                    sources[above] = None
                elif above not in members and above not in self.members:
                    members[above] = None
                    waiting.append(above)
        new = [*members, *(node for node in sources if node not in self.sources)]
        members, sources = {**self.members, **members}, {**self.sources, **sources}
        if any(producer(node.inputs[0]) in members for node in sources):
            return False  # what comes below that member would be merged with this Transpose
        self.members, self.sources = members, sources
        for node in new:
            if not drops_layout(node):
                self.borders.add(node.outputs[0])
                self._waiting.append(node.outputs[0])
        return True

    def _is_moved(self, node: Node) -> bool:
        return node in self.members or _decided.get(node) == self.order

    def _is_source(self, node: Node) -> bool:
        if operator(node) == "Transpose":
            return _settled(node) == self.order
        return _decided.get(node) == self.order  # below it, there will be one


def _settled(transpose: Node) -> list[int] | None:
    """Return the permutation. Refuses where it, or what reads it, is about to be merged."""
    below = [node for node in readers(transpose.outputs[0]) if operator(node) == "Transpose"]
    for node in (transpose, *below):
        above = producer(node.inputs[0])
        if above is None or above.graph is not node.graph:
            continue
        merges = operator(above) == "Transpose" and merged(above, node) is not None
        require(not merges and above not in _decided, f"{label(node)} is about to be merged")
    return permutation(transpose)


def is_agnostic(f: Node, order: Sequence[int]) -> bool:
    """Whether `f` computes the same in another layout, its computed inputs being in it."""
    op = operator(f)
    if op not in _AGNOSTIC or any(x.outputs or is_output(x) for x in f.outputs[1:]):
        return False
    if op in BROADCAST:
        both = has(f, Trait.BROADCASTING) and len(f.inputs) == 2
        return both and _is_aligned(f, len(order))
    if op in _REDUCTIONS:
        return _is_agnostic_reduction(f, order)
    if op in _ALONG_AXIS:
        return opset(f) >= 13
    if op == "Pad":
        return len(_pads(f) or ()) == 2 * len(order)
    if op == "Concat":
        return len(f.inputs) > 1
    return has(f, Trait.ELEMENTWISE)


def _is_aligned(f: Node, count: int) -> bool:
    """Whether the axes of constants and of what is computed meet as they do in `f`."""
    weights = [constant(x) for x in f.inputs]
    return any(weight is None for weight in weights) and all(
        rank(x) == count if weight is None else weight.ndim <= count
        for x, weight in zip(f.inputs, weights, strict=True)
    )


def _is_agnostic_reduction(f: Node, order: Sequence[int]) -> bool:
    if len(f.inputs) > 1 and constant(f.inputs[1]) is None:
        return False
    axes = axes_of(f)
    if not axes:
        return False
    if attribute(f, "keepdims"):
        return True
    dropped = {axis % len(order) for axis in axes}
    left = [order[axis] for axis in range(len(order)) if axis not in dropped]
    return left == sorted(left)


def drops_layout(node: Node) -> bool:
    """Whether no Transpose is needed below."""
    return operator(node) in _REDUCTIONS and not attribute(node, "keepdims")


def _computed(node: Node) -> list[Tensor]:
    """Return the inputs of an agnostic node that are in the layout."""
    if operator(node) == "Concat":
        return list(node.inputs)
    return [node.inputs[place] for place in in_layout(node)]


def in_layout(node: Node) -> list[int]:
    """Return which inputs of an agnostic node are in the layout, constants left out."""
    if operator(node) in (*BROADCAST, "Concat", "MatMul"):
        return [place for place, x in enumerate(node.inputs) if constant(x) is None]
    return [0]


__all__ = [
    "TRANSPOSE_RULES",
    "drops_layout",
    "in_layout",
    "inverse",
    "is_agnostic",
    "merged",
    "moved",
    "permutation",
    "run_faster_apart",
]
