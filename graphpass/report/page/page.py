"""One HTML page about a run: what changed, why to trust it, what stayed and why.

The page holds all that it needs and asks nothing of a network. Whatever comes from a model goes in
as JSON and is shown as text: a name can become neither markup nor script.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import onnx

from graphpass.ir.cost import cost_of
from graphpass.ir.type_text import shape_text
from graphpass.report.data import PassReport, Report, file_facts, model_facts, plain
from graphpass.report.page.drawn import pair
from graphpass.report.page.layers import layers
from graphpass.report.rows import (
    CHOICES,
    OUTPUTS,
    PASSES,
    choices,
    exactly,
    outputs,
    overview,
    passes,
    refusals,
    remarks,
)
from graphpass.report.summary import counted, verdict
from graphpass.validate.cost import natural_shapes


def page(report: Report, models: tuple[onnx.ModelProto, onnx.ModelProto] | None = None) -> str:
    """Return an HTML page on a run. `models`: skeletons before and after, to be drawn."""
    facts = [row for row in overview(report) if not row[0].startswith("  ")]
    operators = [row[:3] for row in overview(report) if row[0].startswith("  ")]
    return filled(
        {
            "title": " → ".join(
                facts.files[0].name for facts in (report.input, report.output) if facts.files
            ),
            "verdict": verdict(report),
            "remarks": [*remarks(report, everything=True), *filter(None, [exactly(report)])],
            "facts": facts,
            "operators": [[name.strip(), before, after] for name, before, after in operators],
            "passes": {"header": PASSES, "rows": list(passes(report))},
            "choices": {"header": CHOICES, "rows": list(choices(report))},
            "outputs": {"header": OUTPUTS, "rows": list(outputs(report))},
            "rewrites": [row for entry in report.passes for row in _rewrites(entry)],
            "refusals": [{"pass": group.step, **plain(group)} for group in refusals(report)],
            "cost": _cost(report, models),
            "graphs": pair(*models) if models is not None else [],
            "run": list(_run(report)),
        }
    )


def diff_page(models: tuple[onnx.ModelProto, onnx.ModelProto], files: tuple[Path, Path]) -> str:
    """Return an HTML page that holds two skeletons side by side; nothing is run."""
    facts = [
        model_facts(model, [file_facts(path, sha256=False)])
        for model, path in zip(models, files, strict=True)
    ]
    shapes = [natural_shapes(model) for model in models]
    facts = [
        replace(told, cost=cost_of(model, fed))
        for told, model, fed in zip(facts, models, shapes, strict=True)
    ]
    report = Report({}, facts[0], facts[1], validated=False)
    graphs = pair(*models)
    shared = {node["label"] for node in graphs[0]["nodes"]} & {
        node["label"] for node in graphs[1]["nodes"]
    }
    alone = [[n["label"] for n in graph["nodes"] if n["label"] not in shared] for graph in graphs]
    nodes = f"{facts[0].nodes:,} and {counted(facts[1].nodes, 'node')}"
    table = list(overview(report))
    return filled(
        {
            "title": " and ".join(path.name for path in files),
            "verdict": f"{nodes}, {len(alone[0]):,} and {len(alone[1]):,} of them in one only",
            "remarks": ["nothing was run: graphpass compare says whether they compute the same"],
            "facts": [row for row in table if not row[0].startswith("  ")],
            "operators": [[r[0].strip(), *r[1:3]] for r in table if r[0].startswith("  ")],
            "passes": None,
            "choices": None,
            "outputs": None,
            "rewrites": [],
            "refusals": [],
            "cost": _cost(report, models),
            "graphs": graphs,
            "alone": alone,
            "run": [],
        }
    )


def filled(data: dict[str, Any]) -> str:
    """Return the page with `data`, its style, its script and the layout library in it."""
    folder = resources("graphpass.report.page")
    parts = {
        "style": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "dagre": folder.joinpath("vendor/dagre.min.js").read_text(encoding="utf-8"),
        "script": folder.joinpath("page.js").read_text(encoding="utf-8"),
        # `</script>` in a name must not end the element that the data lies in
        "data": json.dumps(plain(data), ensure_ascii=False).replace("<", "\\u003c"),
    }
    text = folder.joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"/\*(style|dagre|script|data)\*/", lambda found: parts[found[1]], text)


def _cost(report: Report, models: tuple[onnx.ModelProto, onnx.ModelProto] | None) -> dict[str, Any]:
    before, after = report.input.cost, report.output.cost
    if models is None or before is None or after is None:
        return {"layers": [], "fed": ""}
    fed = ", ".join(f"{name} {shape_text(shape)}" for name, shape in before.inputs.items())
    rewrites = [rewrite for entry in report.passes for rewrite in entry.rewrites]
    return {"layers": layers(*models, before.inputs, after.inputs, rewrites), "fed": fed}


def _rewrites(entry: PassReport) -> Iterator[dict[str, Any]]:
    for rewrite in entry.rewrites:
        proof = rewrite.proof
        yield {
            "number": rewrite.number,
            "pass": entry.name,
            "rule": rewrite.rule,
            "law": rewrite.law,
            "site": rewrite.site,
            "before": rewrite.before,
            "after": rewrite.after,
            "status": "not run" if proof is None else proof.status,
            "reason": "" if proof is None else proof.reason,
            "equal": proof is not None and proof.bound == "equal",
            "error": "" if proof is None else f"{proof.max_abs_error:.2g}",
            "allowed": "" if proof is None else f"{proof.allowed:.2g}",
            "exact": "" if proof is None else proof.exact,
            "ratio": proof.ratio if proof is not None and math.isfinite(proof.ratio) else 0.0,
        }


def _run(report: Report) -> Iterator[tuple[str, str]]:
    for facts, what in ((report.input, "read"), (report.output, "written")):
        for file in facts.files:
            yield (
                what,
                f"{file.name}, {file.size_bytes:,} bytes, SHA-256 {file.sha256 or 'not asked for'}",
            )
    for name, value in {**report.settings, **report.environment}.items():
        told = plain(value)
        if told not in (None, [], {}):
            yield name, told if isinstance(told, str) else json.dumps(told, ensure_ascii=False)
    yield "time", f"{report.total_s:.1f} s, begun {report.started_at}"
