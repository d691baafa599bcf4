"""Why not, and what could be done about it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from graphpass.ir.model import Model
from graphpass.report.advice import advice
from graphpass.rewrite.registry import make
from graphpass.run.inspection import inspect, show
from graphpass.testing import graph

CONV_BN = (
    "(float[N,2,4,4] x) => (float[N,2,4,4] y{more}) {{"
    "c = Conv(x, W) y = BatchNormalization{attributes}(c, s, t, m, v) {rest}}}"
)


def shown(model: Any, name: str | None, step: str = "fold-batchnorm") -> str:
    loaded = Model.load(model)
    console = Console(file=io.StringIO(), width=200)
    show(console, loaded, inspect(loaded, [make(step)]), name)
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
    ("reason", "said"),
    [
        ("'W' may be overridden at run time (it is also a graph input)", "keep_initializers"),
        ("the weight of Conv 'c', 'w', is not a constant", "do_constant_folding"),
        ("the weights of Gemm 'g' depend on the pixel (relative spread 0.3)", "gemm-to-conv"),
        ("the rank of 'x' is unknown", "shape inference"),
        ("folding into 'W' overflows float16", "float32"),
        ("Conv 'c' feeds 2 nodes", ""),
    ],
)
def test_advice(reason: str, said: str) -> None:
    assert said in advice(reason) and bool(advice(reason)) == bool(said)
