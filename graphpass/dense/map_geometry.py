"""Where the cells of a dense network's maps lie on the image, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import onnx

from graphpass.errors import ModelError
from graphpass.follow.geometry import Line
from graphpass.follow.trace import trace
from graphpass.follow.traced import Trace
from graphpass.ir.model import Model
from graphpass.ir.questions import RefusedError, Tensor, operator
from graphpass.ir.windows import Window

Size = tuple[int, ...]  # (height, width); of signals (length,), of volumes (depth, height, width)

STRIDE, WINDOW, OFFSET = "graphpass.stride", "graphpass.window", "graphpass.offset"
NATIVE, HEAD = "graphpass.native", "graphpass.head"

_ODD_PIXELS = 5  # that the second size checked has beyond a multiple of the stride


@dataclass(frozen=True)
class MapGeometry:
    """Where the cells of an output lie on the image, in pixels, as (height, width).

    Of signals as (length,), of volumes as (depth, height, width). Cell (i, j) has the box from
    (offset + i·stride) on, `window` pixels large, of which pixels beyond the image are padding.
    """

    output: str
    stride: Size
    window: Size
    offset: Size


def geometries(found: Trace, done: Model, head: str) -> list[MapGeometry]:
    """Return where the cells of each map lie: of every output, or of class activation maps."""
    maps = []
    if head == "dense":
        maps = [_geometry(found, output.name) for output in found.graph.outputs]
    for output, cam in cams(done, found).items():
        maps.append(_put_together(cam, [found.lines(_sources(found, output)[0])]))
    return maps


def cams(done: Model, found: Trace) -> dict[str, str]:
    """Return the class activation map of each output, where there is one."""
    added = [output.name for output in done.graph.outputs[len(found.graph.outputs) :]]
    of = {}
    for output in found.graph.outputs:
        own = [name for name in added if name.startswith(f"{output.name}.cam")]
        if own:
            of[output.name] = own[0]
    return of


def strides(found: Trace) -> Size:
    """Return how far apart the cells of the coarsest map are, in pixels."""
    lines = [found.lines(collapse.source) for collapse in found.heads]
    return tuple(max(line.stride for line in along) for along in zip(*lines, strict=True))


def checked_sizes(native: Size, stride: Size) -> list[Size]:
    """Two larger sizes, one of them no multiple of the stride, and one larger in one dimension."""
    return [
        tuple(n + s for n, s in zip(native, stride, strict=True)),
        tuple(n + 2 * s + _ODD_PIXELS for n, s in zip(native, stride, strict=True)),
        (*native[:-1], native[-1] + 2 * stride[-1]),
    ]


def _geometry(found: Trace, output: str) -> MapGeometry:
    """Put the head's window on top of the feature map's own cells."""
    spans = []
    for source in _sources(found, output):
        lines = found.lines(source)
        if source.name != output:
            lines = tuple(line.through(Window(line.size)) for line in lines)
        spans.append(lines)
    return _put_together(output, spans)


def _put_together(output: str, spans: Sequence[tuple[Line, ...]]) -> MapGeometry:
    lines = [reduce(Line.joined, along) for along in zip(*spans, strict=True)]
    return MapGeometry(
        output,
        tuple(line.stride for line in lines),
        tuple(line.window for line in lines),
        tuple(line.offset for line in lines),
    )


def _sources(found: Trace, output: str) -> list[Tensor]:
    """Return the feature maps that an output is computed from; itself, if it is a map."""
    (tensor,) = (t for t in found.graph.outputs if t.name == output)
    if found.is_map(tensor):
        return [tensor]
    by_id: dict[int, Tensor] = {id(c.node): c.source for c in found.heads}
    stack, seen = [tensor], {id(tensor)}
    sources: list[Tensor] = []
    while stack:
        for node in stack.pop().inputs:
            if id(node) in by_id:
                sources.append(by_id[id(node)])
                continue
            for source in node.inputs:
                if id(source) not in seen and operator(node) != "Shape":
                    seen.add(id(source))
                    stack.append(source)
    return sources


def map_sizes(found: Trace, size: Size, head: str) -> dict[str, Size]:
    """Return the cells of each output for an image of `size`. Raises ModelError."""
    try:
        at_size = trace(found.graph, found.image, found.layout, size, found)
    except RefusedError as error:
        raise ModelError(f"at {spelled(size)} pixels, {error}") from None
    made: dict[str, Size] = {}
    for output in found.graph.outputs:
        source = _sources(found, output.name)[0]
        cells, window = at_size.map_size(source), found.map_size(source)
        if source.name == output.name:
            made[output.name] = cells
        elif head == "global":
            made[output.name] = (1,) * len(size)
        else:
            made[output.name] = tuple(n - w + 1 for n, w in zip(cells, window, strict=True))
    return made


def write_metadata(
    model: onnx.ModelProto, head: str, native: Size, maps: Sequence[MapGeometry]
) -> None:
    """Note in the model where its cells lie: "32,32", or "a=32,32;b=16,16" where outputs differ."""
    values = {NATIVE: pair(native), HEAD: head}
    for key, name in ((STRIDE, "stride"), (WINDOW, "window"), (OFFSET, "offset")):
        pairs = {g.output: pair(getattr(g, name)) for g in maps}
        if len(set(pairs.values())) == 1:
            values[key] = next(iter(pairs.values()))
        elif pairs:
            values[key] = ";".join(f"{output}={text}" for output, text in pairs.items())
    set_metadata(model, values)


def set_metadata(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Write entries into the metadata of a model, in place of those of the same keys."""
    kept = [entry for entry in model.metadata_props if entry.key not in values]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in values.items():
        model.metadata_props.add(key=key, value=value)


def pair(size: Size) -> str:
    """Write a size as in the metadata."""
    return ",".join(map(str, size))


def spelled(size: Size) -> str:
    """Write a size for people: 384x512."""
    return "x".join(map(str, size))
