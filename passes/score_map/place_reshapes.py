"""What Reshape makes of the places of a map: as they are, finer, or coarser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphpass import Node, attribute, label

from .places import Axes, Axis, FixedSizeError, Followed, Places, count_of


@dataclass(frozen=True)
class Kept:
    """Axis `target` of a Reshape's output holds the places of axis `source` of its input.

    There are `times` as many, divided by `parts`: a pixel shuffle makes them finer.
    """

    source: int
    target: int
    times: int = 1
    parts: int = 1


def kept_places(node: Node, before: Axes, after: Sequence[int]) -> list[Kept]:
    """Return where a Reshape puts the places of `before`, whose sizes become `after`.

    Raises FixedSizeError where it joins places with what lies before them, or with others.
    """
    kept: list[Kept] = []
    for sources, targets in _blocks([count_of(axis) for axis in before], after):
        places = [index for index in sources if isinstance(before[index], Places)]
        if not places:
            continue
        if len(places) > 1:
            if [count_of(before[i]) for i in sources] == [after[j] for j in targets]:
                offset = targets[0] - sources[0]
                kept.extend(Kept(index, index + offset) for index in places)
                continue
            raise FixedSizeError(f"{label(node)} makes one axis of several dimensions of the image")
        kept.append(_kept_in(node, before, after, places[0], sources, targets))
    return kept


def _kept_in(
    node: Node,
    before: Axes,
    after: Sequence[int],
    source: int,
    sources: list[int],
    targets: list[int],
) -> Kept:
    outer = math.prod(count_of(before[i]) for i in sources if i < source)
    inner = math.prod(count_of(before[i]) for i in sources if i > source)
    count = count_of(before[source])
    for target in targets:
        if math.prod(after[j] for j in targets if j < target) != outer:
            continue
        size = after[target]
        if size == 1 and count != 1:
            continue
        if size % count == 0 and inner % (size // count) == 0:
            return Kept(source, target, size // count)
        if count % size == 0:
            return Kept(source, target, 1, count // size)
    raise FixedSizeError(f"{label(node)} joins the places of the image with other axes")


def reshape(found: Followed, node: Node, inputs: list[Axes]) -> Sequence[Axes]:
    """Give the output the places that it has natively, and note where that takes a change."""
    axes = inputs[0]
    natively = found.natively(node.inputs[0])
    sizes = found.shapes.get(node.outputs[0].name)
    if sizes is None:
        raise FixedSizeError(f"what {label(node)} makes of its input is not known")
    made: list[Axis] = list(sizes)
    for kept in kept_places(node, natively, sizes):
        axis = axes[kept.source]
        assert isinstance(axis, Places)
        if axis.count * kept.times % kept.parts:
            raise FixedSizeError(f"{label(node)} does not divide its map by {kept.parts}")
        made[kept.target] = Places(axis.dim, axis.count * kept.times // kept.parts)
    if found.native is not None and _asked(found, node, axes) != [count_of(a) for a in made]:
        found.changed[id(node)] = node
    return [tuple(made)]


def _asked(found: Followed, node: Node, axes: Axes) -> list[int] | None:
    """Return the sizes that the node as it is makes of `axes`; None where it fails."""
    sizes = [count_of(axis) for axis in axes]
    if node.op == "Flatten":
        at = attribute(node, "axis")
        at += len(sizes) if at < 0 else 0
        return [math.prod(sizes[:at]), math.prod(sizes[at:])]
    listed = attribute(node, "shape")
    value = found.value(node.inputs[1]) if listed is None and len(node.inputs) > 1 else None
    if listed is None and value is None:
        return None
    target = list(listed) if listed is not None else [int(v) for v in value.reshape(-1)]  # type: ignore[union-attr]
    if not attribute(node, "allowzero"):
        if any(size == 0 and index >= len(sizes) for index, size in enumerate(target)):
            return None
        target = [sizes[index] if size == 0 else size for index, size in enumerate(target)]
    rest = math.prod(size for size in target if size != -1)
    if -1 in target and (not rest or math.prod(sizes) % rest):
        return None
    target = [math.prod(sizes) // rest if size == -1 else size for size in target]
    return target if math.prod(target) == math.prod(sizes) else None


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Cut both into shortest runs of equal product; what is left of ones goes to the last."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        sources, targets = [i], [j]
        left, right = before[i], after[j]
        i, j = i + 1, j + 1
        while left != right and (i < len(before) or j < len(after)):
            if (left < right and i < len(before)) or j >= len(after):
                left, sources, i = left * before[i], [*sources, i], i + 1
            else:
                right, targets, j = right * after[j], [*targets, j], j + 1
        blocks.append((sources, targets))
    if blocks:
        blocks[-1][0].extend(range(i, len(before)))
        blocks[-1][1].extend(range(j, len(after)))
    return blocks


__all__ = ["Kept", "kept_places", "reshape"]
