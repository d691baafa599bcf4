"""fuse-functions and expand-functions: ONNX's functions as one operator, and as their bodies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass.errors import UsageError
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check, check_refused, check_untouched, graph, operators

FUSE = make("fuse-functions")
EXPAND = make("expand-functions")

NUMBERS = {
    "half": 0.5, "one": 1, "two": 2, "three": 3, "six": 6, "sixth": 1 / 6, "zero": 0,
    "root2": math.sqrt(2), "over": math.sqrt(0.5), "cubic": 0.044715,
    "scale": math.sqrt(2 / math.pi), "eps": 1e-5, "alpha": 1.7, "eight": math.sqrt(8),
}  # fmt: skip


def model(
    body: str, shape: str = "N,4,8", opset: int = 24, kind: str = "float", **more: Any
) -> Any:
    used = {k: np.array(v, np.dtype(np.float32)) for k, v in NUMBERS.items()}
    text = f"({kind}[{shape}] x) => ({kind}[{shape}] y) {{ {body} }}"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {key: value for key, value in used.items() if key in words}
    return graph(text, opset=opset, **{**used, **more})


ERF = "d = Div(x, root2) e = Erf(d) g = Add(e, one)"
TANH = """p = Pow(x, three) c = Mul(p, cubic) i = Add(x, c) k = Mul(scale, i) h = Tanh(k)
    g = Add(h, one)"""
FORMS = {
    "torch": (f"{ERF} m = Mul(x, g) y = Mul(m, half)", "Gelu"),
    "half first": (f"h = Mul(x, half) {ERF} y = Mul(h, g)", "Gelu"),
    "half last": (f"{ERF} h = Mul(half, g) y = Mul(x, h)", "Gelu"),
    "times": ("d = Mul(over, x) e = Erf(d) g = Add(one, e) m = Mul(g, x) y = Mul(m, half)", "Gelu"),
    "tanh": (f"{TANH} m = Mul(x, g) y = Mul(m, half)", 'Gelu(approximate="tanh")'),
    "tanh of products": (
        TANH.replace("p = Pow(x, three)", "s = Mul(x, x) p = Mul(s, x)") + " m = Mul(x, half)"
        " y = Mul(m, g)",
        'Gelu(approximate="tanh")',
    ),
    "tanh of a fast gelu": (
        "a = Mul(x, scale) u = Mul(x, cubic) c = Mul(u, x) i = Add(c, one) k = Mul(a, i)"
        " h = Tanh(k) g = Add(h, one) m = Mul(x, half) y = Mul(m, g)",
        'Gelu(approximate="tanh")',
    ),
    "hard": ("a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)", "HardSwish"),
    "hard, divided first": (
        "a = Add(x, three) c = Clip(a, zero, six) m = Div(c, six) y = Mul(m, x)",
        "HardSwish",
    ),
    "hard, by sigmoid": (
        "c = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, c)",
        "HardSwish",
    ),
    "mish": ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", "Mish"),
    "swish": ("s = Sigmoid(x) y = Mul(s, x)", "Swish"),
    "swish of a slope": ("a = Mul(x, alpha) s = Sigmoid(a) y = Mul(x, s)", "Swish"),
    "layer norm": (
        "m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m) q = Pow(d, two)"
        " v = ReduceMean<keepdims=1>(q, last) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)"
        " k = Mul(n, w) y = Add(k, b)",
        "LayerNormalization",
    ),
    "layer norm without weights": (
        "m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m) q = Mul(d, d)"
        " v = ReduceMean<keepdims=1>(q, last) e = Add(eps, v) r = Sqrt(e) i = Reciprocal(r)"
        " y = Mul(d, i)",
        "LayerNormalization",
    ),
    "root mean square": (
        "q = Pow(x, two) v = ReduceMean<keepdims=1>(q, last) e = Add(v, eps) r = Sqrt(e)"
        " i = Div(one, r) n = Mul(x, i) y = Mul(w, n)",
        "RMSNormalization",
    ),
}
WEIGHTS = {
    "w": np.linspace(0.5, 1.5, 8).astype(np.float32),
    "b": np.linspace(-1, 1, 8).astype(np.float32),
    "last": np.array([-1]),
}


def of_form(name: str, **options: Any) -> Any:
    body = FORMS[name][0]
    more = {key: value for key, value in WEIGHTS.items() if f"{key})" in body or f"({key}" in body}
    return model(body, **{**more, **options})


@pytest.mark.parametrize("shape", ["N,4,8", "2,8"])
@pytest.mark.parametrize("name", FORMS)
def test_forms_become_one_operator(name: str, shape: str) -> None:
    after = FORMS[name][1]
    result = check(FUSE, of_form(name, shape=shape), after.split("(")[0])
    assert not apply_to(FUSE, result)[1].rewrites
    (node,) = result.graph.node
    approximate = [a.s for a in node.attribute if a.name == "approximate"]
    assert approximate == ([b"tanh"] if "tanh" in after else [])


@pytest.mark.parametrize("name", FORMS)
def test_each_is_judged_by_its_window(name: str) -> None:
    report = graphpass.optimize(of_form(name), "fuse-functions").report
    (done,) = report.passes
    assert done.rewrites and not done.quarantined
    assert all(r.proof is not None and r.proof.status == "ok" for r in done.rewrites)


@pytest.mark.parametrize("name", FORMS)
def test_expand_functions_writes_it_out_again(name: str) -> None:
    fused, _ = apply_to(FUSE, of_form(name))
    result, applied = apply_to(EXPAND, fused)
    assert FORMS[name][1].split("(")[0] not in operators(result).split()
    assert applied.rewrites
    x = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    one, other = (graphpass.testing.session(m).run(None, {"x": x})[0] for m in (fused, result))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "number", "value"),
    [
        *(("torch", key, value) for key, value in (("half", 0.51), ("one", 1.1), ("root2", 1.41))),
        *(("tanh", key, value) for key, value in (("cubic", 0.0447), ("scale", 0.8), ("three", 2))),
        *(("hard", key, value) for key, value in (("zero", -1), ("six", 5), ("three", 2))),
        ("layer norm", "two", 4),
        ("root mean square", "one", 2),
        ("torch", "half", np.full((1, 1, 1, 1), 0.5)),
    ],
)
def test_other_numbers_are_another_function(name: str, number: str, value: Any) -> None:
    check_untouched(FUSE, of_form(name, **{number: np.asarray(value, np.float32)}))


@pytest.mark.parametrize(
    ("name", "opset", "fused"),
    [
        ("torch", 19, "Gelu from opset 20"),
        ("tanh", 19, "Gelu from opset 20"),
        ("mish", 17, "Mish from opset 18"),
        ("swish", 23, "Swish from opset 24"),
        ("root mean square", 22, "RMSNormalization from opset 23"),
    ],
)
def test_refused_below_the_opset_that_has_it(name: str, opset: int, fused: str) -> None:
    check_refused(FUSE, of_form(name, opset=opset), fused)


def test_refused_in_half_precision() -> None:
    body = "s = Sigmoid(x) y = Mul(s, x)"
    check_refused(FUSE, model(body, kind="float16"), "Swish may compute in float32")


def test_refused_where_the_size_of_the_axis_varies() -> None:
    proto = of_form("layer norm without weights", shape="N,4,M")
    check_refused(FUSE, proto, "along the axes of ReduceMean of 'v' varies")


@pytest.mark.parametrize("axes", [[1], [0, 1], [0, 2]])
def test_means_over_other_axes_are_no_layer_normalization(axes: list[int]) -> None:
    check_untouched(FUSE, of_form("layer norm without weights", last=np.array(axes)))


def test_means_over_different_axes_are_no_layer_normalization() -> None:
    body = FORMS["layer norm without weights"][0].replace("(q, last)", "(q, both)")
    both, last = np.array([1, 2]), np.array([2])
    check(FUSE, model(body, both=both, last=last), "ReduceMean Sub RMSNormalization")


def test_over_two_axes_and_with_a_scalar_as_weight() -> None:
    body = FORMS["layer norm"][0]
    w = np.float32(1.5)
    b = np.linspace(-1, 1, 32).reshape(1, 4, 8).astype(np.float32)
    proto = model(body, last=np.array([1, 2]), w=w, b=b)
    check(FUSE, proto, "LayerNormalization")


def test_a_weight_that_is_larger_than_the_axes_stays() -> None:
    w = np.linspace(0.5, 1.5, 32).reshape(4, 8).astype(np.float32)
    check(FUSE, of_form("layer norm", w=w), "LayerNormalization Mul Add")


def test_refused_where_something_in_between_is_read() -> None:
    text = "(float[2,8] x) => (float[2,8] y, float[2,8] s) { s = Sigmoid(x) y = Mul(s, x) }"
    check_refused(FUSE, graph(text, opset=24), "is an output of the graph")


ATTENTION = (
    "t = Transpose<perm=[0,1,3,2]>(k) a = MatMul(q, t) s = {0} p = Softmax({1}) y = MatMul(p, v)"
)
HEADS = "float[N,2,3,8] q, float[N,2,5,8] k, float[N,2,5,4] v, float[N,1,3,5] m"


def attention(scaled: str, summed: str = "", heads: str = HEADS, opset: int = 23) -> Any:
    body = ATTENTION.format(scaled + (f" b = {summed}" if summed else ""), "b" if summed else "s")
    text = f"({heads}) => (float[N,2,3,4] y) {{ {body} }}"
    return graph(text, opset=opset, eight=np.float32(NUMBERS["eight"]), c=np.float32(0.3))


@pytest.mark.parametrize("scaled", ["Div(a, eight)", "Mul(a, c)", "Mul(c, a)"])
@pytest.mark.parametrize("summed", ["", "Add(s, m)", "Add(m, s)"])
def test_attention(scaled: str, summed: str) -> None:
    result = check(FUSE, attention(scaled, summed), "Attention")
    expanded, _ = apply_to(EXPAND, result)
    assert "Attention" not in operators(expanded)
    rng = np.random.default_rng(0)
    sizes = {"q": (2, 2, 3, 8), "k": (2, 2, 5, 8), "v": (2, 2, 5, 4), "m": (2, 1, 3, 5)}
    feed = {key: rng.normal(size=size).astype(np.float32) for key, size in sizes.items()}
    one, other = (graphpass.testing.session(m).run(None, feed)[0] for m in (result, expanded))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_attention_of_a_key_whose_transposes_were_merged() -> None:
    heads = HEADS.replace("float[N,2,5,8] k", "float[N,5,2,8] k")
    proto = attention("Mul(a, c)", heads=heads)
    proto.graph.node[0].attribute[0].ints[:] = [0, 2, 3, 1]
    result = check(FUSE, proto, "Transpose Attention")
    assert list(result.graph.node[0].attribute[0].ints) == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        (HEADS.replace("m", "m").replace("N,1,3,5", "N,1,1,5"), "may be broadcast along"),
        (HEADS.replace("N,2,5,8", "N,1,5,8"), "not known to be as many"),
    ],
)
def test_attention_refused(heads: str, reason: str) -> None:
    check_refused(FUSE, attention("Mul(a, c)", "Add(s, m)", heads=heads), reason)


def test_attention_of_another_sign_stays() -> None:
    proto = attention("Mul(a, c)")
    proto.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.float32(-0.3), "c"))
    check_refused(FUSE, proto, "with the sign turned")


# ------------------------------------------------------------------------- expand-functions


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("y = GroupNormalization<num_groups=2>(x, g, g)", "GroupNormalization"),
        ("y = MeanVarianceNormalization<axes=[0,2]>(x)", "MeanVarianceNormalization"),
        ("y = Elu<alpha=0.5>(x)", "Elu"),
        ("y, m = LayerNormalization(x, w)", "LayerNormalization"),
    ],
)
def test_what_onnx_defines_is_written_out(text: str, names: str) -> None:
    g = np.array([1, 2, 3, 4], np.float32)
    more = {"g": g} if "g" in text else {"w": WEIGHTS["w"]} if "w" in text else {}
    proto = model(text, opset=21, **more)
    result, applied = apply_to(make("expand-functions", {"operators": names}), proto)
    assert applied.rewrites and names not in operators(result).split()
    x = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    one, other = (graphpass.testing.session(m).run(None, {"x": x})[0] for m in (proto, result))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_has_no_body_in_an_opset_is_refused() -> None:
    proto = model(
        "y = GroupNormalization<num_groups=2>(x, g, g)", opset=18, g=np.ones(2, np.float32)
    )
    check_untouched(make("expand-functions", {"operators": "Gelu"}), proto)


def test_operators_without_a_body_are_no_option() -> None:
    with pytest.raises(UsageError, match="ONNX has no body for 'Conv'"):
        make("expand-functions", {"operators": "Conv"})
