"""How much of a model each target takes, before and after its passes: for docs/targets.md.

python -m benchmarks.targets a.onnx b.onnx
"""

from __future__ import annotations

import argparse
from pathlib import Path

import graphpass
from graphpass.ir.model import Model
from graphpass.targets.fit import Fit, fit
from graphpass.targets.profile import Profile, load, names
from graphpass.validate.cost import natural_shapes


def fitted(model: Model, profile: Profile) -> Fit:
    return fit(model, profile, natural_shapes(model.proto))


def row(path: Path, name: str) -> str:
    profile = load(name)
    before = fitted(Model.load(path), profile)
    with graphpass.optimize(path, profile.passes) as result:
        after = fitted(Model.load(result.model), profile)
        checks = [entry.check for entry in result.report.passes if entry.check is not None]
    left: dict[str, int] = {}
    for misfit in after.misfits:
        told = f"{misfit.operator}: {misfit.reason.split(':')[0]}"
        left[told] = left.get(told, 0) + 1
    why = "; ".join(
        f"{count} × {told}" for told, count in sorted(left.items(), key=lambda i: -i[1])[:2]
    )
    cells = (
        path.stem,
        name,
        f"{before.nodes - before.nodes_on} of {before.nodes}",
        f"{after.nodes - after.nodes_on} of {after.nodes}",
        f"{before.partitions} → {after.partitions}",
        checks[-1].status if checks else "nothing changed",
        why.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    given = parser.parse_args()
    print("| model | target | do not fit, before | after | pieces | numbers | what is left |")
    print("|---|---|---|---|---|---|---|")
    for path in given.models:
        for name in names():
            if load(name).limits or load(name).operators:
                print(row(path, name), flush=True)


if __name__ == "__main__":
    main()
