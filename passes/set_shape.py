"""set-shape: inputs get the sizes that are asked for, fixed or free."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx

from graphpass import Graph, Pass, Tensor, require
from graphpass.errors import UsageError
from graphpass.ir.inference import infer_shapes
from graphpass.ir.reader import value_type
from graphpass.ir.type_text import shape_text
from graphpass.rewrite.interface import Interface
from graphpass.wording import nearest

from .score_map import FreeBatch, FreeResolution

Shape = tuple[int | str, ...]

_IMAGE_AXES = 4
_LARGEST = 2**31 - 1
# a space between inputs: what follows it is a name and its sizes
_BETWEEN = re.compile(r" +(?=\S+=)")
_SIZE = re.compile(r"[0-9]+|[A-Za-z_]\w*")


@dataclass(frozen=True)
class SetShape(Pass):
    """Inputs get the sizes that are asked for: a number fixes a size, a name lets it vary.

    Sizes that have one name have one size: it is settled wherever the name stands. What is fixed
    and is to vary, or to be another number, is freed first, as `free-batch` and `free-resolution`
    do. Refused, with the input, is what ONNX's shape inference finds to contradict the network.
    """

    name: ClassVar[str] = "set-shape"
    changes_interface: ClassVar[Interface] = Interface.SIZES | Interface.FIXED
    required: ClassVar[bool] = True
    repeats: ClassVar[bool] = True  # it frees in one round what it fixes in the next
    shapes: str = field(default="", metadata={"help": "x=1,3,224,224 mask=N,77"})

    def __post_init__(self) -> None:
        read_shapes(self.shapes)

    def run(self, graph: Graph) -> list[str]:
        """Free what is fixed otherwise, or declare the sizes."""
        if graph.parent is not None or graph.is_function:
            return []
        wanted = _by_tensor(graph, read_shapes(self.shapes))
        tied = [
            (tensor, axis)
            for tensor, shape in wanted
            for axis, (old, new) in enumerate(zip(tensor.shape, shape, strict=True))
            if isinstance(old, int) and old != new
        ]
        if tied:
            return _freed(graph, tied, {id(t): shape for t, shape in wanted})
        settled = _settled(wanted)
        inputs = {id(tensor): _with(tensor.shape, settled) for tensor in _shaped(graph)}
        inputs |= {
            id(tensor): [new if isinstance(new, int) else settled.get(new, new) for new in shape]
            for tensor, shape in wanted
        }
        changed = [t for t in _shaped(graph) if list(t.shape) != inputs[id(t)]]
        if not changed:
            return []
        outputs = _inferred(graph, {t.name: inputs[id(t)] for t in changed}, settled)
        for tensor in changed:
            tensor.shape = inputs[id(tensor)]
        for tensor, sizes in outputs:
            tensor.shape = sizes
        return [f"'{tensor.name}' is {shape_text(tensor.shape)}" for tensor in changed]


def read_shapes(text: str) -> dict[str, Shape]:
    """Read `x=1,3,224,224 mask=N,77`. Raises `UsageError`."""
    found: dict[str, Shape] = {}
    for part in filter(None, _BETWEEN.split(text.strip())):
        name, equals, listed = part.rpartition("=")
        sizes = [size.strip() for size in listed.split(",")] if listed.strip() else []
        if not (name and equals) or not all(map(_SIZE.fullmatch, sizes)):
            raise UsageError(
                f"{part!r} is no shape: write NAME=SIZES, as in x=1,3,224,224 or x=N,3,height,width"
            )
        shape = tuple(int(size) if size.isdecimal() else size for size in sizes)
        if any(isinstance(size, int) and not 0 < size <= _LARGEST for size in shape):
            raise UsageError(f"{part!r}: a size is from 1 to {_LARGEST}")
        if found.setdefault(name, shape) != shape:
            raise UsageError(f"two shapes are given for {name!r}")
    return found


def _by_tensor(graph: Graph, shapes: Mapping[str, Shape]) -> list[tuple[Tensor, Shape]]:
    known = {tensor.name: tensor for tensor in graph.inputs}
    found = []
    for name, shape in shapes.items():
        hint = nearest(name, known)
        require(name in known, f"the model has no input '{name}'{hint}: it has {_listed(known)}")
        tensor = known[name]
        require(tensor.shape is not None, f"the model does not say how many axes '{name}' has")
        axes = len(tensor.shape)
        require(axes == len(shape), f"'{name}' has {axes} axes, and {len(shape)} sizes are given")
        found.append((tensor, shape))
    return found


def _shaped(graph: Graph) -> list[Tensor]:
    return [tensor for tensor in graph.inputs if tensor.shape is not None]


def _settled(wanted: Sequence[tuple[Tensor, Shape]]) -> dict[str, int | str]:
    """Return what becomes of each name of a size; refuse two answers for one name."""
    found: dict[str, int | str] = {}
    for tensor, shape in wanted:
        for old, new in zip(tensor.shape, shape, strict=True):
            if isinstance(old, str) and found.setdefault(old, new) != new:
                require(
                    False,
                    f"the sizes called {old} are equal: they cannot be {found[old]} and {new}",
                )
    return found


def _with(shape: Sequence[int | str | None], settled: Mapping[str, int | str]) -> list[Any]:
    return [settled.get(size, size) if isinstance(size, str) else size for size in shape]


def _freed(
    graph: Graph, tied: Sequence[tuple[Tensor, int]], wanted: Mapping[int, Shape]
) -> list[str]:
    """Let the batch, or height and width, vary; refuse where it is another size that is tied."""
    for tensor, axis in tied:
        require(
            axis == 0 or _may_be_place(tensor, axis),
            f"'{tensor.name}' has {tensor.shape[axis]} along axis {axis}, which is neither its"
            " batch nor height or width: it stays",
        )
    tensor, axis = tied[0]
    sizes = [size if isinstance(size, int) else 0 for size in wanted[id(tensor)]]
    places = FreeResolution(to=",".join(map(str, sizes)))
    step = FreeBatch() if any(axis == 0 for _, axis in tied) else places
    notes = step.run(graph)
    require(bool(notes), f"nothing lets axis {axis} of '{tensor.name}' vary")
    return notes


def _may_be_place(tensor: Tensor, axis: int) -> bool:
    """Whether an axis may be height or width: none of the channels, which are fewer."""
    shape = list(tensor.shape)
    if len(shape) != _IMAGE_AXES:
        return len(shape) > 1 and axis > 1
    fixed = [size if isinstance(size, int) else _LARGEST for size in shape]
    return axis != (1 if fixed[1] <= fixed[3] else 3)


def _inferred(
    graph: Graph, shapes: Mapping[str, Sequence[Any]], settled: Mapping[str, int | str]
) -> list[tuple[Tensor, list[Any]]]:
    """Return what the outputs are then. Refuses what ONNX finds to contradict the network."""
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION)
    model.graph.CopyFrom(graph.proto)
    for domain, version in graph.opsets.items():
        model.opset_import.add(domain=domain, version=version)
    del model.graph.value_info[:]
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            if isinstance(size, int):
                dim.dim_value = size
            elif isinstance(size, str):
                dim.dim_param = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=False)
    except onnx.shape_inference.InferenceError as error:
        listed = ", ".join(f"'{name}' {shape_text(sizes)}" for name, sizes in shapes.items())
        require(False, f"{listed} does not fit the network: {_first_line(error)}")
    known = {value.name: value_type(value.type)[1] for value in infer_shapes(model).graph.output}
    found = []
    for tensor in graph.outputs:
        if tensor.shape is None:
            continue
        told = known.get(tensor.name)
        sizes = _with(tensor.shape, settled)
        if told is not None and len(told) == len(sizes):
            sizes = [
                new if isinstance(new, int) else old for old, new in zip(sizes, told, strict=True)
            ]
        found.append((tensor, sizes))
    return found


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _listed(names: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{name}'" for name in names)
