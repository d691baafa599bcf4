"""Passes that change the interface have a judge that is not them: what it lets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass import Graph, Pass
from graphpass.rewrite.interface import Interface
from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, graph, session
from graphpass.validate.logits import softmax_outputs, with_logits
from graphpass.validate.structure import check_structure, interface_changes
from graphpass.validate.validator import Validator
from tests.passes.test_free_batch import FREED, REFUSED, network


def declared(model: onnx.ModelProto, axes: dict[int, str], only: str = "") -> onnx.ModelProto:
    """Say that axes vary, and change nothing: what a careless pass would do."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis, name in axes.items():
            if axis < len(dims) and (not only or value.name == only or axis):
                dims[axis].dim_param = name
    del copy.graph.value_info[:]
    return copy


def declare(value: onnx.ValueInfoProto, axis: int, size: int) -> None:
    value.type.tensor_type.shape.dim[axis].dim_value = size


def verdict(
    original: onnx.ModelProto, candidate: onnx.ModelProto, may: Interface = Interface.SIZES
) -> Any:
    with Validator(original) as validator:
        return validator.check(candidate, interface_may_change=may)


# --------------------------------------------------------------------------------- a batch


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "somebody" not in kind])
def test_a_batch_that_is_only_declared_free_is_caught(kind: str) -> None:
    nodes, outputs, constants, opset, _ = REFUSED[kind]
    original = network(nodes, outputs, constants, opset)
    found = verdict(original, declared(original, {0: "N"}))
    assert not found.ok, found.reason


@pytest.mark.parametrize("kind", FREED)
def test_a_batch_that_is_freed_passes(kind: str) -> None:
    nodes, outputs, constants, _ = FREED[kind]
    original = network(nodes, outputs, constants)
    freed, _ = apply_to(make("free-batch"), original)
    found = verdict(original, freed)
    assert found.ok, found.reason
    rows = {c.feed for c in found.comparisons if c.feed.startswith("batch of")}
    assert rows == {f"batch of {count} against single runs" for count in (1, 2, 3, 5)}


def test_an_output_that_is_declared_with_a_batch_and_has_none_is_caught() -> None:
    nodes, outputs, constants, _ = FREED["an output without a batch"]
    original = network(nodes, outputs, constants)
    freed, _ = apply_to(make("free-batch"), original)
    freed.graph.output[1].type.tensor_type.shape.dim[0].dim_param = "N"
    found = verdict(original, freed)
    assert found.reason == (
        "with a batch of 2, output 'temperature' is declared as ['N'] and has the shape [1]"
    )


# ------------------------------------------------------------------------------- a resolution

MAPS: dict[str, tuple[str, dict[str, Any]]] = {
    "padded convolutions": ("c = Conv<pads=[1,1,1,1]>(x, k) y = Relu(c)", {"k": (3, 3, 3, 3)}),
    "a stride of two": (
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k) y = ConvTranspose<strides=[2,2]>(c, t)",
        {"k": (3, 3, 3, 3), "t": (3, 3, 2, 2)},
    ),
    "a number for each row": (
        "s = Shape(x) h = Gather(s, second) n = Range(zero, h, one) f = Cast<to=1>(n)"
        " u = Reshape(f, column) c = Conv<pads=[1,1,1,1]>(x, k) y = Add(c, u)",
        {
            "k": (3, 3, 3, 3),
            "second": np.array(2),
            "zero": np.array(0),
            "one": np.array(1),
            "column": np.array([-1, 1]),
        },
    ),
    "resized by scales": (
        "c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, k) y = Resize(c, , two)",
        {"k": (3, 3, 3, 3), "two": np.array([1, 1, 2, 2], np.float32)},
    ),
}


def maps(nodes: str, constants: dict[str, Any], output: str = "float[1,3,8,8] y") -> Any:
    return graph(f"(float[1,3,8,8] x) => ({output}) {{ {nodes} }}", **constants)


@pytest.mark.parametrize("kind", MAPS)
def test_a_resolution_that_varies_passes(kind: str) -> None:
    original = maps(*MAPS[kind])
    found = verdict(original, declared(original, {2: "height", 3: "width"}))
    assert found.ok, found.reason
    told = " ".join(c.feed for c in found.comparisons)
    assert "16x16, original rebuilt" in told and "24x16, original rebuilt" in told
    assert "end of" not in told  # it answers for itself at any size: a crop would say less


def test_where_the_original_is_fixed_inside_crops_answer() -> None:
    nodes = "c = Conv<pads=[1,1,1,1]>(x, k) v = Reshape(c, apart) y = Reshape(v, together)"
    constants = {"k": (3, 3, 3, 3), "apart": np.array([1, 3, 1, 8, 8])}
    original = maps(nodes, {**constants, "together": np.array([1, 3, 8, 8])})
    freed, _ = apply_to(make("free-resolution"), original)
    found = verdict(original, freed)
    assert found.ok, found.reason
    told = " ".join(c.feed for c in found.comparisons)
    assert "rebuilt" not in told
    assert "near end of 16" in told and "far end of 16" in told


@pytest.mark.parametrize(
    ("nodes", "constants", "damage", "reason"),
    [
        (
            "c = Conv<pads=[1,1,1,1]>(x, k) y = Add(c, e)",
            {"k": (3, 3, 3, 3), "e": (1, 3, 8, 8)},
            None,
            "at another size of 'x' it does not run",
        ),
        (
            "c = Conv<pads=[1,1,1,1]>(x, k) y = Resize(c, , , eight)",
            {"k": (3, 3, 3, 3), "eight": np.array([1, 3, 8, 8])},
            None,
            "output 'y' is declared as [1, 3, 'height', 'width'] and has the shape [1, 3, 8, 8]",
        ),
        (
            "c = Conv<pads=[1,1,1,1]>(x, k) y = Relu(c)",
            {"k": (3, 3, 3, 3)},
            lambda model: declare(model.graph.output[0], 2, 8),
            "output 'y' is declared as [1, 3, 8, 'width'] and has the shape [1, 3, 16, 16]",
        ),
    ],
)
def test_a_resolution_that_is_fixed_inside_is_caught(
    nodes: str, constants: dict[str, Any], damage: Callable[[Any], None] | None, reason: str
) -> None:
    original = maps(nodes, constants)
    candidate = declared(original, {2: "height", 3: "width"})
    if damage is not None:
        damage(candidate)
    assert reason in verdict(original, candidate).reason


def test_a_map_that_is_right_natively_and_wrong_elsewhere_is_caught() -> None:
    """Interpolation that aligns corners depends on the size of the map."""
    nodes = "r = Reshape(x, keep) y = Conv<pads=[1,1,1,1]>(r, k)"
    original = maps(nodes, {"k": (3, 3, 3, 3), "keep": np.array([1, 3, 8, 8])})
    wrong = maps(
        "s = Shape(x) a = Slice(s, two, four) e = Div(a, eight) f = ReduceProd<keepdims=0>(e)"
        " g = Cast<to=1>(f) m = Mul(x, g) y = Conv<pads=[1,1,1,1]>(m, k)",
        {
            "k": (3, 3, 3, 3),
            "two": np.array([2]),
            "four": np.array([4]),
            "eight": np.array([8, 8]),
        },
    )
    found = verdict(original, declared(wrong, {2: "height", 3: "width"}))
    assert found.status == "differs" and "near end of 16" in found.reason


# ------------------------------------------------------------------------------------ logits

HEAD = "p = GlobalAveragePool(x) f = Flatten(p) l = Gemm(f, v, b)"
TWO = f"{HEAD} y = Softmax<axis=1>(l) other = ReduceMax<axes=[1], keepdims=1>(y)"


def classifier(nodes: str, outputs: str = "float[N,5] y, float[N,1] other") -> onnx.ModelProto:
    return graph(f"(float[N,3,4,4] x) => ({outputs}) {{ {nodes} }}", v=(3, 5), b=(5,))


def test_only_the_output_takes_the_logits() -> None:
    original = classifier(TWO)
    result = graphpass.optimize(original, "drop-softmax,clean-up")
    assert result.report.passes[0].outcome == "kept"
    assert result.report.interface[-1] == "output 'y' gives the logits of its Softmax"
    image = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    logits, other = session(result.model).run(None, image)
    probabilities, expected = session(original).run(None, image)
    np.testing.assert_allclose(other, expected, rtol=1e-5)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax, probabilities, rtol=1e-5)
    result.close()


@pytest.mark.parametrize("view", ["y = Identity(s)", "y = Flatten(s)", "y = Reshape(s, same)"])
def test_logits_of_the_original_are_its_own(view: str) -> None:
    text = f"{HEAD} s = LogSoftmax<axis=1>(l) {view} other = Exp(y)"
    model = graph(
        f"(float[N,3,4,4] x) => (float[N,5] y, float[N,5] other) {{ {text} }}",
        v=(3, 5),
        b=(5,),
        same=np.array([0, 5]),
    )
    assert softmax_outputs(model) == ["y"]
    changed = with_logits(model, ["y"])
    onnx.checker.check_model(changed, full_check=True)
    image = {"x": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    (log, probabilities), (logits, same) = (session(m).run(None, image) for m in (model, changed))
    np.testing.assert_array_equal(same, probabilities)
    shift = logits - log
    np.testing.assert_allclose(shift, shift[:, :1].repeat(5, axis=1), rtol=1e-4)


def test_logits_that_are_wrong_are_caught() -> None:
    original = classifier(TWO)
    wrong = classifier(TWO.replace("y = Softmax<axis=1>(l)", "q = Softmax<axis=1>(l) y = Add(l, b)")
                       .replace("(y)", "(q)"))  # fmt: skip
    found = verdict(original, wrong, Interface.LOGITS)
    assert found.status == "differs" and found.reason.startswith("output 'y'")
    for_all = classifier(f"{HEAD} y = Identity(l) other = ReduceMax<axes=[1], keepdims=1>(y)")
    found = verdict(original, for_all, Interface.LOGITS)
    assert found.status == "differs" and found.reason.startswith("output 'other'")
    assert not verdict(original, for_all, Interface.SIZES).ok


# ------------------------------------------------------------------------------ what is declared

BEFORE = "(float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }"


@pytest.mark.parametrize(
    ("after", "may", "problem"),
    [
        (BEFORE.replace("[1,", "[N,"), Interface.SIZES, None),
        (BEFORE.replace("[1,", "[N,"), Interface.NOTHING, "input 'x' was [1, 3, 4, 4] float32"),
        (BEFORE.replace("[1,", "[N,"), Interface.MAPS, "input 'x' was [1, 3, 4, 4] float32"),
        (BEFORE.replace("[1,", "[2,"), Interface.SIZES, "input 'x' was [1, 3, 4, 4] float32"),
        (BEFORE.replace("=> (float[1,3", "=> (float[1,N"), Interface.LOGITS, "output 'y' was"),
        (
            "(float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z) { y = Relu(x) z = Neg(x) }",
            Interface.OUTPUTS,
            None,
        ),
        (
            "(float[1,3,4,4] x) => (float[1,3,4,4] z, float[1,3,4,4] y) { y = Relu(x) z = Neg(x) }",
            Interface.OUTPUTS,
            "output 'y' is gone",
        ),
        (BEFORE.replace("x)", "w)"), Interface.SIZES, "input 'x' is gone"),
        (BEFORE.replace("x)", "w)"), Interface.ANY, None),
        (
            "(float[1,3,4,4] x) => (double[1,3,4,4] y) { r = Relu(x) y = Cast<to=11>(r) }",
            Interface.MAPS,
            "output 'y' was [1, 3, 4, 4] float32 and is [1, 3, 4, 4] float64",
        ),
    ],
)
def test_what_was_declared_may_change_and_no_more(
    after: str, may: Interface, problem: str | None
) -> None:
    problems = check_structure(graph(BEFORE), graph(after), interface_may_change=may)
    assert problem in " ".join(problems) if problem else problems == []


def test_the_report_says_how_inputs_and_outputs_changed() -> None:
    more = "(float[N,3,4,4] x) => (float[N,3,4,4] y, float[2] z) { y = Relu(x) z = Identity(k) }"
    assert interface_changes(graph(BEFORE), graph(more, k=(2,))) == [
        "input 'x' was [1, 3, 4, 4] float32 and is [N, 3, 4, 4] float32",
        "output 'y' was [1, 3, 4, 4] float32 and is [N, 3, 4, 4] float32",
        "output 'z' is new: [2] float32",
    ]


class _Careless(Pass):
    """Whatever the network does, its batch varies."""

    name = "careless"
    changes_interface = Interface.SIZES

    def run(self, graph: Graph) -> list[str]:
        for tensor in (*graph.inputs, *graph.outputs):
            tensor.shape = ["N", *tensor.shape[1:]]
        return ["the batch varies"]


def test_a_careless_pass_is_undone_and_a_refusal_is_told() -> None:
    nodes, outputs, constants, opset, reason = REFUSED["Softmax over the batch"]
    model = network(nodes, outputs, constants, opset)
    with graphpass.optimize(model, [_Careless(), make("free-batch")]) as result:
        careless, refused = result.report.passes
        assert careless.outcome == "rolled back" and "against single runs" in careless.reason
        assert refused.outcome == "unchanged" and not result.changed
        assert any(text.startswith(f"free-batch: {reason}") for text in result.report.warnings)
