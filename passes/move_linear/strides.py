"""A stride of pointwise Convs stands ahead of what computes their input, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from graphpass import (
    Graph,
    Node,
    Op,
    Survey,
    Tensor,
    constant,
    is_output,
    label,
    operator,
    opset,
    producer,
    rank,
    readers,
    require,
    static_dim,
)
from graphpass.ir.operators import Trait, has
from graphpass.ir.questions import dims
from graphpass.ir.refusal import OLD_OPSET, RefusedError
from graphpass.ir.windows import kernel_of, windows_of
from graphpass.rewrite.survey import Proposal, Refused, Several

from ..shared.affine_nodes import rebuilt

_END = np.iinfo(np.int64).max


class StrideAhead(Survey):
    """Conv1x1(F(Conv(x), …), stride s) = Conv1x1(F(Conv(x, stride s), …)), F pixel by pixel.

    Where all that read F(…) are pointwise Convs of that stride, as at the stages of a ResNet: what
    they leave out is not computed. What F takes from elsewhere is cut to every s-th pixel. To the
    bit: each pixel that is computed is computed as before.
    """

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Proposal]:
        """See `Survey`."""
        for node in list(scope.nodes):
            # what was replaced before has no outputs
            strides = _strides(node.outputs[0]) if node.outputs else None
            if strides is None or node.graph is not scope:
                continue
            region = _Region(node.outputs[0], strides)
            if not region.convs:
                continue  # nothing would be saved
            try:
                values = region.values()
            except RefusedError as refusal:
                yield Refused(node, refusal)
                continue
            yield Several(region.nodes, values)


def _strides(tensor: Tensor) -> list[int] | None:
    """Return the stride that all that reads a tensor takes of it, pixel by pixel; None: none."""
    found: list[list[int]] = []
    for node in readers(tensor):
        if operator(node) != "Conv" or node.inputs[0] is not tensor or node.inputs[1] is tensor:
            return None
        try:
            windows = windows_of(node)
        except RefusedError:
            return None
        if any(w.kernel != 1 or (not w.same and (w.begin or w.end)) for w in windows):
            return None
        found.append([window.stride for window in windows])
    alike = bool(found) and all(strides == found[0] for strides in found)
    if not alike or is_output(tensor) or math.prod(found[0]) < 2:
        return None
    return found[0]


class _Region:
    """What is read, pixel by pixel, by nothing but the readers of `tensor`, up to the Convs."""

    def __init__(self, tensor: Tensor, strides: Sequence[int]) -> None:
        self.tensor, self.strides = tensor, strides
        self.taken = readers(tensor)
        self.nodes = list(reversed(self.taken))  # a node after its readers
        self.convs: set[int] = set()
        self._terms: dict[int, Any] = {}  # by tensor, with every s-th pixel
        inside = {id(node) for node in self.taken}
        waiting = [tensor]
        while waiting:
            read = waiting.pop()
            node = producer(read)
            if node is None or id(node) in inside or len(node.outputs) > 1 or is_output(read):
                continue
            if any(id(reader) not in inside for reader in readers(read)):
                continue
            if operator(node) == "Conv":
                self.convs.add(id(node))
            elif has(node, Trait.ELEMENTWISE) or has(node, Trait.BROADCASTING):
                waiting.extend(node.inputs)
            else:
                continue
            inside.add(id(node))
            self.nodes.append(node)
        self._inside = inside

    def values(self) -> list[tuple[Tensor, Op]]:
        """Return what becomes of the readers; refuse where sizes are not known."""
        term, plain = self._every(self.tensor), {"strides": [1] * len(self.strides)}
        return [
            (conv.outputs[0], Op("Conv", term, *conv.inputs[1:], **conv.attrs | plain))
            for conv in self.taken
        ]

    def _every(self, tensor: Tensor) -> Any:
        """Return every s-th pixel of a tensor."""
        if id(tensor) not in self._terms:
            self._terms[id(tensor)] = self._made(tensor)
        return self._terms[id(tensor)]

    def _made(self, tensor: Tensor) -> Any:
        node = producer(tensor)
        if node is None or id(node) not in self._inside:
            return self._cut(tensor)
        if id(node) in self.convs:
            return self._wider(node)
        return rebuilt(
            node,
            [
                operand
                if not operand.name or self._is_alike(operand, tensor)
                # the pixels of the operand are those of the result
                else self._every(operand)
                for operand in node.inputs
            ],
        )

    def _wider(self, conv: Node) -> Op:
        """Return a Conv that makes every s-th pixel of what `conv` makes."""
        begins, ends, strides = [], [], []
        for axis, (window, step) in enumerate(zip(windows_of(conv), self.strides, strict=True)):
            size = static_dim(conv.inputs[0], 2 + axis)
            require(
                not window.same or window.kernel == 1 or size is not None,
                f"what {label(conv)} pads depends on the size of '{conv.inputs[0].name}'",
            )
            # with a kernel of 1 and a stride, SAME pads nothing, whatever the size
            begin, end = window.padding(1 if size is None else size)
            begins.append(begin)
            ends.append(end)
            strides.append(window.stride * step)
        attributes = {k: v for k, v in conv.attrs.items() if k != "auto_pad"}
        attributes |= {"strides": strides, "pads": [*begins, *ends]}
        attributes["kernel_shape"] = kernel_of(conv)
        return Op("Conv", *conv.inputs, **attributes)

    def _is_alike(self, operand: Tensor, whole: Tensor) -> bool:
        """Whether an operand has one pixel for all; refuse where that is not known."""
        axes, own = rank(whole), rank(operand)
        require(axes and own is not None, f"the rank of '{operand.name}' is not known")
        assert axes is not None and own is not None
        places, all_dims, own_dims = range(2 - axes, 0), dims(whole), dims(operand)
        assert all_dims is not None and own_dims is not None
        if own == axes and all(own_dims[p] == all_dims[p] is not None for p in places):
            return False
        single = all(-place > own or static_dim(operand, place) == 1 for place in places)
        require(single, f"'{operand.name}' is spread over pixels of '{whole.name}'")
        return True

    def _cut(self, tensor: Tensor) -> Op:
        """Return every s-th pixel of a tensor that stays."""
        require(constant(tensor) is None, f"'{tensor.name}' is a constant for each pixel")
        old = opset(self.taken[0]) < 10
        require(not old, f"a Slice with steps, of '{tensor.name}', needs opset 10", OLD_OPSET)
        axes = [2 + axis for axis, step in enumerate(self.strides) if step > 1]
        lists = [[0] * len(axes), [_END] * len(axes), axes, [s for s in self.strides if s > 1]]
        return Op("Slice", tensor, *(np.array(values, np.int64) for values in lists))
