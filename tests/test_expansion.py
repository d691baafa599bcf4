"""Files that are small and stand for much are refused before they are parsed."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[import-untyped]
from onnx import TensorProto

from graphpass.storage import expansion, wire
from graphpass.storage.wire import WireError, read_skeleton
from graphpass.testing import graph

COUNT = 4000
FIELDS = TensorProto.DESCRIPTOR.fields_by_name


def packed(name: str, content: bytes) -> bytes:
    return b"".join(
        (_VarintBytes(FIELDS[name].number << 3 | 2), _VarintBytes(len(content)), content)
    )


def single(name: str, wire_type: int, content: bytes) -> bytes:
    return bytes(_VarintBytes(FIELDS[name].number << 3 | wire_type)) + content


def saved(path: Path, kind: int, content: bytes, count: int = COUNT) -> Path:
    model = graph("(float[1] x) => (float[1] y) { y = Relu(x) }")
    tensor = TensorProto(name="w", data_type=kind, dims=[count])
    tensor.MergeFromString(content)
    model.graph.initializer.append(tensor)
    whole = model.SerializeToString()
    if tensor.SerializeToString() in whole:  # a parser packs what came one by one
        written = TensorProto(name="w", data_type=kind, dims=[count]).SerializeToString() + content
        bare = onnx.ModelProto.FromString(whole)
        del bare.graph.initializer[:]
        inner = bare.graph.SerializeToString()
        inner += _VarintBytes(5 << 3 | 2) + _VarintBytes(len(written)) + written
        bare.ClearField("graph")
        whole = bare.SerializeToString() + _VarintBytes(7 << 3 | 2)
        whole += _VarintBytes(len(inner)) + inner
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (TensorProto.INT32, packed("int32_data", bytes(COUNT))),
        (TensorProto.INT64, packed("int64_data", bytes(COUNT))),
        (TensorProto.UINT32, packed("uint64_data", bytes(COUNT))),
        (TensorProto.FLOAT16, packed("int32_data", b"\x80\x78" * COUNT)),
        (TensorProto.INT32, single("int32_data", 0, b"\0") * COUNT),
        (TensorProto.STRING, single("string_data", 2, b"\0") * COUNT),
        (TensorProto.FLOAT, single("float_data", 5, bytes(4)) * COUNT),
        (TensorProto.FLOAT, packed("dims", bytes(COUNT))),
        (TensorProto.FLOAT, packed("metadata_props", b"") * COUNT),
    ],
)
def test_many_small_parts_are_refused(
    kind: int, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "m.onnx", kind, content)
    read_skeleton(path)
    monkeypatch.setattr(expansion, "_MOST_BYTES", COUNT * 34 - 1)

    def parse() -> None:
        raise AssertionError("it was parsed")

    monkeypatch.setattr(wire, "_strict_model", parse)
    with pytest.raises(WireError, match=r"so many small parts .* of memory would be taken"):
        read_skeleton(path)


def test_weights_that_stay_in_the_file_count_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "_MOST_BYTES", COUNT * 34 - 1)
    for kind, name in ((TensorProto.FLOAT, "raw_data"), (TensorProto.FLOAT, "float_data")):
        path = saved(tmp_path / "m.onnx", kind, packed(name, bytes(COUNT * 4)))
        assert len(read_skeleton(path).graph.initializer) == 1


def test_what_lies_in_small_messages_is_looked_at_where_it_could_be_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = graph("(float[1] x) => (float[1] y) { y = Relu(x) }")
    nodes.graph.node[0].doc_string = "n" * 2000  # at the worst 200 kB, in fact 150 B
    path = tmp_path / "m.onnx"
    onnx.save(nodes, path)
    monkeypatch.setattr(expansion, "_MOST_BYTES", 20_000)
    read_skeleton(path)
    for _ in range(100):
        nodes.graph.node[0].attribute.add()
    onnx.save(nodes, path)
    with pytest.raises(WireError, match="so many small parts"):
        read_skeleton(path)
