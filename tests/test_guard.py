"""Plug-ins that end the process, leave the folder or close files: undone and named."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.cli import run
from graphpass.errors import RuleError
from graphpass.interrupt import SignalledError
from graphpass.ir.nodes import Graph
from graphpass.rewrite import registry
from graphpass.rewrite.guard import guarded
from graphpass.rewrite.pattern import Op, any_
from graphpass.rewrite.rule import Pass, Rule
from graphpass.run import optimization
from graphpass.testing import graph
from graphpass.validate.process.runtime import Runtime


def leave() -> None:
    sys.exit(0)


def leave_at_once() -> None:
    os._exit(0)


def close_input() -> None:
    raise GeneratorExit


def lack_memory() -> None:
    raise MemoryError


def go_elsewhere() -> None:
    os.chdir("/")


def call_itself() -> None:
    call_itself()


def loop() -> None:
    while True:
        pass


ACTS: dict[Callable[[], None], str] = {
    leave: "tried to end the whole process",
    leave_at_once: "tried to end the whole process",
    close_input: "failed: GeneratorExit",
    lack_memory: "needs more memory than there is",
    go_elsewhere: "changed the working folder",
    call_itself: "RecursionError: maximum recursion depth",
    loop: "did not end within 2 s",
}


def acting(act: Callable[[], None], *, by_hand: bool) -> type[Pass]:
    """Return a pass called "act" that does `act` in its run, or in a rule."""

    class Act(Rule):
        """Relu(x) = Relu(x)."""

        pattern = Op("Relu", any_("x"))

        def rewrite(self, x: object) -> None:
            act()

    class ByHand(Pass):
        """Acts."""

        name = "act"

        def run(self, graph: Graph) -> list[str]:
            act()
            return []

    class ByRule(Pass):
        """Acts."""

        name = "act"
        rules = (Act(),)

    return ByHand if by_hand else ByRule


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(graph("(float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) }"), path)
    return path


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_whatever_a_plug_in_does_it_is_undone_and_named(
    act: Callable[[], None],
    by_hand: bool,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kinds = {**registry.builtin_types(), "act": acting(act, by_hand=by_hand)}
    monkeypatch.setattr(registry, "pass_types", lambda: kinds)
    where, report = Path.cwd(), model.with_name("r.md")
    options = ["--timeout", "2", "--no-validate", "--report", str(report)]
    code = run(["optimize", str(model), "--passes", "act,clean-up", *options])
    told = capfd.readouterr()
    assert code == 0, told.err
    assert "act" in told.out and ACTS[act] in told.out
    assert Path.cwd() == where and ACTS[act] in report.read_text()
    done = onnx.load(model.with_name("m.opt.onnx"))
    assert [node.op_type for node in done.graph.node] == ["Relu"]  # the other pass went on


@pytest.mark.parametrize("act", ACTS)
def test_strict_writes_nothing(
    act: Callable[[], None], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = acting(act, by_hand=True)()
    with pytest.raises(Exception, match=ACTS[act]):
        optimization.optimize(model, [step], strict=True, validate=False, time_limit_s=2)
    assert [path.name for path in model.parent.iterdir()] == ["m.onnx"]


def plugged(
    text: str, folder: Path, model: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a pass "plugged" of an installed plug-in that holds `text`, in a process of its own."""
    home = folder / "plugged-1.dist-info"
    home.mkdir()
    (folder / "plugged.py").write_text(text)
    (home / "METADATA").write_text("Name: plugged\nVersion: 1\n")
    (home / "entry_points.txt").write_text("[graphpass.passes]\nplugged = plugged\n")
    command = [sys.executable, "-m", "graphpass", "optimize", str(model), *options]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


# In a process of its own: one that runs tests has threads that read the files which this closes.
CLOSES = """
import os
from graphpass.rewrite.pattern import Op, any_
from graphpass.rewrite.rule import Pass, Rule

class Close(Rule):
    '''Relu(x) = Relu(x).'''
    pattern = Op("Relu", any_("x"))
    def rewrite(self, x):
        CLOSE

class Plugged(Pass):
    '''Closes.'''
    name = "plugged"
    rules = (Close(),)
"""
BY_HAND = "    def run(self, graph):\n        CLOSE\n        return []\n"


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("close", ["os.close(1)", "os.closerange(3, 100)"])
def test_a_plug_in_that_closes_files_is_undone_and_named(
    close: str, by_hand: bool, model: Path, tmp_path: Path
) -> None:
    text = (CLOSES + BY_HAND * by_hand).replace("CLOSE", close)
    done = plugged(text, tmp_path, model, "--passes", "plugged,clean-up", "--no-validate")
    assert done.returncode == 0, done.stderr
    assert "plugged" in done.stdout and "closed files" in done.stdout
    kept = onnx.load(model.with_name("m.opt.onnx"))
    assert [node.op_type for node in kept.graph.node] == ["Relu"]  # the other pass went on


@pytest.mark.parametrize("close", ["os.close(1)", "os.closerange(3, 100)"])
def test_strict_writes_nothing_where_files_are_closed(
    close: str, model: Path, tmp_path: Path
) -> None:
    text = CLOSES.replace("CLOSE", close)
    done = plugged(text, tmp_path, model, "--passes", "plugged", "--no-validate", "--strict")
    assert done.returncode != 0 and "closed files" in done.stderr
    assert list(tmp_path.glob("*.onnx")) == [model]


@pytest.mark.parametrize("line", ["raise SystemExit", "import os; os._exit(0)", "raise Exception"])
def test_a_plug_in_that_ends_when_it_is_imported_is_named(
    line: str, model: Path, tmp_path: Path
) -> None:
    done = plugged(line, tmp_path, model, "--passes", "nothing")
    assert done.returncode == 2 and "the plug-in plugged cannot be loaded" in done.stderr


def test_signals_and_ctrl_c_are_not_the_plug_in_s() -> None:
    for error in (KeyboardInterrupt(), SignalledError(signal.SIGTERM)):
        with pytest.raises(type(error)), guarded("it"):
            raise error


def test_a_child_that_a_plug_in_forks_may_end() -> None:
    with guarded("it"):
        child = os.fork()
        if child == 0:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_files_are_put_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # other tests may leave threads
    with (tmp_path / "f").open("w+") as file:
        file.write("before ")
        file.flush()
        with pytest.raises(RuleError, match="closed files that it had not opened"), guarded("it"):
            os.close(file.fileno())
            os.open(os.devnull, os.O_RDONLY)  # takes its place
        file.write("after")
    assert (tmp_path / "f").read_text() == "before after"


def test_a_process_that_dies_meanwhile_is_not_laid_to_its_charge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What computes constants was started by one pass and may die in the next."""
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    with Runtime(threads=1) as runtime:
        runtime.load(graph("(float[2] x) => (float[2] y) { y = Relu(x) }")).close()
        with guarded("it"):
            runtime.close()


def test_what_a_pass_opens_and_closes_is_its_own_affair(tmp_path: Path) -> None:
    with guarded("it"):
        np.save(tmp_path / "a.npy", np.ones(3))
        assert np.load(tmp_path / "a.npy").sum() == 3


def test_what_a_thread_beside_it_closes_is_not_laid_to_its_charge(tmp_path: Path) -> None:
    """A notebook's threads are daemons, and open and close what they like."""
    beside = (tmp_path / "f").open("w")
    closes, ends = threading.Event(), threading.Event()

    def close() -> None:
        closes.wait()
        beside.close()
        ends.set()

    thread = threading.Thread(target=close, daemon=True)
    thread.start()
    with guarded("it"):
        closes.set()
        ends.wait()
    thread.join()


def test_the_guard_costs_next_to_nothing() -> None:
    start = time.process_time()
    for _ in range(100):
        with guarded("it", 60):
            pass
    assert time.process_time() - start < 2


def test_a_forgotten_file_that_garbage_collection_closes_blames_nobody(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    cycle: list[Any] = [os.fdopen(os.open(tmp_path / "a", os.O_RDONLY))]
    cycle.append(cycle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with guarded("it"):
            del cycle
            kept = [[n] for n in range(200_000)]  # would set off a collection
        assert kept
        gc.collect()
