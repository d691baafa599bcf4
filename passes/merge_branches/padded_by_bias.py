"""A map of features that is padded with the bias which made it, by writing that onto its edges.

So branches of a 1x1 Conv and a larger one are trained to be one Conv afterwards (DBB; ECB).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphpass import (
    Beyond,
    Node,
    Op,
    Rule,
    Tensor,
    any_,
    attribute,
    constant,
    is_output,
    label,
    operator,
    producer,
    readers,
    require,
    static_shape,
)
from graphpass.ir.refusal import IS_OUTPUT, RefusedError
from graphpass.ir.windows import windows_of

from ..clean_up.evaluate import compute, is_computable
from ..clean_up.pads import padding
from ..shared.affine import FLOAT_TYPES, Array, Floats, limits
from ..shared.channels import vector

_MOST_ELEMENTS = 1 << 22  # of the map that is looked at
_MOST_WRITTEN = 16  # Scatters and Transposes one after the other
_MOST_COMPUTING = 64  # nodes that compute where a Scatter writes
_ULPS = 8


class PaddedByBias(Rule):
    """Pad(Conv1x1(x, W, b)) with b written onto all that it pads = Conv1x1(x, W, b), padded itself.

    Written by Scatters, between which axes may be turned. What stands there is the bias as the
    framework computed it: it may be off by 8 units in the last place of the largest b.
    """

    pattern = Op(("ScatterND", "Transpose"), any_("x"), ..., bind="last")

    def rewrite(self, last: Node, x: Tensor) -> Any:
        written = _written(last)
        if written is None:
            return None
        *steps, pad = written
        conv = producer(pad.inputs[0])
        pads, shape = padding(pad), static_shape(pad.outputs[0])
        if conv is None or operator(conv) != "Conv" or pads is None or shape is None:
            return None
        on_edges = _on_edges(pads, shape)
        if on_edges is None or math.prod(shape) > _MOST_ELEMENTS:
            return None
        made: list[Node] = []  # which compute what is written, and where
        held = _after(steps, shape, made)
        if held is None or held.shape != shape or not (np.isnan(held) == ~on_edges).all():
            return None  # something else is written
        weight = constant(conv.inputs[1])
        plain = [(w.kernel, w.stride, w.begin, w.end) == (1, 1, 0, 0) for w in windows_of(conv)]
        if weight is None or weight.dtype not in FLOAT_TYPES or not all(plain):
            return None
        for node in (*written[1:], conv):
            single = len(readers(node.outputs[0])) == 1
            require(single, f"{label(node)} feeds {len(readers(node.outputs[0]))} nodes")
            require(not is_output(node.outputs[0]), f"{label(node)} is an output", IS_OUTPUT)
        given = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        require(given is not None or len(conv.inputs) < 3, f"the bias of {label(conv)} is computed")
        bias = np.zeros(shape[1]) if given is None else vector(given, shape[1])
        off = np.abs(held - bias.reshape(1, -1, *[1] * (len(shape) - 2)))[on_edges]
        near = _ULPS * float(limits(weight.dtype).eps) * float(np.abs(bias).max(initial=0))
        require(
            off.max(initial=0) <= near,
            f"{label(pad)} is padded with another number than the bias of {label(conv)}",
        )
        attributes = {k: v for k, v in conv.attrs.items() if k != "auto_pad"}
        attributes["pads"] = [side for pair in zip(*pads[2:], strict=True) for side in pair]
        wider = Op("Conv", *conv.inputs, **attributes)
        return Beyond(wider, [*written[1:], conv, *dict.fromkeys(reversed(made))])


def _written(last: Node) -> list[Node] | None:
    """Return the Scatters and Transposes from `last` up to a Pad."""
    found = [last]
    while operator(found[-1]) != "Pad":
        node = found[-1]
        if operator(node) == "ScatterND":
            if attribute(node, "reduction") not in (None, "none"):
                return None
        elif operator(node) != "Transpose":
            return None
        above = producer(node.inputs[0])
        if above is None or len(found) > _MOST_WRITTEN:
            return None
        found.append(above)
    return found if any(operator(node) == "ScatterND" for node in found) else None


def _on_edges(pads: list[tuple[int, int]], shape: tuple[int, ...]) -> Any:
    """Return where a map is padded; None where channels are, or anything is cut."""
    if len(pads) != len(shape) or any(map(any, pads[:2])) or min(map(min, pads)) < 0:
        return None
    inside = np.zeros(shape, np.bool_)
    inside[tuple(slice(a, n - b) for (a, b), n in zip(pads, shape, strict=True))] = True
    return ~inside


def _after(steps: list[Node], shape: tuple[int, ...], made: list[Node]) -> Floats | None:
    """Return what is written onto a map by `steps`, the last one first; NaN elsewhere.

    `made`: gets the nodes that compute it, a node after those that it reads.
    """
    held: Floats = np.full(shape, np.nan)
    for node in reversed(steps):
        if operator(node) == "Transpose":
            held = held.transpose(attribute(node, "perm"))
            continue
        places, updates = (_known(tensor, made) for tensor in node.inputs[1:3])
        if places is None or updates is None or updates.dtype not in FLOAT_TYPES:
            return None
        held = held.copy()
        held[tuple(np.moveaxis(places, -1, 0))] = updates.astype(np.float64)
    return held


def _known(tensor: Tensor, made: list[Node]) -> Array | None:
    """Return what a tensor holds that is computed of constants alone; None where it is not."""
    chain: dict[int, Node] = {}
    waiting = [tensor]
    while waiting:
        read = waiting.pop()
        if not read.name or constant(read) is not None:
            continue
        node = producer(read)
        if node is None or not is_computable(node) or len(chain) > _MOST_COMPUTING:
            return None
        if id(read) not in chain:
            chain[id(read)] = node
            waiting.extend(node.inputs)
    made.extend(reversed(chain.values()))
    try:
        return compute([tensor], lambda read: id(read) in chain)[id(tensor)]
    except RefusedError:
        return None
