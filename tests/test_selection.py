"""Patterns for names of nodes: what rewrites leave alone; a pattern without effect is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.cli import run
from graphpass.errors import UsageError
from graphpass.rewrite.selection import Selection
from graphpass.testing import graph

NAMES = ("/a/conv", "/a/bn", "/b/conv", "/b/bn", "")


@pytest.fixture
def model() -> onnx.ModelProto:
    """Return two Convs with a BatchNormalization each, and an Identity without a name."""
    found = graph(
        """(float[N,2,4,4] x) => (float[N,2,4,4] y) {
            c = Conv(x, W) b = BatchNormalization(c, s, t, m, s)
            d = Conv(b, W) e = BatchNormalization(d, s, t, m, s) y = Identity(e) }""",
        W=(2, 2, 1, 1),
        s=np.array([1, 2], np.float32),
        t=(2,),
        m=(2,),
    )
    for node, name in zip(found.graph.node, NAMES, strict=True):
        node.name = name
    return found


def left(model: onnx.ModelProto, passes: str, **patterns: Any) -> list[str]:
    """Return what is left of the nodes, by name or first output."""
    with graphpass.optimize(model, passes, **patterns) as result:
        return [node.name or node.output[0] for node in result.skeletons[1].graph.node]


@pytest.mark.parametrize(
    ("patterns", "nodes"),
    [
        ({}, ["/a/conv", "/b/conv", "y"]),
        ({"exclude_nodes": ["/a/*"]}, ["/a/conv", "/a/bn", "/b/conv", "y"]),
        ({"exclude_nodes": ["/a/bn"]}, ["/a/conv", "/a/bn", "/b/conv", "y"]),
        ({"exclude_nodes": ["*"]}, ["/a/conv", "/a/bn", "/b/conv", "/b/bn", "y"]),
        ({"only_nodes": ["/a/*"]}, ["/a/conv", "/b/conv", "/b/bn", "y"]),
        # a rewrite that reaches a node outside does not take place
        ({"only_nodes": ["*/bn"]}, ["/a/conv", "/a/bn", "/b/conv", "/b/bn", "y"]),
        ({"only_nodes": ["re:/[ab]/.*"]}, ["/a/conv", "/b/conv", "y"]),
        ({"only_nodes": ["re:/[ab]/.*"], "exclude_nodes": ["/b/bn"]},
         ["/a/conv", "/b/conv", "/b/bn", "y"]),
    ],
)  # fmt: skip
def test_rewrites_touch_what_patterns_leave(
    model: onnx.ModelProto, patterns: Any, nodes: list[str]
) -> None:
    assert left(model, "fold-batchnorm", **patterns) == nodes


def test_a_node_without_a_name_goes_by_its_output(model: onnx.ModelProto) -> None:
    assert "y" in left(model, "clean-up", exclude_nodes=["y"])
    assert "y" not in left(model, "clean-up", only_nodes=["y", "/b/bn"])


def test_what_nothing_reads_stays_where_it_is_left_out() -> None:
    model = graph("(float[3] x) => (float[3] y) { a = Abs(x) b = Neg(x) y = Relu(x) }")
    assert left(model, "clean-up", exclude_nodes=["a"]) == ["a", "y"]


def test_a_pattern_without_effect_is_told(model: onnx.ModelProto) -> None:
    found = Selection(("/a/*", "/c/*"), ("/b/bnn",)).without_effect(model)
    assert found == [
        "--only-node '/c/*': no node has such a name (did you mean /a/bn?)",
        "--exclude-node '/b/bnn': no node has such a name (did you mean /b/bn?)",
    ] or found[1:] == ["--exclude-node '/b/bnn': no node has such a name (did you mean /b/bn?)"]
    with graphpass.optimize(model, exclude_nodes=["nothing"], validate=False) as result:
        assert "--exclude-node 'nothing': no node has such a name" in result.report.warnings


def test_what_is_no_expression_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'re:\[' is no regular expression: "):
        Selection(("re:[",))


def test_what_is_done_by_hand_is_not_held_back(model: onnx.ModelProto) -> None:
    with graphpass.optimize(
        model, "set-opset{opset=18},fold-batchnorm", exclude_nodes=["/a/*"], validate=False
    ) as result:
        (warning,) = result.report.warnings
    assert warning.startswith("set-opset changed the model other than by rewrites")


def test_the_command_line_has_the_patterns(
    model: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, report = tmp_path / "m.onnx", tmp_path / "r.json"
    onnx.save(model, path)
    arguments = ["--exclude-node", "/a/*", "--exclude-node", "nothing", "--no-validate"]
    assert run(["optimize", str(path), "--report", str(report), "-v", *arguments]) == 0
    done = capsys.readouterr()
    assert "--exclude-node 'nothing': no node has such a name" in done.out
    assert json.loads(report.read_text())["settings"]["exclude_nodes"] == ["/a/*", "nothing"]
    assert "fold-batchnorm: 1 rewrite," in done.err and "m.onnx: read 5 nodes" in done.err
    assert run(["inspect", str(path), "--passes", "fold-batchnorm", *arguments[:4]]) == 0
    done = capsys.readouterr()
    assert "fold-batchnorm: 1 rewrite, 0 refused" in done.out
    assert "graphpass: --exclude-node 'nothing': no node" in done.err


def test_the_library_logs_what_it_does(
    model: onnx.ModelProto, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="graphpass"):
        graphpass.optimize(model, "fold-batchnorm", exclude_nodes=["no"], validate=False).close()
    told = [(entry.levelname, entry.getMessage()) for entry in caplog.records]
    assert any(text.startswith("fold-batchnorm: 2 rewrites") for _, text in told)
    assert (
        "DEBUG",
        "IntoConv: BatchNormalization '/a/bn', Conv '/a/conv' → Conv '/a/conv'",
    ) in told
    assert any(level == "WARNING" and "'no': no node" in text for level, text in told)
    assert {entry.name.split(".")[0] for entry in caplog.records} == {"graphpass"}
