"""Models at URLs: here at memory://, which fsspec treats as it does s3://."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

import graphpass
from graphpass.cli import run
from graphpass.errors import ModelError, OutputError, UsageError
from graphpass.storage import remote, spool

from .models import small

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def store() -> Iterator[Any]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """See to it that no copy of a model outlives its use."""
    spools = tmp_path / "spools"
    spools.mkdir()
    monkeypatch.setattr(spool, "_default_folder", lambda: str(spools))
    yield
    __import__("gc").collect()
    assert not list(spools.iterdir())


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    def call(*arguments: str | Path) -> SimpleNamespace:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def put(store: Any, path: Path, folder: str = "/in") -> str:
    for file in (path, path.with_name(f"{path.name}.weights")):
        if file.exists():
            store.pipe_file(f"{folder}/{file.name}", file.read_bytes())
    return f"memory:/{folder}/{path.name}"


Command = Callable[..., SimpleNamespace]


def test_from_url_to_url_is_as_from_file_to_file(
    command: Command, store: Any, tmp_path: Path
) -> None:
    local = small(tmp_path / "a.onnx", external=True)
    url = put(store, local)
    done = command("optimize", url, "-o", "memory://out/b.onnx")
    assert done.code == 0 and "memory://in/a.onnx → memory://out/b.onnx" in done.out
    assert command("optimize", local, "-o", tmp_path / "b.onnx").code == 0
    for name in ("b.onnx", "b.onnx.data"):
        assert store.cat_file(f"/out/{name}") == (tmp_path / name).read_bytes()
    assert len(store.find("/out")) == 2


def test_data_goes_before_the_model_and_over_nothing(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(store, small(tmp_path / "a.onnx", external=True))
    order = []
    put_file = store.put_file

    def noted(self: Any, source: str, target: str) -> None:
        order.append(Path(target).name)
        put_file(source, target)

    monkeypatch.setattr(type(store), "put_file", noted)
    for _ in range(2):
        with graphpass.optimize(url) as result:
            written = result.save("memory://out/b.onnx")
    assert order == ["b.onnx.data", "b.onnx", "b.onnx.1.data", "b.onnx"]
    assert [str(file.path) for file in written.files] == ["b.onnx", "b.onnx.1.data"]
    assert "b.onnx.data was left" in result.report.warnings[0]
    with graphpass.optimize("memory://out/b.onnx") as again:
        assert [file.name for file in again.report.input.files] == ["b.onnx", "b.onnx.1.data"]


def test_many_at_urls_with_a_pattern_and_resume(
    command: Command, store: Any, tmp_path: Path
) -> None:
    put(store, small(tmp_path / "a.onnx", external=True))
    put(store, small(tmp_path / "b.onnx", 1))
    arguments = ("optimize", "memory://in/*.onnx", "--out-dir", "memory://out")
    done = command(*arguments)
    assert done.code == 0 and "2 written → memory://out" in done.out
    assert len(store.find("/out")) == 5
    assert "2 skipped" in command(*arguments).out
    store.pipe_file("/out/a.onnx.data", b"other")
    assert "1 written, 1 skipped" in command(*arguments).out
    assert "2 written" in command(*arguments, "--force").out


def test_models_at_urls_to_a_folder_here(command: Command, store: Any, tmp_path: Path) -> None:
    url = put(store, small(tmp_path / "a.onnx", external=True))
    assert command("optimize", url, "--out-dir", tmp_path / "out").code == 0
    assert (tmp_path / "out/a.onnx.data").exists()
    (tmp_path / "c.onnx").write_bytes(b"")
    done = command("optimize", tmp_path / "c.onnx", url, "--out-dir", "memory://mixed")
    assert done.code == 3 and "c.onnx" in done.err and store.exists("/mixed/a.onnx")


def test_processes_and_file_urls(command: Command, tmp_path: Path) -> None:
    model = small(tmp_path / "a.onnx", external=True)
    assert command("optimize", f"file://{model}", "-o", f"file://{tmp_path}/b.onnx").code == 0
    out = f"file://{tmp_path}/out"
    assert command("optimize", f"file://{model}", "--out-dir", out, "--jobs", "2").code == 0
    assert (tmp_path / "out/a.onnx").exists() and (tmp_path / "b.onnx").exists()


def test_compare_and_inspect_take_urls(command: Command, store: Any, tmp_path: Path) -> None:
    url = put(store, small(tmp_path / "a.onnx", external=True))
    assert command("compare", url, url).code == 0
    assert command("inspect", url).code == 0


# ---------------------------------------------------------------------------------- refusals


def failed(done: SimpleNamespace, code: int, text: str) -> None:
    assert done.code == code, done.err
    assert text in done.err and done.err.count("\n") == 1 and done.out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["memory://no/a.onnx", "-o", "x.onnx"], 3, "cannot read memory://no/a.onnx: there is no"),
        (["memory://in/", "-o", "memory://out/x.onnx"], 3, "it names a folder"),
        (["memory://in/a.onnx"], 2, "has no folder for a result: give -o"),
        (["memory://in/a.onnx", "--in-place"], 2, "is not replaced in place: give -o"),
        (["memory://in/a.onnx", "-o", "memory://in/a.onnx"], 2, "is the input"),
        (["memory://in/a.onnx", "-o", "memory://out/"], 5, "it names a folder"),
        (["nosuch://in/a.onnx", "-o", "x.onnx"], 2, "Protocol not known: nosuch"),
        (["nosuch://in/a.onnx", "--out-dir", "memory://out"], 2, "Protocol not known: nosuch"),
        (["memory://in/a.onnx", "--out-dir", "nosuch://out"], 2, "Protocol not known: nosuch"),
        (["memory://in/*.pt", "--out-dir", "memory://out"], 2, "there is nothing at memory://in"),
        (["memory://in/a.onnx", "--out-dir", "memory://in"], 2, "would be overwritten"),
        (["memory://in/text.onnx", "-o", "x.onnx"], 3, "memory://in/text.onnx is not an ONNX"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    command: Command, store: Any, tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    put(store, small(tmp_path / "a.onnx"))
    store.pipe_file("/in/text.onnx", b"just text")
    failed(command("optimize", *arguments), code, text)
    assert not store.exists("/out") and len(store.find("/in")) == 2


def test_a_kind_of_store_that_is_not_installed_is_named(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.registry import known_implementations

    known = {"class": "nothere.Store", "err": "Install nothere to access Nothere"}
    monkeypatch.setitem(known_implementations, "nothere", known)
    done = command("optimize", "nothere://b/a.onnx", "-o", "x.onnx")
    failed(done, 2, "Install nothere to access Nothere")


def test_without_the_extra_its_name_is_said(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    done = command("optimize", "s3://b/a.onnx", "-o", "x.onnx")
    failed(done, 2, "pip install 'graphpass[remote]'")


def test_data_that_is_missing_or_elsewhere_is_refused(
    command: Command, store: Any, tmp_path: Path
) -> None:
    url = put(store, small(tmp_path / "a.onnx", external=True))
    store.rm_file("/in/a.onnx.weights")
    done = command("optimize", url, "-o", "x.onnx")
    failed(done, 3, "cannot read memory://in/a.onnx.weights, the data of memory://in/a.onnx")
    model = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../secret"
    store.pipe_file("/in/a.onnx", model.SerializeToString())
    store.pipe_file("/secret", b"x" * 4096)
    failed(command("optimize", url, "-o", "x.onnx"), 3, "a path with '..'")


def test_what_a_store_raises_is_one_sentence(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(store, small(tmp_path / "a.onnx"))

    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError("Access\nDenied")

    with graphpass.optimize(url) as result:
        monkeypatch.setattr(type(store), "put_file", denied)
        with pytest.raises(OutputError, match=r"^cannot write memory://b\.onnx: Access Denied$"):
            result.save("memory://b.onnx")
    monkeypatch.setattr(type(store), "get_file", denied)
    with pytest.raises(ModelError, match=r"^cannot read memory://in/a\.onnx: Access Denied$"):
        graphpass.optimize(url)
    assert not store.exists("/b.onnx")


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("a.onnx", False),
        ("s3://b/a", True),
        ("simplecache::s3://b/a", True),
        ("file:///a", False),
        ("C:/a", False),
        ("a::b", False),
        (Path("s3://b"), False),
    ],
)
def test_what_is_a_url(place: Any, url: bool) -> None:
    assert remote.is_url(place) == url


def test_names_in_urls() -> None:
    assert remote.name_of("https://h/a/m.onnx?download=true#x") == "m.onnx"
    assert remote.name_of("zip://sub/m.onnx::s3://b/all.zip") == "m.onnx"
    with pytest.raises(UsageError, match="Protocol not known"):
        remote.require("nosuch://a")
