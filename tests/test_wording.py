"""Names from strangers, in every output: visible, cut, and neither Markdown nor HTML."""

from __future__ import annotations

import json
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from graphpass.cli import run
from graphpass.testing import graph
from graphpass.validate.process.worker import condense
from graphpass.wording import json_text, markdown, visible, visible_lines

EVIL = "a\x1b]0;title\x07\x1b[31m\r\n\u202eb</details><img src=x onerror=alert(1)>`|[x](http://e)"


@given(st.text(), st.integers(1, 2000))
def test_nothing_that_is_said_is_invisible_or_long(text: str, times: int) -> None:
    said = visible(text * times)
    assert said.isprintable() and len(said) < 50_000
    assert visible_lines("a\nb") == "a\nb"


@pytest.mark.parametrize("text", ["Conv 'a' feeds 2 nodes", "für 'Größe' → 中文", "", "x" * 160])
def test_ordinary_text_is_as_it_was(text: str) -> None:
    assert visible(text) == text


def test_long_names_are_cut_and_the_sentence_stays() -> None:
    said = visible(
        f"Conv '{'n' * 10**6}' feeds 2 nodes, as {'many words ' * 20}say of '{'m' * 300}'"
    )
    assert said.startswith("Conv 'nnn") and " feeds 2 nodes, as many words" in said
    assert said.endswith("mm'") and len(said) < 900
    assert len(visible("no quotes " + "z" * 10**6)) < 5000


@given(st.text())
def test_escaped_json_says_the_same(text: str) -> None:
    data = {"name": text, "more": [text + "\u202e\x1b\U000e0001"]}
    shown = json_text(json.dumps(data, indent=2, ensure_ascii=False))
    assert json.loads(shown) == data and shown.replace("\n", "").isprintable()


def test_markdown_shows_what_is_there() -> None:
    shown = markdown(EVIL)
    assert "<" not in shown and ">" not in shown and "\\`\\|\\[x\\](" in shown


@pytest.mark.parametrize("length", [10, 10**4, 10**6])
def test_messages_of_the_runtime_are_condensed_in_time(length: int) -> None:
    start = time.process_time()
    told = condense(f"[ONNXRuntimeError] : 1 : FAIL : Node {'/n' * length} is bad: no kernel")
    assert told.startswith("Node") and len(told) <= 400
    assert time.process_time() - start < 5


def evil(folder: Path) -> Path:
    """Save a model all of whose names are evil, with a rewrite and a refusal in it."""
    text = """(float[1,3,8,8] x, float[4] late) => (float[1,4,6,6] y, float[1,4,6,6] z) {
        a = Conv(x, w)
        y = BatchNormalization(a, s, s, s, s)
        b = Conv(x, v)
        z = BatchNormalization(b, late, s, s, s)
    }"""
    model = graph(text)
    for name, value in ("w", 1.0), ("v", 2.0):
        kernel = numpy_helper.from_array(np.full((4, 3, 3, 3), value, np.float32), name)
        model.graph.initializer.append(kernel)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, "f"), "s"))
    for node in model.graph.node:
        node.name = EVIL + node.output[0]
        node.input[:] = [EVIL + name for name in node.input]
        node.output[:] = [EVIL + name for name in node.output]
    for values in (model.graph.input, model.graph.output, model.graph.initializer):
        for value in values:
            value.name = EVIL + value.name
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def test_no_output_holds_a_name_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, reports = evil(tmp_path), [tmp_path / f"r.{kind}" for kind in ("json", "md", "xml")]
    options = [f"--report={report}" for report in reports]
    assert run(["optimize", str(path), "-v", *options]) == 0
    assert run(["inspect", str(path)]) == 0
    assert run(["inspect", str(path), "nowhere" + EVIL]) == 2
    assert run(["inspect", str(path), EVIL + "a"]) == 0
    assert run(["optimize", str(path), "--bind", "\x1b[31m"]) == 2
    said = capsys.readouterr()
    shown = [said.out, said.err, *(report.read_text() for report in reports)]
    assert all(text.replace("\n", "").isprintable() for text in shown)
    assert "a\\x1b" in shown[0] and "a\\x1b" in shown[1] and "a\\u001b" in shown[2]
    assert "<img" not in shown[3] and "</details><" not in shown[3]
    told = json.loads(shown[2])["passes"][1]
    assert [entry["site"] for entry in told["rewrites"]] == [EVIL + "y"], told
    assert ElementTree.fromstring(shown[4]).tag == "testsuite"
