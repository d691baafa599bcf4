"""Many models: each in a process of its own, failures alone, and a second run has nothing to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import onnx
import psutil
import pytest
import referencing

import graphpass
from graphpass.errors import UsageError
from graphpass.many import local
from graphpass.many.plan import folder_of, plan
from graphpass.many.process import Process
from graphpass.many.report import SCHEMA_PATH, ManyReport, junit, markdown
from graphpass.many.task import Task, make
from graphpass.many.watch import Watch
from graphpass.report import data as single
from graphpass.run import optimization

from .models import ENDLESS, SLOW, digits, loop, processes, small, tree


def run(models: list[Any], out: Path, **options: Any) -> ManyReport:
    return graphpass.optimize_many(models, out, **options)


def statuses(report: ManyReport) -> list[str]:
    return [outcome.status for outcome in report.outcomes]


def task_of(model: Path) -> Task:
    folder = folder_of(model.parent / "out")
    (item,) = plan([model], folder)
    return make(item, folder, {}, {}, None, False)


class KillsOnce(Watch):
    """Kills the process that has begun with a model, so many times."""

    def __init__(self, model: str, times: int) -> None:
        self.model, self.left, self.killed = model, times, 0

    def progress(self, model: str, text: str, done: float) -> None:
        if Path(model).name == self.model and text == "starting" and self.left:
            self.left -= 1
            while not (found := processes(of="many.process")):
                pass  # a process has no command line for a moment
            found[0].kill()
            self.killed += 1


# ------------------------------------------------------------------------------ what is done


def test_results_are_those_of_single_runs_and_the_report_has_all(tmp_path: Path) -> None:
    models = [digits(tmp_path / "d.onnx"), small(tmp_path / "s.onnx"), tmp_path / "none.onnx"]
    report = run(models, tmp_path / "out", jobs=2)
    assert statuses(report) == ["written", "written", "failed"]
    assert report.counts == {"written": 2, "skipped": 0, "failed": 1}
    assert report.exit_code == 3 and "No such file" in report.failed[0].message
    for name in ("d.onnx", "s.onnx"):
        with graphpass.optimize(tmp_path / name) as result:
            result.save(tmp_path / "alone.onnx")
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    records = [".graphpass/d.onnx.json", ".graphpass/s.onnx.json"]
    assert tree(tmp_path / "out") == [*records, "d.onnx", "s.onnx"]
    told = report.outcomes[0].report
    assert told is not None and told["environment"]["threads"] >= 1


def test_the_report_follows_the_published_schema(tmp_path: Path) -> None:
    models = [small(tmp_path / "s.onnx"), tmp_path / "none.onnx"]
    run(models[:1], tmp_path / "out")
    report = run([*models, small(tmp_path / "t.onnx")], tmp_path / "out")
    assert statuses(report) == ["skipped", "failed", "written"]
    schema, nested = (json.loads(p.read_text()) for p in (SCHEMA_PATH, single.SCHEMA_PATH))
    jsonschema.Draft202012Validator.check_schema(schema)
    registry = referencing.Registry().with_resource(
        "report.schema.json", referencing.Resource.from_contents(nested)
    )
    told = json.loads(report.to_json())
    jsonschema.Draft202012Validator(schema, registry=registry).validate(told)
    told["models"][0]["report"]["rounds"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema, registry=registry).validate(told)


def test_markdown_and_junit_tell_of_every_model(tmp_path: Path) -> None:
    models = [small(tmp_path / "s.onnx"), tmp_path / "none.onnx"]
    report = run(models, tmp_path / "out")
    text = markdown(report)
    assert "# graphpass: 1 written, 1 failed" in text and "No such file" in text
    assert "| clean-up | 1 |" in text
    found = junit(report)
    assert 'tests="6" failures="1" skipped="0"' in found and "none.onnx" in found
    again = junit(run(models, tmp_path / "out"))
    assert "done already, and nothing has changed" in again


def test_strict_and_reproducers_work_for_each_model(tmp_path: Path) -> None:
    report = run([small(tmp_path / "s.onnx")], tmp_path / "out", strict=True, reproducers="r")
    assert statuses(report) == ["written"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"passes": "nope"}, UsageError, "there is no pass 'nope'"),
        ({"inputs": {"x": 1}}, UsageError, "give a file"),
        ({"nope": 1}, TypeError, "has no argument 'nope'"),
        ({"scheduler": "nonsense"}, UsageError, "there is no Dask scheduler at nonsense"),
    ],
)
def test_what_fits_no_model_is_refused_before_anything_is_done(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run([small(tmp_path / "s.onnx")], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ resume


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Do two models, one with external data; a call does them again and says what came of it."""
    here = lambda tasks, jobs, tell: local.inline(tasks, tell)  # noqa: E731
    monkeypatch.setattr(local, "run", here)  # starting a process takes longer than these models
    models = [small(tmp_path / "a.onnx"), small(tmp_path / "b.onnx", 1, external=True)]

    def again(**options: Any) -> list[str]:
        return statuses(run(models, tmp_path / "out", **options))

    assert again() == ["written", "written"]
    assert again() == ["skipped", "skipped"]
    return again


def test_a_changed_model_is_done_again(done: Callable[..., list[str]], tmp_path: Path) -> None:
    small(tmp_path / "a.onnx", 2)
    assert done() == ["written", "skipped"]


def test_changed_external_data_is_a_changed_model(
    done: Callable[..., list[str]], tmp_path: Path
) -> None:
    before = (tmp_path / "b.onnx").read_bytes()
    small(tmp_path / "b.onnx", 3, external=True)
    assert (tmp_path / "b.onnx").read_bytes() == before
    assert done() == ["skipped", "written"]


@pytest.mark.parametrize("name", ["out/b.onnx", "out/b.onnx.data"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_result_that_is_not_as_it_was_written_is_done_again(
    done: Callable[..., list[str]], tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / name
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-9] if damage == "cut" else content[:-9] + b"x" * 9)
    assert done() == ["skipped", "written"]
    onnx.checker.check_model(str(tmp_path / "out/b.onnx"))


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0}', '{"version": 1, "settings": {}}'])
def test_a_record_that_is_none_counts_for_nothing(
    done: Callable[..., list[str]], tmp_path: Path, content: str
) -> None:
    (tmp_path / "out/.graphpass/a.onnx.json").write_text(content)
    assert done() == ["written", "skipped"]


def test_options_and_versions_count_but_not_how_many_at_a_time(
    done: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert done(jobs=2, threads=1) == ["skipped", "skipped"]
    assert done(passes="clean-up") == ["written", "written"]
    assert done(passes="clean-up", seed=1) == ["written", "written"]
    assert done(passes="clean-up", seed=1, external_data="never") == ["written", "written"]
    record = tmp_path / "out/.graphpass/a.onnx.json"
    told = json.loads(record.read_text())
    told["settings"]["packages"]["onnxruntime"] = "0.1"
    record.write_text(json.dumps(told))
    assert done(passes="clean-up", seed=1, external_data="never") == ["written", "skipped"]
    assert done(resume=False) == ["written", "written"]


def test_other_inputs_to_check_with_count(done: Callable[..., list[str]], tmp_path: Path) -> None:
    import numpy as np

    inputs = tmp_path / "x.npz"
    np.savez(inputs, x=np.ones((1, 32), np.float32))
    assert done(inputs=inputs) == ["written", "written"]
    assert done(inputs=inputs) == ["skipped", "skipped"]
    np.savez(inputs, x=np.zeros((1, 32), np.float32))
    assert done(inputs=inputs) == ["written", "written"]


# ----------------------------------------------------------------------------------- crashes


def test_a_process_that_is_killed_has_its_model_done_by_another(tmp_path: Path) -> None:
    models = [small(tmp_path / "a.onnx"), small(tmp_path / "b.onnx")]
    watch = KillsOnce("a.onnx", 1)
    report = run(models, tmp_path / "out", watch=watch)
    assert watch.killed == 1 and statuses(report) == ["written", "written"]


def test_a_model_that_kills_every_process_fails_alone(tmp_path: Path) -> None:
    models = [small(tmp_path / "a.onnx"), small(tmp_path / "b.onnx")]
    watch = KillsOnce("a.onnx", 2)
    report = run(models, tmp_path / "out", watch=watch)
    assert statuses(report) == ["failed", "written"] and report.exit_code == 71
    assert "its process was killed by SIGKILL" in report.failed[0].message
    assert tree(tmp_path / "out") == [".graphpass/b.onnx.json", "b.onnx"]


def test_what_a_killed_process_left_beside_its_result_is_removed(tmp_path: Path) -> None:
    class KillsWhileWriting(KillsOnce):
        def progress(self, model: str, text: str, done: float) -> None:
            if text == "starting":
                hidden = tmp_path / "out/.a.onnx.graphpass"
                hidden.mkdir(exist_ok=True)
                (hidden / "a.onnx").write_bytes(b"half")
            super().progress(model, text, done)

    watch = KillsWhileWriting("a.onnx", 2)
    report = run([small(tmp_path / "a.onnx")], tmp_path / "out", watch=watch)
    assert statuses(report) == ["failed"]
    assert tree(tmp_path / "out") == [] and not (tmp_path / "out/.a.onnx.graphpass").exists()


def test_a_bug_is_one_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(optimization, "optimize", broken)
    task = task_of(small(tmp_path / "a.onnx"))
    (outcome,) = local.inline([task], lambda model, text, done: None)
    assert outcome.exit_code == 70 and "this is a bug in graphpass (KeyError" in outcome.message


def test_processes_end_when_nobody_wants_the_rest(tmp_path: Path) -> None:
    class Interrupts(Watch):
        def finished(self, outcome: Any) -> None:
            raise KeyboardInterrupt

    models = [loop(tmp_path / "endless.onnx", ENDLESS), small(tmp_path / "a.onnx")]
    with pytest.raises(KeyboardInterrupt):
        run(models, tmp_path / "out", jobs=2, watch=Interrupts())
    assert not processes()
    assert tree(tmp_path / "out") == [".graphpass/a.onnx.json", "a.onnx"]


def test_a_process_goes_with_its_parent_and_takes_onnx_runtime_along(tmp_path: Path) -> None:
    process = Process()
    process.begin(task_of(loop(tmp_path / "e.onnx", ENDLESS)))
    child = psutil.Process(process.pid)
    deadline = time.monotonic() + 20
    while not (below := child.children(recursive=True)) and time.monotonic() < deadline:
        time.sleep(0.05)
    threading.Timer(0.5, os.kill, (process.pid, signal.SIGTERM)).start()
    process.why_it_died()
    process.close()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert below and not alive


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    models = [small(tmp_path / "a.onnx"), loop(tmp_path / "slow.onnx", SLOW)]
    command = [sys.executable, "-m", "graphpass", "optimize", *map(str, models), "-q"]
    command += ["--out-dir", str(tmp_path / "out")]
    running = subprocess.Popen(command)
    record = tmp_path / "out/.graphpass/a.onnx.json"
    deadline = time.monotonic() + 30
    while not record.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    below = psutil.Process(running.pid).children(recursive=True)
    running.kill()
    running.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert statuses(run(models, tmp_path / "out")) == ["skipped", "written"]
    kept = [".graphpass/a.onnx.json", ".graphpass/slow.onnx.json", "a.onnx", "slow.onnx"]
    assert tree(tmp_path / "out") == kept
