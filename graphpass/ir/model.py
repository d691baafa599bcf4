"""A model: the file as it came (the envelope) and the graph that passes rewrite."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx

from graphpass.errors import ModelError, RuleError
from graphpass.interrupt import TimeLimitError, time_limit
from graphpass.ir.admission import require_admissible
from graphpass.ir.editing import Edited, adopt, close, sorted_nodes, tensors_of
from graphpass.ir.inference import infer_shapes
from graphpass.ir.nodes import Function, Graph
from graphpass.ir.proto_walk import all_graphs, all_nodes
from graphpass.ir.reader import read_function, read_graph
from graphpass.ir.soundness import make_sound
from graphpass.ir.weight import Array
from graphpass.ir.writer import Writer, unwritten
from graphpass.storage import remote, wire
from graphpass.storage import spool as spooling
from graphpass.storage.reference import is_external

_CONSTANT_INITIALIZERS_BELOW = 4  # before this IR version an initializer cannot be overridden


class Model:
    """An ONNX model under rewriting.

    `proto` is a *skeleton*: an ordinary ModelProto whose large weights are references into the
    file that they came from or into a spool of new ones. `graph` is built over it on first use, to
    look at; it is changed inside of `with model.editing()` alone, and `proto` says what it does
    whenever that has ended. Everything that no pass touches stays as it was.
    """

    def __init__(self, proto: onnx.ModelProto, spool: spooling.Spool, source: Path | None) -> None:
        self._proto = proto
        self._spool = spool
        self._graph: Graph | None = None
        self._is_lent = False  # somebody outside has the graph: it must not be taken apart
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
        time_limit_s: float | None = None,
    ) -> Model:
        """Read a model file or URL, the bytes of one, or take a ModelProto (which stays as it is).

        Nodes that come before what they read are sorted. `allow_external`: further folders that
        external data may lie in. Raises `ModelError` with one sentence where there is no usable
        model (see `admission` and `soundness`), or it cannot be read in time.
        """
        if isinstance(source, Model):
            return source.copy()
        try:
            with time_limit(time_limit_s):
                model = cls._read_as_it_is(source, allow_external)
                try:
                    require_admissible(model.proto)
                    make_sound(model.proto)
                except ModelError as error:
                    named = f"{model.source}: " if model.source is not None else ""
                    raise ModelError(f"{named}{error}") from None
        except TimeLimitError:
            raise ModelError(f"the model cannot be read within {time_limit_s:g} s") from None
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
        """The skeleton; inside of `editing`, as it was before."""
        return self._proto

    @property
    def graph(self) -> Graph:
        """The main graph, to look at."""
        graph = self._built()
        self._is_lent = True
        return graph

    def _built(self) -> Graph:
        if self._graph is None:
            with collection_paused():
                self._graph = self._read()
            self._is_lent, self._is_as_read = False, True
        return self._graph

    @property
    def functions(self) -> list[Function]:
        """The bodies of the model-local functions."""
        _ = self.graph
        return self._functions

    @property
    def opsets(self) -> dict[str, int]:
        """Version of each operator set by domain."""
        return {entry.domain: entry.version for entry in self._proto.opset_import}

    def _read(self) -> Graph:
        proto = self._proto
        if not proto.HasField("graph"):
            raise ModelError("the model holds no graph")
        own: dict[tuple[str, str], Function] = {}
        self._functions = [read_function(body, own) for body in proto.functions]
        calls = Counter((node.domain, node.op_type) for node in all_nodes(proto) if self._functions)
        for function in self._functions:
            pairs = _spellings(function.domain, function.name)
            own.update(dict.fromkeys(pairs, function))
            function.calls = sum(calls[pair] for pair in pairs)
        old_ir = proto.ir_version < _CONSTANT_INITIALIZERS_BELOW
        inferred = infer_shapes(proto)
        graph = read_graph(proto.graph, inferred.graph, self.opsets, own, old_ir)
        _protect_training(proto, graph)
        return graph

    def scopes(self) -> list[Graph]:
        """Return every graph of the model: the main one, bodies of If, Loop, Scan, functions."""
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

    # ------------------------------------------------------------------------------- editing

    @contextlib.contextmanager
    def editing(self, *, interface: bool = False) -> Iterator[Graph]:
        """Let the graph be changed by hand, with onnx-graphsurgeon's own means or an `Editor`.

        When the `with` ends, all is written: nodes and tensors of graphsurgeon's classes are
        taken in, nodes sorted. Where it ends in an exception, the model is as it was. `interface`:
        inputs and outputs may be renamed, added, removed or given other shapes; otherwise that is
        a `RuleError`. The graph is closed then: changing it later is a `ModelError`, not lost.
        """
        self._require_unchanged()
        edited = Edited(self.graph)
        try:
            yield edited.graph
            self._take_in(edited, interface)
        finally:
            close(self.scopes())
            self._graph, self._functions, self._names = None, [], None

    def _take_in(self, edited: Edited, interface: bool) -> None:
        other = edited.interface_changed()
        if other and not interface:
            raise RuleError(
                f"it changes the interface ({other}), which a pass says with changes_interface ="
                " True, and a script with {interface=true} behind it"
            )
        scopes = self.scopes()
        for scope in scopes:
            adopt(scope)
        changed = [scope for scope in scopes if unwritten(scope)]
        if not other and not changed:
            return
        for scope in scopes:
            scope.nodes[:] = sorted_nodes(scope.nodes)
        self._write()
        if interface:
            self._write_interface(edited)
        edited.graph.is_touched = True

    @contextlib.contextmanager
    def rewriting(self) -> Iterator[list[Graph]]:
        """Let the surgeon change the scopes; what it touched is written when the `with` ends."""
        self._require_unchanged()
        scopes = self.scopes()
        yield scopes
        if any(scope.is_touched for scope in scopes):
            self._write()
            self._is_as_read = False

    def _require_unchanged(self) -> None:
        """Raise where somebody changed a graph that was there to look at: it would be lost."""
        if self._graph is None or not self._is_lent:
            return
        for scope in self.scopes():
            where = unwritten(scope)
            if where:
                raise ModelError(
                    f"the graph was changed at {where}, outside of `with model.editing()`: that"
                    " would be lost"
                )

    def _write(self) -> None:
        """Write what was changed into `proto`."""
        graph = self._built()
        old_ir = self._proto.ir_version < _CONSTANT_INITIALIZERS_BELOW
        writer = Writer(self.store, initializers_are_inputs=old_ir)
        with collection_paused():
            writer.write(graph)
            for function in self._functions:
                writer.write(function)
            self._drop_uncalled()
        for scope in (graph, *self._functions):
            owner = scope.proto if scope.is_function else self._proto
            _import(owner, scope.opsets)
            # what a function uses, the model has to import as well
            _import(self._proto, scope.opsets)
        for scope in self.scopes():
            scope.is_touched = False

    def _drop_uncalled(self) -> None:
        """Remove the functions that were called, and are no longer."""
        if not any(function.calls for function in self._functions) or self._proto.training_info:
            return
        if any(function.proto.overload for function in self._functions):
            return  # which of them a node calls, its name does not say
        waiting = self._built().scopes()
        kept = [function for function in self._functions if not function.calls]
        waiting += [scope for function in kept for scope in function.scopes()]
        while waiting:
            scope = waiting.pop()
            for node in scope.nodes:
                called = scope.own_functions.get((node.domain or "", node.op))
                if called is not None and not any(called is function for function in kept):
                    kept.append(called)
                    waiting.extend(called.scopes())
        there = {id(function) for function in kept}
        for place in reversed(range(len(self._functions))):
            if id(self._functions[place]) not in there:
                del self._proto.functions[place], self._functions[place]

    def _write_interface(self, edited: Edited) -> None:
        """Write the inputs and outputs that the graph has now; infer shapes in between anew."""
        proto = self._proto.graph
        edited.write_inputs(proto.input)
        edited.write_outputs(proto.output)
        had_shapes = bool(proto.value_info)
        del proto.value_info[:]
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

    def strip_metadata(self) -> int:
        """Take away what exporters note at nodes and values; return how many bytes that was.

        Their stack traces and scopes, in doc_string and metadata_props. What is said of the model,
        its graph, its inputs and outputs stays.
        """
        before = int(self._proto.ByteSize())
        for noted in _noted(self._proto):
            noted.ClearField("doc_string")
            noted.ClearField("metadata_props")
        self._graph, self._functions = None, []
        return before - int(self._proto.ByteSize())

    @property
    def metadata_bytes(self) -> int:
        """How many bytes `strip_metadata` would take away, about."""
        return sum(
            len(noted.doc_string) + sum(len(e.key) + len(e.value) for e in noted.metadata_props)
            for noted in _noted(self._proto)
        )

    # ------------------------------------------------------------------------- whole models

    def copy(self) -> Model:
        """Return a model of its own that shares the stored weights."""
        self._require_unchanged()
        proto = onnx.ModelProto()
        proto.CopyFrom(self._proto)
        return Model(proto, self._spool, self.source)

    def reread(self, *, names: bool = False) -> None:
        """See to it that the graph is what the model is now, with shapes inferred anew.

        `names`: those of what is gone are free again, as if the model were just loaded.
        """
        self._require_unchanged()
        if names:
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
        self._require_unchanged()
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
    for tensor in tensors_of(graph):
        if tensor.name in used:
            tensor.is_graph_output = True


def _noted(
    proto: onnx.ModelProto,
) -> Iterator[onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto]:
    """Yield what exporters note something at: nodes, values in between, initializers."""
    yield from all_nodes(proto)
    for graph in all_graphs(proto):
        yield from graph.value_info
        yield from (tensor for tensor in graph.initializer if not is_external(tensor))
    for function in proto.functions:
        yield from function.value_info
