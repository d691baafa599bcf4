"""Dilated convolutions without their dilation: one of the phases that the map falls into.

A convolution of stride 1 and dilation d computes each d-th cell of its output from each d-th cell
of its input, and from no other: d maps side by side, each through the same convolution of dilation
1 (M. Shensa, "The discrete wavelet transform: wedding the à trous and Mallat algorithms", 1992).
One of them shows all there is to see, and is smaller by d along each axis: with dilation 36, nine
cells and not 5,329.
"""

from __future__ import annotations

import math
from typing import Any

import onnx
from onnx import helper

from graphpass.ir.operators import Trait, named
from graphpass.rewrite.window import Window

# What computes each pixel from its own, for any number of pixels.
_PIXEL_BY_PIXEL = frozenset(
    (*named(Trait.ELEMENTWISE), *named(Trait.ARITHMETIC), "BatchNormalization", "Constant")
)


def undilated(window: Window) -> Window:
    """Take out the dilation that all convolutions of both sides share; as it is where none is."""
    graphs = window.before.graph, window.after.graph
    nodes = [node for graph in graphs for node in graph.node]
    if not any(max(_attributes(node).get("dilations", [1])) > 1 for node in nodes):
        return window
    kernels = _kernels(graphs)
    axes = {len(kernel) for kernel in kernels}
    if len(axes) != 1 or not all(_is_fit(graph, min(axes)) for graph in graphs):
        return window
    convolutions = [_attributes(node) for node in nodes if node.op_type == "Conv"]
    shared = [_shared(convolutions, kernels, axis) for axis in range(min(axes))]
    if all(step == 1 for step in shared):
        return window
    return Window(
        _divided(window.before, shared),
        _divided(window.after, shared),
        window.inputs,
        window.output,
    )


def _kernels(graphs: tuple[onnx.GraphProto, ...]) -> list[tuple[int, ...]]:
    """Return the size of each convolution's kernel; () for one that is not in the model."""
    found = []
    for graph in graphs:
        dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        found += [dims.get(n.input[1], ())[2:] for n in graph.node if n.op_type == "Conv"]
    return found


def _is_fit(graph: onnx.GraphProto, axes: int) -> bool:
    """Whether all but convolutions takes each pixel alone, and all of them alike."""
    spread = {
        tensor.name for tensor in graph.initializer if math.prod(list(tensor.dims)[-axes:]) != 1
    }
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("Conv", "BatchNormalization"):
            continue
        if node.op_type not in _PIXEL_BY_PIXEL or spread.intersection(node.input):
            return False
        made = _attributes(node).get("value") if node.op_type == "Constant" else None
        if node.op_type == "Constant" and (made is None or math.prod(made.dims[-axes:]) != 1):
            return False
    return True


def _shared(convolutions: list[dict[str, Any]], kernels: list[tuple[int, ...]], axis: int) -> int:
    """Return by how much dilations and pads along an axis can be divided; 1: not at all."""
    step = 0
    for given, kernel in zip(convolutions, kernels, strict=True):
        strides = given.get("strides") or [1] * len(kernel)
        pads = given.get("pads") or [0] * (2 * len(kernel))
        if strides[axis] != 1 or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            return 1
        dilation = (given.get("dilations") or [1] * len(kernel))[axis]
        step = math.gcd(step, dilation if kernel[axis] > 1 else 0, *pads[axis :: len(kernel)])
    return step or 1


def _divided(model: onnx.ModelProto, shared: list[int]) -> onnx.ModelProto:
    divided = onnx.ModelProto()
    divided.CopyFrom(model)
    for node in divided.graph.node:
        if node.op_type != "Conv":
            continue
        for attribute in node.attribute:
            if attribute.name == "dilations":
                # along an axis of one element there is nothing that it could set apart
                attribute.ints[:] = [
                    max(n // by, 1) for n, by in zip(attribute.ints, shared, strict=True)
                ]
            if attribute.name == "pads":
                attribute.ints[:] = [
                    n // by for n, by in zip(attribute.ints, shared * 2, strict=True)
                ]
    return divided


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
