"""Exact arithmetic: it computes what ONNX says, and nothing that is wrong is equal in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest

import graphpass
from graphpass import (
    Graph,
    Node,
    Op,
    Pass,
    Rule,
    Survey,
    Tensor,
    Weight,
    any_,
    const,
    constant,
    producer,
)
from graphpass.errors import DifferenceError
from graphpass.report.markdown import markdown
from graphpass.rewrite.registry import make
from graphpass.rewrite.survey import Several
from graphpass.rewrite.window import Window, WindowVerdict
from graphpass.testing import graph
from graphpass.testing.checks import session
from graphpass.validate import Runtime
from graphpass.validate.exact.check import Prover, Site, with_exact, work_for
from graphpass.validate.exact.evaluate import evaluate, same
from graphpass.validate.exact.field import Field, Fields
from graphpass.validate.exact.number import Number, Numbers, UnknownError
from graphpass.validate.exact.prove import prove
from graphpass.validate.exact.redraw import EASIEST, LEVELS, Roles, redrawn
from graphpass.validate.exact.sides import Side, given_to
from graphpass.validate.exact.verdict import ExactVerdict
from graphpass.validate.window.check import check_windows

from .cases import cases
from .sabotage import windows

FIELD = Fields(0).of(0)


# ------------------------------------------------------------------------------- a field


def test_residues_of_floats_are_those_of_the_fractions_that_they_are() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200) * 10.0 ** rng.integers(-30, 30, 200)
    for array in (values, values.astype(np.float32), np.arange(-5.0, 5), np.array([2.0**51, -1])):
        for value, residue in zip(array, FIELD.residues(array), strict=True):
            held = Fraction(float(value))
            product = int(residue) * held.denominator - held.numerator
            assert product % FIELD.prime == 0


def test_products_of_matrices_are_exact_however_long_their_sums() -> None:
    rng = np.random.default_rng(0)
    half = FIELD.prime // 2
    for rows, count, columns in ((3, 40000, 2), (2, 7, 30)):
        one = rng.integers(-half, half, (rows, count)).astype(np.float64)
        other = rng.integers(-half, half, (count, columns)).astype(np.float64)
        whole = one.astype(np.int64).astype(object) @ other.astype(np.int64).astype(object)
        found = FIELD.matmul(one, other)
        assert not ((whole - found.astype(np.int64)) % FIELD.prime).any()
        assert np.abs(found).max() <= half


def test_every_number_but_zero_has_an_inverse() -> None:
    values = np.array([1.0, -1, 2, 12345, -FIELD.prime // 2])
    assert (np.mod(FIELD.multiply(values, FIELD.inverse(values)), FIELD.prime) == 1).all()


def test_primes_are_drawn_and_are_primes() -> None:
    primes = {Field(np.random.default_rng(seed)).prime for seed in range(20)}
    assert len(primes) == 20
    for prime in primes:
        assert 1 << 26 < prime < 1 << 27
        assert all(prime % divisor for divisor in range(2, int(prime**0.5) + 1))


# -------------------------------------------------------- what is computed is what ONNX says

_X, _SQUARE = "float[2,4,6,6] x", "float[3,4,4] x"
_C = {"W": (6, 4, 3, 3), "G": (4, 2, 3, 2), "b": (6,), "T": (4, 3, 2, 3), "M": (4, 5)}
OPERATORS = [
    (_X, "y = Conv(x, W, b)"),
    (_X, "y = Conv<strides=[2,1],pads=[1,0,2,1],dilations=[1,2]>(x, W)"),
    (_X, 'y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, W)'),
    (_X, 'y = Conv<auto_pad="SAME_LOWER",strides=[2,2]>(x, G2)'),
    (_X, "y = Conv<group=2>(x, G)"),
    (_X, "y = ConvTranspose(x, T)"),
    (_X, "y = ConvTranspose<group=2,strides=[2,3],pads=[1,0,0,1],output_padding=[1,0]>(x, T)"),
    (_X, "y = BatchNormalization<epsilon=0.25>(x, c, d, c, v)"),
    (_X, "y = MaxPool<kernel_shape=[3,2],strides=[2,1],pads=[1,0,1,1]>(x)"),
    (_X, "y = MaxPool<kernel_shape=[2,2],dilations=[2,1]>(x)"),
    (_X, "y = AveragePool<kernel_shape=[2,2],strides=[2,2]>(x)"),
    (_X, "y = AveragePool<kernel_shape=[4,2],pads=[2,0,2,0],count_include_pad=1>(x)"),
    ("float[2,4,4,4] x", "y = GlobalAveragePool(x)"),
    (_X, "y = GlobalMaxPool(x)"),
    (_X, "y = Relu(x)"),
    (_X, "y = LeakyRelu<alpha=0.25>(x)"),
    (_X, "y = PRelu(x, k)"),
    (_X, "y = Abs(x)"),
    (_X, "y = Clip(x, low, high)"),
    (_X, "y = HardSigmoid<alpha=0.25,beta=0.5>(x)"),
    (_X, "y = Max(x, k)"),
    (_X, "y = Min(x, k, x)"),
    (_X, "y = Sub(k, x)"),
    (_X, "y = Div(x, two)"),
    (_X, "y = Neg(x)"),
    (_X, "z = Mul(x, x) y = Sqrt(z)"),
    (_X, "y = Pow(x, three)"),
    (_X, "y = Sum(x, k, x)"),
    (_X, "y = ReduceSum<keepdims=0>(x, axes)"),
    (_X, "y = ReduceMax<axes=[1,-1]>(x)"),
    (_X, "y = ReduceMin<axes=[2],keepdims=0>(x)"),
    ("float[2,4,2,2] x", "y = ReduceMean<axes=[2,3]>(x)"),
    (_X, "y = ReduceSumSquare<axes=[3]>(x)"),
    (_SQUARE, "y = MatMul(x, M)"),
    (_SQUARE, "y = MatMul(m, x)"),
    (_SQUARE, 'y = Einsum<equation="bij,jk->bik">(x, M)'),
    ("float[3,4] x", "y = Gemm<alpha=0.5,beta=2.0>(x, M, e)"),
    ("float[4,3] x", "y = Gemm<transA=1,transB=1>(x, N)"),
    (_X, "y = CumSum(x, one)"),
    (_X, "y = Pad(x, pads, two)"),
    (_X, 'y = Pad<mode="reflect">(x, pads)'),
    (_X, 'y = Pad<mode="edge">(x, cut)'),
    (_X, "y = Slice(x, starts, ends, axes, steps)"),
    (_X, "y = DepthToSpace<blocksize=2>(x)"),
    (_X, 'y = DepthToSpace<blocksize=2,mode="CRD">(x)'),
    (_X, "y = SpaceToDepth<blocksize=3>(x)"),
    (_X, "y = Gather<axis=1>(x, places)"),
    (_X, "a, b1, y = Split<axis=2>(x, parts)"),
    (_X, "y = Tile(x, repeats)"),
    (_X, "y = Flatten<axis=-1>(x)"),
    (_X, "y = Reshape(x, shape)"),
    (_X, "y = Transpose<perm=[2,0,3,1]>(x)"),
    (_SQUARE, "y = Expand(x, wider)"),
    (_SQUARE, "y = Trilu<upper=0>(x)"),
    (_SQUARE, "y = GatherElements<axis=1>(x, elements)"),
    (_SQUARE, "y = GatherND(x, points)"),
    (_SQUARE, "y = ScatterND(x, points, put)"),
    (_SQUARE, "y = ScatterElements<axis=1>(x, elements, placed)"),
    (_SQUARE, "h = Shape<start=1>(x) y = ConstantOfShape(h)"),
]


def _constants() -> dict[str, Any]:
    rng = np.random.default_rng(3)
    made = {name: rng.integers(-3, 4, shape).astype(np.float32) for name, shape in _C.items()}
    floats = {"two": 2, "three": 3, "low": -1, "high": 2, "e": [1] * 5, "put": [[9] * 4] * 2}
    floats["placed"] = [[[7, 8, 9, 5]]] * 3
    made |= {name: np.array(value, np.float32) for name, value in floats.items()}
    whole = {
        "axes": [1, -1], "one": 1, "pads": [0, 0, 1, 2, 0, 0, 0, 1], "places": [[3, 0], [-1, 1]],
        "cut": [0, 0, -1, 2, 0, 0, 0, -1], "starts": [3, 5], "ends": [0, -100], "steps": [-1, -2],
        "parts": [1, 2, 3], "repeats": [1, 2, 1, 3], "shape": [0, -1, 12], "wider": [2, 1, 1, 4],
        "elements": [[[0, 3, -1, 2]], [[1, 1, 0, 0]], [[2, 3, 2, 3]]], "points": [[0, 1], [2, -1]],
    }  # fmt: skip
    made |= {name: np.array(value, np.int64) for name, value in whole.items()}
    made |= {"c": made["b"][:4], "d": made["b"][1:5], "N": made["M"].T.copy()[:, :4].copy()}
    made["v"] = np.array([0, 3.75, 15.75, 0.75], np.float32)
    made["N"] = rng.integers(-3, 4, (5, 4)).astype(np.float32)
    made["k"] = rng.integers(-3, 4, (4, 1, 6)).astype(np.float32)
    made["m"] = rng.integers(-3, 4, (2, 4)).astype(np.float32)
    made["G2"] = rng.integers(-3, 4, (2, 4, 2, 2)).astype(np.float32)
    return made


def _model(value: str, text: str) -> onnx.ModelProto:
    held = {name: array for name, array in _constants().items() if re.search(rf"\b{name}\b", text)}
    model = graph(f"({value}) => (float[?] y) {{{text}}}", opset=17, **held)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize(("value", "text"), OPERATORS)
def test_operators_are_computed_as_onnx_says(value: str, text: str) -> None:
    model = _model(value, text)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).integers(-4, 5, shape).astype(np.float32)
    (expected,) = session(model).run(["y"], {"x": x})
    numbers = Numbers(FIELD)
    given = given_to(Side(model), {"x": numbers.of(x)}, {}, numbers)
    found = evaluate(model.graph, given, numbers, 17)["y"]
    assert isinstance(found, Number) and found.shape == expected.shape
    np.testing.assert_array_equal(found.size, expected)
    residues = FIELD.residues(np.asarray(expected, np.float64))
    assert not FIELD.reduce(found.residue - residues).any()


def test_what_is_not_known_is_said(  # an operator of another domain, one that is random
) -> None:
    for text, what in (("y = NonZero(x)", "NonZero"), ("y = RandomNormalLike(x)", "RandomNormal")):
        model = graph(f"(float[2,3] x) => (float[?] y) {{{text}}}")
        with pytest.raises(UnknownError, match=what):
            evaluate(model.graph, {"x": Numbers(FIELD).of(np.ones((2, 3)))}, Numbers(FIELD), 17)


def test_other_functions_are_arbitrary_but_the_same_for_the_same() -> None:
    model = graph("(float[4] x) => (float[4] y) {y = Sigmoid(x) z = Tanh(x) w = Sigmoid(x)}")
    numbers = Numbers(FIELD)
    values = evaluate(model.graph, {"x": numbers.of(np.arange(4.0))}, numbers, 17)
    assert same(values["y"], values["w"], numbers)
    assert not same(values["y"], values["z"], numbers)
    assert values["y"].arbitrary == {"Sigmoid"}


# ------------------------------------------------------------------------------ what is drawn


def test_what_decides_stays_when_constants_are_drawn() -> None:
    originals = {
        "weight": np.array([[1.5, -2.5], [0, 3.5]], np.float32),
        "copy": np.array([[1.5, -2.5], [0, 3.5]], np.float32),
        "uniform": np.full((3, 1), -0.7, np.float32),
        "ones": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.float32),
        "divisor": np.array([3, -5], np.float32),
        "bound": np.array([6], np.float32),
        "scale": np.array([0.5, -0.5], np.float32),
        "variance": np.array([0.1, 0.2], np.float32),
    }
    roles = Roles({"divisor"}, {"variance": "scale"}, {"bound"})
    for level in (*LEVELS[53], EASIEST):
        drawn = redrawn(originals, roles, level, np.random.default_rng(0)).arrays
        assert (np.sign(drawn["weight"]) == np.sign(originals["weight"])).all()
        assert drawn["copy"] is drawn["weight"]
        assert len(set(drawn["uniform"].ravel())) <= 1 and (drawn["uniform"] < 0).all()
        assert not {"ones", "zeros", "bound"} & drawn.keys()
        assert (np.abs(np.frexp(drawn["divisor"])[0]) == 0.5).all()
        roots = np.sqrt(drawn["variance"] + level.epsilon)
        assert (roots == np.rint(roots)).all()
        quotients = drawn["scale"] / roots
        assert (quotients == np.rint(quotients)).all() and quotients[1] < 0
    assert LEVELS[53][0].bits == 25


# ---------------------------------------------------------------------------- what is proven


# what is right and not proven, and why
NOT_PROVEN = {
    "DenseOnSums": "the rule looks at what lies around its window",
    "SumOfBranches": "what the rule computes of its constants is rounded",
    "MergeCasts": "it rests on what Cast computes",
    "WriteOutHardSwish": "a number among its attributes is rounded",
    "RoundTrip": "there is no exact arithmetic for QuantizeLinear",
    "DropLoopState": "there is no exact arithmetic for Loop",
    "UnrollLoop": "there is no exact arithmetic for Loop",
    "QuantizedGemm": "there is no exact arithmetic for QGemm",
    "WriteOutGelu": "it rests on what Erf, Gelu computes",
    "FuseGelu": "it rests on what Erf, Gelu computes",
    "FuseGeluOfTanh": "it rests on what Gelu, Tanh computes",
    "FuseMish": "it rests on what Mish, Softplus, Tanh computes",
    "FuseSwish": "it rests on what Sigmoid, Swish computes",
    "FuseRMSNormalization": "there is no exact arithmetic for RMSNormalization",
    "ScaleOfNormalization": "there is no exact arithmetic for RMSNormalization",
    "FuseAttention": "there is no exact arithmetic for Attention",
    "ExpandFunction": "it rests on what",
}


def _sites() -> list[tuple[str, Site]]:
    found = []
    for name, model, steps in cases():
        rules = {law.name: law for step in steps for law in step.laws}
        for rewrite in windows(model, steps):
            found.append((name, Site(rules.get(rewrite.rule), rewrite.rule, rewrite.windows)))
    return found


def _proven(*sites: Site) -> list[ExactVerdict]:
    return Prover(0).check(sites, lambda names: {}, {})


def test_every_rule_is_proven_or_says_why_not() -> None:
    proven: set[str] = set()
    for name, site in _sites():
        (verdict,) = _proven(site)
        if verdict.status == "equal":
            assert verdict.bits == 0 or verdict.bits >= 40, f"{name}: {verdict.text}"
            proven.add(site.name)
            continue
        assert site.name in NOT_PROVEN, f"{name}, {site.name}: {verdict.text}"
        assert NOT_PROVEN[site.name] in verdict.reason, f"{name}: {verdict.text}"
    assert {"IntoConv", "AheadOfConv", "DenseOnFeatureMap", "MergeReshapes", "InlineIf"} <= proven
    assert {"DropChannels", "StrideAhead", "FoldConstants"} <= proven  # by surveys


@pytest.mark.parametrize("large", [False, True])
def test_what_is_alike_is_proven_once_and_large_ones_of_other_sizes_with_fewer_draws(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    asked: list[int] = []

    def noted(*given: Any) -> Any:
        asked.append(given[-1])
        return original(*given)

    original = prove
    monkeypatch.setattr("graphpass.validate.exact.check.prove", noted)
    if large:
        monkeypatch.setattr("graphpass.validate.exact.check._LARGE_AGAIN", 0)
    sites = [_folded(8), _folded(8), _folded(4)]
    one, two, three = _proven(*sites)
    assert one == two and one.bits >= 40
    if not large:
        assert asked == [40, 40] and three.bits >= 40
        return
    assert asked == [40, 20]
    assert 20 <= three.bits < 40 and three.alike_bits == one.bits
    assert three.text == f"equal, wrong with probability < 2^-20 (at other sizes < 2^-{one.bits})"


def test_sizes_beyond_what_may_be_spent_say_that_others_were_looked_at() -> None:
    def proven(channels: int) -> ExactVerdict:
        (verdict,) = prover.check([_folded(channels)], lambda names: {}, {})
        return verdict

    prover = Prover(0, work=0)
    first, other = proven(8), proven(4)
    assert first.bits >= 40 and other.bits == 0
    said = f"equal at other sizes, wrong with probability < 2^-{first.bits}"
    assert (other.status, other.text) == ("equal", said)
    assert work_for(_scaled()) < work_for(_scaled(4096))


def test_what_is_too_large_to_be_drawn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphpass.validate.exact.prove.MOST_ELEMENTS", 50)
    (verdict,) = _proven(_folded(8))
    assert verdict.text == "not replayed: its constants have 96 elements, more than are drawn anew"


# --------------------------------------------------------------------- what is wrong is not equal

AFFINE = (
    "(float[N,{n},5,5] x) => (float[N,{n},h,w] y) "
    "{{c = Conv<group={g}>(x, W) y = BatchNormalization(c, s, t, m, v)}}"
)


def _folded(channels: int) -> Site:
    rng = np.random.default_rng(0)
    model = graph(
        AFFINE.format(n=channels, g=1),
        W=(channels, channels, 1, 1),
        **_statistics(channels, rng),
    )
    (rewrite,) = windows(model, (make("fold-batchnorm"),))
    (rule,) = (r for r in make("fold-batchnorm").rules if r.name == rewrite.rule)
    return Site(rule, rewrite.rule, rewrite.windows)


def _statistics(channels: int, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "s": rng.uniform(0.99999, 1.00001, channels).astype(np.float32),
        "t": rng.normal(size=channels).astype(np.float32),
        "m": rng.normal(size=channels).astype(np.float32),
        "v": rng.uniform(0.99999, 1.00001, channels).astype(np.float32),
    }


class ScaledConv(Rule):
    """Mul(Conv(x, W), k) = Conv(x, k·W)."""

    pattern = Op("Mul", Op("Conv", any_("x"), const("weight"), bind="conv"), const("factor"))

    def __init__(self, change: Callable[[Any], Any] = lambda made: made) -> None:
        self.change = change

    def rewrite(self, x: Tensor, weight: Weight, conv: Node, factor: Weight) -> Op:
        made = weight.astype(np.float64) * factor.astype(np.float64).reshape(-1, 1, 1, 1)
        return Op("Conv", x, self.change(made).astype(weight.dtype), **conv.attrs)


def _step(rule: Rule) -> Pass:
    class Scaled(Pass):
        """Fold a scale into a Conv."""

        name = "scaled-conv"
        rules = (rule,)

    return Scaled()


def _scaled(channels: int = 64) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return graph(
        f"(float[1,{channels},5,5] x) => (float[1,8,3,3] y) {{c = Conv(x, W) y = Mul(c, k)}}",
        W=rng.uniform(0.5, 1, (8, channels, 3, 3)).astype(np.float32),
        k=rng.uniform(0.999999, 1.000001, (8, 1, 1)).astype(np.float32),
    )


def _off_by_ulps(made: Any) -> Any:
    made = made.copy()
    made[3, 5, 1, 1] += 4 * np.spacing(np.float32(made[3, 5, 1, 1]))
    return made


def _of_another_channel(made: Any) -> Any:
    """Scale the last channel as the one before: here as good as the same."""
    made = made.copy()
    made[-1] = made[-1] * (1 + 2.0**-24)
    return made


WRONG: Mapping[str, Any] = {
    "one weight among thousands by an ulp": _off_by_ulps,
    "computed in single precision": lambda made: (
        made.astype(np.float32).astype(np.float64) * (1 + 2.0**-26)
    ),
    "a channel by half an ulp": _of_another_channel,
}


def _verdicts(rule: Rule, model: onnx.ModelProto) -> tuple[WindowVerdict, ExactVerdict]:
    (rewrite,) = windows(model, (_step(rule),))
    assert rewrite.window is not None
    with Runtime(threads=1) as runtime:
        (bounded,) = check_windows([rewrite.window], runtime)
    (exact,) = _proven(Site(rule, rewrite.rule, rewrite.windows))
    return bounded, exact


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rule_that_no_bound_can_catch_is_caught(what: str) -> None:
    bounded, exact = _verdicts(ScaledConv(WRONG[what]), _scaled())
    assert bounded.ok, "the rounding bound sees this: a test of nothing"
    assert exact.status == "differs"
    both = with_exact(bounded, exact)
    assert not both.ok and "in exact arithmetic" in both.reason


class ScaledConvs(Survey):
    """Mul(Conv(x, W), k) = Conv(x, k·W), wherever it stands."""

    def __init__(self, rule: ScaledConv) -> None:
        self.rule = rule

    def find(self, scope: Graph, spare_bytes: int) -> Iterator[Several]:
        for node in list(scope.nodes):
            conv = producer(node.inputs[0]) if node.op == "Mul" else None
            if conv is not None:
                weight, factor = constant(conv.inputs[1]), constant(node.inputs[1])
                assert weight is not None and factor is not None
                made = self.rule.rewrite(conv.inputs[0], weight, conv, factor)
                yield Several([node, conv], [(node.outputs[0], made)])


@pytest.mark.parametrize("what", ["right", *WRONG])
def test_what_a_survey_makes_is_made_again(what: str) -> None:
    survey = ScaledConvs(ScaledConv(WRONG.get(what, lambda made: made)))

    class Scaled(Pass):
        """Fold scales into Convs."""

        name = "scaled-convs"
        rules = ()
        surveys = (survey,)

    result = graphpass.optimize(_scaled(), [Scaled()])
    (report,) = result.report.passes
    done, undone = report.rewrites, report.quarantined
    if what == "right":
        assert not undone and done[0].proof is not None
        assert done[0].proof.exact.startswith("equal, wrong with probability < 2^-4")
    else:
        assert not done and "in exact arithmetic" in undone[0].reason


def test_a_right_rule_is_equal() -> None:
    bounded, exact = _verdicts(ScaledConv(), _scaled())
    assert bounded.ok and exact.status == "equal" and exact.bits >= 40


def test_a_rule_that_rounds_otherwise_is_not_accused() -> None:
    class ByReciprocal(Rule):
        """Div(Conv(x, W), k) = Conv(x, W·(1/k))."""

        pattern = Op("Div", Op("Conv", any_("x"), const("weight"), bind="conv"), const("k"))

        def rewrite(self, x: Tensor, weight: Weight, conv: Node, k: Weight) -> Op:
            made = weight.astype(np.float64) * (1 / k.astype(np.float64)).reshape(-1, 1, 1, 1)
            return Op("Conv", x, made.astype(weight.dtype), **conv.attrs)

    model = _scaled()
    model.graph.node[1].op_type = "Div"
    _, exact = _verdicts(ByReciprocal(), model)
    assert exact.status == "equal" and exact.bits >= 40


def test_a_wrong_rule_is_undone_and_its_report_says_why() -> None:
    result = graphpass.optimize(_scaled(), [_step(ScaledConv(_off_by_ulps))])
    (report,) = result.report.passes
    assert not report.rewrites and report.quarantined
    (out,) = report.quarantined
    assert "in exact arithmetic" in out.reason
    assert out.rewrite.proof is not None and out.rewrite.proof.exact.startswith("differs: ")
    with pytest.raises(DifferenceError, match="in exact arithmetic"):
        graphpass.optimize(_scaled(), [_step(ScaledConv(_off_by_ulps))], strict=True)


def test_a_window_that_says_another_thing_than_its_match_is_caught() -> None:
    right = graph("(float[2,3,4] x) => (float[2,12] y) {y = Flatten(x)}")
    wrong = graph(
        "(float[2,3,4] x) => (float[2,12] y) {t = Transpose<perm=[0,2,1]>(x) y = Flatten(t)}"
    )
    for after, status in ((right, "equal"), (wrong, "differs")):
        (verdict,) = _proven(Site(None, "Any", (Window(right, after, ("x",), "y"),)))
        assert verdict.status == status


def test_what_rests_on_a_function_is_no_accusation() -> None:
    before = graph("(float[4] x) => (float[4] y) {a = Exp(x) b = Exp(x) y = Mul(a, b)}")
    after = graph("(float[4] x) => (float[4] y) {a = Add(x, x) y = Exp(a)}")
    (verdict,) = _proven(Site(None, "Any", (Window(before, after, ("x",), "y"),)))
    assert verdict.text == "not replayed: it rests on what Exp computes, which is no polynomial"


def test_reports_say_what_is_proven() -> None:
    result = graphpass.optimize(_scaled(), "fold-batchnorm")
    (rewrite,) = result.report.passes[0].rewrites
    assert rewrite.proof is not None
    said = rewrite.proof.exact
    assert said.startswith("equal, wrong with probability < 2^-4")
    assert said in result.report.to_json()
    text = markdown(result.report)
    assert "in exact arithmetic 1 of 1 rewrite is equal, wrong with probability" in text
    assert "equal, wrong with probability" in text.split("<details>")[-1]
    assert said.replace("<", "\\u003c") in result.html()
    unasked = graphpass.optimize(_scaled(), "fold-batchnorm", validate=False)
    assert all(r.proof is None for r in unasked.report.passes[0].rewrites)
