"""Reading: a skeleton with its data attached is what onnx reads, and whatever else is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from graphpass.storage.protobuf import varint
from graphpass.storage.reference import BITS, reference_of
from graphpass.storage.wire import WireError, attach, read_skeleton, tensor_array, tensors
from graphpass.wording import visible

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
    path.unlink(missing_ok=True)  # quicker than to overwrite it: nothing is flushed
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
        said = visible(str(error))  # as it is printed: names hold what they like
        assert "\n" not in said and len(said) < 4000
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
    assert 0.1 < fuzz(2_000, tmp_path) < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Ignoring unknown external data")
def test_10000_mutants(tmp_path: Path) -> None:
    assert 0.1 < fuzz(10_000, tmp_path) < 0.9


def length_delimited(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def messages(depth: int) -> st.SearchStrategy[bytes]:
    """Return bytes that are fields, whatever they mean; mostly of numbers that ONNX uses."""
    number = st.integers(1, 26)
    leaf = st.one_of(
        st.builds(lambda n, v: varint(n << 3) + varint(v), number, st.integers(0, 2**40)),
        st.builds(lambda n, v: varint(n << 3 | 5) + v, number, st.binary(min_size=4, max_size=4)),
        st.builds(length_delimited, number, st.binary(max_size=40)),
    )
    if depth == 0:
        return st.lists(leaf, max_size=6).map(b"".join)
    inner = messages(depth - 1)
    # graph, node or initializer, attribute, tensor
    path = {4: st.just(7), 3: st.sampled_from([1, 5, 15]), 2: st.sampled_from([5, 7])}
    nested = st.builds(length_delimited, path.get(depth, st.integers(4, 11)), inner)
    return st.lists(st.one_of(nested, nested, leaf), max_size=4).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(messages(4))
def test_any_message_is_refused_or_read_as_onnx_reads_it(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    named = length_delimited(7, length_delimited(12, length_delimited(1, b"y")))
    check_against_onnx(content + named, tmp_path_factory.getbasetemp())


@pytest.mark.slow
def test_a_fuzzer_that_sees_the_code_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    seconds = os.environ.get("GRAPHPASS_FUZZ_S", "60")
    command = [sys.executable, "-m", "tests.fuzz_wire", str(tmp_path)]
    done = subprocess.run(
        [*command, f"-max_total_time={seconds}", f"-artifact_prefix={tmp_path}/"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=float(seconds) + 120,
    )
    assert done.returncode == 0 and "Done" in done.stderr, done.stderr[-3000:]


CORPUS = os.environ.get("GRAPHPASS_CORPUS")


@pytest.mark.slow
@pytest.mark.skipif(CORPUS is None, reason="GRAPHPASS_CORPUS names no folder of .onnx files")
def test_corpus_is_read_as_onnx_reads_it() -> None:
    unequal = []
    for path in sorted(Path(CORPUS or "").rglob("*.onnx")):
        try:
            expected = onnx.load(path)
        except Exception:  # what onnx cannot read is not our example
            continue
        if not same(attach(read_skeleton(path, threshold=256)), expected):
            unequal.append(path)
    assert not unequal


OTHER_FILES = [
    (b"", "an empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    (b"PK\x03\x04\x00\x00", "PyTorch"),
    (b"\x80\x02}q\x00.", "pickle"),
    (b"\x1f\x8b\x08\x00", "gzip"),
    (b'{"irVersion": 8}', "JSON"),
    (b"<ir_version: 8> g (float x) => (float y) {}", "text"),
    ("Übung: ein Text".encode(), "text"),
    (b"\x20\x00\x00\x00ORTM" + bytes(40), ".ort"),
    (b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"w":{}}', "safetensors"),
    (random_bytes(5000), "not a valid ONNX model"),
    (bytes(5000), "not a valid ONNX model"),
    (b"\x08\x08", "no graph"),
    (
        onnx.ModelProto(ir_version=8, graph=onnx.GraphProto(name="g")).SerializeToString(),
        "no graph",
    ),
]


@pytest.mark.parametrize(("content", "reason"), OTHER_FILES)
def test_other_files_are_named_for_what_they_are(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    path = saved(content, tmp_path)
    with pytest.raises(WireError, match=reason) as caught:
        read_skeleton(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "file in file", "NUL"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "file in file":
        path.touch()
        path = path / "m.onnx"
    elif kind == "NUL":
        path = tmp_path / "a\0b"
    with pytest.raises(WireError) as caught:
        read_skeleton(path)
    assert "m.onnx" in str(caught.value) or kind in {"device", "NUL"}


def nested(depth: int) -> bytes:
    """Return a model with graphs in attributes of nodes in graphs, and so on."""
    content = length_delimited(5, raw("w").SerializeToString())
    for _ in range(depth):
        content = length_delimited(1, length_delimited(5, length_delimited(6, content)))
    return length_delimited(7, content)


def test_deep_nesting_is_read_as_far_as_protobuf_goes(tmp_path: Path) -> None:
    for depth in range(25, 40):
        path = saved(nested(depth), tmp_path)
        try:
            expected = onnx.load(path)
        except Exception:
            with pytest.raises(WireError, match="nested too deeply"):
                read_skeleton(path)
        else:
            assert same(attach(read_skeleton(path, threshold=16)), expected)
    with pytest.raises(WireError, match="nested too deeply"):
        read_skeleton(saved(nested(20_000), tmp_path))


def test_overlong_numbers_and_lengths_are_refused(tmp_path: Path) -> None:
    for bad in (b"\x80" * 12, b"\x3a" + b"\xff" * 5, b"\x3a\xff\xff\xff\xff\x7f", b"\x00\x00"):
        with pytest.raises(WireError, match=r"truncated|no valid field"):
            read_skeleton(saved(bad + model().SerializeToString(), tmp_path))


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    content = model().SerializeToString().replace(b"Identity", b"\xffdentity")
    with pytest.raises(WireError, match="not UTF-8"):
        read_skeleton(saved(content, tmp_path))


def test_impossible_shapes_cost_nothing(tmp_path: Path) -> None:
    huge = TensorProto(name="w", data_type=1, dims=[2**62] * 100_000, raw_data=bytes(4096))
    negative = TensorProto(name="v", data_type=1, dims=[-1, -4096], raw_data=bytes(4096))
    skeleton = read_skeleton(saved(model(huge, negative), tmp_path))
    for tensor in skeleton.graph.initializer:
        with pytest.raises(WireError, match="malformed"):
            tensor_array(tensor)


def external_model(folder: Path, location: str = "w.data", **entries: str) -> Path:
    """Save a model with one tensor of 40 floats in another file, which is not made."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[40])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return saved(model(tensor), folder)


@pytest.mark.parametrize("entries", [{}, {"offset": "3"}, {"offset": "3", "length": "160"}])
def test_external_data_at_any_offset(entries: dict[str, str], tmp_path: Path) -> None:
    data = random_bytes(160)
    (tmp_path / "w.data").write_bytes(b"abc" * ("offset" in entries) + data)
    path = external_model(tmp_path, **entries)
    skeleton = read_skeleton(path)
    assert tensor_array(skeleton.graph.initializer[0]).tobytes() == data
    assert same(attach(skeleton), onnx.load(path))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"offset": "1"}, "has 159 bytes .* needs 160"),
        ({"offset": "161"}, "has only 160"),
        ({"offset": "-1"}, "no number of bytes"),
        ({"offset": "9" * 30}, "no number of bytes"),
        ({"length": "161"}, "has only 160"),
        ({"length": "0x10"}, "no number of bytes"),
        ({"offset": "0", "length": "156"}, "has 156 bytes .* needs 160"),
        ({"location": ""}, "no file is named"),
        ({"location": "a\0b"}, "no file is named"),
        ({"location": "none"}, "No such file"),
        ({"location": "n" * 5000}, "File name too long"),
        ({"location": "w.data/x"}, "Not a directory"),
        ({"location": "."}, "not a regular file"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "/etc/passwd"}, "an absolute path"),
        ({"location": "/none"}, "an absolute path"),
        ({"location": "../secret"}, "a path with '..'"),
        ({"location": "sub/../../secret"}, "a path with '..'"),
        ({"location": "link"}, "a symbolic link out of the model's folder"),
        ({"location": "folder/secret"}, "a symbolic link out of the model's folder"),
        ({"location": "hard"}, "a hard link"),
    ],
)
def test_external_data_stays_inside(entries: dict[str, str], reason: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.data").write_bytes(bytes(160))
    (tmp_path / "secret").write_bytes(bytes(160))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "hard").hardlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    with pytest.raises(WireError, match=reason) as caught:
        read_skeleton(external_model(folder, **entries))
    assert "tensor 'w'" in str(caught.value)


def test_links_inside_and_allowed_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.data").write_bytes(bytes(160))
    (folder / "link").symlink_to("w.data")
    read_skeleton(external_model(folder, "link"))
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (folder / "w.data").rename(blobs / "blob")
    (folder / "w.data").symlink_to(blobs / "blob")
    read_skeleton(external_model(folder), allow_external=[blobs])
    read_skeleton(external_model(folder, str(blobs / "blob")), allow_external=[blobs])
    with pytest.raises(WireError, match="unless its folder is allowed"):
        read_skeleton(external_model(folder), allow_external=[tmp_path / "other"])


def test_relative_paths_and_links_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w.data").write_bytes(random_bytes(160))
    external = external_model(tmp_path)
    inline = saved(model(raw("w")), tmp_path, "inline.onnx")
    (tmp_path / "link.onnx").symlink_to(inline)
    monkeypatch.chdir(tmp_path)
    for name, file in (
        (external.name, "w.data"),
        ("inline.onnx", "inline.onnx"),
        ("link.onnx", "inline.onnx"),
    ):
        (tensor,) = read_skeleton(name, threshold=16).graph.initializer
        assert tensor.external_data[0].value == str(tmp_path.resolve() / file)[1:]
    skeleton = read_skeleton(f"/{inline}", threshold=16)  # two slashes are another root to some
    assert same(attach(skeleton), onnx.load(inline))


def test_a_path_that_onnx_cannot_express_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    path.write_bytes(model().SerializeToString())
    with pytest.raises(WireError, match="not valid UTF-8"):
        read_skeleton(path)


def test_a_reference_in_the_file_itself_is_not_believed(tmp_path: Path) -> None:
    """A skeleton that was saved, or forged, refers to any file of the user below "/"."""
    path = saved(model(raw("w")), tmp_path)
    skeleton = read_skeleton(path, threshold=16)
    forged = saved(skeleton, tmp_path, "forged.onnx")
    with pytest.raises(WireError, match="No such file"):
        read_skeleton(forged)


def test_external_sparse_tensors_are_refused(tmp_path: Path) -> None:
    content = in_sparse_tensors()
    content.graph.sparse_initializer[0].values.data_location = TensorProto.EXTERNAL
    with pytest.raises(WireError, match="sparse tensor 's'"):
        read_skeleton(saved(content, tmp_path))


@pytest.mark.parametrize("change", ["rewritten", "shortened", "removed"])
def test_a_file_that_changed_is_not_read_on(change: str, tmp_path: Path) -> None:
    path = saved(model(raw("w", elements=1000)), tmp_path)
    (tensor,) = read_skeleton(path).graph.initializer
    if change == "rewritten":
        os.utime(path, ns=(0, 0))
    elif change == "shortened":
        os.truncate(path, 100)
    else:
        path.unlink()
    with pytest.raises(WireError, match=r"has changed|No such file"):
        tensor_array(tensor)


def test_references_are_what_the_runtime_expects(tmp_path: Path) -> None:
    path = saved(model(raw("w", elements=1000), raw("small")), tmp_path)
    large, small = read_skeleton(path).graph.initializer
    entries = {entry.key: entry.value for entry in large.external_data}
    assert entries["location"] == str(path)[1:]
    start = int(entries["offset"])
    assert path.read_bytes()[start:][: int(entries["length"])] == random_bytes(4000)
    assert reference_of(small) is None
    assert small.raw_data


PEAK = r"""
import re, sys
from pathlib import Path
from graphpass.storage.wire import read_skeleton, tensor_array
def peak_mib():  # not ru_maxrss, which begins with the peak of the parent process
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak_mib()
skeleton = read_skeleton(sys.argv[1])
read = peak_mib()
for tensor in skeleton.graph.initializer:
    tensor_array(tensor)
print(read - before, peak_mib() - read)
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """400 MiB in 10 tensors: reading takes next to nothing, an array no more than itself."""
    size = 40 << 20
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(10 * size)
    head = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size // 4]).SerializeToString()
    tensor = head + b"\x4a" + varint(size)
    graph_length = 10 * (len(tensor) + size + 1 + len(varint(len(tensor) + size)))
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.write(b"\x3a" + varint(graph_length))
        for _ in range(10):
            file.write(b"\x2a" + varint(len(tensor) + size) + tensor)
            file.seek(size, os.SEEK_CUR)
        file.truncate(file.tell())
    command = [sys.executable, "-c", PEAK, str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    read_mib, array_mib = map(float, output.split())
    assert read_mib < 10
    assert array_mib < 60


def test_a_data_file_of_holes_is_not_read(tmp_path: Path) -> None:
    size = 1 << 34
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[size // 4], data_location="EXTERNAL")
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(size)
    proto = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(WireError, match="nearly all holes"):
        read_skeleton(tmp_path / "m.onnx")
