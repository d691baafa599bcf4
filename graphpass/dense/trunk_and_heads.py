"""The original network in parts: its trunk, which makes feature maps, and its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from graphpass.dense.extract import cut
from graphpass.errors import ModelError
from graphpass.follow.image_axes import Spatial
from graphpass.follow.traced import Collapse, Trace
from graphpass.ir.model import Model
from graphpass.ir.questions import Tensor, operator
from graphpass.rewrite.driver import apply
from graphpass.rewrite.registry import make


@dataclass(frozen=True)
class Head:
    """Outputs of the network that are computed from the same feature maps."""

    outputs: tuple[str, ...]
    collapses: tuple[Collapse, ...]
    from_maps: onnx.ModelProto
    from_pooled: onnx.ModelProto  # the same where nothing is pooled


def cut_heads(model: onnx.ModelProto, native: Trace) -> list[Head]:
    """Group the outputs by the feature maps that they come from; cut out a head for each group."""
    sources = {collapse.source.name for collapse in native.heads}
    groups: dict[tuple[str, ...], list[str]] = {}
    for output in native.graph.outputs:
        if not native.is_map(output):
            read = tuple(sorted(_reached(native, output, sources)))
            groups.setdefault(read, []).append(output.name)
    heads = []
    for read, outputs in groups.items():
        if not read:
            raise ModelError(f"the image has no part in the output {', '.join(outputs)}")
        collapses = tuple(c for c in native.heads if c.source.name in read)
        from_maps, from_pooled = (
            cut(
                model,
                {t.name: declared(native, t) for t in (start_of(c, pooled) for c in collapses)},
                outputs,
            )
            for pooled in (False, True)
        )
        heads.append(Head(tuple(outputs), collapses, from_maps, from_pooled))
    return heads


def start_of(collapse: Collapse, pooled: bool) -> Tensor:
    """Return where a head begins: at a feature map or, `pooled`, where it has been pooled."""
    return collapse.node.outputs[0] if pooled and collapse.kind == "pool" else collapse.source


def _reached(native: Trace, output: Tensor, starts: set[str]) -> set[str]:
    stack, seen, reached = [output], {id(output)}, set()
    while stack:
        tensor = stack.pop()
        if tensor.name in starts:
            reached.add(tensor.name)
            continue
        for node in tensor.inputs:
            for source in node.inputs:
                if id(source) not in seen and operator(node) != "Shape":
                    seen.add(id(source))
                    stack.append(source)
    return reached


def declared(native: Trace, tensor: Tensor) -> tuple[int, list[int | None]]:
    """Return element type and dims of a tensor at the native size; None for the batch."""
    axes = native.axes[id(tensor)]
    dims = [
        axis.line.size if isinstance(axis, Spatial) else axis if isinstance(axis, int) else None
        for axis in axes
    ]
    kind = native.image.dtype if tensor.dtype is None else tensor.dtype
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))), dims


def cut_trunk(
    original: Model, native: Trace, maps: Sequence[str]
) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
    """Cut out the trunk, and let its input have any size; return both, and what had to be freed."""
    image = native.image
    ends = list(dict.fromkeys([*(c.source.name for c in native.heads), *maps]))
    proto = cut(original.proto, {image.name: declared(native, image)}, ends)
    for value in proto.graph.output:
        tensor = next(t for t in _tensors(native) if t.name == value.name)
        kind, dims = declared(native, tensor)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, dims))
    trunk = original.copy()
    trunk.restore(proto)
    applied = apply(make("free-resolution", {"axes": "all"}), trunk)
    if applied.refusals:
        raise ModelError(applied.refusals[0].reason)
    return proto, trunk.proto, applied.notes[:-1]


def _tensors(native: Trace) -> list[Tensor]:
    made = [tensor for node in native.graph.nodes for tensor in node.outputs]
    return [*native.graph.inputs, *made]
