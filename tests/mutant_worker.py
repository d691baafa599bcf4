"""Runs the command line on one mutant after another, in a process with limits of its own.

`python -c "from tests.mutant_worker import serve; serve()" FOLDER` reads a line of JSON for each
mutant and writes one: exit codes, what was wrong, what was said.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from graphpass.cli import run
from tests.mutants import mutant

LIMIT_BYTES = 1 << 30
LIMIT_S = 10.0  # of processor time
_RUN_S = 5.0  # for a model in ONNX Runtime, where it is compared with what was made of it


def serve() -> None:
    folder = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = [
            _command(folder, request["seed"], command, compare=request.get("compare", False))
            for command in request["commands"]
        ]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _command(folder: Path, seed: int, command: list[str], *, compare: bool) -> dict[str, Any]:
    path, result = folder / "m.onnx", folder / "o.onnx"
    content = mutant(seed).SerializeToString()
    path.write_bytes(content)
    options = [] if command[0] == "inspect" else ["-o", str(result)]
    said = io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run([*command, str(path), *options])
    seconds = time.process_time() - start
    problems = []
    if seconds > LIMIT_S:
        problems.append(f"it took {seconds:.1f} s")
    if path.read_bytes() != content:
        problems.append("the input has changed")
    if result.exists() != (code == 0 and bool(options)):
        problems.append(f"exit code {code}, and a result is {'there' if code else 'missing'}")
    if compare and code == 0 and options and command[0] == "optimize":
        problems += _differences(path, result)
    data = list(folder.glob("o.onnx*.data")) if code == 0 else []
    left = {entry.name for entry in folder.iterdir()} - {"m.onnx", "o.onnx"}
    left -= {file.name for file in data}
    if left:
        problems.append(f"left behind: {sorted(left)}")
    for file in (result, *data):
        file.unlink(missing_ok=True)
    text = said.getvalue()
    if not text.replace("\n", "").isprintable():
        problems.append("it says what cannot be seen")
    if "Traceback" in text:
        problems.append("it shows a traceback")
    return {
        "command": command,
        "code": code,
        "problems": problems,
        "said": text.strip().split("\n")[-1][-300:] if code else "",
    }


def _run(session: Any, feeds: dict[str, Any]) -> Any:
    """Run a session; raises where it takes too long, as a Loop of a damaged trip count does."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    timer = threading.Timer(_RUN_S, setattr, (options, "terminate", True))
    timer.start()
    try:
        return session.run(None, feeds, options)
    finally:
        timer.cancel()


def _differences(one: Path, other: Path) -> list[str]:
    """Run both in ONNX Runtime, without its optimizations; say where they differ."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        sessions = [
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for path in (one, other)
        ]
        feeds = {}
        for value in sessions[0].get_inputs():
            shape = [size if isinstance(size, int) else 2 for size in value.shape]
            kind = {"tensor(float)": "f", "tensor(bool)": "?", "tensor(int64)": "q"}[value.type]
            drawn = np.random.default_rng(1).standard_normal(shape) if np.prod(shape) < 1e6 else 0
            feeds[value.name] = np.asarray(drawn).astype(kind).reshape(shape)
        expected = _run(sessions[0], feeds)
    except Exception:
        return []  # the original does not load or run on these inputs
    found = _run(sessions[1], feeds)
    return [
        f"output {index} differs"
        for index, (a, b) in enumerate(zip(expected, found, strict=True))
        if not _alike(a, b)
    ]


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_alike, a, b))
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape):
        return a is None and b is None
    if a.dtype.kind not in "fiub":
        return bool((a == b).all())
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True))
