"""Level 1: the candidate is valid ONNX, and its interface is that of the original."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx
from onnx import TensorProto

from graphpass.ir.proto_walk import all_graphs, all_nodes
from graphpass.ir.type_text import type_text
from graphpass.rewrite.interface import Interface

# From here on an initializer that is also an input is a default; before, all are constants.
_OVERRIDABLE_FROM_IR_VERSION = 4
_LONGEST = 80  # characters of a value in a sentence
_LISTED = 5  # so many names are enough to see what is meant

_Described = onnx.ModelProto | onnx.GraphProto | onnx.ValueInfoProto


def check_structure(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    interface_may_change: Interface | bool = False,
) -> list[str]:
    """Return what is wrong with `after`, one sentence each: interface first, then validity.

    Of the interface, what was declared may change, and nothing more.
    Data of external tensors is not read. What the checker already finds in `before` is not
    held against `after`; there, only the nodes that are new are checked.
    """
    allowed = Interface.of(interface_may_change)
    problems = list(_undeclared_changes(before, after, allowed))
    opsets = Interface.OPSETS in allowed
    lost = list(_lost_metadata(before, after, opsets_may_change=opsets))
    return problems + lost + list(_invalidity(before, after))


def interface_problems(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """Return what differs in inputs, outputs, opsets, metadata: what a caller relies on."""
    return [*_interface_changes(before, after), *_lost_metadata(before, after)]


def _interface_changes(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    yield from _value_changes("input", _caller_inputs(before), _caller_inputs(after))
    yield from _value_changes("output", before.graph.output, after.graph.output)
    yield from _set_changes("default of input", _overridable(before), _overridable(after))


def interface_changes(before: onnx.ModelProto, after: onnx.ModelProto) -> list[str]:
    """Say which inputs and outputs are others now, and how."""
    names = {value.name for value in before.graph.output}
    new = [value for value in after.graph.output if value.name not in names]
    kept = [value for value in after.graph.output if value.name in names]
    return [
        *_value_changes("input", _caller_inputs(before), _caller_inputs(after)),
        *_value_changes("output", before.graph.output, kept),
        *(f"output '{value.name}' is new: {type_text(value.type)}" for value in new),
        *_set_changes("default of input", _overridable(before), _overridable(after)),
    ]


def _undeclared_changes(
    before: onnx.ModelProto, after: onnx.ModelProto, allowed: Interface
) -> Iterator[str]:
    """Yield what differs in the interface beyond what was declared."""
    if allowed & (Interface.OTHER | Interface.PART):
        return
    inputs, outputs = _caller_inputs(after), list(after.graph.output)
    if Interface.OUTPUTS in allowed:
        outputs = outputs[: len(before.graph.output)]
    pairs = [(_caller_inputs(before), inputs, allowed & (Interface.SIZES | Interface.FIXED))]
    pairs.append((list(before.graph.output), outputs, allowed))
    for what, (old, new, may) in zip(("input", "output"), pairs, strict=True):
        if [value.name for value in old] != [value.name for value in new]:
            yield from _value_changes(what, old, new)
            continue
        for one, two in zip(old, new, strict=True):
            if one.type != two.type and not _is_declared(one.type, two.type, may):
                yield f"{what} '{one.name}' was {type_text(one.type)} and is {type_text(two.type)}"
    yield from _set_changes("default of input", _overridable(before), _overridable(after))


def _is_declared(one: onnx.TypeProto, two: onnx.TypeProto, allowed: Interface) -> bool:
    """Whether a type may become another: sizes that vary now, or axes for the places of a map."""
    if {one.WhichOneof("value"), two.WhichOneof("value")} != {"tensor_type"}:
        return False
    old, new = one.tensor_type, two.tensor_type
    if old.elem_type != new.elem_type:
        return False
    if Interface.MAPS in allowed:
        return True
    return len(old.shape.dim) == len(new.shape.dim) and all(
        _is_declared_size(a, b, allowed) for a, b in zip(old.shape.dim, new.shape.dim, strict=True)
    )


def _is_declared_size(
    old: onnx.TensorShapeProto.Dimension,
    new: onnx.TensorShapeProto.Dimension,
    allowed: Interface,
) -> bool:
    if old == new:
        return True
    if Interface.FIXED in allowed and not old.HasField("dim_value"):
        return True
    if Interface.SIZES not in allowed:
        return False
    return Interface.FIXED in allowed or (not new.HasField("dim_value") and not old.dim_param)


def _value_changes(
    what: str, before: Sequence[onnx.ValueInfoProto], after: Sequence[onnx.ValueInfoProto]
) -> Iterator[str]:
    names, new_names = [value.name for value in before], [value.name for value in after]
    had, has = set(names), set(new_names)
    gone = [name for name in names if name not in has]
    new = [name for name in new_names if name not in had]
    if names != new_names:
        if gone:
            yield f"{what} {_listed(gone)} is gone"
        if new:
            yield f"{what} {_listed(new)} is new"
        if not (gone or new):
            yield f"the {what}s were {_listed(names)} and are {_listed(new_names)}"
        return
    for one, two in zip(before, after, strict=True):
        if one.type != two.type:
            yield f"{what} '{one.name}' was {type_text(one.type)} and is {type_text(two.type)}"


def _caller_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return what a caller may give: before IR version 4 initializers are listed as inputs, too."""
    if model.ir_version >= _OVERRIDABLE_FROM_IR_VERSION:
        return list(model.graph.input)
    constants = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _overridable(model: onnx.ModelProto) -> set[str]:
    if model.ir_version < _OVERRIDABLE_FROM_IR_VERSION:
        return set()
    initializers = {tensor.name for tensor in model.graph.initializer}
    return initializers & {value.name for value in model.graph.input}


def _lost_metadata(
    before: onnx.ModelProto, after: onnx.ModelProto, *, opsets_may_change: bool = False
) -> Iterator[str]:
    old, new = _opsets(before), _opsets(after)
    if opsets_may_change:
        old |= {key: new[key] for key in old.keys() & new.keys()}
    used = {node.domain or "ai.onnx" for node in all_nodes(after)}
    kept = {key: value for key, value in new.items() if key in old or key not in used}
    yield from _dict_changes("opset", old, kept)  # a new node may need one that is new
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version"):
        yield from _text_changes(name, getattr(before, name), getattr(after, name))
    yield from _described("the model", before, after)
    yield from _text_changes("the name of the graph", before.graph.name, after.graph.name)
    yield from _described("the graph", before.graph, after.graph)
    for what, one, two in (
        ("input", before.graph.input, after.graph.input),
        ("output", before.graph.output, after.graph.output),
    ):
        described = {value.name: value for value in two}
        for value in one:
            if value.name in described:  # what is gone is a change of the interface
                yield from _described(f"{what} '{value.name}'", value, described[value.name])
    yield from _function_changes(before, after)


def _described(what: str, before: _Described, after: _Described) -> Iterator[str]:
    yield from _text_changes(f"the doc_string of {what}", before.doc_string, after.doc_string)
    one, two = ({e.key: e.value for e in owner.metadata_props} for owner in (before, after))
    yield from _dict_changes(f"metadata of {what}", one, two)


def _text_changes(what: str, before: object, after: object) -> Iterator[str]:
    if before != after:
        yield f"{what} was {_short(before)} and is {_short(after)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}


def _function_changes(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    old = {_function_key(function): function for function in before.functions}
    new = {_function_key(function): function for function in after.functions}
    for key, function in old.items():
        name = f"function '{key[0]}::{key[1]}'"
        if key not in new:
            if any((n.domain, n.op_type, n.overload) == key for n in all_nodes(after)):
                yield f"{name} is called but no longer there"
        elif _signature(function) != _signature(new[key]):
            yield f"{name} has another signature"


def _function_key(function: onnx.FunctionProto) -> tuple[str, str, str]:
    return function.domain, function.name, function.overload


def _signature(function: onnx.FunctionProto) -> tuple[Any, ...]:
    return (
        list(function.input),
        list(function.output),
        list(function.attribute),
        sorted(attribute.name for attribute in function.attribute_proto),
    )


def _dict_changes(what: str, before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    yield from _set_changes(what, set(before), set(after))
    for key in sorted(set(before) & set(after)):
        if before[key] != after[key]:
            yield f"{what} '{key}' was {_short(before[key])} and is {_short(after[key])}"


def _set_changes(what: str, before: set[str], after: set[str]) -> Iterator[str]:
    for name in sorted(before - after):
        yield f"{what} '{name}' is gone"
    for name in sorted(after - before):
        yield f"{what} '{name}' is new"


def _listed(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    more = [f"{len(quoted) - _LISTED} more"] if len(quoted) > _LISTED else []
    return ", ".join([*quoted[:_LISTED], *more]) or "none"


# Validity


def _invalidity(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    error = checker_error(after)
    if error is None:
        return
    if checker_error(before) is None:
        yield f"the model is not valid ONNX: {error}"
        return
    yield from _new_invalid_nodes(before, after)


def checker_error(model: onnx.ModelProto) -> str | None:
    """Return what ONNX's own checker finds, one line; None where it finds nothing."""
    try:
        onnx.checker.check_model(_without_data(model))
        # what the checker's full check does, but here references need no file
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,  # types of no known number, names that are no text
    ) as error:
        return _one_line(error)
    return None


def _without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with empty tensors for external ones: the checker would look for their files.

    It looks at one tensor at a time, so that their shapes do not matter.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in _tensors(copy):
        if tensor.data_location == TensorProto.EXTERNAL:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            del tensor.dims[:]
            tensor.dims.append(0)
    return copy


def _new_invalid_nodes(before: onnx.ModelProto, after: onnx.ModelProto) -> Iterator[str]:
    known = {node.SerializeToString(deterministic=True) for node in all_nodes(before)}
    context = onnx.checker.C.CheckerContext()
    context.ir_version = after.ir_version
    context.opset_imports = {entry.domain: entry.version for entry in after.opset_import}
    for node in all_nodes(after):
        if node.SerializeToString(deterministic=True) in known:
            continue
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in node.attribute):
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for attribute in copy.attribute:
            if attribute.t.data_location == TensorProto.EXTERNAL:
                attribute.t.CopyFrom(TensorProto(data_type=attribute.t.data_type, dims=[0]))
        try:
            onnx.checker.check_node(copy, context)
        except onnx.checker.ValidationError as error:
            yield f"node '{node.name}' ({node.op_type}) is not valid ONNX: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split("==> Context")[0].split())
    return text if len(text) <= 300 else text[:299] + "…"


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
