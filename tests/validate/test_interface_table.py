"""The table of docs/proof.md on passes that change the interface: every kind, what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import onnx

from graphpass.rewrite.interface import Interface
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, graph
from graphpass.validate.validator import Validator
from tests.doc_tables import rows_of, write_table
from tests.passes import test_free_batch as batches
from tests.passes import test_free_resolution as sizes

from .test_interface import declared

_OTHER_SIZES = ((12, 12), (24, 24), (12, 36), (30, 18))
_HEAD = (
    "| network | pass | what becomes of it | against the original: runs | wrong "
    "| only declared free |\n|---|---|---|--:|--:|---|"
)


def kinds() -> dict[str, tuple[str, str]]:
    """Return pass and outcome of every kind of network that is tried."""
    return {
        **dict.fromkeys(batches.FREED, ("free-batch", "freed")),
        **dict.fromkeys(batches.REFUSED, ("free-batch", "refused")),
        **dict.fromkeys((*sizes.FREED, *sizes.SIGNALS), ("free-resolution", "freed")),
        **{kind: ("free-resolution", f"{row[3]} freed") for kind, row in sizes.PARTLY.items()},
        **{
            f"{kind} (resolution)" if kind in batches.REFUSED else kind: (
                "free-resolution",
                "refused",
            )
            for kind in sizes.REFUSED
        },
    }


def test_the_table_in_the_docs_is_of_these_networks() -> None:
    if os.environ.get("GRAPHPASS_WRITE_DOCS"):
        write_table("interface", [*_HEAD.split("\n"), *_rows()])
    told = rows_of("interface")
    assert {kind: tuple(cells[:2]) for kind, cells in told.items()} == kinds()
    assert len(told) >= 20
    for kind, (_, outcome, runs, wrong, careless) in told.items():
        assert outcome.endswith("freed") == (runs != "–"), kind
        assert wrong in ("0", "–"), kind
        assert careless in ("–", "caught", "does not load"), kind


def _rows() -> Iterator[str]:
    for kind, (step, outcome) in kinds().items():
        name = kind.removesuffix(" (resolution)")
        if outcome == "refused":
            yield f"| {kind} | {step} | {outcome} | – | – | {_careless(name, step)} |"
            continue
        runs, wrong = _batch_runs(kind) if step == "free-batch" else _size_runs(kind)
        yield f"| {kind} | {step} | {outcome} | {runs} | {wrong} | – |"


def _batch_runs(kind: str) -> tuple[int, int]:
    nodes, outputs, constants, _ = batches.FREED[kind]
    original = batches.network(nodes, outputs, constants)
    freed, _ = apply_to(make("free-batch"), original)
    return len(batches.ROWS), len(batches.differences(original, freed))


def _size_runs(kind: str) -> tuple[int, int]:
    tried: tuple[sizes.Sizes, ...] = _OTHER_SIZES
    build = sizes.built
    if kind in sizes.PARTLY:
        tried, build = tuple(sizes.partly_sizes(kind)), sizes.partly
    elif kind in sizes.SIGNALS:
        rank = sizes.SIGNALS[kind][0].count("{")
        tried, build = tuple(t[:rank] for t in ((12, 8, 6), (20, 10, 14))), sizes.signal
    native = (8, 12) if kind in sizes.PARTLY else tried[0]
    freed, _ = apply_to(make("free-resolution"), build(kind, native))
    wrong = sum(
        not np.allclose(
            sizes.answer(freed, size), sizes.answer(build(kind, size), size), rtol=1e-4, atol=1e-5
        )
        for size in tried
    )
    return len(tried), wrong


def _careless(kind: str, step: str) -> str:
    """Say what the judge makes of the network with its axes only declared free."""
    if "somebody" in kind:
        return "does not load"
    if step == "free-batch":
        nodes, outputs, constants, opset, _ = batches.REFUSED[kind]
        original, axes = batches.network(nodes, outputs, constants, opset), {0: "N"}
    else:
        nodes, shape, constants, _ = sizes.REFUSED[kind]
        text = f"(float[1,3,12,12] x) => (float[{shape}] y) {{ {nodes} }}"
        original = graph(text, **{**sizes.K, **constants})
        axes = {2: "height", 3: "width"}
    return "passes" if _passes(original, declared(original, axes)) else "caught"


def _passes(original: onnx.ModelProto, candidate: onnx.ModelProto) -> bool:
    with Validator(original) as validator:
        return validator.check(candidate, interface_may_change=Interface.SIZES).ok
