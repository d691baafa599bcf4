from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphpass.rewrite.registry import make
from graphpass.testing import (
    apply_to,
    check,
    check_refused,
    check_untouched,
    graph,
    operators,
    session,
)

CLEAN_UP = make("clean-up")


def becomes(text: str, after: str, **options: Any) -> onnx.ModelProto:
    """Check one model and that a second run leaves the result as it is."""
    result = check(CLEAN_UP, graph(text, **options), after, exact=True)
    again, applied = apply_to(CLEAN_UP, result)
    assert not applied.rewrites
    assert again.SerializeToString(deterministic=True) == result.SerializeToString(
        deterministic=True
    )
    return result


def stays(text: str, **options: Any) -> None:
    check_untouched(CLEAN_UP, graph(text, **options))


def of_any_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the output of `model` have as many dimensions as it has, all of them unknown."""
    tensor = model.graph.output[0].type.tensor_type
    tensor.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    rank = len(inferred.graph.output[0].type.tensor_type.shape.dim)
    tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(rank))
    if not rank:
        tensor.shape.SetInParent()
    return model


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


# ---------------------------------------------------------------------------- what nothing reads


def test_unread_nodes_and_initializers_go() -> None:
    result = becomes(
        "(float[3] x) => (float[3] y) {a = Add(x, w) b = Exp(a) y = Relu(x)}",
        "Relu",
        w=(3,),
        v=(5,),
    )
    assert not result.graph.initializer


def test_an_unread_if_goes_with_what_only_its_bodies_read() -> None:
    result = becomes(
        """(float[3] x, bool c) => (float[3] y) {
            t = Exp(x)
            z = If(c) <
                then_branch = g1 () => (float[3] p) {p = Add(t, w)},
                else_branch = g2 () => (float[3] q) {q = Relu(t)}
            >
            y = Relu(x)
        }""",
        "Relu",
        w=(3,),
    )
    assert not result.graph.initializer


def test_what_a_body_reads_is_read() -> None:
    stays(
        """(float[3] x, bool c) => (float[3] y) {
            t = Exp(x)
            y = If(c) <
                then_branch = g1 () => (float[3] p) {p = Add(t, w)},
                else_branch = g2 () => (float[3] q) {q = Relu(t)}
            >
        }""",
        w=(3,),
    )


def test_what_only_leaves_a_body_is_read() -> None:
    stays(
        """(float[3] x, bool c) => (float[3] y) {
            t = Exp(x)
            y = If(c) <
                then_branch = g1 () => (float[3] t) {}, else_branch = g2 () => (float[3] w) {}
            >
        }""",
        w=(3,),
    )


def test_an_unread_node_that_onnx_does_not_know_stays() -> None:
    stays(
        "(float[3] x) => (float[3] y) {a = my.Print(x) y = Relu(x)}",
        domains={"my": 1},
    )


def test_an_unread_if_around_a_node_that_onnx_does_not_know_stays() -> None:
    stays(
        """(float[3] x, bool c) => (float[3] y) {
            z = If(c) <
                then_branch = g1 () => (float[3] p) {p = my.Print(x)},
                else_branch = g2 () => (float[3] q) {q = Relu(x)}
            >
            y = Relu(x)
        }""",
        domains={"my": 1},
    )


def test_an_unread_call_of_a_function_named_like_an_operator_stays() -> None:
    model = graph(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[3] x) => (float[3] y) {a = Exp(x) y = Relu(x)}
        <domain: "", opset_import: ["" : 17]> Exp (v) => (w) {w = Neg(v)}"""
    )
    check_untouched(CLEAN_UP, model)


def test_an_initializer_that_the_caller_may_override_stays() -> None:
    model = graph("(float[3] x, float[3] w) => (float[3] y) {y = Relu(x)}", w=(3,))
    check_untouched(CLEAN_UP, model)


def test_an_unread_initializer_of_an_old_model_goes_with_its_input() -> None:
    model = graph(
        "(float[3] x, float[3] w) => (float[3] y) {y = Relu(x)}", w=(3,), ir_version=3, opset=8
    )
    result, _ = apply_to(CLEAN_UP, model)
    onnx.checker.check_model(result, full_check=True)
    assert [value.name for value in result.graph.input] == ["x"]
    assert not result.graph.initializer


def test_an_initializer_wired_to_an_output_stays() -> None:
    stays("(float[3] x) => (float[3] y, float[3] w) {y = Relu(x)}", w=(3,))


def test_a_quantization_parameter_stays() -> None:
    model = graph("(float[3] x) => (float[3] y) {y = Relu(x)}", scale=np.float32(2))
    entry = model.graph.quantization_annotation.add(tensor_name="x")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    check_untouched(CLEAN_UP, model)


def test_what_training_refers_to_stays() -> None:
    model = graph("(float[3] x) => (float[3] y) {t = Exp(x) y = Relu(x)}", w=(3,), v=(3,))
    training = model.training_info.add()
    training.algorithm.CopyFrom(
        onnx.parser.parse_graph("step (float[3] g) => (float[3] new) {new = Add(w, t)}")
    )
    training.update_binding.add(key="v", value="new")
    check_untouched(CLEAN_UP, model)


# ------------------------------------------------------------------------------ Identity, Dropout


def test_identity_goes() -> None:
    becomes("(float[3] x) => (float[3] y) {a = Identity(x) b = Relu(a) y = Identity(b)}", "Relu")


def test_identity_of_an_input_that_is_an_output_stays() -> None:
    reason = "'y' is an output of the graph and keeps its name"
    check_refused(CLEAN_UP, graph("(float[3] x) => (float[3] y) {y = Identity(x)}"), reason)


def test_two_outputs_of_one_value_keep_their_names() -> None:
    becomes(
        "(float[3] x) => (float[3] y, float[3] z) {a = Relu(x) y = Identity(a) z = Identity(a)}",
        "Relu Identity",
    )


def test_identity_of_a_sequence_goes() -> None:
    text = "(seq(float[2]) s) => (float[N] y) {t = Identity(s) y = ConcatFromSequence<axis=0>(t)}"
    result, _ = apply_to(CLEAN_UP, graph(text))
    assert operators(result) == "ConcatFromSequence"
    feed = {"s": [np.ones(2, np.float32), np.zeros(2, np.float32)]}
    assert session(result).run(None, feed)[0].tolist() == [1, 1, 0, 0]


def test_a_body_reads_past_an_identity() -> None:
    becomes(
        """(float[3] x, bool c) => (float[3] y) {
            t = Exp(x) u = Identity(t)
            y = If(c) <
                then_branch = g1 () => (float[3] p) {v = Identity(u) p = Neg(v)},
                else_branch = g2 () => (float[3] q) {q = Relu(u)}
            >
        }""",
        "Exp If",
    )


def test_a_name_that_means_another_tensor_inside_a_body_is_not_captured() -> None:
    text = """(float[3] x, bool c) => (float[3] y) {
        u = Identity(x)
        y = If(c) <
            then_branch = g1 () => (float[3] p) {x = Exp(u) r = Neg(u) p = Add(x, r)},
            else_branch = g2 () => (float[3] q) {q = Relu(u)}
        >
    }"""
    check_refused(CLEAN_UP, graph(text), "in the body around Exp of 'x' 'x' is another tensor")


DROPOUTS = {
    "opset 6": ("Dropout<is_test=1>(x)", 6),
    "opset 7": ("Dropout<ratio=0.7>(x)", 7),
    "opset 12": ("Dropout(x)", 12),
    "opset 12 with a ratio": ("Dropout(x, r)", 12),
    "opset 13, switched off": ("Dropout(x, r, off)", 13),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_goes(name: str) -> None:
    call, opset = DROPOUTS[name]
    text = f"(float[3] x) => (float[3] y) {{a = {call} y = Relu(a)}}"
    result, _ = apply_to(CLEAN_UP, graph(text, opset=opset, r=np.float32(0.5), off=np.array(False)))
    assert operators(result) == "Relu"
    assert not result.graph.initializer


def test_dropout_with_an_unread_mask_goes() -> None:
    becomes("(float[3] x) => (float[3] y) {a, mask = Dropout(x) y = Relu(a)}", "Relu")


def test_dropout_in_training_stays() -> None:
    text = "(float[3] x) => (float[3] y) {y = Dropout(x, r, on)}"
    model = graph(text, r=np.float32(0.5), on=np.array(True))
    check_refused(CLEAN_UP, model, "Dropout of 'y' is in training mode")


def test_dropout_of_old_opsets_is_in_training_by_default() -> None:
    model = graph("(float[3] x) => (float[3] y) {y = Dropout(x)}", opset=6)
    check_refused(CLEAN_UP, model, "Dropout of 'y' is in training mode")


def test_dropout_that_the_caller_may_switch_on_stays() -> None:
    text = "(float[3] x, bool on) => (float[3] y) {y = Dropout(x, r, on)}"
    reason = "the training_mode of Dropout of 'y', 'on', is not a constant"
    check_refused(CLEAN_UP, graph(text, r=np.float32(0.5)), reason)


def test_dropout_whose_mask_is_read_stays() -> None:
    text = "(float[3] x) => (float[3] y, bool[3] m) {y, m = Dropout(x)}"
    check_refused(CLEAN_UP, graph(text), "Dropout of 'y' has further outputs that are used")


# -------------------------------------------------------------------------------------- constants


def test_a_constant_node_becomes_an_initializer_of_the_same_name() -> None:
    result = becomes(
        "(float[2] x) => (float[2] y) {c = Constant<value = float[2] {1, 2}>() y = Add(x, c)}",
        "Add",
    )
    assert initializers(result)["c"].tolist() == [1, 2]


CONSTANTS = {
    "value_float=2.5": np.float32(2.5),
    "value_floats=[1.5,-0.0]": np.array([1.5, -0.0], np.float32),
}


@pytest.mark.parametrize("form", CONSTANTS)
def test_short_forms_of_constant_nodes(form: str) -> None:
    result = becomes(
        f"(float[2] x) => (float[2] y) {{c = Constant<{form}>() y = Mul(x, c)}}", "Mul"
    )
    assert initializers(result)["c"].tobytes() == np.asarray(CONSTANTS[form]).tobytes()


def test_a_long_list_of_small_integers_is_shorter_as_it_is() -> None:
    listed = ",".join(["1", "2"] * 320)
    text = (
        f"(int64[640] x) => (int64[640] y) {{c = Constant<value_ints=[{listed}]>() y = Mod(x, c)}}"
    )
    stays(text)
    check(make("clean-up", {"fold_budget": "8192"}), graph(text), "Mod")


def test_sparse_and_string_constants_stay() -> None:
    stays('() => (string y) {c = Constant<value_string="a">() y = StringNormalizer(c)}')


def test_a_constant_that_is_an_output_stays() -> None:
    stays("() => (float y) {y = Constant<value_float=1.0>()}")


def test_a_constant_of_a_body_becomes_an_initializer_there() -> None:
    result = becomes(
        """(float[2] x, bool c) => (float[2] y) {
            y = If(c) <
                then_branch = g1 () => (float[2] p) {k = Constant<value_float=2.0>() p = Mul(x, k)},
                else_branch = g2 () => (float[2] q) {q = Relu(x)}
            >
        }""",
        "If",
    )
    body = result.graph.node[0].attribute[0].g
    assert [t.name for t in body.initializer] == ["k"]


def test_a_constant_of_an_old_model_is_an_initializer_that_is_listed() -> None:
    values = ", ".join(map(str, range(99)))
    held = f"Constant<value = float[99] {{{values}}}>()"
    text = f"(float[99] x) => (float[99] y) {{c = {held} y = Add(x, c)}}"
    result, _ = apply_to(CLEAN_UP, graph(text, ir_version=3, opset=8))
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == "Add"
    assert [value.name for value in result.graph.input] == ["x", "c"]


def test_what_is_folded_in_an_old_model_is_listed_as_every_initializer_there() -> None:
    text = "(float[2] x, float[2] w) => (float[2] y) {s = Sqrt(w) y = Add(x, s)}"
    result, _ = apply_to(CLEAN_UP, graph(text, ir_version=3, opset=8, w=np.ones(2, np.float32)))
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == "Add"
    assert [value.name for value in result.graph.input] == ["x", "s"]


def test_what_is_folded_in_a_body_of_an_old_model_is_a_node() -> None:
    text = """(float[2] x, bool c, float[2] w) => (float[2] y) {
        y = If(c) <
            then_branch = g1 () => (float[2] p) {a = Neg(w) b = Neg(a) s = Sqrt(b) p = Add(x, s)},
            else_branch = g2 () => (float[2] q) {q = Relu(x)}
        >
    }"""
    result, _ = apply_to(CLEAN_UP, graph(text, ir_version=3, opset=8, w=np.ones(2, np.float32)))
    onnx.checker.check_model(result, full_check=True)
    body = result.graph.node[0].attribute[0].g
    assert [node.op_type for node in body.node] == ["Constant", "Add"]


def test_constants_of_functions_stay_nodes() -> None:
    check_untouched(
        CLEAN_UP,
        graph(
            """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
            agraph (float[3] x) => (float[3] y) {z = my.f(x) y = my.f(z)}
            <domain: "my", opset_import: ["" : 17]> f (v) => (w) {
                c = Constant<value_float=2.0>() m = Mul(v, c) w = Sin(m)
            }"""
        ),
    )


def test_a_function_is_cleaned_as_well() -> None:
    model = graph(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        agraph (float[3] x) => (float[3] y) {z = my.f(x) y = my.f(z)}
        <domain: "my", opset_import: ["" : 17]> f (v) => (w) {
            a = Identity(v) b = Neg(a) c = Exp(v) d = Sin(b) w = Identity(d)
        }"""
    )
    result = check(CLEAN_UP, model, "my::f my::f", exact=True)
    assert [node.op_type for node in result.functions[0].node] == ["Neg", "Sin"]


def test_a_weight_in_disguise_becomes_an_initializer() -> None:
    result = becomes(
        """(float[N,3] x) => (float[N,4] y) {
            t = Transpose<perm=[1,0]>(w) s = Sqrt(v) r = Reciprocal(s) f = Mul(t, r)
            y = MatMul(x, f)
        }""",
        "MatMul",
        w=np.arange(12, dtype=np.float32).reshape(4, 3),
        v=np.full((3, 1), 4, np.float32),
    )
    expected = np.arange(12, dtype=np.float32).reshape(4, 3).T / 2
    assert initializers(result)["f"].tolist() == expected.tolist()


def test_a_weight_is_folded_as_a_whole_even_where_a_step_is_larger() -> None:
    becomes(
        """(float[N,4] x) => (float[N,4] y) {
            e = Expand(w, s) t = Transpose<perm=[1,0]>(e) c = Slice(t, zero, one, zero)
            y = Mul(x, c)
        }""",
        "Mul",
        w=np.arange(4, dtype=np.float32).reshape(4, 1),
        s=np.array([4, 30000]),
        zero=np.array([0]),
        one=np.array([1]),
    )


def test_the_only_weight_is_handed_on_under_another_name() -> None:
    text = "(float[4] x) => (float[4] y, float[4] z) { v = Cast<to=1>(w) y = Neg(x) z = Add(x, v) }"
    result = becomes(text, "Neg Add", w=np.arange(4, dtype=np.float32))
    assert list(initializers(result)) == ["v"]


def test_nothing_is_folded_that_would_make_the_file_larger() -> None:
    text = "(float[64,64] x) => (float[64,64] y) {e = Expand(w, s) y = MatMul(x, e)}"
    model = graph(text, w=np.float32(1), s=np.array([64, 64]))
    check_refused(CLEAN_UP, model, "folding Expand of 'e' would make the file")


def test_a_huge_constant_is_not_even_computed() -> None:
    text = "(float[N] x) => (float[N] y) {e = ConstantOfShape(s) m = Sqrt(e) y = Gather(m, i)}"
    stays(text.replace("[N] x", "[N] x, int64[N] i"), s=np.array([1 << 40]))


def test_a_shared_weight_is_not_stored_twice() -> None:
    text = """(float[N,2,64] x) => (float[N,2,64] y) {
        t = Transpose<perm=[1,0]>(w) a = MatMul(x, w) y = MatMul(a, t)
    }"""
    reason = "folding Transpose of 't' would make the file"
    check_refused(CLEAN_UP, graph(text, w=(64, 64)), reason)


def test_dequantized_weights_stay_quantized() -> None:
    stays(
        "(float[N,4] x) => (float[N,4] y) {w = DequantizeLinear(q, s, z) y = MatMul(x, w)}",
        q=np.arange(16, dtype=np.int8).reshape(4, 4),
        s=np.float32(0.5),
        z=np.int8(0),
    )


def test_random_numbers_are_not_folded() -> None:
    stays(
        """(float[3] x) => (float[3] y) {
            r = RandomUniformLike(w) b = Bernoulli(w) s = Add(r, b) y = Add(x, s)
        }""",
        w=(3,),
    )


def test_what_runtimes_round_in_their_own_way_is_what_onnx_runtime_makes_of_it() -> None:
    becomes(
        "(float[3] x) => (float[3] y) {e = Exp(w) s = ReduceSum(v) f = Mul(e, s) y = Mul(x, f)}",
        "Mul",
        w=(3,),
        v=(8,),
    )


def test_an_integer_division_by_zero_is_not_folded() -> None:
    text = "(int64[2] x) => (int64[2] y) {d = Div(a, b) y = Add(x, d)}"
    model = graph(text, a=np.array([1, 2]), b=np.array([1, 0]))
    check_refused(CLEAN_UP, model, "the value of Div of 'd' is up to the runtime")


def test_a_cast_out_of_range_is_not_folded() -> None:
    text = "(int64[2] x) => (int64[2] y) {d = Cast<to=7>(a) y = Add(x, d)}"
    model = graph(text, a=np.array([1, np.inf], np.float32))
    check_refused(CLEAN_UP, model, "the value of Cast of 'd' is up to the runtime")


def test_a_constant_that_the_caller_may_override_is_none() -> None:
    model = graph(
        "(float[3] x, float[3] w) => (float[3] y) {s = Sqrt(w) y = Add(x, s)}",
        w=np.ones(3, np.float32),
    )
    check_untouched(CLEAN_UP, model)


def test_a_function_named_like_an_operator_is_not_folded() -> None:
    model = graph(
        """<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[3] x) => (float[3] y) <float[3] w = {4, 4, 4}> {s = Sqrt(w) y = Add(x, s)}
        <domain: "", opset_import: ["" : 17]> Sqrt (v) => (w) {w = Neg(v)}"""
    )
    check_untouched(CLEAN_UP, model)


def test_fixed_sizes_of_shapes_are_constants() -> None:
    result = becomes(
        """(float[N,6,4] x) => (float[N,2,12] y) {
            s = Shape(x) c = Gather(s, one) h = Div(c, three) k = Unsqueeze(h, zero)
            t = Concat<axis=0>(minus, k, twelve) y = Reshape(x, t)
        }""",
        "Reshape",
        one=np.array(1),
        three=np.array(3),
        zero=np.array([0]),
        minus=np.array([-1]),
        twelve=np.array([12]),
    )
    assert initializers(result)["t"].tolist() == [-1, 2, 12]


# Every operator that is folded, on the types it is folded for: bit for bit what ONNX Runtime makes
# of the same values at run time.
FOLDED = {
    "Abs": ("Abs(a)", "fi"),
    "Add": ("Add(a, b)", "fi"),
    "Cast to float": ("Cast<to=1>(a)", "fi"),
    "Cast to double": ("Cast<to=11>(a)", "fi"),
    "Cast to int32": ("Cast<to=6>(a)", "fi"),
    "Cast to bool": ("Cast<to=9>(a)", "fi"),
    "Ceil": ("Ceil(a)", "f"),
    "Concat": ("Concat<axis=-1>(a, b)", "fi"),
    "Div": ("Div(a, b)", "fi"),
    "Equal": ("Equal(a, b)", "fi"),
    "Floor": ("Floor(a)", "f"),
    "Gather": ("Gather<axis=1>(a, index)", "fi"),
    "Greater": ("Greater(a, b)", "fi"),
    "GreaterOrEqual": ("GreaterOrEqual(a, b)", "fi"),
    "Less": ("Less(a, b)", "fi"),
    "LessOrEqual": ("LessOrEqual(a, b)", "fi"),
    "Max": ("Max(a, b)", "i"),
    "Min": ("Min(a, b)", "i"),
    "Mul": ("Mul(a, b)", "fi"),
    "Neg": ("Neg(a)", "fi"),
    "Pad": ("Pad(a, pads)", "fi"),
    "Reciprocal": ("Reciprocal(a)", "f"),
    "ReduceMax": ("ReduceMax<axes=[1]>(a)", "i"),
    "ReduceMin": ("ReduceMin<axes=[0], keepdims=0>(a)", "i"),
    "ReduceProd": ("ReduceProd(a)", "i"),
    "ReduceSum": ("ReduceSum(a, axis)", "i"),
    "Slice": ("Slice(a, starts, ends, axes, steps)", "fi"),
    "Sqrt": ("Sqrt(a)", "f"),
    "Sub": ("Sub(a, b)", "fi"),
    "Tile": ("Tile(a, axes)", "fi"),
    "Transpose": ("Transpose(a)", "fi"),
    "Where": ("Where(mask, a, b)", "fi"),
}
SIDE = {
    "index": np.array([2, -1]),
    "pads": np.array([0, 1, 2, 0]),
    "axis": np.array([1]),
    "starts": np.array([-1, 0]),
    "ends": np.array([-(2**62), 2**31]),
    "axes": np.array([1, 0]),
    "steps": np.array([-2, 1]),
    "mask": np.array([True, False, True]),
}
NUMBERS = {
    "f": st.floats(width=32),
    "i": st.integers(-(2**31), 2**31 - 1),
}


@pytest.mark.parametrize(("name", "kind"), [(n, k) for n, (_, ks) in FOLDED.items() for k in ks])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_folding_is_bit_for_bit_what_the_runtime_computes(
    name: str, kind: str, data: st.DataObject
) -> None:
    dtype = {"f": np.float32, "i": np.int64}[kind]
    drawn = [data.draw(st.lists(NUMBERS[kind], min_size=6, max_size=6)) for _ in range(2)]
    a, b = (np.array(values, dtype).reshape(2, 3) for values in drawn)
    if name == "Div" and kind == "i":
        b = np.where(b == 0, 7, b)
        a = np.abs(a)
    call = FOLDED[name][0]
    folded = check_folding(call, {"a": a, "b": b, **SIDE})
    assert folded or name in ("Where", "ReduceProd", "Div") or name.startswith("Cast"), name


@pytest.mark.parametrize(
    "numbers", [[-1, 4, 2**30, -(2**31)], [2**32, 2**32], [3, 2**53], [-(2**53), 1]]
)
def test_products_that_some_compute_in_float64_are_left_to_the_runtime(numbers: list[int]) -> None:
    check_folding("ReduceProd(a)", {"a": np.array([numbers], np.int64)})
    held = graph("() => (int64[1,1] y) { y = ReduceProd(a) }", a=np.array([numbers], np.int64))
    result, _ = apply_to(CLEAN_UP, held)
    assert operators(result) == "ReduceProd"


def test_a_product_of_floats_is_what_the_runtime_makes_of_it() -> None:
    assert check_folding("ReduceProd(a)", {"a": np.array([[2**30, 2**30, np.inf]], np.float32)})


def check_folding(call: str, arrays: dict[str, Any]) -> bool:
    """Compute `call` in ONNX Runtime and by folding; return whether it was folded at all."""
    used = {name: value for name, value in arrays.items() if name in call.split("(")[1]}
    kinds = {np.float32: "float", np.int64: "int64", np.bool_: "bool"}
    inputs = ", ".join(
        f"{kinds[v.dtype.type]}[{','.join(map(str, v.shape))}] {n}" for n, v in used.items()
    )
    at_run_time = graph(f"({inputs}) => (float y) {{y = {call}}}")
    (expected,) = run_untyped(at_run_time, used)
    folded = graph(f"() => (float y) {{y = {call}}}", **used)
    del folded.graph.output[:]
    kind = onnx.helper.np_dtype_to_tensor_dtype(expected.dtype)
    folded.graph.output.append(onnx.helper.make_tensor_value_info("y", kind, expected.shape))
    result, applied = apply_to(CLEAN_UP, folded)
    (found,) = session(result).run(None, {})
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected, equal_nan=expected.dtype.kind == "f")
    if expected.dtype.kind == "f":
        number = ~np.isnan(expected)
        assert np.array_equal(np.signbit(found)[number], np.signbit(expected)[number])
    refused = any("larger" in refusal.reason for refusal in applied.refusals)
    return operators(result) == "Constant" or refused


def run_untyped(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    model.graph.output[0].type.Clear()
    inferred = onnx.shape_inference.infer_shapes(model)
    return list(session(inferred).run(None, feed))


# ------------------------------------------------------------------------------------------ Cast


def test_a_cast_to_the_same_type_goes() -> None:
    becomes("(float[3] x) => (float[3] y) {a = Cast<to=1>(x) y = Relu(a)}", "Relu")


def test_a_cast_like_the_same_type_goes() -> None:
    becomes("(float[3] x, float[2] t) => (float[3] y) {a = CastLike(x, t) y = Relu(a)}", "Relu")


def test_a_cast_between_types_of_the_same_width_stays() -> None:
    stays("(float16[3] x) => (bfloat16[3] y) {y = Cast<to=16>(x)}")


def test_a_cast_there_and_back_goes_where_nothing_is_lost() -> None:
    becomes(
        "(float16[3] x) => (float16[3] y) {a = Cast<to=1>(x) b = Cast<to=10>(a) y = Neg(b)}", "Neg"
    )


def test_a_cast_there_and_back_stays_where_something_is_lost() -> None:
    stays("(float[3] x) => (float[3] y) {a = Cast<to=10>(x) y = Cast<to=1>(a)}")
    stays("(int64[3] x) => (int64[3] y) {a = Cast<to=11>(x) y = Cast<to=7>(a)}")


def test_two_widening_casts_are_one() -> None:
    becomes("(float16[3] x) => (double[3] y) {a = Cast<to=1>(x) y = Cast<to=11>(a)}", "Cast<to=11>")


# ------------------------------------------------------------------------------------- Transpose


def test_a_transpose_that_moves_nothing_goes() -> None:
    becomes("(float[2,3] x) => (float[2,3] y) {a = Transpose<perm=[0,1]>(x) y = Neg(a)}", "Neg")
    becomes("(float[3] x) => (float[3] y) {a = Transpose(x) y = Neg(a)}", "Neg")


def test_a_transpose_there_and_back_goes_even_if_others_read_the_middle() -> None:
    text = """(float[N,3,4,5] x) => (float[N,3,4,5] y, float[N,4,5,3] z) {
        a = Transpose<perm=[0,2,3,1]>(x) b = Transpose<perm=[0,3,1,2]>(a) y = Neg(b) z = Exp(a)
    }"""
    becomes(text, "Transpose Neg Exp")


def test_two_transposes_are_one() -> None:
    becomes(
        """(float[2,3,4] x) => (float[4,2,3] y) {
            a = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[2,1,0]>(a)
        }""",
        "Transpose<perm=[2,0,1]>",
    )


def test_two_transposes_stay_where_others_read_the_middle() -> None:
    stays(
        """(float[2,3,4] x) => (float[4,2,3] y, float[3,2,4] a) {
            a = Transpose<perm=[1,0,2]>(x) y = Transpose<perm=[2,1,0]>(a)
        }"""
    )


def test_transposes_of_unknown_rank_stay() -> None:
    check_untouched(
        CLEAN_UP,
        graph(
            """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
            agraph (float[3,2] x) => (float[3,2] y) {z = my.f(x) y = my.f(z)}
            <domain: "my", opset_import: ["" : 17]> f (v) => (w) {
                a = Transpose(v) w = Transpose(a)
            }"""
        ),
    )


# --------------------------------------------------------------------- operators that pass x on


NOTHING_DONE = {
    "AveragePool<kernel_shape=[1,1]>(x)": 17,
    'AveragePool<kernel_shape=[1,1], auto_pad="SAME_UPPER", ceil_mode=1>(x)': 17,
    "MaxPool<kernel_shape=[1,1], strides=[1,1], pads=[0,0,0,0], dilations=[3,3]>(x)": 17,
    "Pad(x, zeros)": 17,
    'Pad<mode="reflect">(x, zeros)': 17,
    "Pad<pads=[0,0,0,0,0,0,0,0]>(x)": 9,
    "Slice(x, origin, ends)": 17,
    "Slice(x, origin, sizes, axes)": 17,
    "Slice<starts=[0,0], ends=[3,2147483647], axes=[1,0]>(x)": 9,
    "Concat<axis=1>(x)": 17,
    "Expand(x, ones)": 17,
    "Expand(x, sizes)": 17,
    "Tile(x, ones)": 17,
    "Mul(x, one)": 17,
    "Mul(one, x)": 17,
    "Mul(x, channels)": 17,
    "Div(x, one)": 17,
    "Add(x, minus_zero)": 17,
    "Sub(x, plus_zero)": 17,
    "Reshape(x, same)": 17,
}
PARAMETERS = {
    "zeros": np.zeros(8, np.int64),
    "origin": np.zeros(2, np.int64),
    "ends": np.array([2**63 - 1, 3]),
    "sizes": np.array([4, 5]),
    "axes": np.array([-2, -1]),
    "ones": np.ones(4, np.int64),
    "one": np.ones((1, 1), np.float32),
    "channels": np.ones((3, 1, 5), np.float32),
    "minus_zero": np.float32(-0.0),
    "plus_zero": np.float32(0.0),
    "same": np.array([-1, 0, 4, 0]),
}


@pytest.mark.parametrize("call", NOTHING_DONE)
def test_operators_that_do_nothing_go(call: str) -> None:
    used = {
        name: value for name, value in PARAMETERS.items() if f" {name}" in call.replace("(", " ")
    }
    text = f"(float[N,3,4,5] x) => (float[N,3,4,5] y) {{a = {call} y = Neg(a)}}"
    result = becomes(text, "Neg", opset=NOTHING_DONE[call], **used)
    assert not result.graph.initializer


def test_a_global_pool_of_one_pixel_goes() -> None:
    becomes("(float[N,3,1,1] x) => (float[N,3,1,1] y) {a = GlobalAveragePool(x) y = Neg(a)}", "Neg")


SOMETHING_DONE = {
    "AveragePool<kernel_shape=[1,1], strides=[2,2]>(x)": {},
    "AveragePool<kernel_shape=[1,1], pads=[1,0,0,0]>(x)": {},
    "LpPool<kernel_shape=[1,1]>(x)": {},
    "GlobalAveragePool(x)": {},
    "Pad(x, p)": {"p": np.array([0, 0, 0, 0, 0, 0, 0, 1])},
    "Pad(x, q)": {"q": np.array([0, 0, 0, -1, 0, 0, 0, 1])},
    "Slice(x, s, e)": {"s": np.array([0]), "e": np.array([1])},
    "Slice(x, s, e, a)": {"s": np.array([0]), "e": np.array([3]), "a": np.array([2])},
    "Slice(x, s, e, a, t)": {
        "s": np.array([-2]),
        "e": np.array([-9]),
        "a": np.array([1]),
        "t": np.array([-1]),
    },
    "Expand(x, m)": {"m": np.array([2, 1, 3, 4, 5])},
    "Tile(x, t)": {"t": np.array([1, 1, 2, 1])},
    "Add(x, zero)": {"zero": np.float32(0.0)},
    "Add(zero, x)": {"zero": np.float32(0.0)},
    "Sub(x, z)": {"z": np.float32(-0.0)},
    "Sub(zero, x)": {"zero": np.float32(0.0)},
    "Div(c, x)": {"c": np.float32(1)},
    "Mul(x, c)": {"c": np.ones((1, 1, 1, 1, 1), np.float32)},
    "Mul(x, d)": {"d": np.ones((2, 3, 4, 5), np.float32)},
    "Mul(x, u)": {"u": np.array([1, 1, 1, 1, np.nextafter(np.float32(1), 2)], np.float32)},
}


@pytest.mark.parametrize("call", SOMETHING_DONE)
def test_operators_that_do_something_stay(call: str) -> None:
    stays(f"(float[N,3,4,5] x) => (float y) {{y = {call}}}", **SOMETHING_DONE[call])


def test_adding_zero_is_not_nothing() -> None:
    model = graph("(float[1] x) => (float[1] y) {y = Add(x, c)}", c=np.float32(0))
    (value,) = session(apply_to(CLEAN_UP, model)[0]).run(None, {"x": np.array([-0.0], np.float32)})
    assert not np.signbit(value[0])


# ------------------------------------------------------------ Reshape, Flatten, Squeeze, Unsqueeze


PAIRS = {
    "Unsqueeze, Squeeze": ("Unsqueeze(x, two) | Squeeze(x, two)", "Neg"),
    "Unsqueeze, Squeeze, other spelling": ("Unsqueeze(x, two) | Squeeze(x, minus_three)", "Neg"),
    "Flatten, Flatten": ("Flatten(x) | Flatten(x)", "Flatten<axis=1> Neg"),
    "Flatten of rank 2": ("Flatten(x) | Flatten<axis=-1>(x)", "Flatten<axis=1> Neg"),
    "Reshape, Flatten": ("Reshape(x, split) | Flatten(x)", "Flatten<axis=1> Neg"),
    "Flatten, Reshape back": ("Flatten(x) | Reshape(x, back)", "Neg"),
    "Reshape, Reshape": ("Reshape(x, split) | Reshape(x, flat)", "Reshape Neg"),
    "Reshape, Reshape with a copy": ("Reshape(x, split) | Reshape(x, copied)", "Reshape Neg"),
    "Reshape, Unsqueeze": ("Reshape(x, flat) | Unsqueeze(x, two)", "Reshape Neg"),
    "Unsqueeze, Unsqueeze": ("Unsqueeze(x, two) | Unsqueeze(x, zero)", "Unsqueeze Neg"),
    "Flatten, Unsqueeze, Unsqueeze": (
        "Flatten(x) | Unsqueeze(x, two) | Unsqueeze(x, three)",
        "Reshape Neg",
    ),
    "Unsqueeze, Transpose": ("Unsqueeze(x, two) | Transpose<perm=[0,1,3,4,2]>(x)", "Reshape Neg"),
}
AXES: dict[str, Any] = {
    "zero": np.array([0]),
    "two": np.array([2]),
    "three": np.array([3]),
    "minus_three": np.array([-3]),
    "split": np.array([0, 6, 5, 2]),
    "flat": np.array([-1, 60]),
    "back": np.array([0, 3, 4, 5]),
    "copied": np.array([0, -1, 0]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_reshapes_make_of_each_other(name: str) -> None:
    calls, after = PAIRS[name]
    steps = [call.strip() for call in calls.split("|")]
    lines, last = [], "x"
    for index, call in enumerate(steps):
        lines.append(f"v{index} = {call.replace('(x', f'({last}')}")
        last = f"v{index}"
    used = {key: value for key, value in AXES.items() if key in calls.replace(")", " ").split()}
    model = graph(f"(float[N,3,4,5] x) => (float y) {{{' '.join(lines)} y = Neg({last})}}", **used)
    result = check(CLEAN_UP, of_any_shape(model), exact=True)
    assert operators(result) == " ".join(part.split("<")[0] for part in after.split())


def test_squeezes_before_opset_13_are_merged_in_their_own_form() -> None:
    becomes(
        """(float[N,1,4,1] x) => (float[N,4] y) {
            a = Squeeze<axes=[3]>(x) b = Squeeze<axes=[1]>(a) y = Neg(b)
        }""",
        "Squeeze<axes=[1,3]> Neg",
        opset=11,
    )


def test_a_squeeze_of_all_ones_is_left_where_a_size_may_be_one() -> None:
    stays(
        "(float[N,1] x) => (float y) {a = Squeeze(x) b = Unsqueeze(a, z) y = Neg(b)}",
        z=np.array([1]),
    )


def test_a_reshape_that_moves_the_batch_stays() -> None:
    stays("(float[N,4] x) => (float[4,N] y) {y = Reshape(x, s)}", s=np.array([4, -1]))


def test_a_zero_that_would_copy_another_size_is_not_moved() -> None:
    becomes(
        """(float[N,6] x) => (float[N,2,3] y) {
            a = Reshape(x, s) y = Reshape(a, t)
        }""",
        "Reshape",
        s=np.array([-1, 2, 1, 3]),
        t=np.array([0, 0, 3]),
    )


def test_zero_means_zero_where_the_reshape_says_so() -> None:
    stays("(float[N,0] x) => (float[0,N] y) {y = Reshape<allowzero=1>(x, s)}", s=np.array([0, 3]))


def test_reshapes_of_an_unknown_shape() -> None:
    model = graph(
        """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        agraph (float[2,3,4] x) => (float[4,6] y) {z = my.f(x) y = my.f(z)}
        <domain: "my", opset_import: ["" : 17]> f (v) => (w) {
            s = Constant<value_ints=[-1]>() t = Constant<value_ints=[4,6]>()
            a = Reshape(v, s) w = Reshape(a, t)
        }"""
    )
    result = check(CLEAN_UP, model, "my::f my::f", exact=True)
    assert [node.op_type for node in result.functions[0].node] == ["Constant", "Reshape"]


COMPUTED = """(float[N,3,4,5] x) => (float y) {
    s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, axis) t = Concat<axis=0>(u, rest)
    y = Reshape(x, t)
}"""


def test_the_reshape_of_torch_becomes_a_constant_one() -> None:
    model = graph(COMPUTED, zero=np.array(0), axis=np.array([0]), rest=np.array([-1]))
    of_any_shape(model)
    result = check(CLEAN_UP, model, "Reshape", exact=True)
    assert [t.tolist() for t in initializers(result).values()] == [[0, -1]]


@pytest.mark.parametrize(
    ("lines", "after"),
    [
        ("s = Shape(x) b = Slice(s, zero, one) t = Concat<axis=0>(b, c60)", [0, 60]),
        ("b = Shape<start=0, end=1>(x) t = Concat<axis=0>(b, c60)", [0, 60]),
        ("s = Shape(x) b = Slice(s, zero, two) t = Concat<axis=0>(b, c20)", [0, 3, 20]),
        (
            "s = Shape(x) i = Cast<to=6>(s) b = Gather(i, zero) t0 = Concat<axis=0>(b, i60) "
            "t = Cast<to=7>(t0)",
            [0, 60],
        ),
        ("b = Shape<end=1>(x) d = Mul(b, three) t = Concat<axis=0>(d, c20)", [-1, 20]),
        (
            "b = Shape<end=1>(x) d = Mul(b, three) e = Div(d, three) t = Concat<axis=0>(e, m)",
            [0, -1],
        ),
        ("b = Shape<end=1>(x) t = Concat<axis=0>(three, b, c20)", [3, -1, 20]),
        ("b = Shape<end=1>(z) t = Concat<axis=0>(b, c60)", [-1, 60]),
    ],
)
def test_computed_shapes_that_are_constant_ones(lines: str, after: list[int]) -> None:
    constants: dict[str, Any] = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "three": np.array([3]),
        "m": np.array([-1]),
        "c20": np.array([20]),
        "c60": np.array([60]),
        "i60": np.array([60], np.int32),
    }
    text = f"(float[N,3,4,5] x, float[M] z) => (float y) {{{lines} r = Reshape(x, t) y = Neg(r)}}"
    model = graph(text, **{k: v for k, v in constants.items() if k in text})
    of_any_shape(model)
    result = check(CLEAN_UP, model, "Reshape Neg", exact=True)
    assert [t.tolist() for t in initializers(result).values()] == [after]


@pytest.mark.parametrize(
    "lines",
    [
        # two sizes known only at run time
        "b = Shape<end=1>(z) t = Concat<axis=0>(b, m)",
        # with N = 0 the original works, and -1 would not
        "n = Shape<end=1>(x) h = Shape<start=2,end=3>(x) p = Mul(h, five) "
        "t = Concat<axis=0>(n, three, p)",
    ],
)
def test_computed_shapes_that_stay(lines: str) -> None:
    constants: dict[str, Any] = {
        "zero": np.array([0]),
        "two": np.array([2]),
        "three": np.array([3]),
        "five": np.array([5]),
        "m": np.array([-1]),
    }
    text = f"(float[N,3,H,5] x, float[M] z) => (float y) {{{lines} r = Reshape(x, t) y = Neg(r)}}"
    model = graph(text, **{k: v for k, v in constants.items() if k in text.replace("(float", "")})
    of_any_shape(model)
    check_refused(CLEAN_UP, model, "the shape of Reshape of 'r' holds several sizes known only")


def test_an_output_that_is_declared_wrongly_is_left_to_itself() -> None:
    text = """(float[N,3,4,5] x) => (float[1,M] y) {
        s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, three, c20) y = Reshape(x, t)
    }"""
    model = graph(text, opset=12, zero=np.array([0]), three=np.array([3]), c20=np.array([20]))
    onnx.checker.check_model(model, full_check=True)
    reason = "output 'y' is declared with shape [1, 'M'], but has ['N', 3, 20]"
    check_refused(CLEAN_UP, model, reason)


def test_a_type_that_is_declared_wrongly_does_not_stay() -> None:
    text = """(float[N,3,4,5] x) => (float[A,B,C] y) <float[1,M] r> {
        s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, three, c20) r = Reshape(x, t)
        y = Neg(r)
    }"""
    model = graph(text, opset=12, zero=np.array([0]), three=np.array([3]), c20=np.array([20]))
    result, _ = apply_to(CLEAN_UP, model)
    assert operators(result) == "Reshape Neg"
    onnx.checker.check_model(result, full_check=True)


def test_no_elements_are_reshaped_as_before() -> None:
    text = """(float[N,3,4] x) => (float y) {
        b = Shape<end=1>(x) t = Concat<axis=0>(b, c) r = Reshape(x, t) f = Flatten(r) y = Neg(f)
    }"""
    model = graph(text, c=np.array([12]))
    of_any_shape(model)
    check(CLEAN_UP, model, "Reshape Neg", inputs={"x": np.zeros((0, 3, 4), np.float32)})


RESHAPES = st.sampled_from(
    [
        "flatten0",
        "flatten1",
        "flatten2",
        "squeeze",
        "unsqueeze0",
        "unsqueeze2",
        "flat",
        "pair",
        "split",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(RESHAPES, min_size=1, max_size=5),
    shape=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4),
    batch=st.booleans(),
)
def test_any_chain_of_reshapes_does_what_it_did(
    steps: list[str], shape: list[int], batch: bool
) -> None:
    lines: list[str] = []
    constants: dict[str, Any] = {}
    known = list(shape)
    last = "x"
    for index, step in enumerate(steps):
        name, axes = f"v{index}", f"c{index}"
        if step.startswith("flatten"):
            axis = min(int(step[-1]), len(known))
            lines.append(f"{name} = Flatten<axis={axis}>({last})")
            known = [int(np.prod(known[:axis])), int(np.prod(known[axis:]))]
        elif step == "squeeze":
            found = [axis for axis, size in enumerate(known) if size == 1 and (axis or not batch)]
            if not found:
                continue
            lines.append(f"{name} = Squeeze({last}, {axes})")
            constants[axes] = np.array(found[:1])
            known.pop(found[0])
        elif step.startswith("unsqueeze"):
            axis = min(int(step[-1]), len(known))
            lines.append(f"{name} = Unsqueeze({last}, {axes})")
            constants[axes] = np.array([axis])
            known.insert(axis, 1)
        else:
            total = int(np.prod(known))
            target = {"flat": [-1], "pair": [0, -1], "split": [-1, total]}[step]
            if step == "pair" and not known:
                continue
            lines.append(f"{name} = Reshape({last}, {axes})")
            constants[axes] = np.array(target)
            zeros = known[: len(target)]
            known = [zeros[i] if size == 0 else size for i, size in enumerate(target)]
            rest = total // int(np.prod([size for size in known if size != -1]))
            known = [rest if size == -1 else size for size in known]
        last = name
    dims = ",".join("N" if batch and not axis else str(size) for axis, size in enumerate(shape))
    text = f"(float[{dims}] x) => (float y) {{{' '.join(lines)} y = Neg({last})}}"
    model = graph(text, **constants)
    of_any_shape(model)
    result = check(CLEAN_UP, model, exact=True, dims={"N": shape[0]})
    again, applied = apply_to(CLEAN_UP, result)
    assert not applied.rewrites
    assert again == result


# ------------------------------------------------------------------------------- everything at once


class Builder:
    """Draws a graph from operators that clean-up has rules for, and others between them."""

    def __init__(self, data: st.DataObject, opset: int) -> None:
        self.data = data
        self.opset = opset
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": (2, 3, 1, 4), "w": (2, 3, 1, 4)}
        self.constants["w"] = np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4) - 9

    def pick(self, what: list[Any]) -> Any:
        return self.data.draw(st.sampled_from(what))

    def const(self, value: Any) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(self, call: str, shape: tuple[int, ...]) -> None:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {call}")
        self.shapes[name] = shape

    def step(self) -> None:
        t = self.pick(list(self.shapes))
        shape = self.shapes[t]
        rank = len(shape)
        kind = self.pick(
            ["none", "none", "permute", "flatten", "reshape", "squeeze", "work", "add"]
        )
        axes_in = self.opset >= 13
        if kind == "none":
            calls = ["Identity({t})", "Dropout({t})", "Cast<to=1>({t})", "Concat<axis=0>({t})"]
            calls += ["Mul({t}, {one})", "Add({t}, {zero})", "Sub({t}, {plus})", "Neg({t})"]
            call = self.pick(calls)
            one = self.const(np.float32(1)) if "{one}" in call else ""
            zero = self.const(np.float32(-0.0)) if "{zero}" in call else ""
            plus = self.const(np.float32(0)) if "{plus}" in call else ""
            self.add(call.format(t=t, one=one, zero=zero, plus=plus), shape)
        elif kind == "permute":
            perm = self.data.draw(st.permutations(range(rank)))
            listed = ",".join(map(str, perm))
            made = tuple(shape[axis] for axis in perm)
            self.add(f"Transpose<perm=[{listed}]>({t})" if rank else f"Identity({t})", made)
        elif kind == "flatten":
            axis = self.data.draw(st.integers(0, rank))
            made = (int(np.prod(shape[:axis])), int(np.prod(shape[axis:])))
            self.add(f"Flatten<axis={axis}>({t})", made)
        elif kind == "reshape":
            target = self.pick([[-1], [2, -1], [-1, 4, 1], [1, 2, 3, 4], [4, 3, 2], [0, -1]])
            first = shape[0] if rank else 1
            if target == [0, -1] and not rank:
                return
            known = [first if size == 0 else size for size in target]
            made = tuple(np.zeros(24).reshape(known).shape)
            self.add(f"Reshape({t}, {self.const(np.array(target))})", made)
        elif kind == "squeeze":
            ones = [axis for axis, size in enumerate(shape) if size == 1]
            if ones and self.pick([True, False]):
                op, axis = "Squeeze", self.pick(ones)
                made = (*shape[:axis], *shape[axis + 1 :])
            else:
                op, axis = "Unsqueeze", self.data.draw(st.integers(0, rank))
                made = (*shape[:axis], 1, *shape[axis:])
            if len(made) > 6:
                return
            if axes_in:
                self.add(f"{op}({t}, {self.const(np.array([axis]))})", made)
            else:
                self.add(f"{op}<axes=[{axis}]>({t})", made)
        elif kind == "work":
            self.add(self.pick([f"Relu({t})", f"Abs({t})"]), shape)
        else:
            same = [name for name, other in self.shapes.items() if other == shape]
            self.add(f"Add({t}, {self.pick(same)})", shape)

    def model(self) -> onnx.ModelProto:
        last = list(self.shapes)[-3:]
        ends = [
            f"y{index} = {self.pick(['Relu', 'Identity'])}({t})" for index, t in enumerate(last)
        ]
        outputs = ", ".join(
            f"float[{','.join(map(str, self.shapes[t]))}] y{index}" for index, t in enumerate(last)
        )
        body = " ".join([*self.lines, *ends])
        return graph(
            f"(float[2,3,1,4] x) => ({outputs}) {{{body}}}", opset=self.opset, **self.constants
        )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), opset=st.sampled_from([9, 11, 13, 17, 21]), steps=st.integers(1, 14))
def test_any_graph_computes_what_it_did(data: st.DataObject, opset: int, steps: int) -> None:
    builder = Builder(data, opset)
    for _ in range(steps):
        builder.step()
    model = builder.model()
    result = check(CLEAN_UP, model, exact=True)
    again, applied = apply_to(CLEAN_UP, result)
    assert not applied.rewrites
    assert again == result
    result, _ = apply_to(make("clean-up", {"fold_budget": "0"}), model)
    assert len(result.SerializeToString()) <= len(model.SerializeToString())


def test_what_was_only_read_for_its_shape_takes_along_what_it_read() -> None:
    """The indices of the Gather are a chain of their own, gone once its shape is known."""
    becomes(
        "(float[2,4] x) => (float[N] y) {"
        "i = Unsqueeze(zero, at) t = Gather(x, i) s = Shape(t) c = Cast<to=1>(s) "
        "d = Mul(c, half) e = Add(d, half) f = Neg(e) "
        "r = ReduceSum<keepdims=0>(x, at) y = Concat<axis=0>(r, f)}",
        "ReduceSum Concat",
        zero=np.array(0, np.int64),
        half=np.array(0.5, np.float32),
        at=np.array([0], np.int64),
    )
