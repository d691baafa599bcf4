"""A report says what happened, in four forms; two runs say the same."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import numpy as np
import onnx
import pytest
from rich.console import Console

import graphpass
from graphpass.errors import DifferenceError
from graphpass.report.data import SCHEMA_PATH, Report, without_times
from graphpass.report.junit import junit
from graphpass.report.markdown import markdown
from graphpass.report.rows import refusals, remarks, size
from graphpass.report.terminal import terminal
from graphpass.rewrite.applied import Refusal
from graphpass.testing import graph
from graphpass.validate import Latency

from .toys import Negate, Raising, Tidy, chain

SCHEMA = json.loads(SCHEMA_PATH.read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "in.onnx"
    onnx.save(chain(), path)
    return path


@pytest.fixture(scope="module")
def report(source: Path) -> Report:
    return make(source)


def make(source: Path) -> Report:
    steps = [Tidy(), Negate("c1"), Raising()]
    result = graphpass.optimize(source, steps, latency=True)
    result.save(source.with_name("out.onnx"))
    return result.report


def printed(report: Report, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    terminal(report, console, **options)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_json_follows_the_published_schema(report: Report) -> None:
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)


@pytest.mark.parametrize(
    ("steps", "options"),
    [([], {}), (Negate("*"), {}), (Tidy(), {"validate": False}), (Tidy(), {"bind": {"N": 2}})],
)
def test_every_kind_of_run_follows_the_schema(steps: Any, options: dict[str, Any]) -> None:
    result = graphpass.optimize(chain(2), steps, **options)
    jsonschema.validate(json.loads(result.report.to_json()), SCHEMA)


def test_markdown_has_the_proof_of_each_rewrite_and_output(report: Report) -> None:
    text = markdown(report)
    assert "7 rewrites</summary>" in text and "| window error | bound |" in text
    assert "| 1 | tidy: DropIdentity | Identity of 'i0' → nothing | equal | equal |" in text
    assert "1 outputs</summary>" in text and "| y (cpu) |" in text
    assert "| ulps | cosine | top-1 |" in text


def test_infinite_errors_are_null_in_json() -> None:
    zero = onnx.numpy_helper.from_array(np.zeros(2, np.float32), "c")
    model = graph("(float[2] x) => (float[2] y) { y = Div(x, c) }")
    model.graph.initializer.append(zero)
    result = graphpass.optimize(model, Tidy())
    assert "Infinity" not in result.report.to_json() and "NaN" not in result.report.to_json()


def test_two_runs_give_equal_reports_but_for_times(source: Path, report: Report) -> None:
    again = make(source)
    one, two = without_times(report.to_dict()), without_times(again.to_dict())
    assert one == two
    assert "seed" in one["settings"] and "apply_s" not in one["passes"][0]


def test_files_are_identified_by_size_and_hash(source: Path, report: Report) -> None:
    for facts, name in ((report.input, "in.onnx"), (report.output, "out.onnx")):
        content = source.with_name(name).read_bytes()
        (file,) = facts.files
        assert (file.name, file.size_bytes) == (name, len(content))
        assert file.sha256 == hashlib.sha256(content).hexdigest()


def test_facts_count_operators_and_parameters(report: Report) -> None:
    assert report.input.operators == {"Add": 4, "Identity": 4, "Relu": 4}
    assert report.output.operators == {"Add": 1, "Relu": 4, "Sub": 3}
    assert report.input.nodes == 12 and report.input.parameters == 28


def test_external_data_is_hashed_too(tmp_path: Path) -> None:
    model = graph(
        "(float[N,64] x) => (float[N,64] y) { i = Identity(x) y = MatMul(i, W) }", W=(64, 64)
    )
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin")
    result = graphpass.optimize(tmp_path / "m.onnx", Tidy())
    assert [file.name for file in result.report.input.files] == ["m.onnx", "weights.bin"]
    result.save(tmp_path / "out.onnx")
    assert len(result.report.output.files) == 2


def test_terminal_names_what_was_undone_and_shows_error_against_tolerance(report: Report) -> None:
    text = printed(report, title="in → out")
    assert text.startswith("in → out\n")
    assert "negate: AddIsSub at 'a1' was undone: off by" in text
    assert "raising: rule Raises failed at Relu of 'r0': NotImplementedError: not yet" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["tidy"] == ["4", "0", "kept"]
    error, allowed = map(float, rows["model"][:2])  # once, not for each pass
    assert error <= allowed and "× " in text
    assert "written file" not in text and "written file" in printed(report, verbose=True)
    assert "\x1b" not in text


def test_the_verdict_comes_first_and_what_changed_nothing_is_left_out(report: Report) -> None:
    assert printed(report).splitlines()[0].startswith("in: 12 → 8 nodes")
    idle = graphpass.optimize(chain(2), [Tidy(), Raising()], validate=False).report
    assert "raising" not in printed(replace(idle, passes=idle.passes[:1]))


def test_refusals_of_one_kind_are_counted() -> None:
    model = chain(3)
    result = graphpass.optimize(model, Tidy(), validate=False)
    entry = result.report.passes[0]
    reasons = ["'a' feeds 2 nodes", "'b' feeds 2 nodes", "'c' is an output of the graph"]
    entry.refusals = [Refusal("R", f"Add 'n{i}'", reason) for i, reason in enumerate(reasons)]
    assert [group.told for group in refusals(result.report)] == [
        "tidy: 2 × … feeds 2 nodes",
        "tidy: Add 'n2': 'c' is an output of the graph",
    ]
    assert "refused: tidy: 2 × … feeds 2 nodes" in printed(result.report)
    entry.refusals = [Refusal("R", f"Add 'n{i}'", f"reason {i}") for i in range(8)]
    assert "refused: 5 sites more (-v says why)" in printed(result.report)


def test_no_line_is_wider_than_a_terminal(report: Report) -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    terminal(report, console, verbose=True)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 60


def test_refusals_are_shown_when_asked_for() -> None:
    model = chain(2)
    for node in model.graph.node:
        node.input[:] = ["c_kept" if name == "c1" else name for name in node.input]
    model.graph.initializer[1].name = "c_kept"
    report = graphpass.optimize(model, Negate()).report
    assert "negate: Add of 'a1': 'c_kept' is not to be negated" in printed(report, verbose=True)
    assert "refused: negate: Add of 'a1': 'c_kept' is not to be negated" in printed(report)
    assert "'c_kept' is not to be negated" in markdown(report)


def test_names_are_not_markup() -> None:
    model = graph("(float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }")
    model.graph.node[0].name = "[bold]:smile:[/nope]"
    text = printed(graphpass.optimize(model, Tidy()).report, verbose=True)
    assert "[bold]:smile:[/nope]" in text


def test_markdown_has_both_tables(report: Report) -> None:
    text = markdown(report)
    assert text.startswith("## graphpass: `in.onnx` → `out.onnx`\n")
    assert "| Identity | 4 | 0 |" in text
    assert "| pass | rewrites | refused | error | tolerance | result |" in text
    assert "- raising: rule Raises failed at Relu of 'r0'" in text


def test_junit_fails_the_passes_that_were_undone(report: Report) -> None:
    suite = ElementTree.fromstring(junit(report))
    assert suite.attrib["tests"] == "4" and suite.attrib["failures"] == "2"
    failed = [case.attrib["name"] for case in suite if case.find("failure") is not None]
    assert failed == ["negate", "raising"]


def test_junit_holds_any_name(report: Report) -> None:
    model = graph("(float[2] x) => (float[2] y) { a = Identity(x) y = Relu(a) }")
    model.graph.node[1].name = "<\x01&>"
    result = graphpass.optimize(model, Raising())
    ElementTree.fromstring(junit(result.report))


def test_slower_models_name_the_pass_and_the_way_out(report: Report) -> None:
    slow = Report({}, report.input, report.output, True)
    slow.latency = Latency(1.0, 1.5, 1.5, 1.4, 1.6, 20, "normal", "cpu")
    slow.slower_because_of = "gemm-to-conv"
    (line,) = remarks(slow)
    assert line == (
        "the model takes 1.50 times as long as before, because of gemm-to-conv: "
        "--skip gemm-to-conv avoids it"
    )
    slow.latency = Latency(1.0, 1.01, 1.01, 0.99, 1.02, 20, "normal", "cpu")
    assert not list(remarks(slow))


def test_dense_layers_that_are_left_are_listed_with_the_reason() -> None:
    model = graph("(float[N,4] x) => (float[N,5] y) { y = MatMul(x, W) }", W=(4, 5))
    report = graphpass.optimize(model, Tidy()).report
    (node,) = report.not_convolutional
    assert node.node == "MatMul of 'y'" and node.operator == "MatMul"
    report.settings = {**report.settings, "pipeline": "conv-only"}
    assert list(remarks(report)) == [f"not convolutional: MatMul of 'y': {node.reason}"]


def test_strict_keeps_the_report_of_what_went_before() -> None:
    with pytest.raises(DifferenceError) as info:
        graphpass.optimize(chain(), [Tidy(), Negate("c1")], strict=True)
    report = info.value.report
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)
    assert len(report.passes[0].rewrites) == 4
    suite = ElementTree.fromstring(junit(report))
    assert suite.attrib["failures"] == "1"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 30, "1 GiB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_equal_shows_no_rounding_of_onnx_runtimes_own(report: Report) -> None:
    compared = report.passes[0].check
    assert compared is not None
    rounded = replace(compared.comparisons[0], error=4e-7, tolerance=2e-6, ok=True)
    for status, shown in (("equal", "0"), ("within tolerance", "4e-07")):
        told = Report({}, report.input, report.output, True)
        told.delivery = replace(compared, status=status, comparisons=(rounded,))
        line = next(line for line in markdown(told).splitlines() if "written file" in line)
        assert [cell.strip() for cell in line.split("|")][4:7] == [shown, "2e-06", status]
