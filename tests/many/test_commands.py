"""`graphpass optimize --out-dir` as it is typed: what is printed, written and refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from graphpass.cli import run
from graphpass.commands.many import Board
from graphpass.many.task import Outcome

from .models import ENDLESS, loop, small, tree

Command = Callable[..., SimpleNamespace]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*arguments: str | Path) -> SimpleNamespace:
        code = run(["optimize", *(str(argument) for argument in arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def test_a_line_for_each_model_then_a_table_and_reports(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    models = [small(tmp_path / "a.onnx"), tmp_path / "none.onnx"]
    reports = [out / f"all.{suffix}" for suffix in ("json", "md", "xml")]
    options = [text for report in reports for text in ("--report", report)]
    done = command(*models, "--out-dir", out, "--jobs", "2", "--no-latency", *options)
    assert done.code == 3
    assert sorted(done.err.splitlines())[1].startswith(f"graphpass: {models[1]}: cannot read")
    assert f"{models[0]}: written, " in done.err and done.err.count("\n") == 2
    assert "2 → 3" in done.out and f"1 written, 1 failed → {out}" in done.out
    told = json.loads(reports[0].read_text())
    assert told["exit_code"] == 3 and told["jobs"] == 2 and len(told["models"]) == 2
    assert "# graphpass" in reports[1].read_text() and "<testsuites" in reports[2].read_text()
    done = command(*models, "--out-dir", out, "-q")
    assert done.code == 3 and done.out == "" and done.err.count("\n") == 1
    assert "1 skipped, 1 failed" in command(*models, "--out-dir", out).out


def test_verbose_prints_every_rewrite(command: Command, tmp_path: Path) -> None:
    done = command(small(tmp_path / "a.onnx"), "--out-dir", tmp_path / "out", "-v")
    assert "Identity" in done.out and f"{tmp_path}/a.onnx → {tmp_path}/out/a.onnx" in done.out


def test_4_says_how_to_go_on(command: Command, tmp_path: Path) -> None:
    import onnx

    from graphpass.testing import graph

    text = "(float[2] x) => (float[2] y) { y = other.Thing(x) }"
    onnx.save(graph(text, domains={"other": 1}), tmp_path / "c.onnx")
    done = command(tmp_path / "c.onnx", "--out-dir", tmp_path / "out", "--strict")
    assert done.code == 4 and "--no-validate" in done.err
    assert tree(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["a.onnx", "b.onnx"], 2, "2 models need --out-dir"),
        (["a.onnx", "--jobs", "2"], 2, "--jobs is for many models"),
        (["a.onnx", "--scheduler", "tcp://h:1"], 2, "--scheduler is for many models"),
        (["a.onnx", "--force"], 2, "--force is for many models"),
        (["a.onnx", "--out-dir", "out", "-o", "x.onnx"], 2, "give either --out-dir or one of"),
        (["a.onnx", "--out-dir", "out", "--in-place"], 2, "give either --out-dir or one of"),
        (["-", "--out-dir", "out"], 2, "standard input has no name"),
        (["a.onnx", "--out-dir", "out", "--jobs", "0"], 2, "--jobs"),
        (["a.onnx", "--out-dir", "out", "--passes", "nope"], 2, "there is no pass 'nope'"),
        (["a.onnx", "--out-dir", "out", "--report", "no/r.md"], 5, "there is no folder no"),
        (["a.onnx", "--out-dir", "."], 2, "is an input and would be overwritten"),
        (["a.onnx", "sub/a.onnx", "--out-dir", "out"], 2, "would both be written to"),
        ([], 2, "Missing argument"),
    ],
)
def test_refusals(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    text: str,
) -> None:
    for name in ("a.onnx", "b.onnx", "sub/a.onnx"):
        small(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    done = command(*arguments)
    assert done.code == code and text in done.err, done.err
    assert done.out == "" and done.err.count("\n") == 1
    assert tree(tmp_path) == ["a.onnx", "b.onnx", "sub/a.onnx"] and not Path("out").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_ends_all_processes_and_leaves_no_litter(
    tmp_path: Path, sent: signal.Signals
) -> None:
    models = [loop(tmp_path / f"{name}.onnx", ENDLESS) for name in "ab"]
    command = [sys.executable, "-m", "graphpass", "optimize", *map(str, models), "--jobs", "2"]
    spools = tmp_path / "spools"
    spools.mkdir()
    running = subprocess.Popen(
        [*command, "--out-dir", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(spools)},
    )
    deadline = time.monotonic() + 30
    main = psutil.Process(running.pid)
    while len(below := main.children(recursive=True)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(sent)
    _, err = running.communicate(timeout=120)
    assert len(below) == 4
    assert running.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[sent]
    assert err.strip() == (b"graphpass: interrupted" if sent is signal.SIGINT else b"")
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert tree(tmp_path / "out") == [] and not list(spools.glob("graphpass*"))


def test_the_board_shows_all_and_each_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    with Board() as board:
        board.planned(3)
        board.progress("", "waiting for a worker", 0.0)
        board.progress("[a].onnx", "fold-batchnorm", 0.4)
        board.finished(Outcome("[a].onnx", "out/[a].onnx", "failed", "no [model]", 3))
        board.finished(Outcome("b.onnx", "out/b.onnx", "written"))
    assert "graphpass: [a].onnx: no [model]" in screen.getvalue()


def _read_all(descriptor: int, pieces: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # nobody writes any more
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)


def test_on_a_terminal_there_is_a_board(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "graphpass", "optimize", str(small(tmp_path / "a.onnx"))]
    pieces: list[bytes] = []
    # a board that is drawn often fills the terminal, and waits until somebody has read it
    reader = threading.Thread(target=_read_all, args=(master, pieces), daemon=True)
    reader.start()
    done = subprocess.run(
        [*command, "--out-dir", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=slave,
        check=True,
        timeout=60,
    )
    os.close(slave)
    reader.join(10)
    os.close(master)
    shown = b"".join(pieces)
    assert b"of 1" in shown and b"1 written" in done.stdout and b"[1/1]" not in shown
