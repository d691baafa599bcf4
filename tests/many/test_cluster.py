"""The same on a real Dask cluster: worker processes, one of them killed, nothing lost."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import graphpass
from graphpass.cli import run
from graphpass.many import cluster
from graphpass.many.report import ManyReport
from graphpass.many.watch import Watch

from .models import ENDLESS, SLOW, digits, loop, small, tree

distributed = pytest.importorskip("distributed")

pytestmark = [
    # of Dask itself, at its end and where a worker is killed
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with distributed.LocalCluster(
        processes=True,
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=":0",
        silence_logs=logging.CRITICAL,
    ) as started:
        yield started


def statuses(report: ManyReport) -> list[str]:
    return [outcome.status for outcome in report.outcomes]


def at_work_on(started: Any, name: str) -> tuple[int, psutil.Process] | None:
    """Return the process id of the worker that does a model, and the process that does it."""
    for state in list(started.scheduler.workers.values()):
        nanny = started.workers.get(state.name)  # who starts no other worker before it is ready
        pid = nanny.pid if nanny is not None and nanny.status.name == "running" else None
        if pid is None or not any(name in str(task.key) for task in list(state.processing)):
            continue
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(pid).children():
                if any("many.process" in word for word in child.cmdline()):
                    return pid, child
    return None


def all_run(started: Any) -> bool:
    """Whether both workers take tasks: one that starts anew would leave both to the other."""
    nannies = started.workers.values()
    return len(started.scheduler.running) == 2 and all(n.status.name == "running" for n in nannies)


def wait_for(look: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


class Killer(threading.Thread):
    """Kills the worker that is at work on a model, so many times."""

    def __init__(self, started: Any, name: str, times: int) -> None:
        super().__init__(daemon=True)
        self.killed: list[int] = []
        self._cluster, self._model, self._times = started, name, times

    def run(self) -> None:
        for _ in range(self._times):
            if (pid := wait_for(self._at_work)) is not None:
                time.sleep(0.3)  # in the middle of it
                os.kill(pid, signal.SIGKILL)
                self.killed.append(pid)

    def _at_work(self) -> int | None:
        found = at_work_on(self._cluster, self._model)
        return None if found is None or found[0] in self.killed else found[0]


def test_a_worker_is_killed_in_the_middle_and_nothing_is_lost(workers: Any, tmp_path: Path) -> None:
    models = [loop(tmp_path / "slow.onnx", SLOW), digits(tmp_path / "d.onnx")]
    models += [small(tmp_path / f"s{i}.onnx", i, external=i == 1) for i in range(3)]
    killer = Killer(workers, "slow.onnx", 1)
    killer.start()
    report = graphpass.optimize_many(
        [*models, tmp_path / "none.onnx"], tmp_path / "out", scheduler=workers.scheduler_address
    )
    killer.join()
    assert len(killer.killed) == 1
    # what the dead worker had just done it is asked for again, and finds it done
    assert statuses(report)[0] == "written" and statuses(report)[-1] == "failed"
    assert set(statuses(report)[1:-1]) <= {"written", "skipped"}
    assert "No such file" in report.failed[0].message and report.exit_code == 3
    assert all(outcome.report for outcome in report.outcomes[:-1])
    assert statuses(graphpass.optimize_many(models, tmp_path / "here")) == ["written"] * 5
    written = tree(tmp_path / "here")
    assert tree(tmp_path / "out") == written and len(written) == 11
    for name in written:
        if not name.startswith(".graphpass/"):
            here, there = tmp_path / "here" / name, tmp_path / "out" / name
            assert here.read_bytes() == there.read_bytes()
    # a record of the cluster is as good as one from here
    assert statuses(graphpass.optimize_many(models, tmp_path / "out")) == ["skipped"] * 5


def test_a_model_that_kills_workers_fails_alone(workers: Any, tmp_path: Path) -> None:
    models = [loop(tmp_path / "bad.onnx", ENDLESS), small(tmp_path / "s.onnx")]
    workers.scheduler.allowed_failures, before = 0, workers.scheduler.allowed_failures
    assert wait_for(lambda: all_run(workers), 60)
    killer = Killer(workers, "bad.onnx", 2)  # once beside the other model, once alone
    killer.start()
    address = workers.scheduler_address
    report = graphpass.optimize_many(
        models, tmp_path / "out", scheduler=address, time_limit_s=30, memory_limit_mib=2000
    )
    workers.scheduler.allowed_failures = before
    assert len(killer.killed) == 2 and [o.model for o in report.failed] == [str(models[0])]
    assert "workers died over it again and again" in report.failed[0].message
    assert report.exit_code == 71
    assert wait_for(lambda: len(workers.scheduler.workers) == 2)


def test_what_nobody_waits_for_ends_on_the_workers(workers: Any, tmp_path: Path) -> None:
    model = loop(tmp_path / "endless.onnx", ENDLESS)
    child: list[psutil.Process] = []

    class Interrupted(Watch):
        def finished(self, outcome: Any) -> None:
            child.append(wait_for(lambda: at_work_on(workers, "endless.onnx"))[1])
            raise KeyboardInterrupt

    models = [model, small(tmp_path / "s.onnx")]
    assert wait_for(lambda: all_run(workers), 60)
    with pytest.raises(KeyboardInterrupt):
        graphpass.optimize_many(
            models,
            tmp_path / "out",
            scheduler=workers.scheduler_address,
            watch=Interrupted(),
            memory_limit_mib=2000,
        )
    _, alive = psutil.wait_procs(child, timeout=60)
    assert child and not alive
    assert tree(tmp_path / "out") == [".graphpass/s.onnx.json", "s.onnx"]


def test_the_command_line_does_it(
    workers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small(tmp_path / "s.onnx")
    arguments = ["optimize", str(model), "--out-dir", str(tmp_path / "out")]
    assert run([*arguments, "--scheduler", workers.scheduler_address]) == 0
    out, err = capsys.readouterr()
    assert "1 written" in out and "[1/1]" in err and err.count("\n") == 1
    assert (tmp_path / "out/s.onnx").exists()


# ----------------------------------------------------------------------------------- refusals


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert run(["optimize", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and text in err and err.count("\n") == 1


def test_no_scheduler_is_one_sentence_soon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_S", 0.5)
    arguments = [str(small(tmp_path / "s.onnx")), "--out-dir", str(tmp_path / "out")]
    address = "tcp://127.0.0.1:9"
    text = f"there is no Dask scheduler at {address}"
    refused(capsys, [*arguments, "--scheduler", address], text)
    assert not (tmp_path / "out").exists()


def test_without_the_extra_its_name_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    arguments = [str(small(tmp_path / "s.onnx")), "--out-dir", str(tmp_path / "out")]
    text = "pip install 'graphpass[distributed]'"
    refused(capsys, [*arguments, "--scheduler", "tcp://h:1"], text)


def test_memory_is_not_shared_with_workers(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["memory://a/x.onnx", "--out-dir", "memory://b", "--scheduler", "tcp://h:1"]
    refused(capsys, arguments, "memory of this process")


def test_jobs_and_a_scheduler_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["x.onnx", "--out-dir", "out", "--scheduler", "tcp://h:1", "--jobs", "2"]
    refused(capsys, arguments, "either --jobs or --scheduler")


@pytest.mark.parametrize("kind", ["version", "lost", "elsewhere", "bug", "module"])
def test_what_a_worker_can_do_wrong_is_one_sentence(tmp_path: Path, kind: str) -> None:
    """Without a cluster: futures that answer as those of Dask do."""
    import json
    from concurrent.futures import CancelledError
    from types import SimpleNamespace

    model = tmp_path / "s.onnx"
    task = {"model": "s", "name": "s.onnx", "folder": str(tmp_path), "graphpass": "0.0"}
    facts = {"output": {"files": [{"size_bytes": 3}]}}
    elsewhere = {"model": "s", "output": str(model), "status": "written", "report": facts}

    def result() -> str:
        if kind == "version":
            return cluster.on_worker(json.dumps(task))
        if kind == "elsewhere":
            return json.dumps(elsewhere)
        errors = {"lost": CancelledError(), "bug": KeyError("x")}
        raise errors.get(kind, ModuleNotFoundError("No module named 'graphpass'"))

    cluster_lost = "the Dask scheduler at tcp://h:1 was lost before this was done"
    texts = {
        "version": "graphpass 0.1.0, not 0.0",
        "lost": cluster_lost,
        "elsewhere": "is not here: paths need a file system that all machines share",
        "bug": "a worker of tcp://h:1 failed (KeyError: 'x')",
        "module": "the workers of tcp://h:1 cannot import graphpass",
    }
    before, cluster._VISIBLE_S = cluster._VISIBLE_S, 0.1
    outcome = cluster._outcome(SimpleNamespace(result=result), task, "tcp://h:1")
    cluster._VISIBLE_S = before
    assert outcome is not None
    assert outcome.status == "failed" and texts[kind] in outcome.message
