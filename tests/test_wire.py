"""Reading: a skeleton with its data attached is what onnx reads, and whatever else is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from graphpass.reference import BITS
from graphpass.wire import WireError, attach, read_skeleton, tensor_array, tensors

SIZED_TYPES = sorted(BITS)


def same(first: onnx.ModelProto, second: onnx.ModelProto) -> bool:
    """Bytes, not ==: a NaN is not equal to itself."""
    contents = {m.SerializeToString(deterministic=True) for m in (first, second)}
    return len(contents) == 1


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(count).integers(0, 256, count, np.uint8).tobytes()


def raw(name: str, data_type: int = TensorProto.FLOAT, elements: int = 40) -> TensorProto:
    size = (elements * BITS[data_type] + 7) // 8
    return TensorProto(name=name, data_type=data_type, dims=[elements], raw_data=random_bytes(size))


def typed(name: str, data_type: int, elements: int = 40) -> TensorProto:
    """Data in the field of its type, the way `helper.make_tensor` puts it there."""
    values = numpy_helper.to_array(raw(name, data_type, elements))
    if data_type == TensorProto.BOOL:
        values = np.ones(elements, bool)
    if data_type in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        return helper.make_tensor(name, data_type, [elements], values)
    return helper.make_tensor(name, data_type, [elements], values.astype(np.float64))


def graph(*initializers: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.GraphProto:
    return helper.make_graph(
        nodes or [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        list(initializers),
    )


def model(*initializers: TensorProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    return helper.make_model(graph(*initializers, nodes=nodes))


def in_attribute() -> onnx.ModelProto:
    return model(nodes=[helper.make_node("Constant", [], ["y"], value=raw("v"))])


def in_tensor_list() -> onnx.ModelProto:
    return model(nodes=[helper.make_node("Op", [], ["y"], domain="d", many=[raw("a"), raw("b")])])


def in_subgraphs() -> onnx.ModelProto:
    inner = helper.make_node("If", ["c"], ["z"], then_branch=graph(raw("deep")))
    branches = {"then_branch": graph(raw("w"), nodes=[inner]), "else_branch": graph(raw("w"))}
    return model(
        nodes=[
            helper.make_node("If", ["c"], ["y"], **branches),
            helper.make_node("Op", ["c"], ["u"], domain="d", bodies=[graph(raw("l"))]),
        ]
    )


def in_function() -> onnx.ModelProto:
    result = model()
    nodes = [helper.make_node("Constant", [], ["y"], value=raw("v"))]
    function = helper.make_function("d", "f", ["x"], ["y"], nodes, [])
    function.attribute_proto.append(helper.make_attribute("default", raw("v")))
    result.functions.append(function)
    return result


def in_training_info() -> onnx.ModelProto:
    result = model()
    training = result.training_info.add()
    training.initialization.CopyFrom(graph(raw("i")))
    training.algorithm.CopyFrom(graph(raw("a")))
    return result


def in_sparse_tensors() -> onnx.ModelProto:
    result = model(raw("dense"))
    sparse = helper.make_sparse_tensor(raw("s"), raw("i", TensorProto.INT64), [1000])
    result.graph.sparse_initializer.append(sparse)
    result.graph.node.append(helper.make_node("Constant", [], ["s2"], sparse_value=sparse))
    return result


def strings() -> onnx.ModelProto:
    return model(numpy_helper.from_array(np.array(["a" * 99, ""], object), "w"))


def explicit_location() -> onnx.ModelProto:
    tensor = raw("w")
    tensor.data_location = TensorProto.DEFAULT
    return model(tensor)


def marks_of_a_user() -> onnx.ModelProto:
    """Metadata that looks like ours must come out as it went in."""
    result = model(raw("w"), raw("small", elements=1))
    for tensor in result.graph.initializer:
        for key in ("graphpass.origin", "mine", "graphpass.stamp", "graphpass.origin"):
            tensor.metadata_props.add(key=key, value="external")
    return result


def unknown_fields() -> onnx.ModelProto:
    content = model(raw("w"), raw("v")).SerializeToString() + b"\xfa\x7f\x03abc"
    result: onnx.ModelProto = onnx.ModelProto.FromString(content)
    result.graph.initializer[0].MergeFromString(b"\xfa\x7f\x03abc")
    return result


def fields_in_disorder() -> onnx.ModelProto:
    tensor = raw("w")
    tensor.doc_string, tensor.name = "doc", ""
    return model(tensor, raw("v"))


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    builder.__name__: builder
    for builder in (
        in_attribute,
        in_tensor_list,
        in_subgraphs,
        in_function,
        in_training_info,
        in_sparse_tensors,
        strings,
        explicit_location,
        marks_of_a_user,
        unknown_fields,
        fields_in_disorder,
    )
}
for _type in SIZED_TYPES:
    _name = TensorProto.DataType.Name(_type)
    MODELS[f"raw {_name}"] = partial(lambda t: model(raw("w", t)), _type)
    MODELS[f"typed {_name}"] = partial(lambda t: model(typed("w", t)), _type)


def saved(content: onnx.ModelProto | bytes, folder: Path, name: str = "m.onnx") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


@pytest.mark.parametrize("threshold", [0, 64, 1024])
@pytest.mark.parametrize("name", MODELS)
def test_attached_skeleton_equals_what_onnx_reads(
    name: str, threshold: int, tmp_path: Path
) -> None:
    path = saved(MODELS[name](), tmp_path)
    skeleton = read_skeleton(path, threshold=threshold)
    assert same(attach(skeleton), onnx.load(path))


@pytest.mark.parametrize("name", MODELS)
def test_tensor_array_equals_onnx(name: str, tmp_path: Path) -> None:
    path = saved(MODELS[name](), tmp_path)
    for ours, theirs in zip(
        tensors(read_skeleton(path, threshold=1)), tensors(onnx.load(path)), strict=True
    ):
        actual, expected = tensor_array(ours), numpy_helper.to_array(theirs)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert actual.tolist() == expected.tolist() or actual.tobytes() == expected.tobytes()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a file as disks, editors and enemies do."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        size = rng.choice([1, 2, 10, 200])
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + size]
        elif kind == 4:
            data[at:at] = rng.randbytes(size)
        elif kind == 5:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + size]
        else:
            data[at:at] = b"\x80" * rng.randrange(1, 10)
        if not data:
            break
    return bytes(data)


def check_against_onnx(content: bytes, folder: Path) -> bool:
    """Assert that we read what onnx reads, or refuse with a sentence; return whether we read it."""
    path = saved(content, folder)
    try:
        attached = attach(read_skeleton(path, threshold=16))
    except WireError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return False
    expected = onnx.load(path)
    for tensor in tensors(expected):  # onnx forgets those of training_info and attribute defaults
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(folder))
    assert same(attached, expected)
    return True


def seeds(folder: Path) -> list[bytes]:
    """Return the models to damage; the last keep their data in a file in `folder`."""
    contents = [build().SerializeToString() for build in MODELS.values()]
    for build in (in_attribute, in_subgraphs, in_function, in_sparse_tensors):
        result = build()
        offset = 0
        with (folder / "w.data").open("ab") as file:
            for tensor in tensors(result):
                offset = file.tell()
                file.write(tensor.raw_data)
                onnx.external_data_helper.set_external_data(
                    tensor, "w.data", offset, len(tensor.raw_data)
                )
                tensor.ClearField("raw_data")
        contents.append(result.SerializeToString())
    return contents


def fuzz(count: int, folder: Path) -> float:
    """Check `count` mutants; return which part of them is still readable."""
    rng = random.Random(0)
    contents = seeds(folder)
    mutants = (mutate(contents[i % len(contents)], rng) for i in range(count))
    return sum(check_against_onnx(mutant, folder) for mutant in mutants) / count


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
def test_mutants_are_refused_or_read_as_onnx_reads_them(tmp_path: Path) -> None:
    assert 0.1 < fuzz(600, tmp_path) < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
def test_10000_mutants(tmp_path: Path) -> None:
    assert 0.1 < fuzz(10_000, tmp_path) < 0.9
