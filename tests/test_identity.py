"""What makes two models the same, and a file the one that was checked."""

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.run.judge import Judge
from graphpass.storage.identity import difference
from graphpass.storage.wire import WireError, read_skeleton
from graphpass.storage.writer import write_model
from graphpass.testing import graph
from graphpass.validate.options import ValidationOptions

Damage = Callable[[onnx.ModelProto], object]


def model() -> onnx.ModelProto:
    made = graph(
        "(float[N,400] x) => (float[N,400] y) { a = Mul(x, big) y = Add(a, small) }",
        big=np.arange(400, dtype=np.float32),
        small=np.arange(400, dtype=np.float32)[:1],
    )
    onnx.helper.set_model_props(made, {"owner": "me"})
    return made


def flip(tensor: onnx.TensorProto, byte: int) -> None:
    data = bytearray(tensor.raw_data)
    data[byte] ^= 1
    tensor.raw_data = bytes(data)


def as_floats(made: onnx.ModelProto) -> None:
    tensor = made.graph.initializer[0]
    tensor.float_data.extend(np.frombuffer(tensor.raw_data, np.float32).tolist())
    tensor.ClearField("raw_data")


DAMAGES: dict[str, Damage] = {
    "first bit of a weight in a file": lambda m: flip(m.graph.initializer[0], 0),
    "last byte of it": lambda m: flip(m.graph.initializer[0], 1599),
    "a small weight": lambda m: flip(m.graph.initializer[1], 3),
    "the name of a weight": lambda m: setattr(m.graph.initializer[0], "name", "other"),
    "its shape": lambda m: m.graph.initializer[0].dims.insert(0, 1),
    "its type": lambda m: setattr(m.graph.initializer[0], "data_type", onnx.TensorProto.INT32),
    "a weight less": lambda m: m.graph.initializer.pop(),
    "a weight more": lambda m: m.graph.initializer.add(name="more"),
    "another operator": lambda m: setattr(m.graph.node[0], "op_type", "Div"),
    "metadata": lambda m: setattr(m.metadata_props[0], "value", "you"),
    "an opset": lambda m: setattr(m.opset_import[0], "version", 12),
    "documentation": lambda m: setattr(m.graph.initializer[0], "doc_string", "!"),
}


@pytest.fixture(params=["inline", "external"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    def save(made: onnx.ModelProto) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx"
        outside = request.param == "external"
        copy = onnx.ModelProto.FromString(made.SerializeToString())  # `save` changes what it saves
        onnx.save(copy, path, save_as_external_data=outside, location=f"{path.name}.data")
        return path

    return save


def test_where_weights_lie_is_no_difference(save: Callable[[onnx.ModelProto], Path]) -> None:
    one, typed = model(), model()
    as_floats(typed)
    saved = read_skeleton(save(one))
    assert difference(one, saved) == "" == difference(saved, one) == difference(saved, saved)
    assert difference(typed, saved) == ""


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_everything_else_is(save: Callable[[onnx.ModelProto], Path], damage: Damage) -> None:
    one, other = read_skeleton(save(model())), model()
    damage(other)
    assert difference(one, other) and difference(other, one)
    saved = read_skeleton(save(other))
    assert difference(one, saved) and difference(saved, one)


def test_a_weight_is_named_and_a_lost_file_told(save: Callable[[onnx.ModelProto], Path]) -> None:
    path, other = save(model()), model()
    saved = read_skeleton(path)
    flip(other.graph.initializer[0], 800)
    assert difference(saved, other) == "tensor 'big' holds other data"
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(WireError, match="cannot read"):
        difference(saved, other)


@pytest.mark.parametrize("large", [False, True])
def test_the_gate_wants_the_file_to_be_what_was_checked_and_ort_to_load_it(
    save: Callable[[onnx.ModelProto], Path], monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:  # its weights stay where they are
        monkeypatch.setattr("graphpass.run.judge._LARGE_FILE_BYTES", 0)
    other, strange = model(), model()
    flip(other.graph.initializer[0], 800)
    strange.graph.node[0].domain = "vendor"
    strange.opset_import.add(domain="vendor", version=1)
    good, bad, custom = save(model()), save(other), save(strange)
    with Judge(model(), ValidationOptions()) as judge:
        judge.prepare()
        assert judge.check_file(good, model()).status == "equal"
        verdict = judge.check_file(bad, model())
        assert not verdict.ok and "'big' holds other data" in verdict.reason
        verdict = judge.check_file(custom, strange)
        assert verdict.status == "cannot run" and not verdict.ok
        judge.do_without_reference("the original does not run")
        verdict = judge.check_file(custom, strange)
        assert verdict.ok and verdict.status == "windows only"
        for path in (good, good.with_name("missing.onnx")):
            if path.exists():
                path.write_bytes(path.read_bytes()[:-100])
            verdict = judge.check_file(path, model())
            assert not verdict.ok and verdict.status == "invalid"
    with Judge(model(), ValidationOptions(), validate=False) as judge:
        assert judge.check_file(bad, model()).status == "not validated"
        strange.graph.node[0].op_type = "Div"
        assert not judge.check_file(custom, strange).ok
        assert judge.check_file(good, model()).status == "invalid"


@pytest.fixture
def few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphpass.storage.splice._OPEN_FILES", 2)
    monkeypatch.setattr("graphpass.storage.splice._CHUNK_BYTES", 512)  # several for each weight


def scattered(folder: Path, count: int = 7, *, together: bool = False) -> Path:
    """Save a model with each of its weights in a file of its own, or all in one."""
    sums = " ".join(f"y{i} = Add(x, w{i})" for i in range(count))
    outputs = ", ".join(f"float[400] y{i}" for i in range(count))
    constants: dict[str, Any] = {f"w{i}": np.full(400, i, np.float32) for i in range(count)}
    made = graph(f"(float[400] x) => ({outputs}) {{ {sums} }}", **constants)
    folder.mkdir()
    onnx.save(
        made,
        folder / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=together,
        location="weights" if together else None,
    )
    return folder


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    thirtieth = [number for number in range(1000) if number not in used][29]
    resource.setrlimit(resource.RLIMIT_NOFILE, (thirtieth + 1, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_descriptors")
def test_models_may_have_more_files_than_may_be_open(tmp_path: Path) -> None:
    source = read_skeleton(scattered(tmp_path / "parts", 60) / "m.onnx")
    write_model(source, tmp_path / "out.onnx")
    assert difference(source, read_skeleton(tmp_path / "out.onnx")) == ""


@pytest.mark.usefixtures("few_open_files")
def test_what_differs_is_found_in_whatever_file(tmp_path: Path) -> None:
    one = read_skeleton(scattered(tmp_path / "one", together=True) / "m.onnx")
    parts = scattered(tmp_path / "parts")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert difference(one, read_skeleton(parts / "m.onnx")) == ""
    for i in range(7):
        content = (parts / f"w{i}").read_bytes()
        (parts / f"w{i}").write_bytes(content[:-1] + b"!")
        told = difference(one, read_skeleton(parts / "m.onnx"))
        assert told == f"tensor 'w{i}' holds other data"
        (parts / f"w{i}").write_bytes(content)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
