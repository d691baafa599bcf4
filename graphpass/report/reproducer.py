"""A folder that shows one rewrite to be wrong, without graphpass: two small models, a test."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphpass.errors import OutputError
from graphpass.report.data import Report, environment, plain
from graphpass.rewrite.applied import Rewrite
from graphpass.storage.wire import attach
from graphpass.validate.process.runtime import Runtime
from graphpass.validate.window.check import Example, example

_TEST = '''"""{title}

{law}
Run with pytest; it needs numpy, onnxruntime and the files beside it.
"""

from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def outputs(name):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        str(HERE / name), options, providers=["CPUExecutionProvider"]
    )
    inputs = dict(np.load(HERE / "inputs.npz"))
    wanted = {{value.name for value in session.get_inputs()}}
    return session.run(None, {{key: inputs[key] for key in inputs if key in wanted}})[0]


def test_after_computes_what_before_does():
    before, after = outputs("before.onnx"), outputs("after.onnx")
    assert before.dtype == after.dtype and before.shape == after.shape
    if before.dtype.kind != "f":
        assert np.array_equal(before, after)
        return
    finite = np.isfinite(before) & np.isfinite(after)
    assert np.array_equal(before[~finite], after[~finite], equal_nan=True)
    allowed = np.broadcast_to(np.load(HERE / "allowed.npy"), before.shape)[finite]
    error = np.abs(before.astype(np.float64) - after)[finite]
    worst = int(np.argmax(error - allowed)) if error.size else 0
    assert (error <= allowed).all(), f"off by {{error[worst]}}, allowed are {{allowed[worst]}}"
'''

NOT_SHOWN = "on its own it computes what it replaces: what is wrong shows in the whole model"


def write_all(report: Report, folder: Path) -> list[Path]:
    """Write a reproducer for each rewrite that was undone; return their folders.

    Raises `OutputError` where they cannot be written.
    """
    written = []
    for entry in report.passes:
        for undone in entry.quarantined:
            name = f"{entry.name}-{undone.rewrite.rule}-{undone.rewrite.site}"
            target = folder / re.sub(r"[^\w.-]+", "_", name)[:120]
            facts = {"pass": entry.name, "options": entry.options, "reason": undone.reason}
            write(undone.rewrite, target, facts, report.settings)
            written.append(target)
    return written


def write(
    rewrite: Rewrite, folder: Path, facts: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Write one reproducer. `facts`: what else report.json shall say. Raises `OutputError`.

    `settings` as the report has them: seed, rtol, atol. Returns whether it shows a difference:
    the test is written only if it fails.
    """
    shown = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if rewrite.window is not None:
            for side in ("before", "after"):
                proto = attach(getattr(rewrite.window, side))
                onnx.save(proto, folder / f"{side}.onnx")
            found = _example(rewrite, settings)
            if found is not None:
                np.savez(folder / "inputs.npz", **found.inputs)  # type: ignore[arg-type]
                np.save(folder / "allowed.npy", found.allowed)
                shown = found.differs
            if shown:
                _write_test(rewrite, folder)
        told = {
            **facts,
            "shown": "test_rewrite.py fails" if shown else NOT_SHOWN,
            "rewrite": rewrite,
            "settings": settings,
            "environment": environment(1),
        }
        text = json.dumps(plain(told), indent=2, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}") from None
    return shown


def _example(rewrite: Rewrite, settings: Mapping[str, Any]) -> Example | None:
    assert rewrite.window is not None
    kind = rewrite.proof.feed if rewrite.proof is not None else ""
    with Runtime(threads=1) as runtime:
        return example(
            rewrite.window,
            kind,
            runtime,
            seed=settings.get("seed") or 0,
            rtol=settings.get("rtol") or 0.0,
            atol=settings.get("atol") or 0.0,
            shapes=rewrite.proof.shapes if rewrite.proof is not None else None,
        )


def _write_test(rewrite: Rewrite, folder: Path) -> None:
    title = f"{rewrite.rule} at {rewrite.site!r} is wrong.".replace('"""', "'''")
    law = rewrite.law.replace("\\", "/").replace('"""', "'''")
    (folder / "test_rewrite.py").write_text(
        _TEST.format(title=title.replace("\\", "/"), law=law), encoding="utf-8"
    )
