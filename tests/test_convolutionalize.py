"""From classifier to score map: what converts, what is refused, and that what is wrong is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.cli import run
from graphpass.dense import oracle, trunk_and_heads
from graphpass.dense.convolutionalize import DenseReport, convolutionalize
from graphpass.dense.oracle import Oracle
from graphpass.errors import DifferenceError, GraphpassError, ModelError, UsageError
from graphpass.follow.image_axes import shown
from graphpass.follow.image_input import trace_image
from graphpass.ir.model import Model
from graphpass.rewrite.driver import apply
from graphpass.rewrite.registry import make
from graphpass.testing import graph, operators, session
from graphpass.validate.process.runtime import Runtime
from tests.small_networks import NETWORKS, network

FIXTURES = Path(__file__).parents[1] / "fixtures"
POOLED = ("resnet", "densenet", "mobilenet", "squeeze by window", "shufflenet", "squeezenet")


def shape_of(value: onnx.ValueInfoProto) -> list[Any]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", NETWORKS)
def test_becomes_a_map_that_the_oracle_accepts(name: str) -> None:
    before = network(name)
    result = convolutionalize(before, sizes=[(64, 48)])
    assert result.report.checks
    assert all(check.ok for check in result.report.checks)
    after = result.model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    assert [o.name for o in after.graph.output] == [o.name for o in before.graph.output]
    (image,) = after.graph.input
    assert {"height", "width"} < set(shape_of(image))
    assert shape_of(image)[0] == shape_of(before.graph.input[0])[0]
    for old, new in zip(before.graph.output, after.graph.output, strict=True):
        assert shape_of(new)[0] == shape_of(old)[0]
        assert {"map_height", "map_width"} < set(shape_of(new))
    assert not {"Gemm", "MatMul", "Flatten", "GlobalMaxPool"} & set(operators(after).split()) or (
        name == "convnext"
    )


@pytest.mark.parametrize("name", POOLED)
def test_a_global_head_answers_once_at_any_size(name: str) -> None:
    before = network(name)
    result = convolutionalize(before, head="global")
    after = result.model.to_proto()
    assert [shape_of(o) for o in after.graph.output] == [shape_of(o) for o in before.graph.output]
    image = np.random.default_rng(0).normal(size=(1, 3, 50, 41)).astype(np.float32)
    (answer,) = session(after).run(None, {"x": image})
    assert answer.shape == (1, 5)


def test_nhwc_stays_nhwc() -> None:
    after = convolutionalize(network("mtcnn")).model.to_proto()
    assert [shape_of(o) for o in after.graph.output] == [
        ["N", "map_height", "map_width", 4],
        ["N", "map_height", "map_width", 6],
        ["N", "map_height", "map_width", 2],
    ]
    image = np.random.default_rng(0).normal(size=(2, 40, 24, 3)).astype(np.float32)
    box, _, prob = session(after).run(None, {"x": image})
    assert box.shape == (2, 5, 1, 4)
    np.testing.assert_allclose(prob.sum(axis=3), 1, rtol=1e-5)


def test_softmax_before_opset_13_works_on_each_cell() -> None:
    after = convolutionalize(network("alexnet")).model.to_proto()
    image = np.random.default_rng(0).normal(size=(2, 3, 67, 51)).astype(np.float32)
    (prob,) = session(after).run(None, {"x": image})
    assert prob.shape[2:] == (5, 3)
    np.testing.assert_allclose(prob.sum(axis=1), 1, rtol=1e-5)


def test_logits_leave_the_softmax_out() -> None:
    result = convolutionalize(network("alexnet"), logits=True)
    assert "Softmax" not in operators(result.model.to_proto())


def test_decisions_keep_their_rank_and_type() -> None:
    after = convolutionalize(network("decisions")).model.to_proto()
    best = after.graph.output[1]
    assert shape_of(best) == ["N", "map_height", "map_width"]
    assert best.type.tensor_type.elem_type == onnx.TensorProto.INT64
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    scores, chosen, top, which = session(after).run(None, {"x": image})
    np.testing.assert_array_equal(scores.argmax(axis=1), chosen)
    assert top.shape == which.shape == (1, 2, 9, 9)


def test_a_fixed_batch_stays_unless_it_is_freed() -> None:
    kept = convolutionalize(network("squeezenet")).model.to_proto()
    freed = convolutionalize(network("squeezenet"), keep_batch=False).model.to_proto()
    assert shape_of(kept.graph.input[0])[0] == 1
    assert shape_of(freed.graph.input[0])[0] == shape_of(freed.graph.output[0])[0] == "N"


def test_a_trunk_that_was_freed_wrongly_is_no_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("shufflenet")
    assert convolutionalize(model).report.freed

    def careless(*args: Any) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
        own, freed, notes = trunk_and_heads.cut_trunk(*args)
        for node in freed.graph.node:
            if node.op_type == "Transpose":
                node.op_type = "Identity"
                del node.attribute[:]
        return own, freed, notes

    monkeypatch.setattr(oracle, "cut_trunk", careless)
    with pytest.raises(DifferenceError, match="makes maps is another at other sizes"):
        convolutionalize(model)


@pytest.mark.parametrize("target", ["computed", "sequence"])
def test_constants_and_sequences_of_the_newer_exporter_are_followed(target: str) -> None:
    head = {
        "computed": "t = Concat<axis=0>(one, rest) f = Reshape(r, t)",
        "sequence": "q = SplitToSequence<axis=1>(r, two) a = SequenceAt(q, zero)"
        " b = SequenceAt(q, last) j = Concat<axis=1>(b, a) f = Flatten(j)",
    }[target]
    model = graph(
        f"""(float[1,3,8,8] x) => (float[1,5] y) {{
            c = Conv<strides=[2,2]>(x, k) r = Relu(c) {head} y = Gemm(f, w)
        }}""",
        k=(4, 3, 4, 4),
        w=(36, 5),
        one=np.array([1]),
        rest=np.array([36]),
        two=np.array(2),
        zero=np.array(0),
        last=np.array(-1),
    )
    for keep_batch in (True, False):
        result = convolutionalize(model, keep_batch=keep_batch)
        assert result.report.checks and all(check.ok for check in result.report.checks)


@pytest.mark.parametrize("head", ["dense", "global"])
def test_logits_are_taken_by_their_output_alone(head: Any) -> None:
    model = graph(
        """(float[N,3,8,8] x) => (float[N,5] y, float[N,2] coarse) {
            c = Conv(x, k) r = Relu(c) p = GlobalAveragePool(r) f = Flatten(p)
            l = Gemm(f, w) y = Softmax<axis=1>(l) coarse = Gemm(y, g)
        }""",
        k=(4, 3, 3, 3),
        w=(4, 5),
        g=(5, 2),
    )
    result = convolutionalize(model, head=head, logits=True)
    assert all(check.ok for check in result.report.checks)
    image = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    probabilities, coarse = session(model).run(None, image)
    logits, same = (a.reshape(1, -1) for a in session(result.model.to_proto()).run(None, image))
    np.testing.assert_allclose(same, coarse, rtol=1e-4)
    softmax = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(softmax, probabilities, rtol=1e-4)


def test_maps_of_different_strides_have_names_of_their_own() -> None:
    model = graph(
        """(float[N,3,32,32] x) => (float[N,5] y, float[N,4] z) {
            a = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1)
            b = Conv <pads=[1,1,1,1], strides=[2,2]> (a, w2)
            g = GlobalAveragePool (a)
            h = GlobalAveragePool (b)
            gf = Flatten (g)
            hf = Flatten (h)
            y = Gemm (gf, w3)
            z = Gemm (hf, w4)
        }""",
        w1=(4, 3, 3, 3),
        w2=(4, 4, 3, 3),
        w3=(4, 5),
        w4=(4, 4),
    )
    result = convolutionalize(model)
    y, z = (shape_of(o) for o in result.model.to_proto().graph.output)
    assert y[2:] == ["map_height", "map_width"]
    assert z[2:] == ["map_height_2", "map_width_2"]
    strides = {g.output: g.stride for g in result.report.geometry}
    assert strides == {"y": (2, 2), "z": (4, 4)}
    noted = {e.key: e.value for e in result.model.proto.metadata_props}
    assert noted["graphpass.stride"] == "y=2,2;z=4,4"


def test_the_metadata_says_where_cells_lie() -> None:
    result = convolutionalize(network("vgg"))
    noted = {e.key: e.value for e in result.model.proto.metadata_props}
    # 3x3 conv, pool 4, 3x3 conv at stride 4, pool 2, and a 4x4 dense layer at stride 8
    assert noted["graphpass.stride"] == "8,8"
    assert noted["graphpass.window"] == "42,42"
    assert noted["graphpass.offset"] == "-5,-5"
    assert noted["graphpass.native"] == "32,32"
    assert noted["graphpass.head"] == "dense"


def test_nothing_stale_stays_between() -> None:
    before = onnx.shape_inference.infer_shapes(network("resnet"))
    after = convolutionalize(before).model.to_proto()
    assert after.graph.value_info
    for value in after.graph.value_info:
        assert 8 not in shape_of(value)[2:]


@pytest.mark.parametrize("name", ["resnet", "mtcnn", "alexnet", "shufflenet"])
def test_converting_again_changes_nothing(name: str) -> None:
    from graphpass import optimize

    once = convolutionalize(network(name)).model.to_proto()
    with optimize(once) as result:
        optimized = result.model
    assert not {"Gemm", "Flatten"} & set(operators(optimized).split())
    again = convolutionalize(optimized)
    assert again.report.unchanged
    assert again.model.to_proto() == optimized


def test_class_activation_map_has_the_logits_for_mean() -> None:
    result = convolutionalize(network("resnet"), head="global", cam=True)
    image = np.random.default_rng(0).normal(size=(2, 3, 48, 56)).astype(np.float32)
    logits, cam = session(result.model.to_proto()).run(["y", "y.cam"], {"x": image})
    assert cam.shape == (2, 5, 6, 7)
    np.testing.assert_allclose(cam.mean(axis=(2, 3)), logits, rtol=1e-4, atol=1e-5)
    assert any(check.output == "y.cam" for check in result.report.checks)


def test_cam_of_a_head_that_is_not_linear_is_refused() -> None:
    with pytest.raises(ModelError, match=r"HardSwish .* is not linear"):
        convolutionalize(network("mobilenet"), head="global", cam=True)


# ------------------------------------------------------------------------------ what is refused

TRUNK = "a = Conv <pads=[1,1,1,1], strides=[4,4]> (x, w1)"
POOL = "g = GlobalAveragePool (b) f = Flatten (g) y = Gemm (f, w2)"
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "position embedding": (
        f"{TRUNK} b = Add (a, position) {POOL}",
        {"position": (1, 4, 8, 8)},
        r"Add of 'b' takes 'position' of shape \[1, 4, 8, 8\].* fixes the resolution",
    ),
    "sequence of pixels": (
        f"""{TRUNK} s = Reshape (a, tokens) t = Transpose <perm=[0,2,1]> (s)
            u = Add (t, position) f = Flatten (u) y = Gemm (f, wide)""",
        {"tokens": np.array([0, 4, 64]), "position": (1, 64, 4), "wide": (256, 5)},
        "Add of 'u' takes 'position' .* position embedding",
    ),
    "split pixels": (
        f"{TRUNK} s = Reshape (a, parts) t = Reshape (s, back) b = Relu (t) {POOL}",
        {"parts": np.array([0, 4, 2, 4, 8]), "back": np.array([0, 4, 8, 8])},
        "Reshape of 's' makes height 8 into 2x4",
    ),
    "matmul over pixels": (
        f"{TRUNK} b = MatMul (a, mix) {POOL}",
        {"mix": (8, 8)},
        "MatMul of 'b' multiplies over pixels",
    ),
    "resize": (
        f'{TRUNK} b = Resize <mode="nearest"> (a, , , sizes) {POOL}',
        {"sizes": np.array([1, 4, 16, 16])},
        "Resize of 'b' resizes the map to a constant size",
    ),
    "recurrent": (
        f"""{TRUNK} s = Reshape (a, tokens) t = Transpose <perm=[2,0,1]> (s)
            r, h = GRU <hidden_size=2> (t, gw, gr) y = Flatten (h)""",
        {"tokens": np.array([0, 4, 64]), "gw": (1, 6, 4), "gr": (1, 6, 2)},
        "GRU of 'r' is a recurrent layer over pixels",
    ),
    "rows": (
        f"{TRUNK} b = Gather <axis=2> (a, some) {POOL}",
        {"some": np.array([0, 3])},
        "Gather of 'b' picks single rows",
    ),
    "constant cut": (
        f"{TRUNK} b = Slice (a, zero, six, two) {POOL}",
        {"zero": np.array([0]), "six": np.array([6]), "two": np.array([2])},
        "Slice of 'b' cuts height at constant positions",
    ),
    "attention": (
        f"{TRUNK} b = Softmax <axis=-1> (a) {POOL}",
        {},
        "Softmax of 'b' normalizes over pixels",
    ),
    "unknown operator": (
        f"{TRUNK} b = my.domain.Odd (a) {POOL}",
        {},
        "Odd of 'b' is not known to work at any resolution",
    ),
    "two strides in one head": (
        f"""{TRUNK} b = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)
            g = GlobalAveragePool (a) h = GlobalAveragePool (b)
            j = Concat <axis=1> (g, h) f = Flatten (j) y = Gemm (f, both)""",
        {"both": (8, 5)},
        "differ|stride",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_ties_it_to_a_resolution_is_named(name: str, tmp_path: Path) -> None:
    body, weights, reason = REFUSED[name]
    constants: dict[str, Any] = {"w1": (4, 3, 3, 3), "w2": (4, 5), **weights}
    text = f"(float[N,3,32,32] x) => (float[P,Q] y) {{ {body} }}"
    model = graph(text, domains={"my.domain": 1}, **constants)
    with pytest.raises(ModelError, match=reason):
        convolutionalize(model)
    source = tmp_path / "model.onnx"
    onnx.save(model, source)
    assert run(["convolutionalize", str(source), "-o", str(tmp_path / "out.onnx")]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size", "16x64"], 2, "--size 16x64 is smaller than 35x35"),
        (["--size", "big"], 2, "'big' is not HEIGHTxWIDTH"),
        (["--head", "global"], 3, "flattens a map of 4x4: there is a weight for each"),
        (["--cam"], 2, "--cam goes with --head global"),
        (["--approximate", "gap"], 2, "needs --calibration"),
        (["--native", "99x99"], 2, "does not fit"),
    ],
)
def test_bad_use_gets_one_sentence(
    arguments: list[str], code: int, message: str, tmp_path: Path, capfd: Any
) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(network("alexnet"), source)
    out = str(tmp_path / "out.onnx")
    assert run(["convolutionalize", str(source), "-o", out, *arguments]) == code
    said = capfd.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(float[N,8] x) => (float[N,5] y) { y = Gemm (x, w8) }", "no image input"),
        ("(float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv (x, w) }", "has no head"),
        (
            """(float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,4,1,1] y) {
                s = Add (x, z) c = Conv (s, w) y = GlobalAveragePool (c) }""",
            "several inputs",
        ),
        (
            "(float[N,3,H,W] x) => (float[N,4] y) "
            "{ c = Conv (x, w) g = GlobalAveragePool (c) y = Flatten (g) }",
            "say which resolution",
        ),
        (
            """(float[N,3,8,8] x, float[N,4] z) => (float[N,4] y) {
                c = Conv (x, w) g = GlobalAveragePool (c) f = Flatten (g) y = Add (f, z) }""",
            "the network needs the input z",
        ),
    ],
)
def test_a_model_that_is_no_classifier_of_images(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        convolutionalize(graph(text, w=(4, 3, 3, 3), w8=(8, 5)))


def test_a_native_size_makes_up_for_a_symbolic_one() -> None:
    text = NETWORKS["resnet"][0].replace("[N,3,32,32]", "[N,3,H,W]")
    result = convolutionalize(graph(text, **NETWORKS["resnet"][2]), native=(32, 40))
    assert result.report.native == (32, 40)
    assert result.report.map_sizes[(32, 40)] == {"y": (1, 1)}


# ------------------------------------------------------------------- the oracle finds what is wrong


def damaged(name: str, damage: Any) -> list[bool]:
    """Convert, damage the result, and return what the oracle says at sizes native and larger."""
    original = Model.load(network(name))
    proto = convolutionalize(network(name), check=False).model.to_proto()
    damage(proto)
    with Runtime() as runtime:
        oracle = Oracle(original, trace_image(original.graph), runtime, pooled=False)
        with runtime.load(proto) as candidate:
            sizes = [oracle.native.size, (61, 53)]
            return [all(c.ok for c in oracle.check(candidate, size, 2)) for size in sizes]


def _attribute(model: onnx.ModelProto, op: str, name: str, value: Any) -> None:
    node = [n for n in model.graph.node if n.op_type == op][-1]
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def test_the_oracle_accepts_what_is_right() -> None:
    assert damaged("vgg", lambda model: None) == [True, True]


def test_the_oracle_finds_a_wrong_stride() -> None:
    wrong = lambda model: _attribute(model, "AveragePool", "strides", [2, 2])  # noqa: E731
    assert damaged("resnet", wrong) == [True, False]


def test_the_oracle_finds_padding_where_none_was() -> None:
    def wrong(model: onnx.ModelProto) -> None:
        _attribute(model, "AveragePool", "pads", [0, 0, 1, 1])
        _attribute(model, "AveragePool", "count_include_pad", 0)

    assert damaged("resnet", wrong)[1] is False


def test_the_oracle_finds_a_flipped_kernel() -> None:
    def wrong(model: onnx.ModelProto) -> None:
        (big,) = [t for t in model.graph.initializer if list(t.dims)[2:] == [4, 4]]
        array = onnx.numpy_helper.to_array(big)[:, :, ::-1].copy()
        big.CopyFrom(onnx.numpy_helper.from_array(array, big.name))

    assert damaged("vgg", wrong) == [False, False]


def test_the_oracle_finds_a_softmax_over_the_whole_map() -> None:
    def wrong(model: onnx.ModelProto) -> None:
        nodes = [n for n in model.graph.node if n.op_type != "Transpose"]
        conv, softmax = nodes[-2:]
        softmax.input[0], softmax.output[0] = conv.output[0], "prob"
        _attribute(model, "Softmax", "axis", 1)  # which flattens before opset 13
        del model.graph.node[:]
        model.graph.node.extend(nodes)

    assert damaged("alexnet", wrong) == [True, False]


def test_a_wrong_map_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import graphpass.dense.convolutionalize as dense

    real = dense._rewrite

    def wrong(model: Model, steps: Any, report: DenseReport, *limits: Any) -> None:
        real(model, steps, report, *limits)
        _attribute(model.proto, "AveragePool", "strides", [2, 2])

    monkeypatch.setattr(dense, "_rewrite", wrong)
    with pytest.raises(DifferenceError, match="nothing was written"):
        convolutionalize(network("resnet"))
    source = tmp_path / "model.onnx"
    onnx.save(network("resnet"), source)
    assert run(["convolutionalize", str(source), "-o", str(tmp_path / "o.onnx")]) == 1
    assert not (tmp_path / "o.onnx").exists()


# ------------------------------------------------------------------------------- the single passes


def test_the_passes_stand_in_a_pipeline() -> None:
    model = Model.load(network("vgg"))
    for name in ("clean-up", "gemm-to-conv", "pool-to-window", "unflatten-head"):
        apply(make(name), model)
    assert shape_of(model.proto.graph.output[0]) == ["N", 5, 1, 1]
    apply(make("free-resolution"), model)
    assert shape_of(model.proto.graph.output[0]) == ["N", 5, "map_height", "map_width"]


def test_a_pipeline_with_them_is_validated_and_comes_to_an_end() -> None:
    from graphpass import optimize

    steps = "clean-up,gemm-to-conv,pool-to-window,unflatten-head,free-resolution"
    with optimize(network("mtcnn"), passes=steps) as result:
        outcomes = {entry.name: entry.outcome for entry in result.report.passes}
        made = result.model
    assert outcomes["unflatten-head"] == outcomes["free-resolution"] == "kept"
    assert shape_of(made.graph.output[0]) == ["N", "map_height", "map_width", 4]
    with optimize(made, passes=steps) as again:
        assert again.model == made


def test_a_pass_that_refuses_changes_nothing() -> None:
    before = network("vgg")
    model = Model.load(before)
    applied = apply(make("free-resolution"), model)
    assert "flattens a map of 4x4" in applied.refusals[0].reason
    assert model.to_proto() == before


def test_pool_to_window_is_exact_at_the_native_size() -> None:
    before = network("densenet")
    model = Model.load(before)
    apply(make("pool-to-window"), model)
    after = model.to_proto()
    assert "AveragePool Flatten Gemm" in operators(after)
    image = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    (a,), (b,) = (session(m).run(None, {"x": image}) for m in (before, after))
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------- heatmap and approximation


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    convolutionalize(FIXTURES / "digits.onnx").save(path)
    return path


def test_heatmap_finds_the_digit(digits: Path, tmp_path: Path, capfd: Any) -> None:
    from PIL import Image

    images = np.load(FIXTURES / "digits_inputs.npz")["image"]
    label = int((FIXTURES / "digits_labels.txt").read_text().split()[0])
    page = np.full((48, 64), 0, np.uint8)
    page[16:32, 36:52] = ((images[0, 0] + 1) * 127.5).round()
    Image.fromarray(page).save(tmp_path / "page.png")
    out = tmp_path / "map.png"
    flags = ["--scale", str(1 / 127.5), "--mean", "1", "--top", "1", "--class", str(label)]
    picture = str(tmp_path / "page.png")
    assert run(["heatmap", str(digits), picture, "-o", str(out), *flags]) == 0
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
    said = capfd.readouterr().out
    place = said.splitlines()[2].split(" at ")[1]
    left, upper = (int(part.split()[1].split("..")[0]) for part in place.split(","))
    assert abs(left - 36) <= 4
    assert abs(upper - 16) <= 4


def test_heatmap_refuses_in_one_sentence(digits: Path, tmp_path: Path, capfd: Any) -> None:
    from PIL import Image

    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((8, 40), np.uint8)).save(small)
    (tmp_path / "text.png").write_text("no picture")
    out = str(tmp_path / "o.png")
    for model, picture, message in (
        (digits, small, "fewer than the 16x16"),
        (digits, tmp_path / "text.png", "no picture that Pillow can read"),
        (FIXTURES / "digits.onnx", small, "no map among its outputs"),
    ):
        assert run(["heatmap", str(model), str(picture), "-o", out]) in (2, 3)
        assert message in capfd.readouterr().err
    assert not Path(out).exists()


def test_the_approximation_says_how_good_it_is(tmp_path: Path, capfd: Any) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(network("vgg"), model)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "some.npz", x=rng.normal(size=(40, 3, 32, 32)).astype(np.float32))
    out = tmp_path / "out.onnx"
    arguments = ["--approximate", "gap", "--calibration", str(tmp_path / "some.npz")]
    code = run(["convolutionalize", str(model), "-o", str(out), "--head", "global", *arguments])
    said = capfd.readouterr()
    assert code == 0, said.err
    assert "APPROXIMATION" in said.err
    assert "30 inputs; on 10 other inputs" in said.err
    (answer,) = session(onnx.load(out)).run(None, {"x": np.zeros((1, 3, 50, 60), np.float32)})
    assert answer.shape == (1, 5)


def test_the_fit_is_close_where_the_layer_is_nearly_a_mean(tmp_path: Path) -> None:
    from graphpass.dense.approximate import approximate_gap

    model = network("vgg")
    (wide,) = [t for t in model.graph.initializer if t.name == "w3"]
    array = onnx.numpy_helper.to_array(wide).reshape(6, 16, 7)
    even = np.repeat(array[:, :1], 16, axis=1).reshape(96, 7)
    even = even + np.random.default_rng(1).normal(size=even.shape).astype(np.float32) * 1e-4
    wide.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(even), "w3"))
    rng = np.random.default_rng(0)
    for name, count in (("a", 40), ("b", 10)):
        x = rng.normal(size=(count, 3, 32, 32)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x)
    _, report = approximate_gap(model, tmp_path / "a.npz", tmp_path / "b.npz")
    assert report.top1_agreement == 1.0
    assert report.relative_error < 1e-2


def test_too_few_calibration_inputs(tmp_path: Path) -> None:
    from graphpass.dense.approximate import approximate_gap

    np.savez(tmp_path / "a.npz", x=np.zeros((3, 3, 32, 32), np.float32))
    with pytest.raises(UsageError, match="at least 8"):
        approximate_gap(network("vgg"), tmp_path / "a.npz")
    with pytest.raises(GraphpassError, match="holds"):
        approximate_gap(network("alexnet"), tmp_path / "a.npz")
    with pytest.raises(ModelError, match="nothing to approximate"):
        np.savez(tmp_path / "b.npz", x=np.zeros((12, 3, 32, 32), np.float32))
        approximate_gap(network("resnet"), tmp_path / "b.npz")


# ------------------------------------------------------------- what is declared, and what is so


def skipped(by: str) -> onnx.ModelProto:
    """A small U: a map halved and brought back, by fixed sizes or by scales, beside itself."""
    inputs = '"", "", sizes' if by == "sizes" else '"", scales'
    return graph(
        f"""(float[1,3,h,w] x) => (float[1,8,p,q] y) {{
            c = Conv<pads=[1,1,1,1]>(x, W)
            d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
            u = Resize<mode="nearest">(d, {inputs})
            y = Concat<axis=1>(c, u)
        }}""",
        W=(4, 3, 3, 3),
        sizes=np.array([1, 4, 16, 16], np.int64),
        scales=np.array([1, 1, 2, 2], np.float32),
    )


def test_a_size_that_is_declared_to_vary_and_does_not_is_told() -> None:
    with pytest.raises(ModelError, match="'x' are declared to vary, but do not"):
        convolutionalize(skipped("sizes"))
    assert convolutionalize(skipped("scales")).report.unchanged


def test_a_symbolic_batch_is_said_as_such() -> None:
    assert shown([7919, 8, 2 * 7919, 0, 1]) == "[N, 8, 2·N, 0, 1]"


# --------------------------------------------------------------------- signals and volumes

# input without its batch; trunk and head; how many dimensions
SIGNALS: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "a signal, flattened": (
        "2,26", "c = Conv<strides=[2]>(x, W) r = Relu(c) p = MaxPool<kernel_shape=[2]>(r)"
        " f = Flatten(p) g = Gemm(f, U) s = Relu(g) y = Gemm<transB=1>(s, V, b)",
        {"W": (4, 2, 3), "U": (44, 6), "V": (5, 6), "b": (5,)}, 1),
    "a signal, pooled": (
        "2,26", "c = Conv<strides=[3], dilations=[2]>(x, W) r = Relu(c) p = GlobalAveragePool(r)"
        " f = Flatten(p) g = Gemm(f, V, b) y = Softmax<axis=-1>(g)",
        {"W": (4, 2, 3), "V": (4, 5), "b": (5,)}, 1),
    "a signal, its mean": (
        "2,26", "c = Conv(x, W) r = Relu(c) m = ReduceMean<axes=[-1], keepdims=0>(r)"
        " y = Gemm(m, V, b)", {"W": (4, 2, 3), "V": (4, 5), "b": (5,)}, 1),
    "a signal, its largest values": (
        "2,26", "c = Conv(x, W) r = Relu(c) m = MaxPool<kernel_shape=[24], strides=[24]>(r)"
        " f = Flatten(m) y = Gemm(f, V, b)", {"W": (4, 2, 3), "V": (4, 5), "b": (5,)}, 1),
    "a signal that is pooled as one row": (
        "2,26", "c = Conv(x, W) u = Unsqueeze(c, two) m = ReduceMean<axes=[-1, -2]>(u)"
        " s = Squeeze(m, two) f = Flatten(s) y = Gemm(f, V, b)",
        {"W": (4, 2, 3), "V": (4, 5), "b": (5,), "two": np.array([2], np.int64)}, 1),
    "a volume, flattened": (
        "2,5,8,10", "c = Conv<strides=[1,2,2]>(x, W) r = Relu(c)"
        " p = MaxPool<kernel_shape=[1,2,2]>(r) f = Flatten(p) y = Gemm<transB=1>(f, V, b)",
        {"W": (4, 2, 3, 3, 3), "V": (5, 72), "b": (5,)}, 3),
    "a video, pooled, channels last": (
        "2,5,8,6", "c = Conv(x, W) r = Relu(c) p = AveragePool<kernel_shape=[3,6,4]>(r)"
        " t = Transpose<perm=[0,2,3,4,1]>(p) g = MatMul(t, V) h = Add(g, b)"
        " s = Softmax<axis=4>(h) y = ReduceMean<axes=[1,2,3], keepdims=0>(s)",
        {"W": (4, 2, 3, 3, 3), "V": (4, 5), "b": (5,)}, 3),
    "a video with attention to channels": (
        "2,4,6,6", "c = Conv<pads=[1,1,1,1,1,1]>(x, W) g = GlobalAveragePool(c) e = Conv(g, E)"
        " s = Sigmoid(e) m = Mul(c, s) p = ReduceMean<axes=[2,3,4]>(m) f = Flatten(p)"
        " y = Gemm(f, V)", {"W": (4, 2, 3, 3, 3), "E": (4, 4, 1, 1, 1), "V": (4, 5)}, 3),
}  # fmt: skip


def signal_network(name: str) -> onnx.ModelProto:
    shape, body, held = SIGNALS[name][:3]
    return graph(f"(float[N,{shape}] x) => (float[N,5] y) {{{body}}}", opset=17, **held)


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_and_volumes_become_maps(name: str) -> None:
    before = signal_network(name)
    dims = SIGNALS[name][3]
    native = shape_of(before.graph.input[0])[2:]
    larger = tuple(size + 3 * (1 + dim) for dim, size in enumerate(native))
    result = convolutionalize(before, sizes=[larger])
    assert {"NCW": 1, "NCDHW": 3}[result.report.layout] == dims
    assert len(result.report.checks) > 6 and all(check.ok for check in result.report.checks)
    after = result.model.to_proto()
    names = ["length"] if dims == 1 else ["depth", "height", "width"]
    assert shape_of(after.graph.input[0]) == ["N", 2, *names]
    assert shape_of(after.graph.output[0]) == ["N", 5, *(f"map_{name}" for name in names)]
    cells = result.report.map_sizes[larger]["y"]
    image = np.random.default_rng(1).normal(size=(2, 2, *larger)).astype(np.float32)
    (found,) = session(after).run(None, {"x": image})
    assert found.shape == (2, 5, *cells) and np.prod(cells) > 1


@pytest.mark.parametrize("name", [n for n in SIGNALS if "attention" not in n])
def test_without_padding_each_cell_is_what_the_original_says_of_its_crop(name: str) -> None:
    before = signal_network(name)
    native = shape_of(before.graph.input[0])[2:]
    larger = [size + 2 + 2 * dim for dim, size in enumerate(native)]
    result = convolutionalize(before, check=False)
    (place,) = result.report.geometry
    image = np.random.default_rng(1).normal(size=(1, 2, *larger)).astype(np.float32)
    (found,) = session(result.model.to_proto()).run(None, {"x": image})
    original = session(before)
    for cell in np.ndindex(*found.shape[2:]):
        begins = [index * stride for index, stride in zip(cell, place.stride, strict=True)]
        crop = image
        for axis, (begin, count) in enumerate(zip(begins, native, strict=True), 2):
            crop = np.take(crop, range(begin, begin + count), axis)
        (wanted,) = original.run(None, {"x": crop})
        answer = found[0].reshape(5, -1)[:, np.ravel_multi_index(cell, found.shape[2:])]
        np.testing.assert_allclose(answer, wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in SIGNALS if "flattened" not in n])
def test_a_global_head_answers_once_for_a_signal_of_any_size(name: str) -> None:
    result = convolutionalize(signal_network(name), head="global")
    assert shape_of(result.model.to_proto().graph.output[0]) == ["N", 5]
    assert all(check.ok for check in result.report.checks)


def test_a_signal_whose_channels_lie_last() -> None:
    model = graph(
        "(float[N,26,2] x) => (float[N,5] y) {t = Transpose<perm=[0,2,1]>(x) c = Conv(t, W)"
        " f = Flatten(c) y = Gemm(f, V)}",
        W=(4, 2, 3),
        V=(96, 5),
    )
    result = convolutionalize(model)
    assert result.report.layout == "NWC"
    assert shape_of(result.model.to_proto().graph.output[0]) == ["N", "map_length", 5]


def test_sizes_of_signals_and_volumes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(signal_network("a signal, pooled"), tmp_path / "a.onnx")
    onnx.save(signal_network("a volume, flattened"), tmp_path / "v.onnx")
    assert run(["convolutionalize", str(tmp_path / "a.onnx"), "--size", "40"]) == 0
    assert "made for 26 pixels (NCW)" in capsys.readouterr().out
    assert run(["convolutionalize", str(tmp_path / "v.onnx"), "--size", "7x9x14"]) == 0
    assert "image 7x9x14: 'y' 3x2x3" in capsys.readouterr().out
    assert run(["convolutionalize", str(tmp_path / "v.onnx"), "--size", "7x9"]) == 2
    assert "--size 7x9 does not fit an input that wants 3 numbers" in capsys.readouterr().err


TIED = {
    "a recurrent layer": ("c = Conv(x, W) t = Transpose<perm=[2,0,1]>(c) h, l = LSTM<hidden_size=3>"
                          "(t, P, R) s = Squeeze(l, zero) y = Gemm(s, V)", "a recurrent layer"),
    "a place of its own": ("c = Conv(x, W) a = Add(c, places) p = GlobalAveragePool(a)"
                           " f = Flatten(p) y = Gemm(f, V)", "a value for each position"),
    "length among the batch": ("c = Conv(x, W) t = Transpose<perm=[0,2,1]>(c)"
                               " f = Flatten<axis=2>(t) y = Gemm(f, V)",
                               "flattens length together with the batch"),
}  # fmt: skip


@pytest.mark.parametrize("body, reason", TIED.values(), ids=TIED)
def test_what_ties_a_signal_to_its_length(body: str, reason: str) -> None:
    held: dict[str, Any] = {
        "W": (4, 2, 3), "V": (3 if "LSTM" in body else 4, 5), "P": (1, 12, 4), "R": (1, 12, 3),
        "zero": np.array([0], np.int64), "places": (1, 4, 24),
    }  # fmt: skip
    used = {name: value for name, value in held.items() if name in body}
    model = graph(f"(float[N,2,26] x) => (float[N,5] y) {{{body}}}", **used)
    with pytest.raises(ModelError, match=reason):
        convolutionalize(model)
