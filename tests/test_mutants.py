"""Damaged models end in one sentence, in time, within memory, and harm nothing."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from graphpass.errors import GraphpassError
from graphpass.ir.model import Model

from .mutants import DAMAGES, FIRST_NEWER, NEWER_DAMAGES, mutants

ROOT = Path(__file__).parents[1]
LIMIT_S = 60.0  # by the clock, for one that hangs without using the processor
CODES = {0, 1, 2, 3, 4, 5}
QUICK = [["inspect"], ["optimize", "--no-validate"], ["convolutionalize", "--no-validate"]]
FULL = [["optimize", "--timeout=5", "--no-latency", "--threads=1"]]


class Worker:
    """A process that runs mutants; it is started anew where it dies or takes too long."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()

    def _start(self) -> None:
        for entry in self._folder.iterdir():
            if entry.is_file():
                entry.unlink()
        code = "from tests.mutant_worker import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def run(self, seed: int, commands: list[list[str]], limit_s: float, **more: Any) -> list[str]:
        """Return what is wrong with how it went."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"seed": seed, "commands": commands, **more}) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], limit_s * len(commands))
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.close()
            how = f"died ({self._process.returncode})" if ready else "took too long"
            self._start()
            return [f"mutant {seed}: the process {how}"]
        return [
            f"mutant {seed}: {' '.join(answer['command'])}: {answer['code']}, {problem}"
            for answer in json.loads(line)
            for problem in (*answer["problems"], *_bad_code(answer))
        ]

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def _bad_code(answer: dict[str, Any]) -> list[str]:
    return [] if answer["code"] in CODES else [f"no code for a model: {answer['said']}"]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.close()


def test_there_are_as_many_kinds_of_damage_as_were_found_useful() -> None:
    assert len(DAMAGES) > 65 and len(NEWER_DAMAGES) > 20


def test_mutants_end_as_they_should(worker: Worker) -> None:
    seeds = (*range(120), *range(FIRST_NEWER, FIRST_NEWER + 60))
    found = [problem for seed in seeds for problem in worker.run(seed, QUICK, LIMIT_S)]
    found += [problem for seed in range(6) for problem in worker.run(seed, FULL, LIMIT_S)]
    assert not found, "\n".join(found[:20])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(mutants())
def test_a_mutant_is_read_or_refused(model: onnx.ModelProto) -> None:
    try:
        loaded = Model.load(model)
        _ = loaded.graph
    except GraphpassError as error:
        assert error.exit_code in (3, 5), error


@pytest.mark.slow
def test_many_mutants_end_as_they_should(worker: Worker) -> None:
    first = int(os.environ.get("GRAPHPASS_FIRST_MUTANT", "0"))
    count = int(os.environ.get("GRAPHPASS_MUTANTS", "20000"))
    found = []
    for seed in range(first, first + count):
        if seed % 250 == 0:
            worker.restart()  # what ONNX Runtime was given it keeps, and the limit is for one model
        found += worker.run(seed, QUICK, LIMIT_S, compare=True)
        if seed % 20 == 0:
            found += worker.run(seed, FULL, LIMIT_S, compare=True)
    assert not found, f"{len(found)}\n" + "\n".join(found[:50])


@pytest.mark.slow
def test_many_newer_mutants_end_as_they_should(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHPASS_FIRST_MUTANT", str(FIRST_NEWER))
    monkeypatch.setenv("GRAPHPASS_MUTANTS", os.environ.get("GRAPHPASS_MUTANTS", "2000"))
    test_many_mutants_end_as_they_should(worker)
