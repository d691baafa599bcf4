"""A BatchNormalization behind each part of a Split: one ahead of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphpass import (
    Graph,
    Node,
    Op,
    Survey,
    Tensor,
    Weight,
    attribute,
    constant,
    is_output,
    operator,
    readers,
    static_dim,
)
from graphpass.ir.operators import is_training
from graphpass.rewrite.survey import Several


class NormsBehindSplit(Survey):
    """BatchNormalization(Split(x)ᵢ) for each i = Split(BatchNormalization(x)), split by channels.

    With their parameters side by side, to the bit: each channel meets the same numbers. Only where
    every part has one, with the same ε; what feeds the Split can then take it in.
    """

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Several]:
        """Yield each Split with what reads it."""
        for split in list(scope.nodes):
            if operator(split) == "Split" and attribute(split, "axis") in (1, -3):
                found = _merged(split)
                if found is not None:
                    yield found


def _merged(split: Node) -> Several | None:
    x, norms, parameters = split.inputs[0], [], []
    if attribute(split, "axis") < 0 and (x.shape is None or len(x.shape) != 4):
        return None
    for part in split.outputs:
        norm = _only_norm(split, part)
        channels = static_dim(part, 1)
        held = [] if norm is None else [constant(tensor) for tensor in norm.inputs[1:5]]
        if norm is None or not channels or not all(_is_plain(w, channels) for w in held):
            return None
        norms.append(norm)
        parameters.append([weight.array() for weight in held if weight is not None])
    first = norms[0]
    if any(norm.attrs != first.attrs for norm in norms):
        return None
    if len({tuple(a.dtype for a in arrays) for arrays in parameters}) > 1:
        return None
    joined = [np.concatenate(arrays) for arrays in zip(*parameters, strict=True)]
    ahead = Op("BatchNormalization", x, *joined, **first.attrs)
    again = Op("Split", ahead, *split.inputs[1:], outputs=len(norms), like=split, **split.attrs)
    values = [(n.outputs[0], again[i] if len(norms) > 1 else again) for i, n in enumerate(norms)]
    return Several([*reversed(norms), split], values)


def _only_norm(split: Node, part: Tensor) -> Node | None:
    """Return the BatchNormalization that alone reads a part."""
    read = readers(part)
    if is_output(part) or len(read) != 1:
        return None
    norm = read[0]
    fits = operator(norm) == "BatchNormalization" and norm.graph is split.graph
    return norm if fits and norm.inputs[0] is part and not is_training(norm) else None


def _is_plain(weight: Weight | None, channels: int) -> bool:
    return weight is not None and weight.shape == (channels,)


__all__ = ["NormsBehindSplit"]
