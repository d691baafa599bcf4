"""Receptive fields against brute force: which pixels change a cell when they are changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphpass.follow.geometry import Line
from graphpass.follow.image_input import trace_image
from graphpass.follow.trace import trace
from graphpass.ir.model import Model
from graphpass.ir.questions import Graph
from graphpass.ir.windows import Window
from graphpass.testing import graph, session

_SIDE = 23
_CHANGE = 2.0**10


@dataclass(frozen=True)
class Step:
    op: str
    kernel: int
    stride: int
    pads: tuple[int, int]
    dilation: int
    ceil: bool
    auto: str

    def text(self, source: str, target: str) -> str:
        attributes = [f"strides=[{self.stride},{self.stride}]"]
        if self.auto == "NOTSET":
            begin, end = self.pads
            attributes.append(f"pads=[{begin},{begin},{end},{end}]")
        else:
            attributes.append(f'auto_pad="{self.auto}"')
        if self.dilation > 1:
            attributes.append(f"dilations=[{self.dilation},{self.dilation}]")
        if self.op != "Conv":
            attributes.append(f"kernel_shape=[{self.kernel},{self.kernel}]")
            attributes.append(f"ceil_mode={int(self.ceil)}")
        operands = f"{source}, w{self.kernel}" if self.op == "Conv" else source
        return f"{target} = {self.op} <{', '.join(attributes)}> ({operands})\n"


@st.composite
def steps(draw: st.DrawFn) -> Step:
    op = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool"]))
    kernel = draw(st.integers(1, 4))
    most = kernel - 1
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    dilation = draw(st.integers(1, 2)) if op == "Conv" and auto in ("NOTSET", "VALID") else 1
    strides = st.integers(1, 3)
    if auto.startswith("SAME") and op != "Conv":
        strides = st.integers(1, min(3, kernel))  # ONNX Runtime takes no negative padding
    return Step(
        op,
        kernel,
        draw(strides),
        (draw(st.integers(0, most)), draw(st.integers(0, most))),
        dilation,
        op != "Conv" and auto == "NOTSET" and draw(st.booleans()),
        auto,
    )


def build(chain: list[Step], branch: list[Step]) -> onnx.ModelProto:
    """A chain, and a branch of stride 1 beside it that is joined by Concat at the end."""
    body, tensor = "", "x"
    for index, step in enumerate(chain):
        body += step.text(tensor, f"t{index}")
        tensor = f"t{index}"
    joined = [tensor]
    for index, step in enumerate(branch):
        body += step.text(joined[0], f"b{index}")
        joined.append(f"b{index}")
    body += f"y = Concat <axis=1> ({', '.join(joined)})\n"
    text = f"(float[N,1,{_SIDE},{_SIDE}] x) => (float[N,C,P,Q] y) {{ {body} }}"
    used = {step.kernel for step in (*chain, *branch) if step.op == "Conv"}
    weights: dict[str, Any] = {f"w{k}": np.ones((1, 1, k, k), np.float32) for k in used}
    return graph(text, **weights)


def influence(model: onnx.ModelProto, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The first and last pixel row that changes each row of cells, by changing every row."""
    rows = np.ones((size[0] + 1, 1, *size), np.float32)
    for row in range(size[0]):
        rows[row + 1, 0, row] += _CHANGE
    (cells,) = session(model).run(None, {"x": rows})
    changed = (cells[1:] != cells[0]).any(axis=(1, 3))  # [pixel row, cell row]
    found = []
    for cell in range(changed.shape[1]):
        seen = np.flatnonzero(changed[:, cell])
        found.append((int(seen[0]), int(seen[-1]) + 1) if len(seen) else (-1, -1))
    return found


def freed(model: onnx.ModelProto, size: tuple[int, int]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    dims = copy.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_value, dims[3].dim_value = size
    return copy


@settings(max_examples=60, deadline=None)
@given(
    st.lists(steps(), min_size=1, max_size=3),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([(_SIDE, _SIDE), (29, 31), (40, 24)]),
)
def test_boxes_are_the_pixels_that_matter(
    chain: list[Step], branch: int | None, size: tuple[int, int]
) -> None:
    beside = []
    if branch is not None:
        pad = branch // 2
        beside = [Step("MaxPool", branch, 1, (pad, pad), 1, False, "NOTSET")]
    model = build(chain, beside)
    loaded = Model.load(model)
    graph_: Graph = loaded.graph
    line = Line.image(_SIDE)
    for step in chain:  # some chains leave nothing of an image this small
        line = line.through(_window(step))
        assume(line.size > (1 if branch is not None else 0))
    native = trace(graph_, graph_.inputs[0], "NCHW", (_SIDE, _SIDE))
    (output,) = graph_.outputs
    assume(native.is_map(output))
    found = trace(graph_, graph_.inputs[0], "NCHW", size, native)
    height, _ = found.lines(output)
    brute = influence(freed(model, size), size)
    assert height.size == len(brute)
    for cell, (first, last) in enumerate(brute):
        box = height.box(cell)
        assert (box if box[0] < box[1] else (-1, -1)) == (first, last)
        start = height.offset + cell * height.stride
        if first >= 0:
            assert start <= first
            assert last <= start + height.window


def _window(step: Step) -> Window:
    same = {"SAME_UPPER": "upper", "SAME_LOWER": "lower"}.get(step.auto, "")
    begin, end = (0, 0) if step.auto == "VALID" else step.pads
    return Window(step.kernel, step.stride, begin, end, step.dilation, step.ceil, same)


@pytest.mark.parametrize(("ceil", "cells"), [(1, 6), (0, 5)])
def test_alexnet_of_caffe_at_384(ceil: int, cells: int) -> None:
    pool = f"MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode={ceil}>"
    model = graph(
        f"""(float[N,1,227,227] x) => (float[N,1,a,b] y) {{
            c1 = Conv <strides=[4,4]> (x, w11)
            p1 = {pool} (c1)
            c2 = Conv <pads=[2,2,2,2]> (p1, w5)
            p2 = {pool} (c2)
            c3 = Conv <pads=[1,1,1,1]> (p2, w3)
            c4 = Conv <pads=[1,1,1,1]> (c3, w3)
            c5 = Conv <pads=[1,1,1,1]> (c4, w3)
            p5 = {pool} (c5)
            y = Conv (p5, w6)
        }}""",
        w11=(1, 1, 11, 11),
        w5=(1, 1, 5, 5),
        w3=(1, 1, 3, 3),
        w6=(1, 1, 6, 6),
    )
    loaded = Model.load(model)
    native = trace_image(loaded.graph)
    assert native.map_size(loaded.graph.outputs[0]) == (1, 1)
    large = trace(loaded.graph, loaded.graph.inputs[0], "NCHW", (384, 384), native)
    assert large.map_size(loaded.graph.outputs[0]) == (cells, cells)
    height, _ = native.lines(loaded.graph.outputs[0])
    # conv1 11, pools 3 at strides 4, 8, 16, convs 5, 3, 3, 3, the dense layer 6 at stride 32
    assert (height.stride, height.window, height.offset) == (32, 355, -64)


def test_same_padding_follows_the_size() -> None:
    upper, lower = (Window(3, 2, same=kind) for kind in ("upper", "lower"))
    assert upper.padding(6) == (0, 1)
    assert lower.padding(6) == (1, 0)
    assert upper.padding(7) == (1, 1)
    assert upper.count(7) == 4


def test_a_cell_that_sees_only_padding_has_an_empty_box() -> None:
    line = Line.image(3).through(Window(1, 1, 1, 0))
    first, last = line.box(0)
    assert first >= last
    assert line.box(1) == (0, 1)
