"""The passes on the road to a score map, each on its own: what it does and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_operators,
    check_refused,
    check_untouched,
    graph,
    session,
)

IMAGE = "float[N,3,8,8] image"
WEIGHTS: dict[str, Any] = {"W": (4, 3, 3, 3), "V": (5, 4, 1, 1), "b": (5,)}


def network(
    head: str, outputs: str, *, image: str = IMAGE, opset: int = 17, **more: Any
) -> onnx.ModelProto:
    """Return a Conv that makes a map a of 4x6x6, and `head`."""
    text = f"({image}) => ({outputs}) {{ a = Conv(image, W) {head} }}"
    return graph(text, opset=opset, **{**WEIGHTS, **more})


def run(model: onnx.ModelProto, size: tuple[int, int] = (8, 8), batch: int = 2) -> list[Any]:
    image = np.random.default_rng(0).normal(size=(batch, 3, *size)).astype(np.float32)
    answers: list[Any] = session(model).run(None, {"image": image})
    return answers


def interface(model: onnx.ModelProto) -> list[list[Any]]:
    return [
        [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]


def changed(name: str, model: onnx.ModelProto, after: str) -> onnx.ModelProto:
    result, _ = apply_to(make(name), model)
    check_operators(result, after)
    onnx.checker.check_model(result, full_check=True)
    return result


# ------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize(
    ("pool", "after"),
    [
        ("GlobalAveragePool(a)", "AveragePool<kernel_shape=[6,6],strides=[1,1]>"),
        ("GlobalMaxPool(a)", "MaxPool<kernel_shape=[6,6],strides=[1,1]>"),
        ("ReduceMean<axes=[2,3]>(a)", "AveragePool<kernel_shape=[6,6]>"),
        ("ReduceMax<axes=[-1,-2]>(a)", "MaxPool<kernel_shape=[6,6]>"),
        ("AveragePool<kernel_shape=[6,6], strides=[6,6]>(a)", "AveragePool<strides=[1,1]>"),
    ],
)
def test_pool_to_window(pool: str, after: str) -> None:
    model = network(f"p = {pool} y = Conv(p, V)", "float[N,5,1,1] y")
    result = check(make("pool-to-window"), model, f"Conv {after} Conv")
    check_untouched(make("pool-to-window"), result)


def test_pool_to_window_of_a_map_that_is_not_square() -> None:
    model = network("y = GlobalAveragePool(a)", "float[N,4,1,1] y", image="float[N,3,5,9] image")
    check(make("pool-to-window"), model, "Conv AveragePool<kernel_shape=[3,7]>")


def test_pool_to_window_refuses_what_is_no_average_or_maximum() -> None:
    model = network("y = GlobalLpPool(a)", "float[N,4,1,1] y")
    check_refused(make("pool-to-window"), model, "GlobalLpPool of 'y' is no average or maximum")


def test_pool_to_window_refuses_what_is_no_feature_map() -> None:
    model = network(
        "r = Reshape(a, apart) y = ReduceMean<axes=[3,4]>(r)",
        "float[N,2,2,1,1] y",
        apart=np.array([0, 2, 2, 6, 6]),
    )
    check_refused(
        make("pool-to-window"), model, "ReduceMean of 'y' pools something else than feature maps"
    )


@pytest.mark.parametrize("name", ["pool-to-window", "pool-to-global", "unflatten-head"])
def test_without_an_image_there_is_nothing_to_do(name: str) -> None:
    check_untouched(make(name), graph("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))


def test_pool_to_global() -> None:
    model = network("p = AveragePool<kernel_shape=[6,6]>(a) y = Conv(p, V)", "float[N,5,1,1] y")
    check(make("pool-to-global"), model, "Conv GlobalAveragePool Conv")
    smaller = network("y = AveragePool<kernel_shape=[5,5]>(a)", "float[N,4,2,2] y")
    check_untouched(make("pool-to-global"), smaller)


# ---------------------------------------------------------------------------------- the head

POOL = "p = AveragePool<kernel_shape=[6,6], strides=[1,1]>(a)"


@pytest.mark.parametrize(
    ("head", "output", "after", "shape"),
    [
        ("c = Conv(p, V) y = Flatten(c)", "float[N,5]", "Conv", ["N", 5, 1, 1]),
        ("f = Flatten(p) y = Softmax<axis=-1>(f)", "float[N,4]", "Softmax<axis=1>", ["N", 4, 1, 1]),
        (
            "f = Flatten(p) y = ArgMax<axis=1, keepdims=0>(f)",
            "int64[N]",
            "ArgMax<axis=1,keepdims=1> Squeeze",
            ["N", 1, 1],
        ),
        ("f = Flatten(p) y = Mul(f, k)", "float[N,4]", "Mul", ["N", 4, 1, 1]),
    ],
)
def test_unflatten_head(head: str, output: str, after: str, shape: list[Any]) -> None:
    model = network(f"{POOL} {head}", f"{output} y", k=(4,))
    result = changed("unflatten-head", model, f"Conv AveragePool {after}")
    assert interface(result)[1] == shape
    (before,), (found,) = run(model), run(result)
    np.testing.assert_allclose(found.reshape(before.shape), before, rtol=1e-5, atol=1e-6)


FLAT = f"{POOL} f = Flatten(p)"
HEADS = {
    "y = GlobalAveragePool(a)": "GlobalAveragePool of 'y' pools over the whole image",
    "y = Flatten(a)": "Flatten of 'y' keeps the 6x6 pixels of its map apart",
    f"{FLAT} y = Softmax<axis=0>(f)": "Softmax of 'y' works on axis 0, not on the classes",
    f"{FLAT} y = ReduceSum(f, batch)": "ReduceSum of 'y' reduces the batch",
    f"{FLAT} y = ReduceMean(f)": "ReduceMean of 'y' reduces everything, the batch included",
    f"{FLAT} y = Transpose<perm=[1,0]>(f)": "Transpose of 'y' moves the batch",
    f"{FLAT} y = CumSum(f, one)": "CumSum of 'y' in the head has no counterpart on a map",
    f"{FLAT} y = Reshape(f, pairs)": "Reshape of 'y' splits the classes",
    f"{FLAT} y = Add(f, rows)": "Add of 'y' in the head has a weight of shape [2, 4]",
}


@pytest.mark.parametrize("head", HEADS)
def test_unflatten_head_refuses(head: str) -> None:
    model = network(
        head,
        "float[P,Q] y" if "Global" not in head else "float[N,4,1,1] y",
        batch=np.array([0]),
        one=np.array(1),
        pairs=np.array([0, 2, 2]),
        rows=(2, 4),
    )
    if "pairs" in head:
        model.graph.output[0].type.tensor_type.shape.dim.add(dim_param="R")
    check_refused(make("unflatten-head"), model, HEADS[head])


def test_unflatten_head_refuses_where_no_output_comes_from_the_head() -> None:
    model = network(f"y = Relu(a) {POOL} z = Conv(p, V)", "float[N,4,6,6] y")
    check_refused(make("unflatten-head"), model, "no output of the network comes from its head")


# ------------------------------------------------------------------------- sizes that may vary


def test_free_resolution() -> None:
    model = network(f"{POOL} y = Conv(p, V)", "float[N,5,1,1] y")
    result = changed("free-resolution", model, "Conv AveragePool Conv")
    assert interface(result) == [
        ["N", 3, "height", "width"],
        ["N", 5, "map_height", "map_width"],
    ]
    np.testing.assert_array_equal(run(result)[0], run(model)[0])
    assert run(result, (9, 11))[0].shape == (2, 5, 2, 4)
    check_untouched(make("free-resolution"), result)


def test_free_resolution_refuses_a_weight_for_each_pixel() -> None:
    model = network("f = Flatten(a) y = Gemm(f, dense)", "float[N,5] y", dense=(144, 5))
    check_refused(make("free-resolution"), model, "Flatten of 'f' flattens a map of 6x6: there is")


def test_free_resolution_refuses_a_reshape_that_merges_pixels() -> None:
    model = network(
        "r = Reshape(a, rows) t = Relu(r) s = Reshape(t, back) p = GlobalAveragePool(s)"
        "y = Flatten(p)",
        "float[N,4] y",
        rows=np.array([0, 4, 36]),
        back=np.array([0, 4, 6, 6]),
    )
    check_refused(
        make("free-resolution", {"axes": "all"}),
        model,
        "Reshape of 's' makes height and width of what was one axis",
    )


def test_free_resolution_refuses_what_is_tied_to_one() -> None:
    model = network("s = Add(a, k) y = GlobalAveragePool(s)", "float[N,4,1,1] y", k=(1, 4, 6, 6))
    check_refused(make("free-resolution"), model, "Add of 's' takes 'k' of shape [1, 4, 6, 6]")


def test_free_batch() -> None:
    model = network(
        "f = Reshape(a, row) y = Relu(f)",
        "float[1,144] y",
        image="float[1,3,8,8] image",
        row=np.array([1, 144]),
    )
    result = changed("free-batch", model, "Conv Reshape Relu")
    assert interface(result) == [["N", 3, 8, 8], ["N", 144]]
    np.testing.assert_array_equal(run(result, batch=1)[0], run(model, batch=1)[0])
    assert run(result, batch=3)[0].shape == (3, 144)
    check_untouched(make("free-batch"), result)


# --------------------------------------------------------------------------- logits and maps


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_drop_softmax(op: str) -> None:
    model = network(f"f = Flatten(a) s = {op}<axis=1>(f) y = Identity(s)", "float[N,144] y")
    logits = network("y = Flatten(a)", "float[N,144] y")
    result, _ = apply_to(make("drop-softmax"), model)
    assert op not in [node.op_type for node in result.graph.node]
    np.testing.assert_array_equal(run(result)[0], run(logits)[0])
    check_untouched(make("drop-softmax"), result)


def test_drop_softmax_leaves_those_inside() -> None:
    check_untouched(make("drop-softmax"), network("s = Softmax(a) y = Log(s)", "float[N,4,6,6] y"))


def test_class_activation_map() -> None:
    model = network("p = GlobalAveragePool(a) c = Conv(p, V, b) y = Flatten(c)", "float[N,5] y")
    result, _ = apply_to(make("class-activation-map"), model)
    assert [value.name for value in result.graph.output] == ["y", "y.cam"]
    assert interface(result)[2] == ["N", 5, 6, 6]
    y, cam = run(result)
    np.testing.assert_array_equal(y, run(model)[0])
    np.testing.assert_allclose(cam.mean(axis=(2, 3)), y, rtol=1e-4, atol=1e-5)


def test_each_of_two_heads_has_its_own_map() -> None:
    model = network(
        "p = GlobalAveragePool(a) c = Conv(p, V) y = Flatten(c)"
        " d = Conv<strides=[2,2]>(a, U) q = GlobalAveragePool(d) e = Conv(q, V) z = Flatten(e)",
        "float[N,5] y, float[N,5] z",
        U=(4, 4, 2, 2),
    )
    result, _ = apply_to(make("class-activation-map"), model)
    assert interface(result)[3:] == [["N", 5, 6, 6], ["N", 5, 3, 3]]
    y, z, *maps = run(result)
    assert [cam.shape for cam in maps] == [(2, 5, 6, 6), (2, 5, 3, 3)]
    for answer, cam in zip((y, z), maps, strict=True):
        np.testing.assert_allclose(cam.mean(axis=(2, 3)), answer, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("y = GlobalMaxPool(a)", "GlobalMaxPool of 'y' is no mean"),
        ("p = GlobalAveragePool(a) y = HardSwish(p)", "HardSwish of 'y' in the head is not linear"),
    ],
)
def test_class_activation_map_refuses(head: str, reason: str) -> None:
    check_refused(make("class-activation-map"), network(head, "float[N,4,1,1] y"), reason)


def test_class_activation_map_refuses_where_nothing_is_a_mean() -> None:
    check_refused(
        make("class-activation-map"),
        network("y = Relu(a)", "float[N,4,6,6] y"),
        "no output of the network is a mean and a linear layer",
    )
