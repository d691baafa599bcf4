"""A BatchNormalization behind each part of a Split goes ahead of it, and into what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_untouched, graph

FOLD = make("fold-batchnorm")
SIZES = np.array([2, 4])


def norm(x: str, y: str, part: str, more: str = "") -> str:
    return f"{y} = BatchNormalization{more}({x}, s{part}, t{part}, m{part}, v{part}) "


def held(**channels: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        f"{name}{part}": rng.uniform(0.5, 1.5, count).astype(np.float32)
        for part, count in channels.items()
        for name in "stmv"
    }


BOTH = "a, b = Split<axis=1>(c, k) " + norm("a", "y", "1") + norm("b", "z", "2")
TEXT = "(float[N,6,4,4] c) => (float[N,2,4,4] y, float[N,4,4,4] z) {{ {0} }}"


def parts(body: str, opset: int = 17, **more: Any) -> Any:
    return graph(TEXT.format(body), opset=opset, **{**held(**{"1": 2, "2": 4}), "k": SIZES, **more})


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("opset", [13, 17])
def test_one_ahead_of_a_split(opset: int, axis: int) -> None:
    model = parts(BOTH.replace("axis=1", f"axis={axis}"), opset)
    result = check(FOLD, model, "BatchNormalization Split", exact=True)
    assert not apply_to(FOLD, result)[1].rewrites


def test_what_feeds_the_split_takes_it_in() -> None:
    text = f"(float[N,3,4,4] x) => (float[N,2,4,4] y, float[N,4,4,4] z) {{ c = Conv(x, W) {BOTH} }}"
    model = graph(text, W=(6, 3, 1, 1), k=SIZES, **held(**{"1": 2, "2": 4}))
    check(FOLD, model, "Conv Split")


def test_three_equal_parts() -> None:
    text = (
        "(float[N,6,4] x) => (float[N,2,4] p, float[N,2,4] q, float[N,2,4] r)"
        " { a, b, c = Split<axis=1, num_outputs=3>(x) "
        + "".join(norm(x, y, x) for x, y in zip("abc", "pqr", strict=True))
        + "}"
    )
    model = graph(text, opset=18, **held(a=2, b=2, c=2))
    check(FOLD, model, "BatchNormalization Split", exact=True)


@pytest.mark.parametrize(
    "body",
    [
        "a, b = Split<axis=1>(c, k) " + norm("a", "y", "1") + "z = Relu(b)",
        BOTH.replace("(b,", "<epsilon=0.1>(b,"),
        "a, b = Split<axis=1>(c, k) r = Relu(a) e = Neg(a) f = Add(r, e) "
        + norm("a", "g", "1")
        + "y = Add(f, g) "
        + norm("b", "z", "2"),
    ],
    ids=["not all", "another epsilon", "another reader"],
)
def test_stays(body: str) -> None:
    check_untouched(FOLD, parts(body))


def test_stays_in_training() -> None:
    body = BOTH.replace("BatchNormalization(", "BatchNormalization<training_mode=1>(")
    check_untouched(FOLD, parts(body))


def test_stays_along_another_axis() -> None:
    text = (
        "(float[N,2,4,4] x) => (float[N,2,2,4] y, float[N,2,2,4] z) { a, b = Split<axis=2>(x, k) "
        f"{norm('a', 'y', '1')} {norm('b', 'z', '1')} }}"
    )
    check_untouched(FOLD, graph(text, k=np.array([2, 2]), **held(**{"1": 2})))
