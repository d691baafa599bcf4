"""When windows are alike: what is found out about one need not be found out about each."""

from __future__ import annotations

import hashlib
import math

import onnx

from graphpass.rewrite.window import Window

_SMALL_BYTES = 1 << 12  # up to here, what integers say tells one window from another
FLOATS = frozenset(
    (
        *(onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE),
        *(onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16),
    )
)


def form_of(window: Window, *, sizes: bool = True, floats: int = 0) -> str:
    """Return what is equal for windows that are alike but for names and the values of floats.

    Without `sizes`, also for those whose constants and inputs have other sizes, not other ranks.
    `floats`: up to so many elements, what floats hold tells windows apart, too.
    """
    names: dict[str, str] = {"": ""}
    told: list[str] = []
    for side in (window.before, window.after):
        graph = side.graph
        for value in graph.input:
            names.setdefault(value.name, f"i{len(names)}")
        for tensor in graph.initializer:
            names.setdefault(tensor.name, f"c{len(names)}")
            dims = list(tensor.dims) if sizes else len(tensor.dims)
            told.append(f"{names[tensor.name]}:{tensor.data_type} {dims}")
            if not is_float(tensor):
                told += [_held(tensor)] if sizes else []
            elif floats and math.prod(tensor.dims) <= floats:
                told.append(hashlib.blake2b(content_of(tensor)).hexdigest())
        for value in graph.input:
            kind = value.type.SerializeToString() if sizes else value.type.tensor_type.elem_type
            told.append(f"{names[value.name]}:{kind!r}")
        for node in graph.node:
            for name in (*node.input, *node.output):
                names.setdefault(name, f"t{len(names)}")
            attributes = sorted(
                a.SerializeToString() for a in node.attribute if sizes or a.name != "group"
            )
            reads = [names[name] for name in node.input]
            makes = [names[name] for name in node.output]
            told.append(f"{node.domain}.{node.op_type}{reads}{makes}{attributes}")
        told.append("=>")
    return "\n".join([*told, names.get(window.output, "")])


def same_function(window: Window) -> tuple[str, ...]:
    """Return what is equal for windows that compute the same, before and after, but for names.

    Bodies read tensors by their names: such windows are alike where nothing is called otherwise.
    """
    sides = (window.before, window.after)
    imports = [f"{entry.domain} {entry.version}" for side in sides for entry in side.opset_import]
    if any(a.HasField("g") or a.graphs for s in sides for n in s.graph.node for a in n.attribute):
        return (*imports, *(str(side.SerializeToString(deterministic=True)) for side in sides))
    return (*imports, form_of(window, floats=1 << 62))


def is_float(tensor: onnx.TensorProto) -> bool:
    """Whether a constant holds numbers that are computed with."""
    return tensor.data_type in FLOATS


def content_of(tensor: onnx.TensorProto) -> bytes:
    """Return what a tensor is but for its name: what it holds, or where that lies."""
    bare = onnx.TensorProto()
    bare.CopyFrom(tensor)
    bare.ClearField("name")
    return bytes(bare.SerializeToString(deterministic=True))


def _held(tensor: onnx.TensorProto) -> str:
    """Return what integers say, or where they are."""
    content = content_of(tensor)
    return repr(content) if len(content) <= _SMALL_BYTES else tensor.name
