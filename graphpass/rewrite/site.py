"""One rewrite with its surroundings, before and after: what is timed to know whether it pays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from graphpass.ir.nodes import Graph, Node, Tensor
from graphpass.ir.operators import Trait, has
from graphpass.ir.questions import constant, is_output
from graphpass.rewrite.building import Built
from graphpass.rewrite.match import Match, computing
from graphpass.rewrite.window import Window, cut, sources_of

# An activation, or a sum with a shortcut, is fused into what it reads: with it in the window, what
# keeps it from being fused is seen to cost. Two are a SiLU, three a GELU by its parts begins with.
_DEEPEST, _MOST_READERS = 3, 16


def site_windows(found: Match, built: Built) -> list[Window]:
    """Cut out a rewrite, all its results together, with the elementwise operators that read them.

    The second window is without these, for where they cannot be run. Fewer where types are
    unknown. Neither side is changed by it.
    """
    graph: Graph = found.root.graph
    pairs = zip(found.results, built.results, strict=True)
    made = [(new, old) for old, new in pairs if new is not None and new is not old]
    results = [old for _, old in made]
    replaced = computing(results, list(dict.fromkeys(reversed(found.nodes))))
    inside = {id(node) for node in found.nodes}
    readers = list(_readers(graph, results, inside))
    windows = []
    for kept in [readers, []] if readers else [[]]:
        window = _window(graph, built, found.nodes, replaced, made, kept)
        if window is not None:
            windows.append(window)
    return windows


def _window(
    graph: Graph,
    built: Built,
    matched: Sequence[Node],
    replaced: list[Node],
    made: list[tuple[Tensor, Tensor]],
    readers: Sequence[Node],
) -> Window | None:
    new = computing([tensor for tensor, _ in made], built.nodes)
    results = [old for _, old in made]
    read = [tensor for node in (*replaced, *new) for tensor in node.inputs]
    sources = sources_of(
        graph, [*read, *(tensor for tensor, _ in made)], {id(node) for node in matched}
    )
    opsets = {**graph.opsets, **built.imports}
    shown = list(_shown(results, readers))
    before = cut(
        graph, replaced, [(old, old) for old in results], sources, opsets,
        readers=readers, shown=shown,
    )  # fmt: skip
    middle = {id(node): node for node in matched}
    after = cut(
        graph, new, made, {**sources, **middle}, opsets, readers=readers, shown=shown
    )  # fmt: skip
    if before is None or after is None or not _takes_all_of(before, after):
        return None
    names = [value.name for value in before.graph.input]
    return Window(before, after, tuple(sorted(names)), results[0].name)


def _takes_all_of(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    """Give both the inputs that either has, since both are fed the same; False: that cannot be."""
    for graph, further in ((one.graph, other.graph), (other.graph, one.graph)):
        known = {value.name for value in graph.input}
        made = {name for node in graph.node for name in node.output}
        missing = [value for value in further.input if value.name not in known]
        if any(value.name in made for value in missing):
            return False
        graph.input.extend(missing)
    return True


def _readers(graph: Graph, results: Sequence[Tensor], inside: set[int]) -> Iterator[Node]:
    """Yield what works element by element on the results, a node after those that it reads."""
    level, found = list(results), set(inside)
    for _ in range(_DEEPEST):
        nodes = [
            node
            for tensor in level
            for node in tensor.outputs
            if node.graph is graph and _is_plain(node)
        ]
        level = []
        for node in nodes:
            if id(node) in found or len(found) - len(inside) >= _MOST_READERS:
                continue
            found.add(id(node))
            level.extend(node.outputs)
            yield node


def _is_plain(node: Node) -> bool:
    """Whether `node` takes its shape from what it reads, so that it can be run by itself."""
    if has(node, Trait.ELEMENTWISE) or has(node, Trait.BROADCASTING):
        return True
    return node.op in ("Reshape", "Transpose", "Flatten") and all(
        constant(tensor) is not None for tensor in node.inputs[1:] if tensor.name
    )


def _shown(results: Sequence[Tensor], readers: Sequence[Node]) -> Iterator[Tensor]:
    """Yield what something outside of the window reads."""
    inside = {id(node) for node in readers}
    for tensor in (*results, *(tensor for node in readers for tensor in node.outputs)):
        outside = [node for node in tensor.outputs if id(node) not in inside]
        if outside or is_output(tensor) or not tensor.outputs:
            yield tensor
