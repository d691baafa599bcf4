"""What happened, in one line: what someone wants to know who has no time for the rest."""

from __future__ import annotations

from pathlib import PurePath

from graphpass.report.data import Report

# operators whose going is what people run passes for, and how several of them are called
_TOLD = {
    "BatchNormalization": "BatchNormalizations",
    "Gemm": "Gemms",
    "MatMul": "MatMuls",
}


def verdict(report: Report) -> str:
    """Return `resnet18: 176 → 49 nodes, all 20 BatchNormalizations gone, every check passed, …`."""
    parts = [_nodes(report), *_gone(report), _checks(report), *_speed(report)]
    text = ", ".join(part for part in parts if part)
    name = PurePath(report.input.files[0].name).stem if report.input.files else ""
    return f"{name}: {text}" if name not in ("", "-") else text


def _nodes(report: Report) -> str:
    before, after = report.input.nodes, report.output.nodes
    if not report.rewrites and not any(entry.notes for entry in report.passes):
        return f"nothing to rewrite in {counted(before, 'node')}"
    return f"{before:,} → {counted(after, 'node')}"


def _gone(report: Report) -> list[str]:
    found = []
    for name, plural in _TOLD.items():
        before = report.input.operators.get(name, 0)
        after = report.output.operators.get(name, 0)
        if after == 0 and before == 1:
            found.append(f"the {name} gone")
        elif after == 0 and before:
            found.append(f"{'both' if before == 2 else f'all {before}'} {plural} gone")
        elif after < before:
            found.append(f"{before - after} of {before} {plural} gone")
    return found


def _checks(report: Report) -> str:
    if not report.validated:
        return "nothing checked"
    undone = sum(len(entry.quarantined) or bool(entry.reason) for entry in report.passes)
    if undone:
        return f"{counted(undone, 'rewrite')} undone, all else checked"
    checks = [entry.check for entry in report.passes if entry.check is not None]
    if any(check.status == "windows only" for check in checks):
        return "each rewrite checked, but not the model"
    return "every check passed" if report.rewrites else ""


def _speed(report: Report) -> list[str]:
    time = report.latency
    if time is None:
        return []
    if time.faster:
        return [f"{1 / time.ratio:.2f}x as fast"]
    if time.slower:
        return [f"takes {time.ratio:.2f} times as long"]
    return ["speed: no difference beyond the noise"]


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 node`, `2 nodes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
