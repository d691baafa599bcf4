"""What is delivered is what was hashed, whatever the clocks of a file system say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphpass import optimize
from graphpass.cli import run
from graphpass.errors import DifferenceError
from graphpass.storage import (
    external,
    identity,
    layout,
    provenance,
    reference,
    splice,
    wire,
    writer,
)
from graphpass.storage.protobuf import Splice
from graphpass.storage.splice import Sources
from graphpass.testing import graph


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file system say that a file has changed."""
    for module in (external, identity, layout, provenance, reference, splice, wire):
        monkeypatch.setattr(module, "stamp", lambda status: "the same")


def weight(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((2, 300)).astype(np.float32)


def network(path: Path, *, apart: bool) -> Path:
    """Save a model with three weights, two of which stay where they are; return where they are."""
    model = graph(
        """(float[2,300] x) => (float[2,300] y) {
            a = Add(x, v) b = Add(a, w) c = Sigmoid(b) y = Mul(c, u) }"""
    )
    for index, name in enumerate("uvw"):
        model.graph.initializer.append(numpy_helper.from_array(weight(index), name))
    if apart:
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        return path.parent / "w.bin"
    onnx.save(model, path)
    return path


def swap(file: Path) -> None:
    content = file.read_bytes()
    old, new = weight(0).tobytes(), weight(9).tobytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("options", [{}, {"validate": False}, {"passes": "fold-batchnorm"}])
@pytest.mark.usefixtures("no_clock")
def test_weights_that_are_swapped_behind_all_clocks_are_noticed(
    apart: bool, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    weights = network(path, apart=apart)
    with optimize(path, latency=False, **options) as done:
        swap(weights)
        with pytest.raises(DifferenceError, match="whose hash was taken"):
            done.save(tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("kept", ["auto", "always", "never"])
def test_what_was_not_swapped_is_delivered(apart: bool, kept: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    weights = network(path, apart=apart)
    with optimize(path, latency=False) as done:
        done.save(tmp_path / "o.onnx", external_data=kept)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert digest in [file.sha256 for file in done.report.input.files]


@pytest.mark.usefixtures("no_clock")
def test_the_command_ends_with_the_code_of_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    weights = network(path, apart=True)
    true = writer.stage_model

    def swapped(*arguments: Any, **options: Any) -> Any:
        swap(weights)
        return true(*arguments, **options)

    monkeypatch.setattr("graphpass.run.result.stage_model", swapped)
    report = tmp_path / "r.json"
    assert run(["optimize", str(path), "--no-latency", "--report", str(report)]) == 1
    assert "whose hash was taken" in capsys.readouterr().err
    assert not (tmp_path / "m.opt.onnx").exists()
    assert json.loads(report.read_text())["delivery"]["status"] == "differs"


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_bytes_put_back_give_the_hash_of_the_whole(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    content = data.draw(st.binary(min_size=1, max_size=60))
    source, other = folder / "source", folder / "other"
    source.write_bytes(bytes(len(content)))  # none of its own bytes, where all is covered
    other.write_bytes(b"--" + content)
    edge = st.integers(0, len(content))
    spans = data.draw(st.lists(st.tuples(edge, edge, st.booleans()), max_size=6))
    places: list[Any] = [(0, len(content), Splice(str(other), 2, len(content)))]
    for one, two, inline in spans:
        start, end = sorted((one, two))
        held = content[start:end] if inline else Splice(str(other), 2 + start, end - start)
        places.append((start, end, held))
    stamps = {str(path): reference.stamp(path.stat()) for path in (source, other)}
    with Sources(stamps) as sources:
        whole = provenance.digest_of(str(source), len(content), places, sources)
        assert whole == hashlib.sha256(content).hexdigest()
        wrong = bytes([content[0] ^ 1]) + content[1:]
        places.append((0, len(content), wrong))
        assert provenance.digest_of(str(source), len(content), places, sources) is None
