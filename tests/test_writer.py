"""Writing: what was read comes out as it was, and a destination is whole at any moment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphpass.storage import layout
from graphpass.storage.spool import Spool
from graphpass.storage.wire import WireError, attach, read_skeleton, tensor_array, tensors
from graphpass.storage.writer import WriteError, stage_model, write_model


def weight(name: str, elements: int = 1000) -> TensorProto:
    values = np.random.default_rng(elements + len(name)).standard_normal(elements, np.float32)
    return numpy_helper.from_array(values, name)


def model(*initializers: TensorProto) -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["c"], value=weight("constant"))
    body = helper.make_graph([constant], "body", [], [], [weight("inner")])
    graph = helper.make_graph(
        [helper.make_node("Loop", ["n", "c"], ["y"], body=body)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        list(initializers) or [weight("a"), weight("bb"), weight("small", 3)],
    )
    return helper.make_model(graph)


def saved(content: onnx.ModelProto, path: Path, external: bool = False) -> Path:
    onnx.save(content, path, save_as_external_data=external, location=f"{path.name}.data")
    return path


def content_of(path: Path) -> bytes:
    """What onnx reads from a file, as bytes, its external data included."""
    content: bytes = onnx.load(path).SerializeToString(deterministic=True)
    return content


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def float_data() -> TensorProto:
    return helper.make_tensor("f", TensorProto.FLOAT, [600], np.linspace(0, 1, 600))


def double_data() -> TensorProto:
    return helper.make_tensor("d", TensorProto.DOUBLE, [600], np.linspace(0, 1, 600))


def decorated() -> TensorProto:
    tensor = weight("w")
    tensor.data_location = TensorProto.DEFAULT
    tensor.doc_string = "a weight"
    tensor.metadata_props.add(key="graphpass.origin", value="mine")
    tensor.MergeFromString(b"\xfa\x7f\x03abc")
    return tensor


@pytest.mark.parametrize("make", [weight, float_data, double_data, decorated])
def test_inline_model_comes_out_byte_for_byte(
    make: Callable[..., TensorProto], tmp_path: Path
) -> None:
    tensor = make("w") if make is weight else make()
    source = saved(model(tensor), tmp_path / "in.onnx")
    written = write_model(read_skeleton(source), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()
    assert [file.path for file in written.files] == [tmp_path / "out.onnx"]
    assert names(tmp_path) == ["in.onnx", "out.onnx"]


@pytest.mark.parametrize("make", [weight, float_data, double_data, decorated])
@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_values_survive_every_form(
    mode: layout.ExternalData, make: Callable[..., TensorProto], tmp_path: Path
) -> None:
    tensor = make("w") if make is weight else make()
    source = saved(model(tensor), tmp_path / "in.onnx")
    write_model(read_skeleton(source), tmp_path / "out.onnx", external_data=mode)
    for ours, theirs in zip(
        tensors(onnx.load(tmp_path / "out.onnx")), tensors(onnx.load(source)), strict=True
    ):
        assert ours.name == theirs.name
        assert np.array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs))
        assert ours.doc_string == theirs.doc_string
        assert list(ours.metadata_props) == list(theirs.metadata_props)


def test_external_model_stays_external(tmp_path: Path) -> None:
    source = saved(model(), tmp_path / "in.onnx", external=True)
    written = write_model(read_skeleton(source), tmp_path / "out.onnx")
    assert written.data is not None
    assert written.data.path == tmp_path / "out.onnx.data"
    assert content_of(tmp_path / "out.onnx") == content_of(source)
    kept_inline = [t.name for t in read_skeleton(source).graph.initializer if t.raw_data]
    assert kept_inline == ["small"]


def test_new_weights_go_where_the_model_has_its_own(tmp_path: Path) -> None:
    array = np.arange(5000, dtype=np.float32)
    with Spool(tmp_path) as spool:
        for external in (False, True):
            source = saved(model(), tmp_path / "in.onnx", external)
            skeleton = read_skeleton(source)
            skeleton.graph.initializer[0].CopyFrom(spool.add(array, "a"))
            written = write_model(skeleton, tmp_path / "out.onnx")
            assert (written.data is not None) == external
            (first, *_) = onnx.load(tmp_path / "out.onnx").graph.initializer
            assert np.array_equal(numpy_helper.to_array(first), array)
            assert not first.metadata_props


def test_threshold_and_alignment(tmp_path: Path) -> None:
    source = saved(
        model(weight("a", 20_000), weight("bb", 20_001), weight("ccc", 300), weight("dddd", 3)),
        tmp_path / "in.onnx",
    )
    out = tmp_path / "out.onnx"
    write_model(read_skeleton(source), out, external_data="always", size_threshold=1300)
    offsets = {
        tensor.name: int(next(e.value for e in tensor.external_data if e.key == "offset"))
        for tensor in tensors(onnx.load(out, load_external_data=False))
        if tensor.external_data
    }
    assert set(offsets) == {"a", "bb", "constant", "inner"}
    assert offsets["a"] % 4096 == offsets["bb"] % 4096 == 0
    write_model(read_skeleton(source), out, external_data="always", size_threshold=0)
    assert all(t.external_data for t in tensors(onnx.load(out, load_external_data=False)))


def outside(path: Path) -> set[str]:
    found = tensors(onnx.load(path, load_external_data=False))
    return {tensor.name for tensor in found if tensor.external_data}


def test_a_threshold_keeps_small_weights_in_the_model_file(tmp_path: Path) -> None:
    weights = [weight("a", 20_000), weight("bb", 9_000), weight("ccc", 3)]
    source = saved(model(*weights), tmp_path / "in.onnx", external=True)
    was = outside(source)
    assert {"a", "bb"} <= was
    out = tmp_path / "out.onnx"
    write_model(read_skeleton(source), out)
    assert outside(out) == was
    write_model(read_skeleton(source), out, size_threshold=50_000)
    assert outside(out) == {"a"}
    write_model(read_skeleton(source), out, external_data="always", size_threshold=50_000)
    assert outside(out) == {"a"}
    assert content_of(out) == content_of(source)
    write_model(read_skeleton(source), out, size_threshold=100_000)
    assert not outside(out)
    # "auto" takes nothing out of a model file that was in it
    write_model(read_skeleton(out), tmp_path / "again.onnx", size_threshold=0)
    assert not outside(tmp_path / "again.onnx")


def test_a_shared_range_is_written_once(tmp_path: Path) -> None:
    source = saved(model(weight("a", 50_000)), tmp_path / "in.onnx", external=True)
    content = onnx.load(source, load_external_data=False)
    twin = content.graph.initializer.add()
    twin.CopyFrom(content.graph.initializer[0])
    twin.name = "twin"
    source.write_bytes(content.SerializeToString())
    written = write_model(read_skeleton(source), tmp_path / "out.onnx")
    assert written.data is not None
    assert written.data.size_bytes < 300_000
    assert content_of(tmp_path / "out.onnx") == content_of(source)


def test_what_exceeds_protobuf_goes_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = read_skeleton(saved(model(), tmp_path / "in.onnx"))
    monkeypatch.setattr(layout, "PROTOBUF_LIMIT_BYTES", 8000)
    assert write_model(skeleton, tmp_path / "out.onnx").data is not None
    with pytest.raises(WriteError, match="needs external data"):
        write_model(skeleton, tmp_path / "out.onnx", external_data="never")
    monkeypatch.setattr(layout, "PROTOBUF_LIMIT_BYTES", 80)
    with pytest.raises(WriteError, match="even with external data"):
        write_model(skeleton, tmp_path / "out.onnx")
    assert names(tmp_path) == ["in.onnx", "out.onnx", "out.onnx.data"]


def test_same_skeleton_same_bytes(tmp_path: Path) -> None:
    skeleton = read_skeleton(saved(model(), tmp_path / "in.onnx"))
    contents = set()
    for folder in (tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
        written = write_model(skeleton, folder / "out.onnx", external_data="always")
        contents.add(tuple(file.path.read_bytes() for file in written.files))
    assert len(contents) == 1


@pytest.mark.parametrize("external", [False, True])
def test_overwriting_the_input(external: bool, tmp_path: Path) -> None:
    path = saved(model(), tmp_path / "m.onnx", external)
    before = content_of(path)
    for round_ in range(3):
        written = write_model(read_skeleton(path), path)
        assert content_of(path) == before
        assert written.superseded == ()
        data = ["m.onnx.1.data" if round_ % 2 == 0 else "m.onnx.data"] if external else []
        assert names(tmp_path) == sorted(["m.onnx", *data])


def test_data_that_another_model_uses_stays(tmp_path: Path) -> None:
    path = saved(model(), tmp_path / "m.onnx", external=True)
    (tmp_path / "copy.onnx").write_bytes(path.read_bytes())
    before = content_of(path)
    written = write_model(read_skeleton(path), path)
    assert written.superseded == (tmp_path / "m.onnx.data",)
    assert content_of(tmp_path / "copy.onnx") == content_of(path) == before


@pytest.mark.parametrize("location", ["./m.onnx.data", "sub/../m.onnx.data"])
def test_data_that_another_model_spells_differently_stays(location: str, tmp_path: Path) -> None:
    path = saved(model(), tmp_path / "m.onnx", external=True)
    other = onnx.load(path, load_external_data=False)
    for tensor in tensors(other):
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    assert write_model(read_skeleton(path), path).superseded == (tmp_path / "m.onnx.data",)


def test_a_longer_name_is_another_name(tmp_path: Path) -> None:
    path = saved(model(), tmp_path / "m.onnx", external=True)
    saved(model(), tmp_path / "decoder_m.onnx", external=True)
    assert write_model(read_skeleton(path), path).superseded == ()
    assert content_of(tmp_path / "decoder_m.onnx")


def test_data_by_another_name_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="weights.bin")
    write_model(read_skeleton(path), path)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "weights.bin"]


def test_a_stranger_with_our_name_stays(tmp_path: Path) -> None:
    (tmp_path / "out.onnx.data").write_text("precious")
    source = saved(model(), tmp_path / "in.onnx")
    for _ in range(2):
        write_model(read_skeleton(source), tmp_path / "out.onnx", external_data="always")
        assert content_of(tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx.data").read_text() == "precious"
    assert len(names(tmp_path)) == 4


def test_permissions(tmp_path: Path) -> None:
    skeleton = read_skeleton(saved(model(), tmp_path / "in.onnx"))
    out = tmp_path / "out.onnx"
    old_mask = os.umask(0o027)
    try:
        write_model(skeleton, out, external_data="always")
        assert [stat.S_IMODE(p.stat().st_mode) for p in (out, tmp_path / "out.onnx.data")] == [
            0o640
        ] * 2
        out.chmod(0o604)
        write_model(skeleton, out)
        assert stat.S_IMODE(out.stat().st_mode) == 0o604
    finally:
        os.umask(old_mask)


def test_a_symbolic_link_is_replaced(tmp_path: Path) -> None:
    source = saved(model(), tmp_path / "in.onnx")
    (tmp_path / "out.onnx").symlink_to(source)
    write_model(read_skeleton(source), tmp_path / "out.onnx", external_data="always")
    assert not (tmp_path / "out.onnx").is_symlink()
    assert content_of(tmp_path / "out.onnx") != b""
    assert len(source.read_bytes()) > 12_000


def test_staged_model_runs_before_it_is_committed(tmp_path: Path) -> None:
    source = saved(model(), tmp_path / "in.onnx")
    with stage_model(
        read_skeleton(source), tmp_path / "out.onnx", external_data="always"
    ) as staged:
        assert content_of(staged.path)
        assert not (tmp_path / "out.onnx").exists()
    assert names(tmp_path) == ["in.onnx"]


def test_two_at_once_are_told(tmp_path: Path) -> None:
    skeleton = read_skeleton(saved(model(), tmp_path / "in.onnx"))
    with stage_model(skeleton, tmp_path / "out.onnx") as staged:
        with pytest.raises(WriteError, match="another graphpass is writing"):
            write_model(skeleton, tmp_path / "out.onnx")
        staged.commit()
    write_model(skeleton, tmp_path / "out.onnx")
    assert names(tmp_path) == ["in.onnx", "out.onnx"]


@pytest.mark.parametrize(
    ("destination", "reason"),
    [
        ("none/out.onnx", "there is no folder"),
        ("folder", "it is a folder"),
        ("pipe", "not a regular file"),
        ("in.onnx/out.onnx", "there is no folder"),
        ("n" * 300, "File name too long"),
        ("/proc/out.onnx", "cannot write /proc/out.onnx"),
    ],
)
def test_impossible_destinations(destination: str, reason: str, tmp_path: Path) -> None:
    skeleton = read_skeleton(saved(model(), tmp_path / "in.onnx"))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match=reason):
        write_model(skeleton, tmp_path / destination)
    assert names(tmp_path) == ["folder", "in.onnx", "pipe"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from graphpass.storage.wire import read_skeleton
from graphpass.storage.writer import WriteError, write_model
skeleton = read_skeleton(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    write_model(skeleton, sys.argv[2], external_data=sys.argv[3])
except WriteError as error:
    print(error)
"""


@pytest.mark.parametrize("mode", ["always", "never"])
def test_a_disk_that_fills_up_changes_nothing(mode: str, tmp_path: Path) -> None:
    source = saved(model(weight("a", 5000)), tmp_path / "in.onnx")
    out = saved(model(), tmp_path / "out.onnx")
    before = out.read_bytes()
    command = [sys.executable, "-c", FULL_DISK, str(source), str(out), mode]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output == f"cannot write {out}: File too large\n"
    assert out.read_bytes() == before
    assert names(tmp_path) == ["in.onnx", "out.onnx"]


def test_a_source_that_changed_is_not_written(tmp_path: Path) -> None:
    source = saved(model(), tmp_path / "in.onnx")
    skeleton = read_skeleton(source)
    os.utime(source, ns=(0, 0))
    with pytest.raises(WireError, match="has changed since it was read"):
        write_model(skeleton, tmp_path / "out.onnx")
    assert names(tmp_path) == ["in.onnx"]


def test_without_the_kernels_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any, **__: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    source = saved(model(), tmp_path / "in.onnx")
    write_model(read_skeleton(source), tmp_path / "out.onnx", external_data="always")
    write_model(read_skeleton(tmp_path / "out.onnx"), tmp_path / "back.onnx", external_data="never")
    first, second = (list(tensors(onnx.load(p))) for p in (source, tmp_path / "back.onnx"))
    assert [t.raw_data for t in first] == [t.raw_data for t in second]


# Runs write_model in a child that dies before its n-th call into the operating system, for every n.
KILL = """
import os, signal, sys
from pathlib import Path
from graphpass.storage.wire import read_skeleton
from graphpass.storage.writer import write_model

first, second, out = map(Path, sys.argv[1:4])

if sys.argv[4] == "plain":  # a file system without extended attributes

    def unsupported(*_, **__):
        raise OSError(95, "Operation not supported")

    os.setxattr = os.getxattr = os.removexattr = unsupported

os.fsync = lambda descriptor: None  # slow, and of no use against a kill

def write(source, kill_at):
    calls = 0
    def count(frame, event, argument):
        nonlocal calls
        if event == "c_call" and argument.__module__ in ("posix", "fcntl"):
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    skeleton = read_skeleton(source)
    sys.setprofile(count)
    write_model(skeleton, out)
    sys.setprofile(None)

n = 0
while True:
    n += 1
    child = os.fork()
    if child == 0:
        write((first, second)[n % 2], n)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
    print(n, "killed" if killed else "done", flush=True)
    sys.stdin.readline()  # until the test has looked
    if not killed:
        break
"""


@pytest.mark.parametrize("system", ["attributes", "plain"])
@pytest.mark.parametrize("external", [True, False])
def test_killed_before_any_call_it_leaves_old_or_new(
    external: bool, system: str, tmp_path: Path
) -> None:
    first = saved(model(weight("a")), tmp_path / "first.onnx", external)
    second = saved(model(weight("a", 2000), weight("bb")), tmp_path / "second.onnx", external)
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "m.onnx"
    write_model(read_skeleton(first), out)
    valid = {content_of(first), content_of(second)}
    seen = []
    with subprocess.Popen(
        [sys.executable, "-c", KILL, str(first), str(second), str(out), system],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last = line
            seen.append(content_of(out))
            assert seen[-1] in valid
            left = [name for name in names(folder) if not name.startswith(".")]
            assert len(left) <= 3, left  # the model, its data, and data that is not yet settled
            for name in left:
                # old data that cannot be marked, and was not removed before the kill, stays
                is_new = b"\0graphpass" in (folder / name).read_bytes()
                if system == "plain" and name not in used(out) and not is_new:
                    (folder / name).unlink()
            process.stdin.write("\n")
            process.stdin.flush()
    assert last.endswith("done\n")
    assert len(seen) > 30
    assert len(set(seen)) == 2
    assert len(names(folder)) == (2 if external else 1)
    assert not any(b"\0graphpass" in (folder / name).read_bytes() for name in names(folder))


def used(model: Path) -> set[str]:
    """Return the files of a model."""
    proto = onnx.load(model, load_external_data=False)
    entries = [entry for tensor in tensors(proto) for entry in tensor.external_data]
    return {model.name, *(entry.value for entry in entries if entry.key == "location")}


def test_spool_keeps_arrays_of_any_dtype_and_layout(tmp_path: Path) -> None:
    import ml_dtypes

    square = np.arange(10_000, dtype=np.float32).reshape(100, 100)
    arrays: list[npt.NDArray[Any]] = [
        square,
        square.T,
        square[::2, ::-3],
        np.broadcast_to(square, (3, 100, 100)),
        square[:, :0],
        np.array(3.0),
        np.asfortranarray(square.astype(ml_dtypes.bfloat16)),
        (square % 8).astype(ml_dtypes.int4).T,
        square > 5,
        np.array(["a", "b"], object),
    ]
    with Spool(tmp_path) as spool:
        for array in arrays:
            tensor = spool.add(array, "w")
            assert bool(tensor.external_data) == (array.nbytes >= 1024)
            actual = tensor_array(tensor)
            assert (actual.dtype, actual.shape) == (array.dtype, array.shape)
            assert np.array_equal(actual, array)
        converted = tensor_array(spool.add(square, "w", TensorProto.BFLOAT16))
        assert converted.dtype == ml_dtypes.bfloat16
    assert names(tmp_path) == []


@pytest.mark.parametrize("external", [False, True])
def test_spool_detaches_a_model_in_memory(external: bool, tmp_path: Path) -> None:
    source = saved(model(), tmp_path / "in.onnx", external)
    loaded = onnx.load(source)
    before = loaded.SerializeToString()
    with Spool(tmp_path) as spool:
        skeleton = spool.detach(loaded)
        assert loaded.SerializeToString() == before
        assert attach(skeleton) == loaded
        unloaded = onnx.load(source, load_external_data=False)
        assert attach(spool.detach(unloaded, tmp_path)) == loaded


def test_a_model_in_memory_that_protobuf_cannot_nest(tmp_path: Path) -> None:
    deep = model()
    graph = deep.graph
    for _ in range(1000):
        attribute = graph.node.add(op_type="If").attribute.add(name="then_branch")
        attribute.type = onnx.AttributeProto.GRAPH
        graph = attribute.g
    with Spool(tmp_path) as spool, pytest.raises(WireError, match=r"model in memory .* nested"):
        spool.detach(deep)


def test_an_empty_spool_of_a_process_that_was_killed_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "graphpass-spool-old", tmp_path / "graphpass-spool-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    Spool(tmp_path)
    assert not old.exists() and new.exists()  # another process may be about to make its file


def test_an_abandoned_spool_is_removed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from graphpass.storage.spool import Spool; "
        "spool = Spool(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (abandoned,) = names(tmp_path)
    with Spool(tmp_path) as first, Spool(tmp_path) as second:
        assert names(tmp_path) == sorted([first.folder.name, second.folder.name])
        assert abandoned not in names(tmp_path)
    assert names(tmp_path) == []


def test_spool_without_its_folder(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot keep new weights"):
        Spool(tmp_path / "none")
