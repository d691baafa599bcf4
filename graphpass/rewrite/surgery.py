"""The only place that swaps nodes."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.ir.copying import Link, copied
from graphpass.ir.editing import sorted_nodes
from graphpass.ir.nodes import Constant, Graph, Node, Shape, Tensor, Variable
from graphpass.ir.questions import (
    STANDARD_DOMAINS,
    RefusedError,
    constant,
    has_effects,
    is_output,
    label,
    producer,
    schema,
)
from graphpass.ir.reader import value_type
from graphpass.ir.weight import Array, Weight
from graphpass.ir.writer import node_proto
from graphpass.rewrite.match import Match
from graphpass.rewrite.pattern import Body
from graphpass.rewrite.term import Made, Operand, Term
from graphpass.storage.spool import chunks

_PART_BYTES = 1 << 24  # of a computed weight, looked at in one piece
_MOST_ABOVE = 4096  # nodes looked at above several that become one
_SMALL_ELEMENTS = 256  # constants up to this size are shown to shape inference

Content = tuple[int, str, tuple[int, ...], bytes]  # graph, type, shape and what tells the data


@dataclass
class Built:
    """Terms made into nodes, not yet in the graph.

    `results`: the tensor that is to be each result of the match, an output of one of `nodes` or
    one that is there already; None where a result stays as it is computed. `bodies` of the nodes
    are copies; `links`: what they read from outside, which does not know of them yet.
    """

    nodes: list[Node] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    contents: dict[Content, Constant] = field(default_factory=dict)  # of operands among them
    results: list[Tensor | None] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=dict)  # domains to import, by version
    bodies: list[Graph] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


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

    def __init__(
        self,
        store: Callable[[Array, str], onnx.TensorProto],
        names: Callable[[], set[str]],
        ir_version: int,
    ) -> None:
        """`names`: every name of a value or node in the model, which new ones must not meet."""
        self._store = store
        self._names = names
        self._ir_version = ir_version
        self._spliced: dict[int, list[Node]] = {}
        self._unsorted: set[int] = set()  # graphs where what was made may stand too early
        self._dead: dict[int, Node] = {}
        self._dead_constants: dict[int, Constant] = {}
        self._touched: dict[int, Graph] = {}
        self._named: dict[int, set[str]] = {}
        # layers that shared a weight share what was made of it: the file must not grow by it
        self._made: dict[Content, Constant] = {}
        self._numbers: dict[str, int] = {}  # by base of a made-up name: the last that was tried

    # ------------------------------------------------------------------ a term becomes nodes

    def build(self, found: Match, terms: Sequence[Operand | None]) -> Built:
        """Make the nodes of `terms`, one for each result; the graph is not touched."""
        return _Building(self, found, terms).done()

    def operand(self, graph: Graph, value: Weight | Array, base: str, built: Built) -> Tensor:
        """Return the constant that `value` is to be: one that is there, or a new one."""
        if isinstance(value, Weight) and value.origin is not None:
            origin: Tensor = value.origin
            return origin
        content = (id(graph), *_content(value))
        known = self._made.get(content)
        if (
            known is not None
            and id(known) not in self._dead_constants
            and _holds(known.weight, value)
        ):
            return known
        weight = self.stored(value, self.fresh(base))
        constant_tensor = Constant(weight.name, weight)
        if graph.holds_initializers:
            built.constants.append(constant_tensor)
            built.contents[content] = constant_tensor
            return constant_tensor
        node = Node("Constant", "", {"value": constant_tensor}, graph=graph)
        output = Variable(weight.name, weight.dtype, list(weight.shape))
        list.append(node.outputs, output)
        list.append(output.inputs, node)
        built.nodes.append(node)
        return output

    def stored(self, value: Weight | Array, name: str) -> Weight:
        """Put a value where it costs no memory."""
        if isinstance(value, Weight) and value.tensor is not None:
            return Weight.of(value.tensor, name)
        return Weight.of(self._store(np.asarray(value), name), name)

    def fresh(self, base: str) -> str:
        """Return a name near `base` that nothing in the model has."""
        names = self._names()
        name = base
        while name in names or not name:
            self._numbers[base] = self._numbers.get(base, 0) + 1
            name = f"{base}_{self._numbers[base]}"
        names.add(name)
        return name

    def infer(self, node: Node) -> None:
        """Fill in dtype and shape of the node's outputs as far as ONNX can tell."""
        found = schema(node)
        if found is None:
            return
        types, data = {}, {}
        for tensor in node.inputs:
            if tensor.name == "" or tensor.dtype is None:
                continue
            types[tensor.name] = _type_proto(tensor)
            weight = constant(tensor)
            if weight is not None and weight.size <= _SMALL_ELEMENTS:
                data[tensor.name] = onnx.numpy_helper.from_array(weight.array(), tensor.name)
        try:
            inferred = onnx.shape_inference.infer_node_outputs(
                found,
                node_proto(node),
                types,
                data,
                opset_imports=[
                    onnx.helper.make_opsetid(domain, version)
                    for domain, version in node.graph.opsets.items()
                ],
                ir_version=self._ir_version,
            )
        except (onnx.shape_inference.InferenceError, RuntimeError, KeyError, ValueError):
            return
        for output in node.outputs:
            if output.name in inferred:
                output.dtype, output.shape = value_type(inferred[output.name])

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
        for node in built.nodes:
            for tensor in node.inputs:
                list.append(tensor.outputs, node)
        for node, tensor in built.links:
            list.append(tensor.outputs, node)
        graph.opsets.update(built.imports)
        graph.initializers.extend(built.constants)
        self._made.update(built.contents)
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
            _unlink(root)
            self._dead[id(root)] = root
        self._release(released)
        self._touched[id(graph)] = graph
        if len(found.roots) > 1 or not going:
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
            _relink(result, made)
            return again
        _let_go(root, result)
        if place.how == "rename":
            source = producer(made)
            assert source is not None
            list.clear(result.inputs)
            list.__setitem__(source.outputs, _index(source.outputs, made), result)
            list.append(result.inputs, source)
            list.clear(made.inputs)
            again = [*made.outputs, source]
            _relink(made, result)
            return again
        name = str(root.name) if len(going) == 1 and not built else self.fresh(str(root.name))
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
        place = _index(maker.outputs, made)
        further = [t for t in root.outputs if id(t) not in answered]
        keeps = maker.op == root.op and len(maker.outputs) == 1 and len(going) == 1
        _let_go(root, result)
        list.__setitem__(maker.outputs, place, result)
        list.append(result.inputs, maker)
        list.clear(made.inputs)
        _relink(made, result)  # other new nodes may read it
        if keeps:
            for tensor in further:
                _let_go(root, tensor)
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
        before = Variable(self.fresh(f"{old.name}.old"), old.dtype, old.shape)
        list.__setitem__(former.outputs, _index(former.outputs, old), before)
        list.append(before.inputs, former)
        list.clear(old.inputs)
        for node in made:
            for index, tensor in enumerate(node.inputs):
                if tensor is old:
                    list.__setitem__(node.inputs, index, before)
        if everywhere:
            _relink(old, before)
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
            _relink(old, new)
            return [old]
        left: list[Tensor] = []
        if former is not None:
            left.append(self._stand_in(old, made))
        maker = producer(new)
        if maker is None or is_output(new) or maker.graph is not graph:
            identity = Node("Identity", self.fresh(old.name), {}, graph=graph)
            list.append(identity.inputs, new)
            list.append(identity.outputs, old)
            list.append(old.inputs, identity)
            made.append(identity)
            return left
        list.__setitem__(maker.outputs, _index(maker.outputs, new), old)
        list.append(old.inputs, maker)
        list.clear(new.inputs)
        for node in made:
            for index, tensor in enumerate(node.inputs):
                if tensor is new:
                    list.__setitem__(node.inputs, index, old)
        _relink(new, old)
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
            _unlink(node)

    def _captured(self, node: Node) -> list[Tensor]:
        """Return what the bodies of `node` read from outside; unlink the bodies."""
        released: list[Tensor] = []
        for body in node.graph.subgraphs_of(node):
            for scope in body.scopes():
                for inner in scope.nodes:
                    released.extend(inner.inputs)
                    _unlink(inner)
                    self._dead[id(inner)] = inner
        return released

    def merge_constants(self, gone: Constant, kept: Constant) -> list[Node]:
        """Let what reads `gone` read `kept`, which holds the same; return those nodes.

        Raises `RefusedError` where a body has another tensor of that name.
        """
        again = list(gone.outputs)
        self._check_visible(kept, gone, again[0].graph)
        _relink(gone, kept)
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


class _Building:
    """The terms of one match on their way to nodes."""

    def __init__(self, surgeon: Surgeon, found: Match, terms: Sequence[Operand | None]) -> None:
        self._surgeon = surgeon
        self._found = found
        self._graph: Graph = found.root.graph
        self._terms = terms
        self._built = Built()
        self._nodes: dict[int, Node] = {}  # by term
        self._wanted: dict[tuple[int, int], Tensor] = {}  # by term and output: the first result
        pairs = [
            (result, term)
            for result, term in zip(found.results, terms, strict=True)
            if result.name and term is not None
        ]
        for result, term in pairs:
            if isinstance(term, Made):
                self._wanted.setdefault((id(term.term), term.index), result)
        self._heirs = _names_left(found, {id(result) for result, _ in pairs})

    def done(self) -> Built:
        for result, term in zip(self._found.results, self._terms, strict=True):
            wanted = None if not result.name or term is None else self._result(result, term)
            self._built.results.append(wanted)
        return self._built

    def _result(self, result: Tensor, term: Operand) -> Tensor:
        if isinstance(term, gs.Tensor):
            held: Tensor = term
            return held
        if isinstance(term, Made):
            return self._output(term, result)
        if isinstance(term, Weight) and term.origin is not None:
            origin: Tensor = term.origin
            return origin
        surgeon = self._surgeon
        if not is_output(result) and self._graph.holds_initializers:
            # the tensor goes, so that its name is free
            made = Constant(result.name, surgeon.stored(term, result.name))
            self._built.constants.append(made)
            return made
        weight = surgeon.stored(term, surgeon.fresh(result.name))
        attributes = {"value": Constant(weight.name, weight)}
        return self._output(Made(Term("Constant", "", None, (), attributes, 1)), result)

    def _output(self, made: Made, result: Tensor) -> Tensor:
        """Return the output of a term that is to be a result."""
        term = made.term
        if id(term) not in self._nodes:
            self._node(term, result.name, self._root_name(term, result), made.index)
        output: Tensor = self._nodes[id(term)].outputs[made.index]
        return output

    def _node(self, term: Term, base: str, name: str, named: int = 0) -> Node:
        """Make the node of a term; `base`: what its output number `named` is called."""
        outputs = []
        for index in range(term.outputs):
            result = self._wanted.get((id(term), index))
            if result is not None:
                outputs.append(Variable(result.name))
            elif index == named:
                outputs.append(Variable(base))
            else:
                outputs.append(Variable(self._surgeon.fresh(f"{base}.{index}")))
        role = outputs[named].name
        operands: list[Tensor] = []
        for index, part in enumerate(term.operands):
            if part is None:
                operands.append(Variable(""))
            elif isinstance(part, Made):
                operands.append(self._inner(part, role, name))
            elif isinstance(part, gs.Tensor):
                operands.append(part)
            else:
                operand = _operand_name(name or role, term.op, index)
                operands.append(self._surgeon.operand(self._graph, part, operand, self._built))
        while operands and operands[-1].name == "":
            operands.pop()
        attributes = {
            key: self._body(value, role, name) if isinstance(value, Body) else value
            for key, value in term.attributes.items()
        }
        node = Node(term.op, name, attributes, domain=term.domain, graph=self._graph)
        node.like = term.like
        # linked on one side only: until it is committed, no tensor may see a new reader
        list.extend(node.inputs, operands)
        for output in outputs:
            list.append(node.outputs, output)
            list.append(output.inputs, node)
        self._built.imports.update(_imports(node, term.version))
        self._surgeon.infer(node)
        self._built.nodes.append(node)
        self._nodes[id(term)] = node
        return node

    def _body(self, body: Body, role: str, name: str) -> Graph:
        """Copy a body to where the new node is."""
        instead: dict[int, Tensor] = {}
        for key, part in body.instead.items():
            if isinstance(part, Made):
                instead[key] = self._inner(part, role, name)
            elif isinstance(part, gs.Tensor):
                instead[key] = part
            else:
                instead[key] = self._surgeon.operand(self._graph, part, role, self._built)
        made, links = copied(body.graph, self._graph, instead, body.outputs)
        self._built.bodies.append(made)
        self._built.links.extend(links)
        return made

    def _inner(self, part: Made, role: str, name: str) -> Tensor:
        term = part.term
        if id(term) not in self._nodes:
            base = f"{role}.{term.op.lower()}"
            fresh = self._surgeon.fresh(base)
            left = self._heirs.get(term.op)
            inner = left.pop(0) if left else self._surgeon.fresh(base) if name else ""
            self._node(term, fresh, inner, part.index)
        output: Tensor = self._nodes[id(term)].outputs[part.index]
        return output

    def _root_name(self, term: Term, result: Tensor) -> str:
        root = producer(result)
        assert root is not None
        if self._heirs.get(term.op):
            return self._heirs[term.op].pop(0)
        if root.name and (
            len(self._found.roots) > 1 or any(part.op == root.op for part in term.below)
        ):
            return self._surgeon.fresh(f"{root.name}.{term.op.lower()}")
        return str(root.name)


def _going(found: Match, built: Built) -> list[Node]:
    """Return the roots all of whose results are computed anew."""
    kept = {
        id(result)
        for result, made in zip(found.results, built.results, strict=True)
        if result.name and (made is None or made is result)
    }
    return [root for root in found.roots if not any(id(t) in kept for t in root.outputs)]


def _names_left(found: Match, replaced: set[int]) -> dict[str, list[str]]:
    """Return the names of the matched nodes that go, by operator: new ones of a kind take them.

    `replaced`: the results that are computed anew.
    """
    gone: set[int] = set()
    left: dict[str, list[str]] = {}
    for node in found.nodes:  # a node comes after its readers
        read = [reader for tensor in node.outputs for reader in tensor.outputs]
        stays = any(is_output(tensor) for tensor in node.outputs) or any(
            id(reader) not in gone for reader in read
        )
        is_root = any(node is root for root in found.roots)
        if is_root:
            stays = not any(id(tensor) in replaced for tensor in node.outputs)
        if id(node) in gone or stays:
            continue
        gone.add(id(node))
        if node.name:
            left.setdefault(str(node.op), []).append(str(node.name))
    return left


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


def _imports(node: Node, wanted: int | None) -> dict[str, int]:
    """Return the domain of a new node with the version to import, where it is not yet imported."""
    domain, opsets = node.domain, node.graph.opsets
    if domain in STANDARD_DOMAINS:
        return {}
    held = opsets.get(domain)
    if held is None:
        return {domain: _newest(domain) if wanted is None else wanted}
    if wanted not in (None, held):
        raise RefusedError(
            f"{label(node)} is of version {wanted} of {domain}, and the model imports {held}"
        )
    return {}


@lru_cache(maxsize=64)
def _newest(domain: str) -> int:
    """Return the newest version of a domain that ONNX knows; 1 of others, as com.microsoft."""
    schemas = onnx.defs.get_all_schemas()
    return max((s.since_version for s in schemas if s.domain == domain), default=1)


def _content(value: Weight | Array) -> tuple[str, tuple[int, ...], bytes]:
    """Return what is equal for equal constants: where the data is, or a checksum of it."""
    if isinstance(value, Weight) and value.tensor is not None:
        tensor = onnx.TensorProto()
        tensor.CopyFrom(value.tensor)
        tensor.ClearField("name")
        return str(value.data_type), tuple(value.shape), tensor.SerializeToString()
    array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return str(array.dtype), array.shape, repr(array.tolist()).encode()
    checksum = 0
    for chunk in chunks(array):
        checksum = zlib.crc32(chunk, checksum)
    return str(array.dtype), array.shape, checksum.to_bytes(4, "big")


def _holds(known: Weight, value: Weight | Array) -> bool:
    """Whether `known`, whose content is told by the same, is `value`: a checksum proves nothing."""
    if (isinstance(value, Weight) and value.tensor is not None) or known.dtype.kind in "OSU":
        return True
    array = np.asarray(value)
    if array.ndim == 0:
        return array.tobytes() == known.array().tobytes()
    step = max(1, _PART_BYTES * len(array) // max(array.nbytes, 1))
    return all(
        array[start : start + step].tobytes() == known.rows(slice(start, start + step)).tobytes()
        for start in range(0, len(array), step)
    )


def _operand_name(node: str, op: str, index: int) -> str:
    formal = ("x", "weight", "bias") if op.startswith("Conv") else ()
    return f"{node}.{formal[index] if index < len(formal) else index}"


def _index(tensors: Sequence[Tensor], tensor: Tensor) -> int:
    return next(i for i, other in enumerate(tensors) if other is tensor)


def _let_go(node: Node, output: Tensor) -> None:
    """Take from `node` an output, which another one is to compute."""
    list.__delitem__(node.outputs, _index(node.outputs, output))
    list.clear(output.inputs)


def _unlink(node: Node) -> None:
    for tensor in node.inputs:
        _remove_reader(tensor.outputs, node)
    list.clear(node.inputs)
    for tensor in node.outputs:
        list.clear(tensor.inputs)
    list.clear(node.outputs)


def _remove_reader(readers: list[Node], node: Node) -> None:
    """Remove one mention of `node`; nearly always, readers are in the order they were made in."""
    index = bisect_left(readers, node.serial, key=attrgetter("serial"))
    if index < len(readers) and readers[index] is node:
        list.__delitem__(readers, index)
    else:
        list.remove(readers, node)


def _relink(old: Tensor, new: Tensor) -> None:
    """Let every reader of `old` read `new`: linear in the readers."""
    place: dict[int, int] = {}  # by reader, which is listed once for each mention
    for reader in old.outputs:
        index = list.index(reader.inputs, old, place.get(id(reader), 0))
        place[id(reader)] = index + 1
        list.__setitem__(reader.inputs, index, new)
    readers = {id(reader): reader for reader in old.outputs}
    mentions = Counter(map(id, old.outputs))
    for key, reader in readers.items():
        list.extend(new.outputs, [reader] * mentions[key])
    list.clear(old.outputs)


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


def _type_proto(tensor: Tensor) -> onnx.TypeProto:
    data_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return onnx.helper.make_tensor_type_proto(data_type, tensor.shape)
