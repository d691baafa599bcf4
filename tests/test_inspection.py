"""Why not, and what could be done about it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

from graphpass.commands.inspection_text import show_found
from graphpass.ir.model import Model
from graphpass.rewrite.registry import make
from graphpass.run.inspection import inspect
from graphpass.testing import apply_to, graph

CONV_BN = (
    "(float[N,2,4,4] x) => (float[N,2,4,4] y{more}) {{"
    "c = Conv(x, W) y = BatchNormalization{attributes}(c, s, t, m, v) {rest}}}"
)


def shown(model: Any, name: str | None, step: str = "fold-batchnorm") -> str:
    loaded = Model.load(model)
    console = Console(file=io.StringIO(), width=200)
    show_found(console, loaded, inspect(loaded, [make(step)]), name)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def conv_bn(more: str = "", attributes: str = "", rest: str = "") -> Any:
    text = CONV_BN.format(more=more, attributes=attributes, rest=rest)
    return graph(text, W=(2, 2, 1, 1), s=(2,), t=(2,), m=(2,), v=abs_of(2))


def abs_of(size: int) -> Any:
    return np.linspace(0.5, 1.5, size).astype(np.float32)


def test_a_refusal_comes_with_what_can_be_done() -> None:
    text = shown(conv_bn(attributes="<training_mode=1>"), "y")
    assert "in training mode" in text and "what can be done: export the model in inference" in text
    text = shown(conv_bn(more=", float[N,2,4,4] c"), "c")
    assert "is an output of the graph" in text and "remove that output from the export" in text


def test_where_nothing_can_be_done_nothing_is_said() -> None:
    text = shown(conv_bn(more=", float[N,2,4,4] z", rest="z = Relu(c)"), None)
    assert "feeds 2 nodes" in text and "what can be done" not in text


@pytest.mark.parametrize(
    ("model", "step", "code", "said"),
    [
        (conv_bn(attributes="<training_mode=1>"), "fold-batchnorm", "training", "model.eval()"),
        (conv_bn(more=", float[N,2,4,4] c"), "fold-batchnorm", "output", "remove that output"),
        (
            conv_bn(more=", float[N,2,4,4] z", rest="z = Relu(c)"),
            "fold-batchnorm",
            "several-readers",
            "",
        ),
        (
            graph(
                "(float[N,2,4,4] x) => (float[N,3] y) { f = Flatten(x) y = Gemm(f, W) }", W=(32, 3)
            ),
            "flatten-gemm-to-gap-conv",
            "per-pixel",
            "gemm-to-conv",
        ),
        (
            graph("(float[N,2] x, float[2,3] W) => (float[N,3] y) { y = Gemm(x, W) }", W=(2, 3)),
            "gemm-to-conv",
            "overridable",
            "keep_initializers_as_inputs",
        ),
        (
            graph("(float[N,2] x, float[2,3] w) => (float[N,3] y) { y = Gemm(x, w) }"),
            "gemm-to-conv",
            "computed",
            "do_constant_folding",
        ),
    ],
)
def test_a_refusal_has_a_code_and_where_there_is_one_advice(
    model: onnx.ModelProto, step: str, code: str, said: str
) -> None:
    _, applied = apply_to(make(step), model)
    assert {refusal.code for refusal in applied.refusals} == {code}
    for refusal in applied.refusals:
        assert said in refusal.advice and bool(refusal.advice) == bool(said)
