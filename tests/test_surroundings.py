"""What lies around a run: journals that others put there, streams, options, signals, archives."""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from graphpass import interrupt
from graphpass.cli import run
from graphpass.errors import OutputError, UsageError
from graphpass.storage.reference import WireError, WriteError
from graphpass.storage.staging import Claim
from graphpass.storage.text import write_text
from graphpass.storage.wire import read_skeleton
from graphpass.storage.writer import stage_model, write_model
from graphpass.testing import graph
from graphpass.validate.feeds.given import InputsError, user_feeds
from graphpass.validate.feeds.specs import input_specs

TOKEN = "0123456789abcdef" * 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(graph("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }"), path)
    return path


# ------------------------------------------------------------------------------ text files


DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = " + DEEP, "nested too deeply"),
        (b"seed = " + b"9" * 5000, "is no TOML"),
        (b"\xff\xfe", "is no text in UTF-8"),
        (b'threads = "\\ud800"', "is no TOML"),
    ],
)
@pytest.mark.parametrize("option", ["config", "target"])
def test_damaged_toml_is_one_sentence(
    option: str,
    content: bytes,
    said: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / ("graphpass.toml" if option == "config" else "own.toml")
    path.write_bytes(content)
    more = [] if option == "config" else ["--target", str(path)]
    assert run(["optimize", str(model), "--no-validate", *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "folder", "deep", "device"])
def test_a_report_that_is_none_is_one_sentence(
    kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "deep":
        path.write_bytes(DEEP)
    else:
        path.symlink_to("/dev/zero")
    assert run(["optimize", str(model), "--tune-from", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["\udcff.onnx", "\udcff/o.onnx"])
def test_a_name_that_no_model_can_have_is_no_output(
    name: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "\udcff").mkdir()
    output = ["-o", str(tmp_path / name), "--no-validate"]
    assert run(["optimize", str(model), *output]) == 5
    assert "cannot write" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "\udcff"}


@pytest.mark.parametrize("line", ["optimize m\0", "optimize m -o a\0", "check m --target \0.toml"])
def test_a_nul_is_in_no_name_of_a_file(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split(" ")) == 2
    assert "an argument has a NUL in it" in capsys.readouterr().err


def test_text_is_not_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "known")
    (tmp_path / ".r.json.known.tmp").symlink_to(victim)
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "r.json", "new")
    assert victim.read_text() == "precious"


# ------------------------------------------------------------------------------- journals


def hidden(destination: Path, journal: bytes) -> Path:
    """Lay out what a writer that was killed before its model was renamed would leave."""
    folder = destination.parent / f".{destination.name}.graphpass"
    folder.mkdir()
    (folder / f"{destination.name}.lock").touch()
    (folder / destination.name).write_bytes(b"half")
    (folder / f"{destination.name}.journal").write_bytes(journal)
    return folder


def forged(victim: Path, name: str, token: str = TOKEN) -> bytes:
    entry = {name: victim.stat().st_ino}
    return json.dumps({"token": token, "new": [name], "old": [name], **{"inodes": entry}}).encode()


@pytest.mark.parametrize("name", ["../victim", "victim", "o.onnx.data", "o.onnx.7.data", "o.onnx"])
def test_a_journal_removes_nothing_that_does_not_hold_its_token(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    victim = inside / name
    victim.write_text("precious")
    hidden(inside / "o.onnx", forged(victim, name))
    Claim(inside / "o.onnx").release()
    assert victim.read_text() == "precious"


def test_an_absolute_name_in_a_journal_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.setxattr(victim, "user.graphpass", TOKEN.encode())
    (tmp_path / "in").mkdir()
    hidden(tmp_path / "in/o.onnx", forged(victim, str(victim)))
    Claim(tmp_path / "in/o.onnx").release()
    assert victim.read_text() == "precious"


def test_a_link_with_the_name_of_our_data_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.setxattr(victim, "user.graphpass", TOKEN.encode())
    (tmp_path / "o.onnx.data").symlink_to(victim)
    hidden(tmp_path / "o.onnx", forged(victim, "o.onnx.data"))
    Claim(tmp_path / "o.onnx").release()
    assert victim.exists() and (tmp_path / "o.onnx.data").is_symlink()


def test_what_holds_the_token_is_ours_and_goes(tmp_path: Path) -> None:
    data = tmp_path / "o.onnx.data"
    data.write_bytes(b"new")
    os.setxattr(data, "user.graphpass", TOKEN.encode())
    folder = hidden(tmp_path / "o.onnx", forged(data, data.name))
    Claim(tmp_path / "o.onnx").release()
    assert not data.exists() and not folder.exists()


@pytest.mark.parametrize(
    "journal",
    [
        b"[]",
        b"null",
        b"{}",
        b'{"token": null, "new": [], "old": []}',
        b'{"token": 1, "new": {}, "old": 3}',
        b'{"token": "' + TOKEN.encode() + b'", "new": [[]], "old": []}',
        b"[" * 20_000,
        b'{"new": {"a": 1}}',
        b"\xff\xfe",
        b" " * (8 << 20),
    ],
)
def test_a_malformed_journal_is_set_aside(journal: bytes, model: Path, tmp_path: Path) -> None:
    folder = hidden(tmp_path / "o.onnx", journal)
    written = write_model(read_skeleton(model), tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx").exists()
    [left] = written.left_alone
    assert left.read_bytes() == journal and list(folder.iterdir()) == [left]


def test_what_is_not_ours_in_the_hidden_folder_is_left_and_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = hidden(tmp_path / "m.opt.onnx", b"{}")
    (folder / "notes.txt").write_text("mine")
    assert run(["optimize", str(model), "--no-validate"]) == 0
    assert "notes.txt was left alone" in capsys.readouterr().out
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
@pytest.mark.parametrize("name", ["o.onnx", "o.onnx.lock", "o.onnx.journal"])
def test_whatever_lies_in_the_hidden_folder_it_ends(
    kind: str, name: str, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / ".o.onnx.graphpass"
    folder.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    make: Any = {"folder": Path.mkdir, "link": lambda p: p.symlink_to(victim), "pipe": os.mkfifo}[
        kind
    ]
    make(folder / name)
    try:
        write_model(read_skeleton(model), tmp_path / "o.onnx")
    except WriteError as error:
        assert "is in the way" in str(error)
    assert victim.read_text() == "precious"


@pytest.fixture
def no_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be on a file system without extended attributes."""

    def unsupported(*_: Any, **__: Any) -> bytes:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    for name in ("setxattr", "getxattr", "removexattr"):
        monkeypatch.setattr(os, name, unsupported)


@pytest.mark.parametrize("tail", [b"precious", b"", b"\0graphpass" + b"f" * 32, TOKEN.encode()])
def test_without_attributes_only_what_ends_with_the_token_goes(
    tail: bytes, no_attributes: None, tmp_path: Path
) -> None:
    victim, ours = tmp_path / "o.onnx.data", tmp_path / "o.onnx.1.data"
    victim.write_bytes(tail)
    ours.write_bytes(b"new\0graphpass" + TOKEN.encode())
    journal = {"token": TOKEN, "new": [victim.name, ours.name], "old": [victim.name]}
    folder = hidden(tmp_path / "o.onnx", json.dumps(journal).encode())
    Claim(tmp_path / "o.onnx").release()
    assert victim.read_bytes() == tail and not ours.exists() and not folder.exists()


def test_without_attributes_what_was_committed_is_delivered_as_it_was(
    no_attributes: None, tmp_path: Path
) -> None:
    new, old = tmp_path / "o.onnx.data", tmp_path / "o.onnx.1.data"
    new.write_bytes(b"new\0graphpass" + TOKEN.encode())
    old.write_bytes(b"old")
    journal = {"token": TOKEN, "new": [new.name], "old": [old.name]}
    folder = hidden(tmp_path / "o.onnx", json.dumps(journal).encode())
    (folder / "o.onnx").rename(tmp_path / "o.onnx")
    claim = Claim(tmp_path / "o.onnx")
    claim.release()
    assert new.read_bytes() == b"new" and old.read_bytes() == b"old" and claim.orphans == [old]


def test_without_attributes_delivered_data_is_what_was_laid_out(
    no_attributes: None, tmp_path: Path
) -> None:
    test_delivered_data_holds_no_mark(tmp_path)


def test_delivered_data_holds_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    big = onnx.numpy_helper.from_array(np.ones((2, 300), np.float32), "w")
    proto = graph("(float[2,300] x) => (float[2,300] y) { y = Add(x, w) }")
    proto.graph.initializer.append(big)
    onnx.save(proto, path)
    for _ in range(2):
        written = write_model(read_skeleton(path), tmp_path / "o.onnx", external_data="always")
        assert written.data is not None
        [data] = tmp_path.glob("o.onnx*data")
        assert os.listxattr(data) == []
        assert data.stat().st_size == written.data.size_bytes == 2 * 300 * 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "o.onnx", data.name]


def test_weights_that_are_swapped_with_their_old_time_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = graph("(float[2,300] x) => (float[2,300] y) { y = Add(x, w) }")
    weight = onnx.numpy_helper.from_array(np.ones((2, 300), np.float32), "w")
    proto.graph.initializer.append(weight)
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    skeleton = read_skeleton(path)
    data, status = tmp_path / "w.bin", (tmp_path / "w.bin").stat()
    time.sleep(0.02)  # the clock of a file system goes in steps
    with data.open("r+b") as file:
        file.write(b"evil")
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(WireError, match="has changed since it was read"):
        stage_model(skeleton, tmp_path / "o.onnx")


# -------------------------------------------------------------------------------- streams


def shell(line: str, folder: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    line = line.replace("graphpass", f"{sys.executable} -m graphpass")
    environment = {**os.environ, **more}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, capture_output=True, timeout=120, env=environment
    )


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        ("graphpass passes >&-", {0}),
        ("graphpass passes >/dev/full", {5}),
        ("graphpass passes 2>/dev/full >&2", {5}),
        ("graphpass inspect none.onnx 2>&-", {3}),
        ("graphpass inspect none.onnx 2>/dev/full", {3}),
        ("graphpass inspect m.onnx <&- >&- 2>&-", {0}),
        ("graphpass optimize m.onnx -o - --no-validate >&-", {5}),
        ("graphpass optimize m.onnx -o - --no-validate >/dev/full", {5}),
        ("graphpass passes | true; exit ${PIPESTATUS[0]}", {0, 1}),
        ("mkdir d; cd d; rmdir ../d; graphpass inspect m.onnx", {2}),
        ("ulimit -n 8; graphpass inspect m.onnx", {0, 5}),
    ],
)
def test_streams_and_folders_that_fail(line: str, codes: set[int], model: Path) -> None:
    done = shell(line, model.parent)
    assert done.returncode in codes, done.stderr
    assert b"Traceback" not in done.stderr and b"bug" not in done.stderr


# -------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "option",
    [
        "--seed=-5",
        "--timeout=nan",
        "--timeout=inf",
        "--timeout=1e300",
        "--bind=N=99999999999",
        "--threads=100000",
        "--rtol=nan",
        "--atol=-1",
        "--memory-limit=99999999999999999999",
    ],
)
def test_numbers_that_mean_nothing_are_refused(option: str, model: Path) -> None:
    assert run(["optimize", str(model), option]) == 2
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


# ------------------------------------------------------------------------------- archives

SPECS = input_specs(graph("(float[2,3] x, int64[N] n) => (float[2,3] y) { y = Relu(x) }"))


def npy(header: bytes, version: bytes = b"\x01\x00", data: bytes = b"") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def described(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return text.encode().ljust(117) + b"\n"


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (npy(described("(2, 4)"), data=bytes(32)), "must be of shape"),
        (npy(described("(2, 3)", "<f8"), data=bytes(48)), "must be float32"),
        (npy(described("(2, 3)"), data=bytes(23)), "its shape needs 24"),
        (npy(described("(2, 10000000000)"), data=bytes(24)), "its shape needs"),
        (npy(described("(-2, -3)"), data=bytes(24)), "negative size"),
        (npy(described("(2, 3)", "|O"), data=bytes(24)), "Python objects"),
        (npy(b"(" * 9000 + b"\n", data=bytes(24)), "has a header of"),
        (npy(b"(" * 900 + b"\n", data=bytes(24)), "cannot be read"),
        (npy(described("(2, 3)"), b"\x09\x00"), "cannot be read"),
        (npy(b" " * 50_000_000, b"\x02\x00"), "has a header of"),
        (b"", "cannot be read"),
        (b"\x93NUMPY", "cannot be read"),
    ],
)
def test_an_archive_is_judged_by_its_headers(member: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", member)
    with pytest.raises(InputsError, match=said):
        user_feeds(path, SPECS)


def test_an_archive_that_would_fill_memory_is_not_unpacked(tmp_path: Path) -> None:
    path, size = tmp_path / "in.npz", 40_000_000
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("n.npy", "w") as file,
    ):
        file.write(npy(described(f"({size},)", "<i8")))
        for _ in range(size // 1_000_000):
            file.write(bytes(8_000_000))
    with pytest.raises(InputsError, match="would grow from"):
        user_feeds(path, SPECS)


@pytest.mark.parametrize("damage", ["empty", "no arrays", "encrypted", "method", "truncated"])
def test_a_damaged_archive_is_one_sentence(damage: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, x=np.zeros((2, 3), np.float32))
    data = bytearray(content.getvalue())
    if damage == "empty":
        data.clear()
    elif damage == "no arrays":
        np.savez(content := io.BytesIO())
        data[:] = content.getvalue()
    elif damage == "truncated":
        del data[len(data) // 2 :]
    else:
        at, value = {"encrypted": (6, 1), "method": (8, 97)}[damage]
        data[at] = value  # in the local header, and in the central directory two bytes further
        data[data.index(b"PK\x01\x02") + at + 2] = value
    path = tmp_path / "in.npz"
    path.write_bytes(data)
    with pytest.raises(InputsError) as caught:
        user_feeds(path, SPECS)
    assert "in.npz'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["in.npz", "set/input_0.pb"])
def test_a_pipe_is_no_input(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(UsageError, match="not a regular file"):
        user_feeds(path if path.suffix == ".npz" else path.parent, SPECS)


def test_a_pb_larger_than_its_input_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "input_0.pb").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputsError, match="more than input 'x' can have"):
        user_feeds(tmp_path, SPECS)


def test_a_pb_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(24))
    tensor = onnx.TensorProto(dims=[2, 3], data_type=1, data_location="EXTERNAL")
    tensor.external_data.add(key="location", value=str(tmp_path / "secret"))
    (tmp_path / "input_0.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(InputsError, match="its data is in another file"):
        user_feeds(tmp_path, SPECS)


# -------------------------------------------------------------------------------- signals

IN_AN_IMPORT = """
import os, signal, sys
from graphpass import interrupt
for number in interrupt.ENDING_SIGNALS:  # whoever runs the tests may have them ignored
    signal.signal(number, signal.SIG_DFL)
interrupt.end_on_signals(*interrupt.ENDING_SIGNALS)
sys.path.insert(0, sys.argv[1])
try:
    import half
    while True:
        pass
finally:
    print(sys.modules["half"].end)
"""


@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", -2)])
def test_a_signal_during_an_import_ends_what_comes_after(
    number: str, code: int, tmp_path: Path
) -> None:
    text = f"import os, signal\nos.kill(os.getpid(), signal.{number})\nfor _ in range(999): end = _"
    (tmp_path / "half.py").write_text(text)
    command = [sys.executable, "-c", IN_AN_IMPORT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "998\n" and done.returncode == code


AS_AN_OBJECT_GOES = """
import os, signal, weakref
from graphpass import interrupt
signal.signal(signal.SIGHUP, signal.SIG_DFL)
interrupt.end_on_signals(signal.SIGHUP)

def be_told():
    os.kill(os.getpid(), signal.SIGHUP)
    for _ in range(999): pass
    print("whole")

class One:
    pass

class Other:
    def __del__(self):
        be_told()

thing = OBJECT
del thing  # the interpreter drops what is raised from here
while True:
    pass
"""


@pytest.mark.parametrize("thing", ["One(); weakref.finalize(thing, be_told)", "Other()"])
def test_a_signal_as_an_object_goes_ends_what_comes_after(thing: str) -> None:
    code = AS_AN_OBJECT_GOES.replace("OBJECT", thing)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("whole\n", "", 129)


IGNORED = """
import os, signal
from graphpass import interrupt
signal.signal(signal.SIGHUP, signal.SIG_IGN)
interrupt.end_on_signals(signal.SIGHUP)
os.kill(os.getpid(), signal.SIGHUP)
print("here")
"""


LATE = """
import atexit, signal, sys
from graphpass import interrupt
atexit.register(lambda: print(signal.getitimer(signal.ITIMER_REAL)[0]))  # runs last
interrupt.end_on_signals(signal.SIGTERM)
limit = interrupt.time_limit(100)
limit.__enter__()
sys.exit(0)
"""


def test_no_alarm_rings_in_a_process_that_is_ending() -> None:
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"0.0\n")


def test_a_signal_while_a_claim_is_given_up_leaves_nothing_to_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Claim(tmp_path / "o.onnx")
    close = os.close

    def close_and_end(descriptor: int) -> None:
        close(descriptor)
        raise interrupt.SignalledError(signal.SIGTERM)

    monkeypatch.setattr(os, "close", close_and_end)
    with pytest.raises(interrupt.SignalledError):
        claim.release()
    monkeypatch.undo()
    claim.release()
    assert not list(tmp_path.iterdir())


def test_an_ignored_signal_stays_ignored() -> None:
    done = subprocess.run([sys.executable, "-c", IGNORED], capture_output=True, timeout=60)
    assert done.stdout == b"here\n" and done.returncode == 0


def test_a_time_limit_ends_a_loop_and_leaves_the_clock_as_it_was() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(interrupt.TimeLimitError), interrupt.time_limit(0.05):
        while True:
            try:
                sum(range(1000))
            except Exception:
                pytest.fail("a rule could swallow it")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) is before


def test_the_shorter_of_two_time_limits_counts() -> None:
    start = time.monotonic()
    with (
        pytest.raises(interrupt.TimeLimitError),
        interrupt.time_limit(0.05),
        interrupt.time_limit(60),
    ):
        while True:
            time.sleep(0.01)
    assert time.monotonic() - start < 30


def test_what_ends_in_time_is_not_disturbed() -> None:
    with interrupt.time_limit(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    with interrupt.time_limit(None):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


LONG_CALL = """
import ctypes, signal, sys
from graphpass import interrupt
from graphpass.__main__ import main
from graphpass.ir import model

seconds = float(sys.argv.pop())

def wait(proto):
    # holds the interpreter, and goes on whatever signal comes, as a call of onnx does
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})

model.make_sound = wait
main()
"""


def test_a_call_that_holds_the_interpreter_ends_by_the_clock(model: Path) -> None:
    def run_for(seconds: float) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", LONG_CALL, "optimize", str(model), "--timeout=1"]
        return subprocess.run([*command, str(seconds)], capture_output=True, timeout=60)

    done = run_for(60)
    assert done.returncode == 3 and done.stdout == b""
    assert done.stderr.startswith(b"graphpass: a single step of a library does not come to an end")
    assert done.stderr.count(b"\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]
    done = run_for(1.5)  # a little late is no reason to end like that
    assert done.returncode == 3 and b"cannot be read within 1 s" in done.stderr
    assert run_for(0).returncode == 0


def test_what_protobuf_cannot_hold_is_one_sentence(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_large(path: Path) -> None:
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr("graphpass.storage.wire.read_skeleton", too_large)
    assert run(["diff", str(model), str(model), "-o", str(model.with_name("d.html"))]) == 3
    said = capsys.readouterr().err
    assert said.startswith("graphpass: the model cannot be put into a file: it is over 2 GiB")
    assert said.count("\n") == 1


def test_a_watchdog_is_none_to_a_process_that_was_forked() -> None:
    script = """
import os, time
from graphpass import interrupt
interrupt.end_on_time()
with interrupt.time_limit(0.01):
    pid = os.fork()
    if not pid:
        interrupt.forget()
        time.sleep(3)
        os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode in (0, 1), done.stderr
