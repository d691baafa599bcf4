"""Targets: profiles are data with sources, and say node by node what does not fit."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from graphpass.cli import run
from graphpass.errors import UsageError
from graphpass.ir.model import Model
from graphpass.ir.questions import label
from graphpass.storage.toml import parse
from graphpass.targets.expression import Expression, UnknownValueError
from graphpass.targets.facts import NAMES, facts_of
from graphpass.targets.fit import Fit, fit
from graphpass.targets.profile import SCHEMA_PATH, load, names, read
from graphpass.testing import graph

MINE = """
title = "mine"
about = "a test"
passes = "clean-up"

[sources.manual]
title = "a manual"
url = "https://example.org/manual"
date = "2026"

[[limits]]
names = ["Conv"]
holds = "kernel_h <= {limit}"
source = "manual"
advice = "use smaller kernels"
"""


def fitted(model: onnx.ModelProto, text: str) -> Fit:
    return fit(Model.load(model), read(text, "mine"), {})


# ---------------------------------------------------------------------------------- expressions


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("1 <= kernel_h <= 16", {"kernel_h": 16}, True),
        ("1 <= kernel_h <= 16", {"kernel_h": 17}, False),
        (
            "kernel_h * kernel_w * ceil(rank / 16) <= 6",
            {"kernel_h": 2, "kernel_w": 3, "rank": 16},
            True,
        ),
        (
            "kernel_h * kernel_w * ceil(rank / 16) <= 6",
            {"kernel_h": 2, "kernel_w": 3, "rank": 17},
            False,
        ),
        ("(kernel_h, kernel_w) in ((1, 3), (3, 1))", {"kernel_h": 3, "kernel_w": 1}, True),
        ("(kernel_h, kernel_w) in ((1, 3), (3, 1))", {"kernel_h": 3, "kernel_w": 3}, False),
        ("mode in ('nearest', 'linear')", {"mode": "cubic"}, False),
        ("not depthwise", {"depthwise": False}, True),
        ("rank == 4 or axis == 1", {"rank": 4}, True),  # what does not decide may be unknown
        ("rank == 4 and axis == 1", {"rank": 3}, False),
        ("max(stride_h, stride_w) % 2 == -1 + 2", {"stride_h": 2, "stride_w": 3}, True),
    ],
)
def test_a_condition_is_arithmetic(text: str, values: dict[str, Any], expected: bool) -> None:
    assert Expression.read(text, frozenset(NAMES)).holds(values) is expected


def test_a_value_that_is_not_known_is_named() -> None:
    with pytest.raises(UnknownValueError, match="axis"):
        Expression.read("axis == 1", frozenset(NAMES)).holds({"axis": None})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kernel_h <=", "no condition"),
        ("kernel <= 3", "asks for 'kernel', which is not known"),
        ("__import__('os').system('true')", "calls what is not"),
        ("open('x')", "calls what is not"),
        ("rank.real == 1", "more than arithmetic"),
        ("[r for r in (1, 2)]", "more than arithmetic"),
        ("(lambda: 1)()", "calls what is not"),
        ("rank ** 99999999", "more than arithmetic"),
        ("rank == b'x'", "no number, text or truth"),
        ("(" * 400 + "1" + ")" * 400, "no condition"),
    ],
)
def test_nothing_but_arithmetic_is_taken(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Expression.read(text, frozenset(NAMES))


# ------------------------------------------------------------------------------------- profiles

# operators of ONNX Runtime's own that profiles list
CONTRIB = (
    "DequantizeLinear",
    "FusedMatMul",
    "Gelu",
    "MatMulNBits",
    "QuantizeLinear",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
)


@pytest.mark.parametrize("name", names())
def test_each_built_in_profile_is_whole_and_every_fact_has_its_source(name: str) -> None:
    profile = load(name)  # a limit or operator without a source does not load
    assert profile.title and profile.about and profile.passes
    for source in profile.sources:
        assert source.url.startswith("https://") and source.date
    used = {limit.source for limit in profile.limits} | set(profile.operators.values())
    assert used == set(profile.sources)
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    known |= {f"com.microsoft::{name}" for name in CONTRIB}
    listed = {*profile.operators, *(op for limit in profile.limits for op in limit.operators)}
    assert listed - known <= {"*"}


LIMITS_OF_TI = [
    ("(float[1,8,8,8] x) => (float[1,8,8,8] y) {y = Softmax<axis=2>(x)}", ""),
    ("(float[1,8,8,8] x) => (float[1,8,8,8] y) {y = Softmax<axis=1>(x)}", "axis >= input_rank"),
    ("(float[1,8,8,8,8,1] x) => (float[1,8,8,8,8,1] y) {y = Softmax<axis=-1>(x)}", ""),
    ("(float[2,2,2,2,2,2,2] x) => (float[2,2,2,2,2,2,2] y) {y = Relu(x)}", "wide_axes <= 6"),
    ("(float[1,3,2,2] x) => (float[1,1,2,2] y) {y = ArgMax<axis=1>(x)}", ""),
    ("(float[1,3,2,2] x) => (float[1,2,2] y) {y = ArgMax<axis=1,keepdims=0>(x)}", "keepdims == 1"),
    ("(float[1,3,4,2] x) => (float[1,3,1,2] y) {y = ReduceMax<axes=[-2]>(x)}", ""),
    ("(float[1,3,4,2] x) => (float[1,3,4,1] y) {y = ReduceMax<axes=[3]>(x)}", "axes =="),
    ("(float[1,3] x, float[3,2] w) => (float[1,2] y) {y = Gemm(x, w)}", "weight_constant"),
    ("(float[1,3] x, float[1,2] w) => (float[1,5] y) {y = Concat<axis=1>(x, w)}", ""),
    ("(float[1,3] x, float[1,3] w) => (float[2,3] y) {y = Concat<axis=0>(x, w)}", "axis > 0"),
    ("(float[1,3] x) => (float[3] y) {y = Add(x, x)}", ""),
    ("(float[1,40,40,2] x) => (float[1,40,1,1] y) {y = GlobalAveragePool(x)}", ""),
    ("(float[1,2,40,40] x) => (float[1,2,1,1] y) {y = GlobalAveragePool(x)}", "<= 1024"),
]


@pytest.mark.parametrize(("text", "limit"), LIMITS_OF_TI)
def test_limits_of_texas_instruments(text: str, limit: str) -> None:
    found = fit(Model.load(graph(text, opset=13)), load("tidl"), {})
    assert [limit in m.reason for m in found.misfits] == [True] * bool(limit)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('source = "manual"', "", "names no source among manual"),
        ('source = "manual"', 'source = "other"', "names no source among manual"),
        ('date = "2026"', "", "the source 'manual' has no date"),
        ("https://example.org", "file:///etc", "no https:// address"),
        ('names = ["Conv"]', "", "has no list `names`"),
        ('names = ["Conv"]', 'names = "Conv"', "has no list `names`"),
        ("kernel_h <= 9", "kernel_h <", "no condition"),
        ('title = "mine"', "", "no text 'title'"),
        ('about = "a test"', 'about = "a test"\nlimit = 3', "no entry 'limit'"),
        ('passes = "clean-up"', 'passes = "clean-up"\ndense = "maybe"', "dense is conv, gemm or"),
        ("[[limits]]", "[limits]", "limits is no list of tables"),
        ("[sources.manual]", "[sources", "no TOML"),
    ],
)
def test_what_is_wrong_in_a_profile_is_one_sentence(old: str, new: str, reason: str) -> None:
    whole = MINE.replace("{limit}", "9")
    assert old in whole
    with pytest.raises(UsageError, match=reason) as caught:
        read(whole.replace(old, new, 1), "mine")
    assert str(caught.value).startswith("target mine") and "\n" not in str(caught.value)


def test_limits_of_rockchip_and_qualcomm() -> None:
    def left(target: str, text: str, **constants: Any) -> list[str]:
        model = graph(text, opset=17, **constants)
        return [m.reason for m in fit(Model.load(model), load(target), {}).misfits]

    wide = "(float[1,4,40,40] x) => (float[1,4,h,w] y) { y = Conv<group=4>(x, W) }"
    assert left("rknn", wide, W=(4, 1, 8, 8)) == []
    assert "kernel_h <= 8" in left("rknn", wide, W=(4, 1, 9, 9))[0]  # 31 where it is not depthwise
    pool = "(float[1,4,SIZE] x) => (float[1,4,1,1] y) { y = GlobalAveragePool(x) }"
    assert left("rknn", pool.replace("SIZE", "7,7")) == []
    assert "input_h <= 7" in left("rknn", pool.replace("SIZE", "8,7"))[0]
    free = "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
    assert "static does not hold" in left("qnn-htp", free)[0]
    assert left("qnn-htp", free.replace("N", "3")) == []
    five = "(float[1,1,1,1,4] x) => (int64[1,1,1,1,1] y) { y = ArgMax<axis=-1>(x) }"
    assert "rank <= 4" in left("qnn-htp", five)[0]


def test_an_unknown_target_names_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are ane, ethos-u"):
        load("anne")
    with pytest.raises(UsageError, match="cannot read"):
        load(str(tmp_path / "none.toml"))


# ---------------------------------------------------------------------------------------- facts


def facts(body: str, declared: str = "float[2,6,9,8] x", **constants: Any) -> dict[str, Any]:
    sizes = ",".join("abcd"[: declared.count(",") + 1])
    model = graph(f"({declared}) => (float[{sizes}] y) {{ {body} }}", opset=18, **constants)
    return facts_of(Model.load(model).graph.nodes[-1])


def test_what_is_known_of_a_convolution() -> None:
    body = "y = Conv<group=2, strides=[2,1], dilations=[1,2], pads=[1,0,0,3]>(x, W)"
    found = facts(body, W=(4, 3, 3, 2))
    expected = {
        "rank": 4,
        "batch": 2,
        "static": True,
        "dtype": "float32",
        "kernel_h": 3,
        "kernel_w": 2,
        "stride_h": 2,
        "stride_w": 1,
        "dilated_h": 3,
        "dilated_w": 3,
        "pad_top": 1,
        "pad_bottom": 0,
        "pad_left": 0,
        "pad_right": 3,
        "groups": 2,
        "depthwise": False,
        "input_channels": 6,
        "output_channels": 4,
        "input_pixels": 72,
        "weight_constant": True,
        "window_axes": 2,
    }
    assert {name: found[name] for name in expected} == expected
    assert set(found) <= set(NAMES)


def test_depthwise_one_axis_and_automatic_pads() -> None:
    assert facts("y = Conv<group=6>(x, W)", W=(6, 1, 3, 3))["depthwise"] is True
    audio = facts("y = Conv<strides=[4]>(x, W)", "float[1,2,40] x", W=(3, 2, 8))
    assert (audio["kernel_h"], audio["kernel_w"], audio["stride_w"]) == (1, 8, 4)
    same = facts('y = Conv<auto_pad="SAME_UPPER">(x, W)', W=(4, 6, 3, 4))
    assert [same[f"pad_{side}"] for side in ("top", "bottom", "left", "right")] == [1, 1, 1, 2]
    unknown = facts('y = Conv<auto_pad="SAME_UPPER">(x, W)', "float[1,6,h,w] x", W=(4, 6, 3, 4))
    assert unknown.get("pad_top") is None and unknown["static"] is False


def test_what_is_known_of_other_nodes() -> None:
    gemm = facts("y = Gemm<transA=1, transB=1>(x, W)", "float[7,3] x", W=(5, 7))
    assert (gemm["input_channels"], gemm["output_channels"]) == (7, 5)
    assert facts("y = Softmax(x)")["last_axis"] is True
    assert facts("y = Softmax<axis=1>(x)") | {"axis": 1, "last_axis": False} == facts(
        "y = Softmax<axis=1>(x)"
    )
    pool = facts("y = AveragePool<kernel_shape=[3,2], ceil_mode=1>(x)")
    assert (pool["kernel_w"], pool["ceil_mode"], pool["count_include_pad"]) == (2, 1, 0)
    assert (pool["input_h"], pool["input_w"]) == (9, 8)


# ------------------------------------------------------------------------------------------ fit

PLAIN = "(float[1,3,8,8] x) => (float[1,4,4,4] y) { c = Conv(x, W) y = Relu(c) }"


def test_a_limit_that_is_changed_changes_what_is_said_and_nothing_else() -> None:
    model = graph(PLAIN, W=(4, 3, 5, 5))
    assert fitted(model, MINE.replace("{limit}", "5")).misfits == ()
    found = fitted(model, MINE.replace("{limit}", "4"))
    assert [m.node for m in found.misfits] == ["Conv of 'c'"]
    assert found.misfits[0].reason == "kernel_h <= 4 does not hold: kernel_h = 5"
    assert found.misfits[0].source.date == "2026" and found.misfits[0].advice
    assert (found.nodes, found.nodes_on, found.multiply_adds) == (2, 1, 4 * 4 * 4 * 75)
    assert found.multiply_adds_on == 0


def conditions() -> tuple[onnx.ModelProto, list[tuple[str, str, str]]]:
    """Return a model and, for each node and fact, operator, label and a condition that holds."""
    model = graph(
        "(float[1,4,8,8] x) => (float[1,4,6,6] c, float[1,4,4,4] p, float[1,4,7,7] a,"
        " float[1,4,8,8] s, float[1,4,1,1] m, float[1,4,16,16] r, float[1,6] g, float[1,7] t)"
        "{ c = Conv(x, W) p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)"
        " a = AveragePool<kernel_shape = [2,2]>(x) s = Softmax<axis = 1>(x)"
        ' m = ReduceMean<axes = [2,3]>(x) r = Resize<mode = "nearest">(x, , scales)'
        " f = Flatten(m) g = Gemm(f, V, b) t = MatMul(g, U) }",
        opset=17,
        W=(4, 4, 3, 3),
        V=(4, 6),
        U=(6, 7),
        b=(6,),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    found = []
    for node in Model.load(model).graph.nodes:
        for name, value in facts_of(node).items():
            if value is not None:
                text = f"{tuple(value)}" if isinstance(value, list) else repr(value)
                holds = f"{name} == {text}"
                if isinstance(value, bool):
                    holds = name if value else f"not {name}"
                found.append((node.op, label(node), holds))
    return model, found


def limits(rows: list[tuple[str, str]]) -> str:
    text = MINE.partition("[[limits]]")[0]
    for kind, holds in rows:
        text += f'[[limits]]\nnames = ["{kind}"]\nholds = "{holds}"\nsource = "manual"\n'
    return text


def test_any_kind_of_limit_that_is_changed_changes_its_own_node_and_nothing_else() -> None:
    proto, holding = conditions()
    asked = {holds.removeprefix("not ").partition(" ")[0] for _, _, holds in holding}
    assert asked >= set(NAMES)
    model = Model.load(proto)
    rows = [(kind, holds) for kind, _, holds in holding]
    before = fit(model, read(limits(rows), "mine"), {})
    assert before.misfits == ()
    for index, (kind, node, holds) in enumerate(holding):
        changed = [*rows]
        changed[index] = kind, f"not ({holds})"
        after = fit(model, read(limits(changed), "mine"), {})
        assert [misfit.node for misfit in after.misfits] == [node], holds
        assert (after.nodes, after.multiply_adds) == (before.nodes, before.multiply_adds)


def test_nodes_of_one_name_are_counted_each() -> None:
    text = "(float[1,3,8,8] x) => (float[1,4,2,2] y) { c = Conv(x, W) r = Relu(c) y = Conv(r, V) }"
    model = graph(text, W=(4, 3, 5, 5), V=(4, 4, 3, 3))
    for node in model.graph.node:
        node.name = "same"
    found = fitted(model, MINE.replace("{limit}", "4"))
    assert (found.nodes, found.nodes_on, found.partitions) == (3, 2, 1)
    assert (found.multiply_adds, found.multiply_adds_on) == (16 * 4 * 75 + 4 * 4 * 36, 4 * 4 * 36)


def test_an_operator_that_no_document_lists_does_not_fit() -> None:
    listed = MINE.replace("{limit}", "9") + '[[operators]]\nnames = ["Conv"]\nsource = "manual"\n'
    found = fitted(graph(PLAIN, W=(4, 3, 5, 5)), listed)
    assert [m.reason for m in found.misfits] == ["Relu is not among the operators it takes"]
    assert found.misfits[0].advice.startswith("the network has to do without Relu")


def test_what_can_be_written_out_is_told() -> None:
    listed = MINE.replace("{limit}", "9") + '[[operators]]\nnames = ["Mul"]\nsource = "manual"\n'
    found = fitted(graph("(float[4] x) => (float[4] y) { y = HardSwish(x) }", opset=14), listed)
    assert "write-out{operators=HardSwish}" in found.misfits[0].advice


def test_what_cannot_be_told_does_not_fit() -> None:
    text = "(float[1,3,8,8] x, float[4,3,h,w] k) => (float[1,4,p,q] y) { y = Conv(x, k) }"
    model = graph(text)
    found = fitted(model, MINE.replace("{limit}", "9"))
    assert "cannot be told: kernel_h is not known" in found.misfits[0].reason
    assert found.misfits[0].advice


def test_nodes_that_make_constants_are_not_counted() -> None:
    text = "(float[1,4] x) => (float[1,4] y) { k = Constant<value = float {2}>() y = Mul(x, k) }"
    assert fitted(graph(text), MINE.replace("{limit}", "9")).nodes == 1


@pytest.mark.parametrize(
    ("body", "pieces"),
    [
        ("a = Relu(x) b = Abs(a) y = Neg(b)", 1),
        ("a = Relu(x) b = Erf(a) y = Neg(b)", 2),  # Erf is off the target
        ("b = Erf(x) y = Erf(b)", 0),
        # one branch leaves the target: what joins them cannot run before it comes back
        ("a = Relu(x) b = Erf(a) c = Abs(a) y = Add(b, c)", 2),
        ("a = Relu(x) b = Abs(x) y = Add(a, b)", 1),
        ("a = Erf(x) b = Relu(a) c = Abs(a) d = Erf(b) e = Erf(c) y = Add(d, e)", 3),
    ],
)
def test_pieces_that_run_in_one_go(body: str, pieces: int) -> None:
    model = graph(f"(float[2,2] x) => (float[2,2] y) {{ {body} }}")
    listed = 'names = ["Relu", "Abs", "Neg", "Add"]\nsource = "manual"\n'
    assert (
        fitted(model, MINE.replace("{limit}", "9") + "[[operators]]\n" + listed).partitions
        == pieces
    )


# --------------------------------------------------------------------------------- command line

VECTOR = """(float[1,3,4,4] x) => (float[1,10] y) {
    c = Conv<auto_pad="SAME_UPPER">(x, W)  r = Relu(c)
    p = GlobalAveragePool(r)  h = Conv(p, V, b)  y = Flatten(h)
}"""


def test_check_says_what_optimize_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "m.onnx", tmp_path / "o.onnx"
    text = "(float[1,3,4,4] x) => (float[1,10] y) { f = Flatten(x) y = Gemm(f, W, b) }"
    onnx.save(graph(text, W=(48, 10), b=(10,)), before)
    assert run(["check", str(before), "--target", "ane"]) == 1
    told = capsys.readouterr().out
    assert "1 × not weight_constant does not hold" in told and "gemm-to-conv{target=all}" in told
    assert "ane takes 1 of 2 nodes and 0 of 480 multiply-adds, in 1 piece" in told
    arguments = ["optimize", str(before), "--target", "ane", "-o", str(after), "--no-latency"]
    assert run(arguments) == 0
    assert "ane takes 2 of 2 nodes and 480 of 480 multiply-adds" in capsys.readouterr().out
    assert run(["check", str(after), "--target", "ane", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes_on"] == 2


def test_a_target_that_takes_vectors_gets_gemm(tmp_path: Path) -> None:
    before, after = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(graph(VECTOR, W=(5, 3, 3, 3), V=(10, 5, 1, 1), b=(10,)), before)
    assert run(["optimize", str(before), "--target", "ethos-u", "-o", str(after), "-q"]) == 0
    kinds = [node.op_type for node in onnx.load(after).graph.node]
    assert kinds == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]


def test_a_target_of_ones_own(tmp_path: Path) -> None:
    model, mine = tmp_path / "m.onnx", tmp_path / "mine.toml"
    onnx.save(graph(PLAIN, W=(4, 3, 5, 5)), model)
    written = []
    for limit, code in ((5, 0), (4, 1)):
        mine.write_text(MINE.replace("{limit}", str(limit)))
        assert run(["check", str(model), "--target", str(mine)]) == code
        out = tmp_path / "o.onnx"
        assert run(["optimize", str(model), "--target", str(mine), "-o", str(out), "-q"]) == 0
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert run(["check", str(model), "--target", "nobody"]) == 2


# --------------------------------------------------------------------------------------- schema


@pytest.mark.parametrize("name", names())
def test_built_in_profiles_are_as_the_schema_has_them(name: str) -> None:
    text = files("graphpass.targets").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    jsonschema.validate(parse(text, name), json.loads(SCHEMA_PATH.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('date = "2026"', ""),
        ("https://example.org", "file:///etc"),
        ('names = ["Conv"]', 'names = "Conv"'),
        ('title = "mine"', ""),
        ('about = "a test"', 'about = "a test"\nlimit = 3'),
        ('passes = "clean-up"', 'passes = "clean-up"\ndense = "maybe"'),
        ('source = "manual"', ""),
    ],
)
def test_what_is_no_profile_is_none_by_the_schema(old: str, new: str) -> None:
    schema = json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))
    whole = MINE.replace("{limit}", "9")
    jsonschema.validate(parse(whole, "mine"), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parse(whole.replace(old, new, 1), "mine"), schema)
    with pytest.raises(UsageError):
        read(whole.replace(old, new, 1), "mine")


# ---------------------------------------------------------------------------------------- docs

DOCS = Path(__file__).parent.parent / "docs" / "targets.md"


def test_the_document_lists_what_conditions_may_ask() -> None:
    rows = [f"| `{name}` | {told} |" for name, told in NAMES.items()]
    table = "\n".join(["| name | |", "|---|---|", *rows])
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(
        "<!-- facts: made by the tests -->"
    )
    told, _, after = rest.partition("<!-- /facts -->")
    if told.strip() != table:
        marks = ("<!-- facts: made by the tests -->", "<!-- /facts -->")
        DOCS.write_text(f"{before}{marks[0]}\n{table}\n{marks[1]}{after}", encoding="utf-8")
    assert told.strip() == table, "docs/targets.md was out of date and has been written again"


def test_the_profile_of_the_document_is_one() -> None:
    text = DOCS.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert read(text, "ours").dense == "conv"
    assert all(f"`{name}`" in DOCS.read_text(encoding="utf-8") for name in names())
