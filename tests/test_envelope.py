"""What no pass touches comes out as it went in: hazards, one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from graphpass.ir.model import Model
from graphpass.ir.nodes import Constant, Graph, Node, Variable
from graphpass.ir.questions import attribute, constant, is_overridable, operator, producer
from graphpass.testing import graph

Hazard = Callable[[], ModelProto]
HAZARDS: dict[str, Hazard] = {}


def hazard(make: Hazard) -> Hazard:
    HAZARDS[make.__name__.replace("_", " ")] = make
    return make


def relu(**options: Any) -> ModelProto:
    return graph("(float[N,3] x) => (float[N,3] y) {y = Relu(x)}", **options)


def info(name: str, kind: int = TensorProto.FLOAT, shape: Any = (3,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def with_node(node: NodeProto) -> ModelProto:
    model = relu(domains={"my": 1})
    model.graph.node.append(node)
    return model


# --------------------------------------------------------------------------------- initializers


@hazard
def an_overridable_initializer() -> ModelProto:
    return graph("(float[3] x, float[3] w) => (float[3] y) {y = Add(x, w)}", w=(3,))


@hazard
def an_overridable_initializer_that_nothing_reads() -> ModelProto:
    return graph("(float[3] x, float[3] w) => (float[3] y) {y = Relu(x)}", w=(3,))


@hazard
def initializers_of_ir_version_3() -> ModelProto:
    text = "(float[3] x, float[3] w, float[3] v) => (float[3] y) {y = Add(x, w)}"
    return graph(text, ir_version=3, opset=8, v=(3,), w=(3,))


@hazard
def initializers_in_another_order_than_their_readers() -> ModelProto:
    text = "(float[3] x) => (float[3] y) {a = Add(x, b) y = Mul(a, c)}"
    return graph(text, c=(3,), unread=(2,), b=(3,))


@hazard
def an_initializer_that_is_an_output() -> ModelProto:
    return graph("(float[3] x) => (float[3] y, float[3] w) {y = Add(x, w)}", w=(3,))


@hazard
def an_input_that_is_an_output() -> ModelProto:
    return graph("(float[3] x) => (float[3] x) {}")


@hazard
def sparse_initializers() -> ModelProto:
    model = graph("(float[3] x) => (float[3] y) {y = Add(x, s)}")
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    indices = numpy_helper.from_array(np.array([1]), "s_indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    return model


KINDS = [
    TensorProto.BFLOAT16,
    TensorProto.FLOAT16,
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
    TensorProto.INT4,
    TensorProto.UINT4,
    TensorProto.FLOAT4E2M1,
    TensorProto.COMPLEX64,
    TensorProto.COMPLEX128,
    TensorProto.UINT16,
    TensorProto.BOOL,
    TensorProto.DOUBLE,
]


@hazard
def tensors_of_every_type() -> ModelProto:
    model = relu(ir_version=11, opset=23)
    for kind in KINDS:
        for raw in (True, False):
            dtype = helper.tensor_dtype_to_np_dtype(kind)
            array = np.array([0, 1, 1], dtype)
            name = f"t{kind}{raw}"
            if raw:
                model.graph.initializer.append(numpy_helper.from_array(array, name))
            else:
                model.graph.initializer.append(helper.make_tensor(name, kind, [3], array))
    return model


@hazard
def tensors_of_text_and_descriptions() -> ModelProto:
    model = relu()
    text = model.graph.initializer.add(name="text", data_type=TensorProto.STRING, dims=[2])
    text.string_data.extend([b"a", b"\xff\xfe"])
    part = numpy_helper.from_array(np.ones(2, np.float32), "part")
    part.doc_string = "described"
    part.metadata_props.add(key="k", value="v")
    model.graph.initializer.append(part)
    model.graph.initializer.add(name="empty", data_type=TensorProto.FLOAT, dims=[0])
    model.graph.initializer.add(name="none", data_type=TensorProto.FLOAT, dims=[2, 0, 3])
    return model


@hazard
def large_tensors_in_every_place() -> ModelProto:
    model = graph(
        """(float[N,64] x, bool c) => (float[N,64] y) {
            k = Constant<value = float[1] {0}>()
            z = If(c) <
                then_branch = g1 () => (float[N,64] p) {p = MatMul(x, w)},
                else_branch = g2 () => (float[N,64] q) {q = Identity(x)}
            >
            y = Add(z, k)
        }""",
        w=(64, 64),
    )
    big = numpy_helper.from_array(np.ones((64, 64), np.float32), "k")
    model.graph.node[0].attribute[0].t.CopyFrom(big)
    model.graph.node[1].attribute[0].g.initializer.append(big)
    return model


# -------------------------------------------------------------------------------- types and names


@hazard
def types_that_are_no_tensors() -> ModelProto:
    model = relu()
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, None])
    kinds = {
        "o": helper.make_optional_type_proto(tensor),
        "s": helper.make_sequence_type_proto(tensor),
        "os": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "m": helper.make_map_type_proto(TensorProto.INT64, tensor),
        "p": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [2, 3]),
    }
    for name, kind in kinds.items():
        model.graph.input.append(helper.make_value_info(name, kind))
        model.graph.value_info.append(helper.make_value_info(f"{name}_inside", kind))
    opaque = model.graph.input.add(name="opaque")
    opaque.type.denotation = "AUDIO"
    model.graph.input.add(name="untyped")
    return model


@hazard
def dimensions_of_every_kind() -> ModelProto:
    model = relu()
    value = info("z", shape=[1, "N", None, 0, -1])
    value.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    value.type.denotation = "IMAGE"
    value.doc_string = "described"
    value.metadata_props.add(key="k", value="v")
    model.graph.input.append(value)
    model.graph.input.append(helper.make_tensor_value_info("unranked", TensorProto.FLOAT, None))
    model.graph.input.append(helper.make_tensor_value_info("scalar", TensorProto.FLOAT, []))
    return model


@hazard
def value_info_that_is_stale_or_of_nothing() -> ModelProto:
    model = graph("(float[N,3] x) => (float[N,3] y) {a = Exp(x) y = Relu(a)}")
    model.graph.value_info.extend([info("nowhere"), info("a", shape=[1, 3]), info("a", shape=[2])])
    return model


@hazard
def unread_inputs_and_nodes() -> ModelProto:
    return graph("(float[3] x, float[9] other) => (float[3] y) {a = Exp(x) y = Relu(x)}")


@hazard
def nodes_without_a_name_and_with_one_name() -> ModelProto:
    model = graph("(float[3] x) => (float[3] y) {a = Exp(x) b = Exp(a) y = Relu(b)}")
    model.graph.node[0].name = model.graph.node[1].name = "same"
    return model


@hazard
def omitted_inputs_and_outputs() -> ModelProto:
    model = relu()
    for name in ("one", "w", "r"):
        model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 12, 3), "f"), name))
    model.graph.node.append(helper.make_node("Clip", ["x", "", "one"], ["z"]))
    model.graph.node.append(helper.make_node("Clip", ["x", "", ""], ["z2"]))
    model.graph.node.append(helper.make_node("Dropout", ["x"], ["z3", ""]))
    model.graph.node.append(helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], hidden_size=3))
    model.graph.node.append(helper.make_node("Print", [], [], domain="my"))
    return model


@hazard
def one_tensor_read_twice_by_a_node() -> ModelProto:
    return graph("(float[3] x) => (float[3] y) {a = Exp(x) y = Mul(a, a)}")


@hazard
def names_that_are_no_identifiers() -> ModelProto:
    model = relu()
    model.graph.node.append(helper.make_node("Exp", ["x"], ["a b/ü:0\t"], name="\x00"))
    return model


# ------------------------------------------------------------------------- bodies and functions


@hazard
def captures_and_shadows() -> ModelProto:
    return graph(
        """(float[3] x, bool c) => (float[3] y) {
            t = Exp(x)
            y = If(c) <
                then_branch = g1 () => (float[3] p) {x = Neg(t) p = Add(x, w)},
                else_branch = g2 () => (float[3] q) <float[3] w = {1, 2, 3}> {q = Add(t, w)}
            >
        }""",
        w=(3,),
    )


@hazard
def captures_that_only_leave_a_body() -> ModelProto:
    return graph(
        """(float[3] x, bool c) => (float[3] y) {
            t = Exp(x)
            y = If(c) <
                then_branch = g1 () => (float[3] t) {}, else_branch = g2 () => (float[3] w) {}
            >
        }""",
        w=(3,),
    )


@hazard
def bodies_in_bodies() -> ModelProto:
    return graph(
        """(float[3] x, bool c, int64 n) => (float[3] y) {
            y = Loop(n, c, x) <body = b (int64 i, bool go, float[3] s) => (bool stop, float[3] r) {
                stop = Identity(go)
                r = If(c) <
                    then_branch = g1 () => (float[3] p) {p = Add(s, x)},
                    else_branch = g2 () => (float[3] q) {q = Add(s, w)}
                >
            }>
        }""",
        w=(3,),
    )


@hazard
def functions_and_overloads() -> ModelProto:
    model = graph(
        """<ir_version: 10, opset_import: ["" : 17, "my" : 1]>
        agraph (float[3] x) => (float[3] y) {a = my.f<k=2>(x) b = my.g(a) y = Relu(b)}
        <domain: "my", opset_import: ["" : 17]> f <k, e: float = 0.5> (v) => (w) {
            c = Constant<value_float: float = @e>() d = Mul(v, c) w = Add(d, d)
        }
        <domain: "my", opset_import: ["" : 13, "my" : 1], overload: "b"> g (v) => (w) {
            w = my.f(v)
        }"""
    )
    model.graph.node[1].overload = "b"
    function = model.functions[0]
    function.doc_string = "described"
    function.metadata_props.add(key="k", value="v")
    function.value_info.append(info("d"))
    function.node[0].doc_string = "described, too"
    return model


@hazard
def functions_with_bodies_and_unread_inputs() -> ModelProto:
    return graph(
        """<ir_version: 9, opset_import: ["" : 17, "my" : 1]>
        agraph (float[3] x, bool c) => (float[3] y) {y = my.f(x, c)}
        <domain: "my", opset_import: ["" : 17]> f (v, c, unread) => (w) {
            t = Exp(v)
            w = If(c) <
                then_branch = g1 () => (float[3] p) {p = Add(t, v)},
                else_branch = g2 () => (float[3] q) {q = Relu(v)}
            >
        }"""
    )


# -------------------------------------------------------------------------------------- attributes


@hazard
def attributes_that_hold_whatever_there_is() -> ModelProto:
    node = NodeProto(op_type="Odd", domain="my", input=["x"], output=["z"])
    body = onnx.parser.parse_graph("b () => (float[3] t) {t = Exp(x)}")
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "t")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "v"),
        numpy_helper.from_array(np.array([1]), "i"),
        [3],
    )
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    add = node.attribute.add
    add(name="f", type=AttributeProto.FLOAT, f=float("nan"))
    add(name="zero", type=AttributeProto.FLOAT, f=-0.0)
    add(name="i", type=AttributeProto.INT, i=-(2**63))
    add(name="s", type=AttributeProto.STRING, s=b"\xff\x00")
    add(name="empty", type=AttributeProto.STRING, s=b"")
    add(name="t", type=AttributeProto.TENSOR, t=tensor)
    add(name="g", type=AttributeProto.GRAPH, g=body)
    add(name="sp", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    add(name="tp", type=AttributeProto.TYPE_PROTO, tp=kind)
    add(name="floats", type=AttributeProto.FLOATS, floats=[])
    add(name="ints", type=AttributeProto.INTS, ints=[1, -1])
    add(name="strings", type=AttributeProto.STRINGS, strings=[b"a", b"\xff"])
    add(name="tensors", type=AttributeProto.TENSORS, tensors=[tensor, tensor])
    add(name="graphs", type=AttributeProto.GRAPHS, graphs=[body, body])
    add(name="sps", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse])
    add(name="tps", type=AttributeProto.TYPE_PROTOS, type_protos=[kind, kind])
    add(name="typeless")
    node.attribute[0].doc_string = "described"
    node.doc_string = "described"
    node.metadata_props.add(key="k", value="v")
    return with_node(node)


@hazard
def attributes_without_a_type_of_old_models() -> ModelProto:
    model = relu(ir_version=3, opset=8)
    node = helper.make_node("Transpose", ["x"], ["z"])
    node.attribute.add(name="perm", ints=[1, 0])
    model.graph.node.append(node)
    return model


@hazard
def constants_of_every_form() -> ModelProto:
    model = relu()
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32)), numpy_helper.from_array(np.array([1])), [3]
    )
    text = TensorProto(data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"])
    forms: dict[str, Any] = {
        "value": text,
        "value_float": 1.5,
        "value_floats": [1.0, -0.0],
        "value_int": 3,
        "value_ints": [1, 2],
        "value_string": "a",
        "value_strings": ["a", "b"],
        "sparse_value": sparse,
    }
    for key, value in forms.items():
        model.graph.node.append(helper.make_node("Constant", [], [f"c_{key}"], **{key: value}))
    return model


# ------------------------------------------------------------------------ around the main graph


@hazard
def what_stands_beside_the_graph() -> ModelProto:
    model = relu(domains={"my": 3})
    model.producer_name, model.producer_version = "somebody", "1.0"
    model.domain, model.model_version, model.doc_string = "org.example", 7, "described"
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "described"
    model.graph.metadata_props.add(key="k", value="v")
    annotation = model.graph.quantization_annotation.add(tensor_name="y")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "scale"))
    return model


@hazard
def training_info() -> ModelProto:
    model = graph("(float[3] x) => (float[3] y) {y = Add(x, w)}", w=(3,))
    training = model.training_info.add()
    step = onnx.parser.parse_graph("step (float[3] g) => (float[3] new) {new = Sub(w, g)}")
    start = onnx.parser.parse_graph("start () => (float[3] w0) {w0 = Constant<value_float=0.0>()}")
    training.algorithm.CopyFrom(step)
    training.initialization.CopyFrom(start)
    training.update_binding.add(key="w", value="new")
    training.initialization_binding.add(key="w", value="w0")
    return model


@hazard
def fields_of_the_future() -> ModelProto:
    def unknown(number: int) -> bytes:
        return bytes([(number << 3 | 2) & 0x7F | 0x80, number << 3 >> 7, 1, 65])

    model = relu()
    model.graph.node[0].MergeFromString(unknown(1000 % 128))
    model.graph.MergeFromString(unknown(121))
    model.MergeFromString(unknown(122))
    return model


# ------------------------------------------------------------------------------------- the proofs


def equal(a: ModelProto, b: ModelProto) -> bool:
    left, right = (model.SerializeToString(deterministic=True) for model in (a, b))
    return bool(left == right)


def look_at_everything(model: Model) -> None:
    for scope in model.scopes():
        for node in scope.nodes:
            assert isinstance(node.attrs, dict)
            operator(node)
            for tensor in node.inputs:
                constant(tensor)
                is_overridable(tensor)


@pytest.mark.parametrize("name", HAZARDS)
def test_what_is_only_looked_at_comes_out_as_it_went_in(name: str, tmp_path: Path) -> None:
    proto = HAZARDS[name]()
    file = tmp_path / "model.onnx"
    file.write_bytes(proto.SerializeToString())
    for source in (proto, proto.SerializeToString(), file):
        model = Model.load(source)
        look_at_everything(model)
        with model.rewriting() as scopes:
            scopes[0].is_touched = True
        assert equal(model.to_proto(), proto)


@pytest.mark.parametrize("name", HAZARDS)
def test_lists_that_are_written_anew_hold_what_they_held(name: str) -> None:
    proto = HAZARDS[name]()
    model = Model.load(proto)
    for _ in range(2):
        with model.rewriting() as scopes:
            for scope in scopes:
                scope.nodes[:] = list(reversed(scope.nodes))
                scope.is_touched = True
    assert equal(model.to_proto(), proto)


@pytest.mark.parametrize("name", HAZARDS)
def test_an_attribute_that_comes_and_goes_leaves_no_trace(name: str) -> None:
    proto = HAZARDS[name]()
    model = Model.load(proto)
    with model.rewriting() as scopes:
        for scope in scopes:
            scope.is_touched = True
            for node in scope.nodes:
                node.attrs["graphpass_test"] = 1
    with model.rewriting() as scopes:
        for scope in scopes:
            scope.is_touched = True
            for node in scope.nodes:
                del node.attrs["graphpass_test"]
    assert equal(model.to_proto(), proto)


@pytest.mark.parametrize("name", HAZARDS)
def test_a_node_that_comes_and_goes_leaves_no_trace(name: str) -> None:
    proto = HAZARDS[name]()
    model = Model.load(proto)
    with model.rewriting() as scopes:
        for scope in scopes:
            scope.is_touched = True
            scope.nodes.append(Node("Extra", "", {}, [], [Variable("extra")], "my", graph=scope))
    with model.rewriting() as scopes:
        for scope in scopes:
            scope.is_touched = True
            del scope.nodes[-1]
    assert equal(model.to_proto(), proto)


@pytest.mark.parametrize("name", HAZARDS)
def test_a_copy_is_the_same_and_on_its_own(name: str) -> None:
    proto = HAZARDS[name]()
    model = Model.load(proto)
    copied = model.copy()
    with copied.rewriting() as scopes:
        for scope in scopes:
            scope.is_touched = True
            scope.nodes.clear()
            scope.initializers.clear()
    assert equal(model.to_proto(), proto)


# --------------------------------------------------------------- what the graph over the proto says


def nodes_of(model: ModelProto) -> tuple[Graph, list[Node]]:
    loaded = Model.load(model)
    return loaded.graph, list(loaded.graph.nodes)


def test_an_overridable_initializer_is_no_constant() -> None:
    _, (add,) = nodes_of(an_overridable_initializer())
    assert constant(add.inputs[1]) is None
    assert is_overridable(add.inputs[1])


def test_before_ir_version_4_no_initializer_is_overridable() -> None:
    _, (add,) = nodes_of(initializers_of_ir_version_3())
    assert isinstance(add.inputs[1], Constant)
    assert not is_overridable(add.inputs[1])


def test_a_body_reads_its_own_tensor_before_that_of_the_graph_around_it() -> None:
    graph, (exp, branch) = nodes_of(captures_and_shadows())
    then, other = branch.attrs["then_branch"], branch.attrs["else_branch"]
    negated, added = then.nodes
    assert negated.inputs[0] is exp.outputs[0]
    assert added.inputs[0] is negated.outputs[0]
    assert added.inputs[0] is not graph.inputs[0]
    assert added.inputs[1] is graph.initializers[0]
    assert other.nodes[0].inputs[1] is other.initializers[0]
    assert other.initializers[0].values.tolist() == [1, 2, 3]


def test_a_tensor_knows_its_readers_inside_bodies() -> None:
    _, (exp, branch) = nodes_of(captures_and_shadows())
    readers = [node.op for node in exp.outputs[0].outputs]
    assert readers == ["Neg", "Add"]
    assert branch.attrs["then_branch"].parent is exp.graph


def test_what_leaves_a_body_counts_as_output() -> None:
    graph, (exp, _) = nodes_of(captures_that_only_leave_a_body())
    assert exp.outputs[0].is_graph_output
    assert graph.initializers[0].is_graph_output


def test_the_nodes_of_a_function_have_the_opset_of_the_function() -> None:
    model = Model.load(functions_and_overloads())
    first, second = model.functions
    assert (first.opsets[""], second.opsets[""]) == (17, 13)
    with pytest.raises(Exception, match="parameter of its function"):
        attribute(first.nodes[0], "value_float")


def test_shapes_are_inferred_and_what_is_declared_fills_the_gaps() -> None:
    text = (
        "(float[N,3] x) => (float[K] y) <float[1,3] a, float[7] c> "
        "{a = Exp(x) c = my.f(a) y = Neg(c)}"
    )
    _, (exp, custom, neg) = nodes_of(graph(text, domains={"my": 1}))
    assert exp.outputs[0].shape == ["N", 3]
    assert custom.outputs[0].shape == [7]
    assert producer(neg.inputs[0]) is custom


def test_a_small_expanded_constant_is_a_constant_and_a_large_one_is_not() -> None:
    text = "(float[N,3] x) => (float y) {a = Expand(c, s) b = Expand(c, t) y = my.f(a, b)}"
    sizes: dict[str, Any] = {"s": np.array([3]), "t": np.array([1 << 20])}
    loaded = Model.load(graph(text, domains={"my": 1}, c=np.float32(2), **sizes))
    small, large, _ = loaded.graph.nodes
    found = constant(small.outputs[0])
    assert found is not None
    assert found.array().tolist() == [2, 2, 2]
    assert constant(large.outputs[0]) is None


def test_vectors_of_any_length_do_not_take_all_memory() -> None:
    text = "(int64[N] x) => (int64[N] y) {e = ConstantOfShape(s) c = Cast<to=7>(e) y = Add(x, c)}"
    loaded = Model.load(graph(text, s=np.array([1 << 40])))
    assert loaded.graph.nodes[0].outputs[0].shape == [1 << 40]
