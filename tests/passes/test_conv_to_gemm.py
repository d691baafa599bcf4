"""conv-to-gemm: a convolution over one window is a dense layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import check, check_refused, check_replay, check_untouched, graph

TO_GEMM = make("conv-to-gemm")


@pytest.mark.parametrize("opset", [7, 12, 13, 18])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ("N,6,1,1", (4, 6, 1, 1)),
        ("N,3,4,5", (7, 3, 4, 5)),
        ("N,3,9", (4, 3, 9)),
        ("2,2,3,2,2", (5, 2, 3, 2, 2)),
    ],
)
def test_one_window_is_a_row_of_the_matrix(
    shape: str, kernel: tuple[int, ...], bias: bool, opset: int
) -> None:
    batch = shape.split(",")[0]
    text = f"(float[{shape}] x) => (float[{batch},{kernel[0]}] y)"
    terms: dict[str, Any] = {"b": (kernel[0],)} if bias else {}
    model = graph(
        f"{text} {{ c = Conv(x, W{', b' if bias else ''}) y = Flatten(c) }}",
        opset=opset,
        W=kernel,
        **terms,
    )
    check(TO_GEMM, model, "Flatten Gemm")
    check_replay(TO_GEMM, model)


def test_layers_in_a_row_lose_their_views() -> None:
    model = graph(
        """(float[N,3,5,5] x) => (float[N,4] y) {
            a = Conv(x, U, b)  r = Relu(a)  c = Conv(r, V)  k = Clip(c, low)  y = Flatten(k)
        }""",
        U=(6, 3, 5, 5),
        b=(6,),
        V=(4, 6, 1, 1),
        low=np.float32(-0.5),
    )
    check(TO_GEMM, model, "Flatten Gemm Relu Gemm Clip")
    check_replay(TO_GEMM, model)


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        ("Conv", "N,3,5,5"),  # more than one window
        ("Conv", "N,3,h,w"),
        ("Conv<pads=[1,1,1,1]>", "N,3,4,4"),
        ("Conv<dilations=[2,2]>", "N,3,7,7"),
        ('Conv<auto_pad="SAME_UPPER">', "N,3,4,4"),
    ],
)
def test_more_than_one_window_is_left_alone(conv: str, shape: str) -> None:
    model = graph(
        f"(float[{shape}] x) => (float[N,k] y) {{ c = {conv}(x, W) y = Flatten(c) }}",
        W=(2, 3, 4, 4),
    )
    check_untouched(TO_GEMM, model)


def test_groups_are_refused() -> None:
    text = "(float[N,4,1,1] x) => (float[N,6] y) { c = Conv<group=2>(x, W) y = Flatten(c) }"
    check_refused(TO_GEMM, graph(text, W=(6, 2, 1, 1)), "Conv of 'c' has groups")


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(p, W) g = Sigmoid(c) y = Mul(x, g)",  # a gate goes back onto its map
        "y = Conv(p, W)",
        "c = Conv(p, W) f = Flatten(c) y = Add(x, c)",
    ],
)
def test_what_stays_a_map_is_left_alone(body: str) -> None:
    text = f"(float[N,4,6,6] x) => (float[N,4,a,b] y) {{ p = GlobalAveragePool(x) {body} }}"
    check_untouched(TO_GEMM, graph(text, W=(4, 4, 1, 1)))


# ------------------------------------------------------------------------------ positions as rows

POSITIONS = make("conv-to-gemm", {"positions": "true"})


@pytest.mark.parametrize("shape", ["N,5,6", "2,3,4,6", "1,N,6", "2,3,2,2,6"])
def test_positions_become_rows(shape: str) -> None:
    sizes = shape.rsplit(",", 1)[0]
    model = graph(f"(float[{shape}] x) => (float[{sizes},4] y) {{ y = MatMul(x, W) }}", W=(6, 4))
    check(POSITIONS, model, "Reshape MatMul Reshape")
    check_replay(POSITIONS, model)
    check_untouched(TO_GEMM, model)


def test_positions_of_two_unknown_sizes_are_refused() -> None:
    model = graph("(float[N,S,6] x) => (float[N,S,4] y) { y = MatMul(x, W) }", W=(6, 4))
    check_refused(POSITIONS, model, "several sizes that are not fixed")


def test_rows_and_stacks_of_matrices_stay() -> None:
    rows = graph("(float[N,6] x) => (float[N,4] y) { y = MatMul(x, W) }", W=(6, 4))
    check_untouched(POSITIONS, rows)
    stack = graph("(float[3,5,6] x) => (float[3,5,4] y) { y = MatMul(x, W) }", W=(3, 6, 4))
    check_untouched(POSITIONS, stack)
