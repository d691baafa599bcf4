"""What each layer costs before and after, as plain data for a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx

from graphpass.ir.cost import NodeCost, node_costs
from graphpass.ir.operators import Trait, row
from graphpass.ir.proto_walk import all_nodes, label_of
from graphpass.report.rows import amount, size

if TYPE_CHECKING:
    from graphpass.rewrite.applied import Rewrite

Shapes = Mapping[str, Sequence[int]]


def layers(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    fed: Shapes,
    fed_after: Shapes,
    rewrites: Iterable[Rewrite] = (),
) -> list[dict[str, Any]]:
    """Return a row for each node that costs anything, in the order of the graph.

    `fed`, `fed_after`: the shapes of the inputs of either model.
    Nodes of one name are one layer, whatever they compute before and after; so are a node that sums
    products and the one that rewrites made of it. `adds` and `bytes` are [before, after], None
    where there is no such node or the count is not known: multiply-adds, and bytes of weights and
    of what is written; `told` says them for people.
    """
    labels = _labels(after) | _labels(before)
    old, new = _by_name(before, fed), _by_name(after, fed_after)
    for name, origin in _moved(old, new, labels, rewrites).items():
        new[origin] = new.pop(name)
    return [
        _row(name, labels.get(name, ""), old.get(name), new.get(name))
        for name in _in_order(list(old), list(new))
        if _costs(old.get(name)) or _costs(new.get(name))
    ]


def _moved(
    old: Mapping[str, NodeCost],
    new: Mapping[str, NodeCost],
    labels: Mapping[str, str],
    rewrites: Iterable[Rewrite],
) -> dict[str, str]:
    """Return the one layer of old that is gone and became a new one, by the name of the new."""
    names = {label: name for name, label in labels.items()}
    made_of: dict[str, tuple[str, ...]] = {}
    for rewrite in rewrites:
        made_of.update((label, rewrite.before) for label in rewrite.after)
    found: dict[str, str] = {}
    for name in new:
        if name in old or new[name].multiply_adds == 0:
            continue
        ahead, seen = [labels.get(name, "")], set[str]()
        while ahead:
            seen.add(label := ahead.pop())
            ahead += [o for o in made_of.get(label, ()) if o not in seen and _sums_products(o)]
        origins = [names[label] for label in seen if names.get(label) in old]
        gone = [o for o in origins if o not in new and old[o].multiply_adds != 0]
        if len(gone) == 1 and gone[0] not in found.values():
            found[name] = gone[0]
    return found


def _sums_products(label: str) -> bool:
    found = row(label.split(" ")[0])
    return found is not None and bool(found.traits & Trait.CONTRACTION)


def _labels(model: onnx.ModelProto) -> dict[str, str]:
    """Return how each node is called in the graph, by the name that its layer has."""
    return {node.name or label_of(node): label_of(node) for node in all_nodes(model)}


def _by_name(model: onnx.ModelProto, shapes: Shapes) -> dict[str, NodeCost]:
    # where nodes have no names, a tensor may be made by another operator now: another layer
    unnamed = {
        node.output[0]: label_of(node)
        for node in all_nodes(model)
        if not node.name and any(node.output[:1])
    }
    return {unnamed.get(node.node, node.node): node for node in node_costs(model, shapes)}


def _in_order(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return all names as they stand in `old`, what is only in `new` behind what it follows."""
    places = {name: (index, 0) for index, name in enumerate(old)}
    last, known = -1, set(old)
    for index, name in enumerate(new):
        if name in known:
            last = places[name][0]
        else:
            places[name] = (last, index + 1)
    return sorted(places, key=places.__getitem__)


def _costs(node: NodeCost | None) -> bool:
    if node is None:
        return False
    return node.multiply_adds is None or bool(node.multiply_adds or _bytes(node))


def _bytes(node: NodeCost) -> int | None:
    return None if node.output is None else node.weight_bytes + node.activation_bytes


def _row(name: str, label: str, old: NodeCost | None, new: NodeCost | None) -> dict[str, Any]:
    kinds = dict.fromkeys(node.operator for node in (old, new) if node is not None)
    sides = (old, new)
    adds = [None if node is None else node.multiply_adds for node in sides]
    moved = [None if node is None else _bytes(node) for node in sides]
    return {
        "name": name,
        "label": label,
        "operator": " → ".join(kinds),
        "adds": adds,
        "bytes": moved,
        "told": [
            _told([None if node is None else _said(node.multiply_adds, amount) for node in sides]),
            _told([None if node is None else _said(_bytes(node), size) for node in sides]),
        ],
    }


def _said(count: int | None, how: Callable[[int], str]) -> str:
    return "?" if count is None else how(count)


def _told(texts: Sequence[str | None]) -> str:
    """Return `9 k → 3 k`, one of them where both say the same, what is left or new, "" for none."""
    old, new = texts
    if (old or "0") in ("0", "0 B") and (new or "0") in ("0", "0 B"):
        return ""
    if old == new:
        return str(old)
    if old is None:
        return f"new: {new}"
    return f"{old} → {'gone' if new is None else new}"
