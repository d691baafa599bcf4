"""The only place that swaps nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from graphpass.ir.editing import sorted_nodes
from graphpass.ir.nodes import Constant, Graph, Node, Shape, Tensor, Variable
from graphpass.ir.questions import (
    RefusedError,
    has_effects,
    is_output,
    label,
    producer,
)
from graphpass.rewrite.building import Built
from graphpass.rewrite.linking import let_go, place_of, relink, unlink
from graphpass.rewrite.match import Match, computing

_MOST_ABOVE = 4096  # nodes looked at above several that become one


@dataclass(frozen=True)
class _Place:
    """How `result` comes to be what `made` is.

    "own": an output of a new node takes the name; "relink": its readers read `made`; "rename":
    the node that computes `made` computes it under the name of `result`; "identity": a copy.
    """

    result: Tensor
    made: Tensor
    how: str


class Surgeon:
    """Replaces matches by terms in every scope of one model."""

    def __init__(self, fresh: Callable[[str], str]) -> None:
        """`fresh`: makes a name that nothing in the model has."""
        self._fresh = fresh
        self._spliced: dict[int, list[Node]] = {}
        self._unsorted: set[int] = set()  # graphs where what was made may stand too early
        self._dead: dict[int, Node] = {}
        self._dead_constants: dict[int, Constant] = {}
        self._touched: dict[int, Graph] = {}
        self._named: dict[int, set[str]] = {}

    # --------------------------------------------------------------- the nodes take their place

    def commit(self, found: Match, built: Built) -> list[Node]:
        """Put `built` in the place of the matched nodes; return the nodes whose turn comes again.

        Raises `RefusedError` where an output of the graph would have to take another name, is
        declared to have another shape than it has, or where what is made would need itself.
        """
        graph: Graph = found.root.graph
        places = self._places(found, built)  # and all else that may refuse, before any change
        stale = [p.result.name for p in places if self._contradicts_declared(p.result, p.made)]
        if len(found.roots) > 1:
            _require_apart(found, built)
        going = _going(found, built)
        is_unsorted = len(found.roots) > 1 or not going or _reads_from_beyond(found, built)
        for node in built.nodes:
            for tensor in node.inputs:
                list.append(tensor.outputs, node)
        for node, tensor in built.links:
            list.append(tensor.outputs, node)
        graph.opsets.update(built.imports)
        graph.initializers.extend(built.constants)
        again = list(built.nodes)
        answered = {id(result) for result in found.results}
        for place in places:
            again.extend(self._put(place, graph, built.nodes, going, answered))
        if going:
            self._spliced.setdefault(id(going[0]), []).extend(built.nodes)
        else:
            graph.nodes.extend(built.nodes)
        released: list[Tensor] = []
        for root in going:
            released.extend(root.inputs)
            unlink(root)
            self._dead[id(root)] = root
        self._release(released)
        self._touched[id(graph)] = graph
        if is_unsorted:
            self._unsorted.add(id(graph))
        graph.stale.update(stale)
        return [node for node in again if id(node) not in self._dead]

    def _places(self, found: Match, built: Built) -> list[_Place]:
        """Decide for each result how it comes about; nothing is changed yet. May refuse."""
        graph: Graph = found.root.graph
        inside = {id(node) for node in built.nodes}
        now: dict[int, Tensor] = {}  # by tensor: what it will be called by then
        places = []
        for result, tensor in zip(found.results, built.results, strict=True):
            if tensor is None or tensor is result:
                continue
            made = now.get(id(tensor), tensor)
            source = producer(tensor)
            is_free = id(tensor) not in now
            if is_free and source is not None and id(source) in inside:
                how = "own"
            elif not is_output(result):
                self._check_visible(made, result, graph)
                how = "relink"
            elif (
                is_free
                and source is not None
                and source.graph is graph
                and not is_output(made)
                and not any(made is other for other in found.results)
            ):
                self._check_visible(result, made, graph)
                how = "rename"
            elif producer(result).op == "Identity":  # type: ignore[union-attr]
                raise RefusedError(f"'{result.name}' is an output of the graph and keeps its name")
            else:
                how = "identity"
            if how in ("own", "rename"):
                now[id(tensor)] = result
            places.append(_Place(result, made, how))
        return places

    def _put(
        self,
        place: _Place,
        graph: Graph,
        built: list[Node],
        going: list[Node],
        answered: set[int],
    ) -> list[Node]:
        """Let one result be what was made; return the nodes near that have to be looked at."""
        result, made = place.result, place.made
        root = producer(result)
        assert root is not None
        if place.how == "own":
            self._own(result, made, root, going, answered)
            return []
        if place.how == "relink":
            source = producer(made)
            again = [*result.outputs, *([source] if source is not None else [])]
            relink(result, made)
            return again
        let_go(root, result)
        if place.how == "rename":
            source = producer(made)
            assert source is not None
            list.clear(result.inputs)
            list.__setitem__(source.outputs, place_of(source.outputs, made), result)
            list.append(result.inputs, source)
            list.clear(made.inputs)
            again = [*made.outputs, source]
            relink(made, result)
            return again
        name = str(root.name) if len(going) == 1 and not built else self._fresh(str(root.name))
        identity = Node("Identity", name, {}, graph=graph)
        identity.inputs.append(made)
        identity.outputs.append(result)
        self._spliced.setdefault(id(going[0]), []).append(identity)
        return [identity]

    @staticmethod
    def _own(
        result: Tensor, made: Tensor, root: Node, going: list[Node], answered: set[int]
    ) -> None:
        """A new node computes `result`, and if it is of the root's kind what else the root did.

        But for what the rule has an answer for (`answered`, by id).
        """
        maker = producer(made)
        assert maker is not None
        result.shape = _sharpened(result.shape, made.shape)
        if result.dtype is None:
            result.dtype = made.dtype
        place = place_of(maker.outputs, made)
        further = [t for t in root.outputs if id(t) not in answered]
        keeps = maker.op == root.op and len(maker.outputs) == 1 and len(going) == 1
        let_go(root, result)
        list.__setitem__(maker.outputs, place, result)
        list.append(result.inputs, maker)
        list.clear(made.inputs)
        relink(made, result)  # other new nodes may read it
        if keeps:
            for tensor in further:
                let_go(root, tensor)
                maker.outputs.append(tensor)

    # ------------------------------------------------------------------- edits by hand

    def insert(
        self,
        graph: Graph,
        made: list[Node],
        replaced: Sequence[tuple[Tensor, Tensor]],
        kept: Collection[int] = (),
    ) -> None:
        """Put nodes that were made by hand into `graph`, and tensors in the place of others.

        `replaced`: what is read so far, and what is to be read instead; new nodes among its
        readers go on reading what it was, and where its id is in `kept`, all readers do. An
        output of the graph keeps its name.
        """
        becomes: dict[int, Tensor] = {}
        released: list[Tensor] = []
        for old, new in replaced:
            if id(old) in kept:
                released.append(self._stand_in(old, made, everywhere=True))
            released.extend(self._supersede(graph, old, becomes.get(id(new), new), made, becomes))
        for node in made:
            for tensor in node.inputs:
                list.append(tensor.outputs, node)
        graph.nodes.extend(made)
        self._touched[id(graph)] = graph
        self._release([*released, *(tensor for node in made for tensor in node.outputs)])

    def _stand_in(self, old: Tensor, made: list[Node], *, everywhere: bool = False) -> Tensor:
        """Let what computes `old` compute another tensor, which new nodes read in its place."""
        former = producer(old)
        assert former is not None
        before = Variable(self._fresh(f"{old.name}.old"), old.dtype, old.shape)
        list.__setitem__(former.outputs, place_of(former.outputs, old), before)
        list.append(before.inputs, former)
        list.clear(old.inputs)
        for node in made:
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    list.__setitem__(node.inputs, index, before)
        if everywhere:
            relink(old, before)
        return before

    def _supersede(
        self,
        graph: Graph,
        old: Tensor,
        new: Tensor,
        made: list[Node],
        becomes: dict[int, Tensor],
    ) -> list[Tensor]:
        """Let `new` be read in the place of `old`; return what may be of no use any more."""
        former = producer(old)
        if not is_output(old):
            relink(old, new)
            return [old]
        left: list[Tensor] = []
        if former is not None:
            left.append(self._stand_in(old, made))
        maker = producer(new)
        if maker is None or is_output(new) or maker.graph is not graph:
            identity = Node("Identity", self._fresh(old.name), {}, graph=graph)
            list.append(identity.inputs, new)
            list.append(identity.outputs, old)
            list.append(old.inputs, identity)
            made.append(identity)
            return left
        list.__setitem__(maker.outputs, place_of(maker.outputs, new), old)
        list.append(old.inputs, maker)
        list.clear(new.inputs)
        for node in made:
            for index, tensor in enumerate(node.inputs):
                if tensor is new:
                    list.__setitem__(node.inputs, index, old)
        relink(new, old)
        becomes[id(new)] = old
        return left

    @staticmethod
    def _contradicts_declared(old: Tensor, new: Tensor) -> bool:
        """Whether a wrong declaration must go, lest it come to light: the checker stumbles then."""
        wrong = _contradict(old.shape, new.shape)
        if wrong and is_output(old):
            raise RefusedError(
                f"output '{old.name}' is declared with shape {old.shape}, but has {new.shape}"
            )
        return wrong

    def _check_visible(self, tensor: Tensor, instead_of: Tensor, graph: Graph) -> None:
        """Refuse where a reader in a body would take the name of `tensor` for one of its own."""
        for reader in instead_of.outputs:
            scope: Graph | None = reader.graph
            while scope is not graph and scope is not None:
                if tensor.name in self._own_names(scope):
                    raise RefusedError(
                        f"in the body around {label(reader)} '{tensor.name}' is another tensor"
                    )
                scope = scope.parent

    def _own_names(self, graph: Graph) -> set[str]:
        """Return the names that `graph` itself gives to tensors."""
        if id(graph) not in self._named:
            values = (*graph.proto.input, *graph.proto.initializer)
            outputs = (name for node in graph.proto.node for name in node.output)
            self._named[id(graph)] = {*(value.name for value in values), *outputs}
        return self._named[id(graph)]

    def _release(self, tensors: Iterable[Tensor]) -> None:
        """Remove what nothing reads any more, upwards from `tensors`."""
        stack = list(tensors)
        while stack:
            tensor = stack.pop()
            if tensor.name == "" or tensor.outputs or is_output(tensor):
                continue
            if isinstance(tensor, gs.Constant):
                self._dead_constants[id(tensor)] = tensor
                continue
            node = producer(tensor)
            if node is None or id(node) in self._dead:
                continue
            if any(output.outputs or is_output(output) for output in node.outputs):
                continue
            if has_effects(node):
                continue
            self._dead[id(node)] = node
            self._touched[id(node.graph)] = node.graph
            stack.extend(node.inputs)
            stack.extend(self._captured(node))
            unlink(node)

    def _captured(self, node: Node) -> list[Tensor]:
        """Return what the bodies of `node` read from outside; unlink the bodies."""
        released: list[Tensor] = []
        for body in node.graph.subgraphs_of(node):
            for scope in body.scopes():
                for inner in scope.nodes:
                    released.extend(inner.inputs)
                    unlink(inner)
                    self._dead[id(inner)] = inner
        return released

    def merge_constants(self, gone: Constant, kept: Constant) -> list[Node]:
        """Let what reads `gone` read `kept`, which holds the same; return those nodes.

        Raises `RefusedError` where a body has another tensor of that name.
        """
        again = list(gone.outputs)
        self._check_visible(kept, gone, again[0].graph)
        relink(gone, kept)
        self._release([gone])
        return again

    def remove(self, node: Node) -> None:
        """Remove a node whose outputs nothing reads, and what only it needed."""
        self._touched[id(node.graph)] = node.graph
        self._release(list(node.outputs))

    def remove_constant(self, tensor: Constant) -> None:
        """Remove an initializer that nothing reads."""
        self._release([tensor])

    def is_dead(self, what: Node | Constant) -> bool:
        """Whether a node or initializer has been replaced or removed."""
        return id(what) in self._dead or id(what) in self._dead_constants

    def close(self, scopes: Iterable[Graph]) -> None:
        """Bring the node and initializer lists up to date, in one pass over them."""
        for graph in scopes:
            graph.is_touched |= id(graph) in self._touched or bool(self._dead_constants)
            if id(graph) in self._touched:
                graph.nodes[:] = self._living(graph.nodes)
                if id(graph) in self._unsorted:
                    graph.nodes[:] = sorted_nodes(graph.nodes)
            if self._dead_constants:
                graph.initializers[:] = [
                    c for c in graph.initializers if id(c) not in self._dead_constants
                ]
        self._spliced.clear()
        self._unsorted.clear()
        self._dead.clear()
        self._dead_constants.clear()
        self._touched.clear()

    def _living(self, nodes: list[Node]) -> list[Node]:
        living: list[Node] = []
        stack = list(reversed(nodes))
        while stack:
            node = stack.pop()
            if id(node) in self._spliced:
                stack.extend(reversed(self._spliced[id(node)]))
            elif id(node) not in self._dead:
                living.append(node)
        return living


def _going(found: Match, built: Built) -> list[Node]:
    """Return the roots all of whose results are computed anew."""
    kept = {
        id(result)
        for result, made in zip(found.results, built.results, strict=True)
        if result.name and (made is None or made is result)
    }
    return [root for root in found.roots if not any(id(t) in kept for t in root.outputs)]


def _reads_from_beyond(found: Match, built: Built) -> bool:
    """Whether new nodes read what the match has no part in, which may be made further down."""
    above = computing(found.results, found.nodes)
    near = {id(t) for node in found.nodes for t in node.inputs}
    near |= {id(t) for node in (*above, *built.nodes) for t in node.outputs}
    return any(t.inputs and id(t) not in near for node in built.nodes for t in node.inputs)


def _require_apart(found: Match, built: Built) -> None:
    """Refuse where what replaces several nodes would need itself, by way of one of them."""
    pairs = zip(found.results, built.results, strict=True)
    becomes = {
        id(result): made for result, made in pairs if made is not None and made is not result
    }
    common = [{id(t) for t in _read(found, root)} for root in found.roots]
    safe = set.intersection(*common)
    inside = {id(node) for node in built.nodes}
    open_: set[int] = set()  # above which is being looked
    done: set[int] = set()
    waiting = list(built.nodes)
    while waiting:
        node = waiting[-1]
        if id(node) in open_ or id(node) in done:
            open_.discard(id(node))
            done.add(id(node))
            waiting.pop()
            continue
        if len(done) == _MOST_ABOVE:
            raise RefusedError(
                f"more than {_MOST_ABOVE} nodes lie above {label(found.root)} and those beside it"
            )
        open_.add(id(node))
        for tensor in (*node.inputs, *_captured_by_all(node)):
            if isinstance(tensor, gs.Constant) or (id(node) in inside and id(tensor) in safe):
                continue
            source = producer(becomes.get(id(tensor), tensor))
            if source is not None and id(source) in open_:
                root = producer(tensor) or source
                raise RefusedError(f"{label(root)} feeds another one of the nodes it would join")
            if source is not None and id(source) not in done:
                waiting.append(source)


def _captured_by_all(node: Node) -> Iterator[Tensor]:
    for body in node.graph.subgraphs_of(node):
        yield from _captured_by(body)


def _read(found: Match, root: Node) -> Iterator[Tensor]:
    """Yield what a root and the matched nodes above it read."""
    matched = {id(node) for node in found.nodes}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        for tensor in node.inputs:
            yield tensor
            source = producer(tensor)
            if source is not None and id(source) in matched:
                waiting.append(source)


def _captured_by(body: Graph) -> Iterator[Tensor]:
    return (tensor for scope in body.scopes() for node in scope.nodes for tensor in node.inputs)


def _contradict(declared: Shape | None, found: Shape | None) -> bool:
    if declared is None or found is None:
        return False
    if len(declared) != len(found):
        return True
    pairs = zip(declared, found, strict=True)
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)


def _sharpened(known: Shape | None, found: Shape | None) -> Shape | None:
    """Fill in what is unknown of one shape from another."""
    if known is None or found is None or _contradict(known, found):
        return known if found is None else found
    return [b if a is None else a for a, b in zip(known, found, strict=True)]
