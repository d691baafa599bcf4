"""A report as a page: it says what happened, draws both graphs, and no name becomes markup."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.cli import run
from graphpass.ir.model import Model
from graphpass.ir.proto_walk import label_of
from graphpass.ir.questions import label
from graphpass.ir.type_text import type_text
from graphpass.report.data import Report
from graphpass.report.notebook import notebook
from graphpass.report.page.drawn import pair
from graphpass.report.page.layers import layers
from graphpass.report.page.page import page
from graphpass.report.summary import verdict
from graphpass.testing import graph
from graphpass.validate import Latency

CHROMIUM = shutil.which("chromium")
EVIL = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def result() -> Any:
    with graphpass.optimize(network(), latency=True) as found:
        yield found


def network() -> onnx.ModelProto:
    """Return a network whose every name is an attack on the page."""
    model = graph(
        """(float[N,3,8,8] x) => (float[N,4,1,1] y, float[N,4,6,6] z) {
            c = Conv(x, W)
            b = BatchNormalization(c, s, t, m, v)
            r = Relu(b)
            z = Identity(r)
            y = GlobalAveragePool(r)
        }""",
        W=(4, 3, 3, 3),
        s=np.ones(4, np.float32),
        t=np.full(4, 2, np.float32),
        m=np.zeros(4, np.float32),
        v=np.full(4, 3, np.float32),
    )
    for index, node in enumerate(model.graph.node):
        node.name = f"/stage/block{index // 2}/{EVIL}{index}"
    return model


def test_a_result_shows_itself(result: Any) -> None:
    said = verdict(result.report)
    assert repr(result) == f"<Result {said}>"
    shown = result._repr_html_()
    xml.etree.ElementTree.fromstring(shown)  # well-formed
    assert said in shown and "<td>BatchNormalization</td><td>1</td><td>0</td>" in shown
    assert "<td>fold-batchnorm</td>" in shown and "<td>latency</td>" in shown


def test_a_notebook_shows_names_as_text(result: Any) -> None:
    report = replace(result.report, warnings=[f"'{EVIL}' was left", "a\x1b[31m"])
    shown = notebook(report)
    assert "<img" not in shown and "&lt;img src=x" in shown and "\x1b" not in shown


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_page_needs_nothing_and_no_name_is_markup(result: Any) -> None:
    text = result.html()
    assert EVIL not in text and "<img" not in text
    assert not re.search(r'(src|href)=["\']?https?:', text)
    told = data_of(text)
    labels = [[node["label"] for node in drawn["nodes"]] for drawn in told["graphs"]]
    assert EVIL in labels[0][0] and len(labels[0]) == 5 and len(labels[1]) < 5
    for rewrite in told["rewrites"]:
        assert set(rewrite["before"]) & set(labels[0]), rewrite
    assert told["rewrites"] and all(entry["status"] == "ok" for entry in told["rewrites"])


def test_without_models_the_page_has_no_graphs(result: Any) -> None:
    told = data_of(page(result.report))
    assert told["graphs"] == [] and told["cost"] == {"layers": [], "fed": ""}


def test_the_page_tells_what_each_layer_costs(result: Any) -> None:
    told = data_of(result.html())["cost"]
    kinds = {layer["operator"]: layer for layer in told["layers"]}
    assert told["fed"] == "x [1, 3, 8, 8]"
    # 6x6 places, 4 filters of 3x3x3; with the fold, a bias comes in
    conv, folded = kinds["Conv"], kinds["BatchNormalization"]
    assert conv["adds"] == [36 * 4 * 27] * 2 and conv["told"][0] == "3.89 k"
    assert conv["bytes"] == [4 * (4 * 27 + 4 * 36), 4 * (4 * 27 + 4 + 4 * 36)]
    assert folded["adds"] == [0, None] and folded["told"][1] == "640 B → gone"
    assert conv["label"] == label_of(network().graph.node[0])


def test_a_layer_that_became_another_is_one_row() -> None:
    model = graph(
        """(float[1,2,4,4] x) => (float[1,3] y) {
            f = Flatten(x) h = Gemm(f, W) r = Relu(h) y = Gemm(r, V) }""",
        W=(32, 8),
        V=(8, 3),
    )
    with graphpass.optimize(model, "gemm-to-conv", validate=False) as found:
        told = data_of(found.html())["cost"]["layers"]
    dense = [layer for layer in told if any(layer["adds"])]
    assert [layer["operator"] for layer in dense] == ["Gemm → Conv"] * 2
    assert [layer["told"][0] for layer in dense] == ["256", "24"]


def test_what_is_new_or_unknown_is_said() -> None:
    before = graph("(float[1,2,4,4] x) => (float[1,2,4,4] y) { a = Abs(x) y = Relu(a) }")
    after = graph(
        """(float[1,2,4,4] x, int64[k] s) => (float[a,c] y) {
            r = Reshape(x, s) b = MatMul(r, r) y = Relu(b) }"""
    )
    fed = {"x": [1, 2, 4, 4]}
    told = {layer["name"]: layer["told"] for layer in layers(before, after, fed, fed)}
    assert told == {
        "Abs of 'a'": ["", "128 B → gone"],
        "MatMul of 'b'": ["new: ?", "new: ?"],
        "Relu of 'y'": ["", "128 B → ?"],
    }


def test_nodes_stand_where_their_names_or_their_metadata_say() -> None:
    model = network()
    model.graph.node[2].name = ""
    model.graph.node[2].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'stage', 'stage.1', 'relu']"
    )
    groups = [node["group"] for node in pair(model, model)[0]["nodes"]]
    assert groups[0] == groups[1] == ["stage", "block0", "<"]
    assert groups[2] == ["stage"]  # alone in stage.1


def test_a_node_that_lost_its_scope_stands_where_it_stood() -> None:
    before, after = network(), network()
    for entry in before.graph.node:
        entry.name = entry.op_type
        entry.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'a', 'b']")
    for entry in after.graph.node:
        entry.name = entry.op_type
    drawn = pair(before, after)
    assert [n["group"] for n in drawn[1]["nodes"]] == [["a"]] * 5


def test_a_proto_and_its_node_have_one_label() -> None:
    model = network()
    model.graph.node[1].name = ""
    protos = [label_of(node) for node in model.graph.node]
    assert protos == [label(node) for node in Model.load(model).graph.nodes]


def test_a_long_row_is_cut_into_parts() -> None:
    steps = " ".join(f"h{i + 1} = Relu(h{i})" for i in range(100))
    model = graph(f"(float[N,3] h0) => (float[N,3] h100) {{ {steps} }}")
    groups = [node["group"] for node in pair(model, model)[0]["nodes"]]
    assert groups[0] == ["part 1 of 3"] and groups[-1] == ["part 3 of 3"]


def test_what_a_body_reads_from_outside_is_an_edge() -> None:
    model = graph(
        """(float[N,3] x, bool k) => (float[N,3] y) {
            a = Relu(x)
            y = If(k) <then_branch = g () => (float[N,3] t) { t = Abs(a) },
                       else_branch = h () => (float[N,3] e) { e = Neg(a) }>
        }"""
    )
    nodes = {node["op"]: node for node in pair(model, model)[0]["nodes"]}
    assert "a" in nodes["If"]["inputs"] and nodes["Abs"]["inputs"] == ["a"]
    assert nodes["Abs"]["group"] == []  # alone in its body, as Neg is
    assert [node["kind"] for node in nodes.values()] == ["act", "act", "act", "other"]


@pytest.mark.parametrize(
    ("declared", "text"),
    [
        (onnx.helper.make_tensor_type_proto(1, ["N", 3, None]), "[N, 3, ?] float32"),
        (onnx.helper.make_tensor_type_proto(7, []), "[] int64"),
        (onnx.helper.make_tensor_type_proto(11, None), "float64"),
        (
            onnx.helper.make_sequence_type_proto(onnx.helper.make_tensor_type_proto(1, [])),
            "sequence of [] float32",
        ),
    ],
)
def test_types_are_written_as_people_write_them(declared: onnx.TypeProto, text: str) -> None:
    assert type_text(declared) == text


def speed(ratio: float, low: float, high: float) -> Latency:
    return Latency(1.0, ratio, ratio, low, high, 20, "normal", "cpu")


@pytest.mark.parametrize(
    ("latency", "said"),
    [
        (None, "every check passed"),
        (speed(0.5, 0.4, 0.6), "every check passed, 2.00x as fast"),
        (speed(1.2, 1.1, 1.3), "every check passed, takes 1.20 times as long"),
        (speed(1.0, 0.9, 1.1), "every check passed, speed: no difference beyond the noise"),
    ],
)
def test_the_verdict_is_one_line(result: Any, latency: Latency | None, said: str) -> None:
    report: Report = replace(result.report, latency=latency)
    before, after = report.input.nodes, report.output.nodes
    assert verdict(report) == f"{before} → {after} nodes, the BatchNormalization gone, {said}"


def test_the_verdict_where_nothing_was_found_or_run() -> None:
    model = graph("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    with graphpass.optimize(model, "clean-up", validate=False) as found:
        assert verdict(found.report) == "nothing to rewrite in 1 node, nothing checked"


def test_the_command_line_writes_pages(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(network(), source)
    first, second = tmp_path / "run.html", tmp_path / "diff.html"
    arguments = ["optimize", str(source), "-o", str(target), "-q", "--report", str(first)]
    assert run(arguments) == 0
    assert len(data_of(first.read_text(encoding="utf-8"))["graphs"]) == 2
    assert run(["diff", str(source), str(target), "-o", str(second)]) == 0
    told = data_of(second.read_text(encoding="utf-8"))
    assert told["verdict"].startswith("5 and 3 nodes, ")
    assert run(["diff", str(source), str(target), "-o", str(tmp_path / "x.txt")]) == 2


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_draws_both_graphs(result: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(result.html(), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    command = [str(CHROMIUM), *flags.split(), f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=5000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    dom = done.stdout
    assert dom.count("<svg") == 3  # before, after, errors
    assert dom.count('class="edge"') > 5 and 'class="dot' in dom
    assert dom.count('class="layer"') == len(data_of(result.html())["cost"]["layers"]) == 4
    assert "the BatchNormalization gone" in dom and "<img" not in dom
