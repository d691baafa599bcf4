"""drop-channels: filters of zeros, and channels that nobody reads, leave the model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper

from graphpass.rewrite.registry import make
from graphpass.testing import check, check_refused, check_untouched, graph

PASS = make("drop-channels")
Array = npt.NDArray[Any]


def weights(*shape: int, zero: tuple[int, ...] = (), axis: int = 0) -> Array:
    rng = np.random.default_rng(shape)
    array = rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)
    array[(slice(None),) * axis + (list(zero),)] = 0
    made: Array = array.astype(np.float32)
    return made


def model(body: str, **constants: Array) -> Any:
    held: dict[str, Any] = {
        "W": weights(6, 3, 3, 3, zero=(1, 4)),
        "b": np.array([1, -2, 3, -1, 0, 2], np.float32),
        "V": weights(5, 6, 3, 3, zero=(5,), axis=1),
        "P": weights(5, 6, 1, 1),
        "c": weights(5),
        **constants,
    }
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: value for name, value in held.items() if name in words}
    return graph(f"(float[N,3,8,7] x) => (float[?,?,?,?] y) {{{body}}}", **used)


def channels(result: Any) -> int:
    tensors = {t.name: t for t in result.graph.initializer}
    return int(numpy_helper.to_array(tensors[result.graph.node[0].input[1]]).shape[0])


POSITIVE = {"b": np.array([1, 2, 3, -1, 0, 2], np.float32)}


@pytest.mark.parametrize(
    ("body", "constants", "left"),
    [
        # 1 and 4 give max(-2, 0) = 0 and 0; nobody reads 5
        ("a = Conv(x, W, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, V, c)", {}, 3),
        ("a = Conv(x, W) y = Conv<pads=[1,1,1,1]>(a, V)", {}, 3),
        # 1 gives 2, which goes into the bias where nothing is padded
        ("a = Conv(x, W, b) r = Relu(a) y = Conv(r, V, c)", POSITIVE, 3),
        ("a = Conv(x, W, b) r = Relu(a) y = Conv(r, V)", POSITIVE, 3),
        ("a = Conv(x, W, b) y = Conv<strides=[2,1]>(a, V, c)", POSITIVE, 3),
        ("a = Conv(x, W, b) r = LeakyRelu<alpha=0.5>(a) y = Conv(r, V, c)", {}, 3),
        # and stays where it is padded
        ("a = Conv(x, W, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, V, c)", POSITIVE, 4),
        ("a = Conv(x, W, b) r = Tanh(a) y = Conv<pads=[1,1,1,1]>(r, P, c)", {}, 5),
        ("a = Conv(x, Z) y = Conv<pads=[1,1,1,1]>(a, V)", {"Z": weights(6, 3, 3, 3) * 0}, 1),
    ],
)
def test_dropped(body: str, constants: dict[str, Array], left: int) -> None:
    result = check(PASS, model(body, **constants), exact="Tanh" not in body)
    assert channels(result) == left
    assert [node.op_type for node in result.graph.node] == re.findall(r"= (\w+)", body)


@pytest.mark.parametrize(
    "body",
    [
        "a = Conv(x, F, b) r = Relu(a) y = Conv(r, P, c)",  # all count
        "a = Conv(x, W, b) r = Softmax<axis=1>(a) y = Conv(r, V, c)",  # channels meet
        "a = Conv(x, W, b) r = Relu(a) y = Conv<group=2>(r, G, c)",
        "a = Conv(x, One) y = Conv(a, Q)",
        "a = Conv(x, F, b) r = Relu(a) s = Tanh(r) t = Add(r, s) y = Conv(t, P)",  # no dead one
    ],
)
def test_another_structure(body: str) -> None:
    more = {
        "F": weights(6, 3, 3, 3),
        "G": weights(4, 3, 1, 1),
        "One": weights(1, 3, 1, 1) * 0,
        "Q": weights(5, 1, 1, 1),
        "c": weights(4 if "G" in body else 5),
    }
    check_untouched(PASS, model(body, **more))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "a = Conv(x, W, b) r = Relu(a) y = Conv<pads=[1,0,0,0]>(r, P, c)",
            "2 channels of Conv of 'a' are constant, but not 0 where Conv of 'y' pads",
        ),
        (
            "a = Conv(x, W, b) r = Sigmoid(a) y = Conv(r, P, c)",
            "2 channels of Conv of 'a' are constant, of unknown value",
        ),
        (
            "a = Conv(x, W, b) r = Relu(a) s = Tanh(r) t = Conv(r, P) u = Conv(s, P2) "
            "y = Add(t, u)",
            "",
        ),
        (
            "a = Conv(x, W) r = Relu(a) p = Conv(r, P) q = Conv(x, W) y = Conv(q, P)",
            "other readers",
        ),
    ],
)
def test_refused(body: str, reason: str) -> None:
    positive = {"b": np.array([1, 2, 3, -1, 4, 2], np.float32)}
    second = {"P2": weights(5, 6, 1, 1)}
    check_refused(
        PASS, model(body, **positive, **second), reason or "Relu of 'r' has other readers"
    )
