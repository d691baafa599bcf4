"""A model: the file as it came (the envelope) and the graph that passes rewrite."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphpass.errors import ModelError
from graphpass.ir.inference import infer_shapes
from graphpass.ir.nodes import Constant, Function, Graph, Node, Variable
from graphpass.ir.reader import read_function, read_graph
from graphpass.ir.soundness import make_sound
from graphpass.ir.weight import Array
from graphpass.ir.writer import Writer
from graphpass.storage import remote, wire
from graphpass.storage import spool as spooling

_CONSTANT_INITIALIZERS_BELOW = 4  # before this IR version an initializer cannot be overridden


class Model:
    """An ONNX model under rewriting.

    `proto` is a *skeleton*: an ordinary ModelProto whose large weights are references into the
    file that they came from or into a spool of new ones. `graph` is built over it on first use;
    `sync` brings `proto` up to date with it. Everything that no pass touches stays as it was.
    """

    def __init__(self, proto: onnx.ModelProto, spool: spooling.Spool, source: Path | None) -> None:
        self._proto = proto
        self._spool = spool
        self._graph: Graph | None = None
        self._is_lent = False  # somebody outside has the graph and may change it at any time
        self._is_written = True  # whether `proto` says what the graph does
        self._is_as_read = True  # whether the graph is what reading `proto` would give
        self._functions: list[Function] = []
        self._names: set[str] | None = None
        self.source = source

    @classmethod
    def load(
        cls,
        source: Model | onnx.ModelProto | bytes | str | os.PathLike[str],
        *,
        allow_external: Sequence[Path] = (),
    ) -> Model:
        """Read a model file or URL, the bytes of one, or take a ModelProto (which stays as it is).

        Nodes that come before what they read are sorted. `allow_external`: further folders that
        external data may lie in. Raises `ModelError` with one sentence where there is no usable
        model (see `soundness`).
        """
        if isinstance(source, Model):
            return source.copy()
        model = cls._read_as_it_is(source, allow_external)
        try:
            make_sound(model.proto)
        except ModelError as error:
            named = f"{model.source}: " if model.source is not None else ""
            raise ModelError(f"{named}{error}") from None
        return model

    @classmethod
    def _read_as_it_is(
        cls,
        source: onnx.ModelProto | bytes | str | os.PathLike[str],
        allow_external: Sequence[Path],
    ) -> Model:
        spool = spooling.Spool()
        if isinstance(source, bytes):
            path = spool.folder / "input.onnx"
            path.write_bytes(source)
            return cls(wire.read_skeleton(path, allow_external=allow_external), spool, None)
        if isinstance(source, onnx.ModelProto):
            return cls(spool.detach(source), spool, None)
        if isinstance(source, str) and remote.is_url(source):
            folder = spool.folder / "input"
            folder.mkdir()
            with remote.as_if_at(source, folder):
                path = remote.fetch(source, folder)
                return cls(wire.read_skeleton(path), spool, path)
        path = remote.local(source)
        return cls(wire.read_skeleton(path, allow_external=allow_external), spool, path)

    # ------------------------------------------------------------------------------ the graph

    @property
    def proto(self) -> onnx.ModelProto:
        """The skeleton as of the last `sync`."""
        return self._proto

    @property
    def graph(self) -> Graph:
        """The main graph, for anyone to rewrite."""
        graph = self._built()
        self._is_lent = True
        return graph

    def _built(self) -> Graph:
        if self._graph is None:
            with collection_paused():
                self._graph = self._read()
            self._is_lent, self._is_written, self._is_as_read = False, True, True
        return self._graph

    @property
    def functions(self) -> list[Function]:
        """The bodies of the model-local functions."""
        _ = self.graph
        return self._functions

    def touch(self) -> None:
        """Say that the graph was changed through `scopes`, so that `sync` has something to do."""
        self._is_written = self._is_as_read = False

    @property
    def opsets(self) -> dict[str, int]:
        """Version of each operator set by domain."""
        return {entry.domain: entry.version for entry in self._proto.opset_import}

    def _read(self) -> Graph:
        proto = self._proto
        if not proto.HasField("graph"):
            raise ModelError("the model holds no graph")
        overridden = frozenset(
            pair
            for function in proto.functions
            for pair in _spellings(function.domain, function.name)
        )
        old_ir = proto.ir_version < _CONSTANT_INITIALIZERS_BELOW
        inferred = infer_shapes(proto)
        graph = read_graph(proto.graph, inferred.graph, self.opsets, overridden, old_ir)
        self._functions = [read_function(body, overridden) for body in proto.functions]
        _protect_training(proto, graph)
        return graph

    def scopes(self) -> list[Graph]:
        """Return every graph of the model: the main one, bodies of If, Loop, Scan, functions.

        Who changes one calls `touch`.
        """
        found = self._built().scopes()
        for function in self._functions:
            found.extend(function.scopes())
        return found

    @property
    def names(self) -> set[str]:
        """Every name of a value or node; grows with those that passes make."""
        if self._names is None:
            self._names = set(_names(self._proto))
        return self._names

    def store(self, array: Array, name: str) -> onnx.TensorProto:
        """Put a new weight where it costs no memory; return the tensor that refers to it."""
        return self._spool.add(array, name)

    def sync(self) -> None:
        """Write what passes changed into `proto`."""
        if self._graph is None or (self._is_written and not self._is_lent):
            return
        old_ir = self._proto.ir_version < _CONSTANT_INITIALIZERS_BELOW
        writer = Writer(self.store, initializers_are_inputs=old_ir)
        with collection_paused():
            writer.write(self._graph)
            for function in self._functions:
                writer.write(function)
        for scope in (self._graph, *self._functions):
            owner = scope.proto if scope.is_function else self._proto
            _import(owner, scope.opsets)
            # what a function uses, the model has to import as well
            _import(self._proto, scope.opsets)
        self._is_written = True

    def adopt(self) -> None:
        """Take in nodes and tensors that a pass made with onnx-graphsurgeon's own classes."""
        self.touch()
        for scope in self.scopes():
            for node in scope.nodes:
                _adopt_node(node, scope)
        for scope in self.scopes():
            for tensor in _tensors(scope):
                _adopt_tensor(tensor)
            for tensor in scope.outputs:
                tensor.is_graph_output = True
            scope.nodes[:] = sorted_nodes(scope.nodes)
        self._names = None
        self.sync()

    def change_interface(self) -> None:
        """Write the inputs and outputs that a pass gave to the graph; infer shapes in between anew.

        Inputs and outputs are matched by name: new ones are appended, the shapes of the others
        become those of their tensors. The graph is read again when it is next asked for.
        """
        graph = self.graph
        self.sync()
        proto = self._proto.graph
        for tensors, values in ((graph.inputs, proto.input), (graph.outputs, proto.output)):
            listed = {value.name: value for value in values}
            for tensor in tensors:
                write_type(listed.get(tensor.name) or values.add(name=tensor.name), tensor)
        had_shapes = bool(proto.value_info)
        del proto.value_info[:]
        self._drop_graph()
        if had_shapes:
            proto.value_info.extend(infer_shapes(self._proto).graph.value_info)

    def freeze_initializers(self) -> list[str]:
        """Take from the inputs those that have a default, so that it is a constant; name them.

        Before IR version 4 an initializer is listed among the inputs and is a constant anyway.
        """
        graph = self._proto.graph
        if self._proto.ir_version < _CONSTANT_INITIALIZERS_BELOW:
            return []
        defaults = {tensor.name for tensor in graph.initializer}
        defaults |= {tensor.values.name for tensor in graph.sparse_initializer}
        frozen = [value.name for value in graph.input if value.name in defaults]
        kept = [value for value in graph.input if value.name not in defaults]
        if frozen:
            del graph.input[:]
            graph.input.extend(kept)
            self._graph, self._functions = None, []
        return frozen

    # ------------------------------------------------------------------------- whole models

    def copy(self) -> Model:
        """Return a model of its own that shares the stored weights."""
        self.sync()
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        return Model(proto, self._spool, self.source)

    def reread(self) -> None:
        """Build the graph anew, with shapes inferred from what the model is now."""
        self.sync()
        self._drop_graph()

    def refresh(self) -> None:
        """Be as if just loaded: shapes are inferred anew, and names of what is gone are free."""
        self.sync()
        self._names = None
        if self._is_lent or not self._is_as_read:
            self._drop_graph()

    def restore(self, proto: onnx.ModelProto) -> None:
        """Go back to a skeleton that was copied earlier."""
        self._proto = onnx.ModelProto()
        self._proto.CopyFrom(proto)
        self._names = None
        self._drop_graph()

    def _drop_graph(self) -> None:
        if self._graph is not None and not self._is_lent:
            for graph in (self._graph, *self._functions):
                graph.dissolve()
        self._graph, self._functions = None, []

    def to_proto(self) -> onnx.ModelProto:
        """Return an ordinary ModelProto with every weight in it."""
        self.sync()
        return wire.attach(self._proto)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the garbage collector, which would walk the graph again and again and find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                # what is alive now lives on: count it as old, or it is walked as soon as we go on
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def write_type(value: onnx.ValueInfoProto, tensor: Variable | Constant) -> None:
    """Give `value` the dtype and shape of `tensor`; what else it says of them stays."""
    tensor_type = value.type.tensor_type
    if tensor.dtype is not None and not tensor_type.elem_type:
        tensor_type.elem_type = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)))
    if tensor.shape is None:
        return
    dims = tensor_type.shape.dim
    if len(dims) != len(tensor.shape):
        tensor_type.shape.Clear()
        dims = tensor_type.shape.dim
        for _ in tensor.shape:
            dims.add()
    for dim, size in zip(dims, tensor.shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size
        else:
            dim.ClearField("value")


def sorted_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Return `nodes` so that producers come before readers; as they were where that holds."""
    inside = {id(node) for node in nodes}
    done: set[int] = set()
    ordered: list[Node] = []
    for start in nodes:
        stack = [(start, False)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                ordered.append(node)
                continue
            stack.append((node, True))
            sources = [s for tensor in _needed(node) for s in tensor.inputs]
            stack.extend(
                (source, False)
                for source in reversed(sources)
                if id(source) in inside and id(source) not in done
            )
    return ordered


def _needed(node: Node) -> Iterator[Variable | Constant]:
    yield from node.inputs
    for body in Graph.subgraphs_of(node.graph, node):
        for scope in body.scopes():
            yield from scope.outputs
            for inner in scope.nodes:
                yield from inner.inputs


def _import(owner: onnx.ModelProto | onnx.FunctionProto, opsets: Mapping[str, int]) -> None:
    """Import the operator sets that `owner` does not import yet."""
    held = {entry.domain for entry in owner.opset_import}
    for domain, version in opsets.items():
        if domain not in held and not (domain in ("", "ai.onnx") and held & {"", "ai.onnx"}):
            owner.opset_import.add(domain=domain, version=version)


def _spellings(domain: str, name: str) -> list[tuple[str, str]]:
    domains = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return [(spelling, name) for spelling in domains]


def _names(proto: onnx.ModelProto) -> Iterator[str]:
    yield from _graph_names(proto.graph)
    for training in proto.training_info:
        yield from _graph_names(training.initialization)
        yield from _graph_names(training.algorithm)
    for function in proto.functions:
        yield from function.input
        yield from function.output
        yield from _node_names(function.node)


def _graph_names(graph: onnx.GraphProto) -> Iterator[str]:
    for values in (graph.input, graph.output, graph.value_info, graph.initializer):
        yield from (value.name for value in values)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from _node_names(graph.node)


def _node_names(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield node.name
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graph_names(attribute.g)
            for body in attribute.graphs:
                yield from _graph_names(body)


def _protect_training(proto: onnx.ModelProto, graph: Graph) -> None:
    """Keep what training_info refers to by name: it is used outside the graph."""
    if not proto.training_info:
        return
    used: set[str] = set()
    for training in proto.training_info:
        used.update(_graph_names(training.initialization))
        used.update(_graph_names(training.algorithm))
        for binding in (*training.initialization_binding, *training.update_binding):
            used.update((binding.key, binding.value))
    for tensor in _tensors(graph):
        if tensor.name in used:
            tensor.is_graph_output = True


def _tensors(graph: Graph) -> Iterator[Variable | Constant]:
    yield from graph.inputs
    yield from graph.outputs
    yield from graph.initializers
    for node in graph.nodes:
        yield from node.inputs
        yield from node.outputs


def _adopt_node(node: gs.Node, graph: Graph) -> None:
    if isinstance(node, Node):
        node.graph = graph
        return
    attrs = node.__dict__.pop("attrs")
    node.__class__ = Node
    node.__dict__.update(graph=graph, proto=None, _parse=None, _attrs=attrs, parsed=None)
    node.domain = node.domain or ""


def _adopt_tensor(tensor: gs.Tensor) -> None:
    if isinstance(tensor, (Variable, Constant)):
        return
    tensor.__class__ = Constant if isinstance(tensor, gs.Constant) else Variable
