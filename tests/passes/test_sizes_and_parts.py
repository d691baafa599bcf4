"""set-shape, set-opset, extract: another interface, asked for as such, and who judges it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphpass
from graphpass.cli import run
from graphpass.errors import DifferenceError, UsageError
from graphpass.rewrite.interface import Interface
from graphpass.testing import graph, session
from graphpass.validate.validator import Validator

TWO = """(float[N,3,H,W] x, float[N,2] z) => (float[N,4] y) {
    c = Conv(x, K)  p = GlobalAveragePool(c)  f = Flatten(p)  g = Gemm(z, G)  y = Add(f, g)
}"""
FIXED = """(float[1,3,24,24] x) => (float[1,4] y) {
    c = Conv(x, K)  p = GlobalAveragePool(c)  y = Flatten(p)
}"""
OLD = """(float[2,3,9,9] x) => (float[2,4] y, int64[2] top) {
    c = Conv(x, K)  p = ReduceMean<axes=[2,3], keepdims=0>(c)  u = Unsqueeze<axes=[2]>(p)
    q = Squeeze<axes=[2]>(u)  y = Softmax<axis=1>(q)  top = ArgMax<axis=1, keepdims=0>(y)
}"""


def two() -> onnx.ModelProto:
    return graph(TWO, K=(4, 3, 3, 3), G=(2, 4))


def sizes(model: onnx.ModelProto) -> dict[str, list[Any]]:
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }


def done(model: onnx.ModelProto, passes: str, **options: Any) -> tuple[onnx.ModelProto, str]:
    """Run passes; return the model and how it compared."""
    with graphpass.optimize(model, passes, **options) as result:
        checks = [entry.check for entry in result.report.passes if entry.check is not None]
        return result.model, checks[-1].status if checks else "unchanged"


def refused(model: onnx.ModelProto, passes: str) -> str:
    with pytest.raises(UsageError) as caught:
        done(model, passes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------ set-shape


def test_a_size_is_fixed_wherever_its_name_stands() -> None:
    model, status = done(two(), "set-shape{shapes=x=2,3,24,20}")
    assert sizes(model) == {"x": [2, 3, 24, 20], "z": [2, 2], "y": [2, 4]}
    assert status == "equal"


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ("x=2,3,40,32", {"x": [2, 3, 40, 32], "y": [2, 4]}),  # freed, and fixed again
        ("x=batch,3,h,w", {"x": ["batch", 3, "h", "w"], "y": ["batch", 4]}),
        ("x=batch,3,24,24", {"x": ["batch", 3, 24, 24], "y": ["batch", 4]}),
        ("x=1,3,32,24", {"x": [1, 3, 32, 24], "y": [1, 4]}),
        ("x=1,3,24,24", {"x": [1, 3, 24, 24], "y": [1, 4]}),
    ],
)
def test_what_is_fixed_is_freed_first(shapes: str, expected: dict[str, list[Any]]) -> None:
    model, status = done(graph(FIXED, K=(4, 3, 3, 3)), f"set-shape{{shapes={shapes}}},clean-up")
    assert sizes(model) == expected
    assert status in ("equal", "unchanged")


def test_names_are_exchanged_and_other_passes_go_on_with_the_sizes() -> None:
    text = """(float[N,3,H,W] x) => (float[N,K] y) {
        s = Shape(x)  b = Gather(s, zero)  u = Unsqueeze(b, zeros)  d = Concat<axis=0>(u, rest)
        c = Conv(x, K0)  y = Reshape(c, d)
    }"""
    model = graph(
        text,
        K0=(2, 3, 3, 3),
        zero=np.array(0),
        zeros=np.array([0]),
        rest=np.array([-1]),
    )
    named, _ = done(model, "set-shape{shapes=x=batch,3,H,width}")
    assert sizes(named)["x"] == ["batch", 3, "H", "width"]
    # the shape is a constant once the batch is: it folds
    fixed, status = done(model, "set-shape{shapes=x=2,3,8,9},clean-up")
    assert [node.op_type for node in fixed.graph.node] == ["Conv", "Reshape"]
    assert (status, sizes(fixed)["y"][0]) == ("equal", 2)


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ("u=1,3,24,24", "the model has no input 'u': it has 'x', 'z'"),
        ("x=1,3,24", "'x' has 4 axes, and 3 sizes are given"),
        ("x=1,4,24,24", "'x' has 3 along axis 1, which is neither its batch nor"),
        ("x=1,3,24,24 z=2,2", "the sizes called N are equal: they cannot be 1 and 2"),
        ("x=1,3,2,24", "does not run|does not fit|cannot run|accepts"),
        ("x=1,3,0,24", "a size is from 1 to"),
        ("x", "is no shape: write NAME=SIZES"),
        ("x=1,3,-1,24", "is no shape: write NAME=SIZES"),
        ("x=1,3,24,24 x=2,3,24,24", "two shapes are given for 'x'"),
    ],
)
def test_shapes_that_do_not_fit_are_one_sentence(shapes: str, reason: str) -> None:
    told = refused(two(), f"set-shape{{shapes={shapes}}}")
    assert re.search(reason, told), told


def test_sizes_that_contradict_a_constant_inside_are_refused() -> None:
    text = "(float[N,6] x) => (float[N,4] y) { a = Add(x, five) y = MatMul(a, W) }"
    model = graph(text, five=(5, 6), W=(6, 4))
    assert "x' [3, 6] does not fit the network" in refused(model, "set-shape{shapes=x=3,6}")


def test_several_rows_are_answered_one_by_one() -> None:
    # the maximum is taken over the whole image, and was over all that there was
    text = "(float[1,6] x) => (float[1,6] y) { m = ReduceMax<keepdims=1>(x) y = Sub(x, m) }"
    model, status = done(graph(text), "set-shape{shapes=x=2,6}")
    assert sizes(model) == {"x": [2, 6], "y": [2, 6]} and status == "equal"
    rows = np.array([[1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 60]], np.float32)
    (found,) = session(model).run(None, {"x": rows})
    np.testing.assert_array_equal(found, rows - rows.max(axis=1, keepdims=True))


def test_a_batch_whose_rows_meet_is_not_freed() -> None:
    text = "(float[2,6] x) => (float[2,6] y) { y = CumSum(x, zero) }"
    told = refused(graph(text, zero=np.array(0)), "set-shape{shapes=x=3,6}")
    assert "CumSum" in told


def test_sizes_at_which_the_original_does_not_run_are_held_against_what_was_freed() -> None:
    text = """(float[1,4,8,8] x) => (float[1,4,8,8] y) {
        r = Reshape(x, five)  t = Transpose<perm=[0,2,1,3,4]>(r)  s = Reshape(t, four)
        y = Conv<pads=[1,1,1,1]>(s, K)
    }"""
    shapes: dict[str, Any] = {
        "five": np.array([1, 2, 2, 8, 8]),
        "four": np.array([1, 4, 8, 8]),
    }
    model = graph(text, K=(4, 4, 3, 3), **shapes)
    found, status = done(model, "set-shape{shapes=x=1,4,12,10},clean-up")
    assert sizes(found) == {"x": [1, 4, 12, 10], "y": [1, 4, 12, 10]}
    assert status in ("equal", "within tolerance")
    with Validator(model) as validator:
        may = Interface.SIZES | Interface.FIXED
        assert validator.check(found, interface_may_change=may).status == "cannot run"
        freed, _ = done(model, "free-resolution")
        assert validator.check(freed, interface_may_change=may).ok
        assert validator.check(found, interface_may_change=may).ok
        assert validator.check(broken(found), interface_may_change=may).status == "differs"


def test_a_size_between_the_steps_in_which_a_network_grows_is_refused() -> None:
    # half the size and back again: to the size that the image has
    text = """(float[1,2,8,8] x) => (float[1,2,8,8] y) {
        h = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)
        u = Resize<mode="nearest">(h, none, none, sizes)  y = Add(x, u)
    }"""
    none: dict[str, Any] = {"none": np.array([], np.float32), "sizes": np.array([1, 2, 8, 8])}
    model = graph(text, **none)
    found, _ = done(model, "set-shape{shapes=x=1,2,12,10}")
    assert sizes(found)["y"] == [1, 2, 12, 10]
    told = refused(model, "set-shape{shapes=x=1,2,11,10}")
    assert "grows from 8 along axis 2 in steps of 2: 11 is no step" in told


# ------------------------------------------------------------------------------------ set-opset


@pytest.mark.parametrize("version", [13, 18, 21])
def test_nodes_are_converted_and_the_numbers_stay(version: int) -> None:
    model = graph(OLD, opset=11, K=(4, 3, 3, 3))
    model.graph.node[1].doc_string = "kept"
    model.metadata_props.add(key="author", value="somebody")
    found, status = done(model, f"set-opset{{opset={version}}}")
    assert found.opset_import[0].version == version and status == "equal"
    assert "axes" not in {a.name for node in found.graph.node for a in node.attribute} or (
        version < 18
    )
    assert [n.doc_string for n in found.graph.node if n.op_type == "ReduceMean"] == ["kept"]
    assert found.metadata_props[0].value == "somebody"
    names = [value.name for value in found.graph.output]
    x = np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32)
    before, after = (session(each).run(names, {"x": x}) for each in (model, found))
    for one, two in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, two)


def test_large_weights_stay_where_they_are(tmp_path: Path) -> None:
    model = graph(OLD.replace("float[2,3,9,9]", "float[2,64,9,9]"), opset=11, K=(4, 64, 3, 3))
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    weight = numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert run(["optimize", str(path), "--opset", "17", "-o", str(out), "-q"]) == 0
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    np.testing.assert_array_equal(held["K"], weight)


@pytest.mark.parametrize(
    ("text", "opset", "version", "reason"),
    [
        ("y = Gelu(x)", 20, 17, "does not get from opset 20 to 17"),
        (
            "y = If(c) <then_branch = g () => (float[2] t) { t = Softmax<axis=0>(x) },"
            " else_branch = h () => (float[2] e) { e = Softplus(x) }>",
            11,
            17,
            "Softmax of 't' in the body 'g' changes between opset 11 and 17",
        ),
    ],
)
def test_what_the_converter_cannot_do_is_said(
    text: str, opset: int, version: int, reason: str
) -> None:
    model = graph(f"(float[2] x, bool c) => (float[n] y) {{ {text} }}", opset=opset)
    assert reason in refused(model, f"set-opset{{opset={version}}}")


def test_there_is_no_opset_of_the_future() -> None:
    assert "there is no opset 999" in refused(two(), "set-opset{opset=999}")


def test_a_function_is_left_as_it_is_or_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 11, "own" : 1]>
        agraph (float[2,3] x) => (float[2,3] y) { h = own.f(x) y = Neg(h) }
        <domain: "own", opset_import: ["" : 11]> f (a) => (b) { b = BODY(a) }"""
    kept, _ = done(onnx.parser.parse_model(text.replace("BODY", "Erf")), "set-opset{opset=12}")
    assert kept.functions[0].node[0].op_type == "Erf"
    model = onnx.parser.parse_model(text.replace("BODY", "Softmax<axis=1>"))
    assert "in function 'f' changes" in refused(model, "set-opset{opset=17}")


# -------------------------------------------------------------------------------------- extract


def test_a_part_keeps_its_weights_and_nothing_else() -> None:
    model, status = done(two(), "extract{inputs=p,z;outputs=y}")
    assert [node.op_type for node in model.graph.node] == ["Flatten", "Gemm", "Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["G"]
    assert sizes(model) == {"p": ["N", 4, 1, 1], "z": ["N", 2], "y": ["N", 4]}
    assert status == "equal"


@pytest.mark.parametrize(
    ("options", "inputs", "kinds"),
    [
        ("outputs=p", ["x"], ["Conv", "GlobalAveragePool"]),
        ("inputs=f,g", ["f", "g"], ["Add"]),
        ("outputs=g,p", ["x", "z"], ["Conv", "GlobalAveragePool", "Gemm"]),
    ],
)
def test_an_end_that_is_not_named_is_that_of_the_model(
    options: str, inputs: list[str], kinds: list[str]
) -> None:
    model, _ = done(two(), f"extract{{{options.replace(' ', ';')}}},clean-up")
    assert [value.name for value in model.graph.input] == inputs
    assert [node.op_type for node in model.graph.node] == kinds


def test_what_bodies_read_functions_and_annotations_come_along() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        agraph (float[2,3] x, bool c) => (float[2,3] y) {
            a = Neg(x)  k = own.f(a)
            b = If(c) <then_branch = g () => (float[2,3] t) { t = Mul(k, w) },
                       else_branch = h () => (float[2,3] e) { e = own.f(a) }>
            y = own.q(b)
        }
        <domain: "own", opset_import: ["" : 17]> f (i) => (o) { o = Abs(i) }
        <domain: "own", opset_import: ["" : 17]> q (i) => (o) { o = Sqrt(i) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((3,), np.float32), "w"))
    model.graph.quantization_annotation.add(tensor_name="a")
    model.graph.quantization_annotation.add(tensor_name="y")
    found, status = done(model, "extract{inputs=a,c;outputs=b}")
    assert [tensor.name for tensor in found.graph.initializer] == ["w"]
    assert [function.name for function in found.functions] == ["f"]
    assert [note.tensor_name for note in found.graph.quantization_annotation] == ["a"]
    assert [node.op_type for node in found.graph.node] == ["f", "If"] and status == "equal"


def test_before_ir_version_4_weights_are_listed_as_inputs() -> None:
    model = two()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    found, status = done(model, "extract{inputs=p,z;outputs=y}")
    assert [value.name for value in found.graph.input] == ["p", "z", "G"] and status == "equal"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("outputs=pp", "the model has no tensor 'pp'"),
        ("inputs=K;outputs=y", "'K' is a weight"),
        ("inputs=p;outputs=y", "'y' also needs the input 'z': name it, too"),
        ("inputs=p,z;outputs=f", "'z' is not needed for 'f'"),
        ("outputs=x", "'x' is an input, and nothing computes it"),
        ("inputs=p;outputs=p", "'p' is an input, and nothing computes it"),
    ],
)
def test_a_part_that_is_none_is_one_sentence(options: str, reason: str) -> None:
    assert reason in refused(two(), f"extract{{{options}}}")


def test_a_rank_that_nobody_knows_is_said_and_a_declared_one_is_taken() -> None:
    text = "(float[6] x, int64[r] s) => (float[6] y) { a = Reshape(x, s) y = Reshape(a, t) }"
    model = graph(text, t=np.array([6]))
    assert "how many axes 'a' has is not known" in refused(model, "extract{outputs=a}")
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2, 3])
    )
    found, _ = done(model, "extract{outputs=a}", validate=False)
    assert sizes(found)["a"] == [2, 3]


def test_a_type_that_nobody_knows_is_said() -> None:
    text = "(float[2] x) => (float[2] y) { a = theirs.Odd(x) y = Neg(a) }"
    model = graph(text, domains={"theirs": 1})
    with pytest.raises(UsageError, match="the type of 'a' is not known"):
        done(model, "extract{inputs=a;outputs=y}", validate=False)


# ------------------------------------------------------------------------------------ the judge


def broken(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            values = values * np.float32(1.001)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


@pytest.mark.parametrize(
    ("passes", "may"),
    [
        ("set-shape{shapes=x=2,3,24,20}", Interface.FIXED),
        ("extract{inputs=c,z;outputs=y}", Interface.PART),
        ("set-opset{opset=18}", Interface.OPSETS),
    ],
)
def test_wrong_weights_are_found_behind_another_interface(passes: str, may: Interface) -> None:
    right, _ = done(two(), passes)
    with Validator(two()) as validator:
        assert validator.check(right, interface_may_change=may).ok
        assert not validator.check(right).ok  # not declared, not let through
        assert validator.check(broken(right), interface_may_change=may).status == "differs"


def test_what_fixes_a_size_may_not_free_one_nor_take_another_number() -> None:
    fixed = graph(FIXED, K=(4, 3, 3, 3))

    def declared(size: Callable[[Any], None]) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(fixed)
        size(copy.graph.input[0].type.tensor_type.shape.dim[2])
        return copy

    with Validator(fixed) as validator:
        for change in (
            lambda dim: setattr(dim, "dim_value", 32),
            lambda dim: setattr(dim, "dim_param", "h"),
        ):
            found = validator.check(declared(change), interface_may_change=Interface.FIXED)
            assert found.status == "invalid" and "'x' was" in found.reason


def test_a_wrong_rewrite_behind_set_shape_is_undone(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(
        "import numpy as np\n"
        "def wrong(graph):\n"
        "    for t in graph.tensors().values():\n"
        "        if t.name == 'K':\n"
        "            t.values = t.values * np.float32(1.01)\n"
        "    return graph\n"
    )
    passes = f"set-shape{{shapes=x=2,3,24,20}},{script}:wrong"
    with graphpass.optimize(two(), passes) as result:
        outcomes = [entry.outcome for entry in result.report.passes]
        assert outcomes == ["kept", "rolled back"]
        assert sizes(result.model)["x"] == [2, 3, 24, 20]
    with pytest.raises(DifferenceError):
        done(two(), passes, strict=True)


# --------------------------------------------------------------------------------- command line


def test_flags_stand_before_whatever_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(graph(TWO, opset=12, K=(4, 3, 3, 3), G=(2, 4)), path)
    flags = ["--set-shape", "x=1,3,24,24", "--opset", "17", "-o", str(out)]
    assert run(["optimize", str(path), *flags, "--pipeline", "runtime", "--no-latency"]) == 0
    told = capsys.readouterr().out
    assert "set-shape" in told and "set-opset" in told
    model = onnx.load(out)
    assert sizes(model)["x"] == [1, 3, 24, 24] and model.opset_import[0].version == 17
    out.unlink()
    assert run(["optimize", str(path), "--set-shape", "x=1,3,2,2", "-o", str(out), "-q"]) == 2
    assert not out.exists()


def test_extract_writes_a_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(two(), path)
    assert run(["extract", str(path), "--inputs", "p,z", "--outputs", "y"]) == 0
    assert "3 of 5 nodes, from 'p', 'z' to 'y': all outputs are equal" in capsys.readouterr().out
    assert len(onnx.load(tmp_path / "m.part.onnx").graph.node) == 3
    for arguments, reason in (
        ([], "give --inputs, --outputs or both"),
        (["--outputs", "y"], "that is the whole model"),
        (["--outputs", "q"], "the model has no tensor 'q'"),
        (["--outputs", "p", "-o", str(path)], "is the input: give another -o"),
        (["--outputs", "p", "-o", str(tmp_path / "no" / "o.onnx")], "there is no folder"),
    ):
        assert run(["extract", str(path), *arguments]) in (2, 5)
        assert reason in capsys.readouterr().err
