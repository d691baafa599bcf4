"""How much of a network each target takes, before and after its passes: for docs/targets.md.

python -m benchmarks.targets [--folder FOLDER] [--write docs/targets.md] [MODEL.onnx …]

Without models, those of `benchmarks.exported`. `--write` puts the table between its marks.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

import graphpass
from benchmarks.documents import write_between
from benchmarks.exported import NETWORKS, export
from graphpass.ir.model import Model
from graphpass.targets.fit import Fit, fit
from graphpass.targets.profile import Profile, load, names

MARKS = ("<!-- targets: made by benchmarks.targets -->", "<!-- /targets -->")
HEAD = (
    "| network | target | do not fit, before | after | pieces | numbers | what is left |",
    "|---|---|--:|--:|---|---|---|",
)
_REASONS = 3


def rows(path: Path) -> Iterator[str]:
    """Yield a row for each target; pipelines that several targets share are run once."""
    done: dict[str, tuple[onnx.ModelProto, str]] = {}
    before = Model.load(path)
    for name in names():
        profile = load(name)
        if not (profile.limits or profile.operators):
            continue
        if profile.passes not in done:
            with graphpass.optimize(path, profile.passes) as result:
                checks = [e.check for e in result.report.passes if e.check is not None]
                undone = [e for e in result.report.passes if e.reason or e.quarantined]
                status = checks[-1].status if checks else "nothing changed"
                status += ", something undone" if undone else ""
                done[profile.passes] = result.model, status
        after, status = done[profile.passes]
        yield _row(path.stem, profile, fit(before, profile, {}), _fit(after, profile), status)


def _fit(model: onnx.ModelProto, profile: Profile) -> Fit:
    return fit(Model.load(model), profile, {})


def _row(network: str, profile: Profile, before: Fit, after: Fit, status: str) -> str:
    left: dict[str, int] = {}
    for misfit in after.misfits:
        reason = misfit.reason.split(":")[0].removeprefix(f"{misfit.operator} is ")
        told = f"{misfit.operator}: {reason}"
        left[told] = left.get(told, 0) + 1
    most = sorted(left.items(), key=lambda item: -item[1])
    why = "; ".join(f"{count} × {told}" for told, count in most[:_REASONS])
    why += f"; {len(most) - _REASONS} further reasons" if len(most) > _REASONS else ""
    cells = (
        network,
        profile.name,
        f"{before.nodes - before.nodes_on} of {before.nodes}",
        f"{after.nodes - after.nodes_on} of {after.nodes}",
        f"{before.partitions} → {after.partitions}",
        status,
        why.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--folder", type=Path, help="where exports are kept")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT")
    given = parser.parse_args()
    table = list(HEAD)
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder or Path(made)
        paths = given.models or (export(name, folder) for name in NETWORKS)
        for path in paths:
            for row in rows(path):
                print(row, flush=True)
                table.append(row)
    if given.write is not None:
        write_between(MARKS, table, given.write)


if __name__ == "__main__":
    main()
