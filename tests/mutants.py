"""Damaged models, by structure: valid protobuf, and something that a graph should not be."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphpass.storage.reference import BITS, byte_count
from graphpass.testing import graph

Damage = Callable[[onnx.ModelProto, random.Random], None]

_SIZES = (-1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**62, -(2**63))
_NUMBERS = (*_SIZES, -2, -7, 100, 2**63 - 1)
_NAMES = ("", "x", "y", "n" * 5000, "a\nb", "\x1b[31m", "../../etc", "'", '"', "%s{0}", "\u202e")
_OPERATORS = (
    "Add Cast Concat Conv ConstantOfShape Dropout Expand Flatten Gather Gemm GlobalAveragePool "
    "Identity If Loop MatMul MaxPool Mul Pad ReduceMean Relu Reshape Scan Shape Slice Softmax "
    "Split Squeeze Tile TopK Transpose Unsqueeze Where BatchNormalization LSTM NoSuchThing"
).split()


# -------------------------------------------------------------------------------- the seeds


def _classifier() -> onnx.ModelProto:
    return graph(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            a = Conv<pads = [1,1,1,1]>(x, w) b = BatchNormalization(a, s, t, m, v) c = Relu(b)
            d = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c) e = Flatten(d)
            f = Gemm<transB = 1>(e, g, h) i = Dropout(f) y = Softmax<axis = -1>(i) }""",
        w=(4, 3, 3, 3),
        s=(4,),
        t=(4,),
        m=(4,),
        v=np.ones(4, np.float32),
        g=(5, 64),
        h=(5,),
    )


def _shapes() -> onnx.ModelProto:
    model = graph(
        """(float[N,4,6] x) => (float[A,B] y, int64[2] z) {
            s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, zeros)
            t = Concat<axis = 0>(u, minus) r = Reshape(x, t) p = Transpose<perm = [1,0]>(r)
            q = Transpose<perm = [1,0]>(p) c = Cast<to = 1>(q) y = Mul(c, k)
            z = Slice(s, zeros, twos) }""",
        k=2.0,
    )
    for name, value in (("zero", 0), ("zeros", [0]), ("minus", [-1]), ("twos", [2])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    return model


def _bodies() -> onnx.ModelProto:
    model = graph(
        """(bool c, float[2,3] x) => (float[2,3] y, float[2,3] l) {
            y = If(c) <then_branch = a () => (float[2,3] t) { q = Mul(x, k) t = Identity(q) },
                       else_branch = b () => (float[2,3] f) { f = Add(x, k) }>
            l = Loop(trips, c, x) <body = o (int64 i, bool g, float[2,3] a) =>
                (bool h, float[2,3] z) { h = Identity(g) z = Add(a, k) }> }""",
        k=(3,),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(3), "trips"))
    return model


def _functions() -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    node = helper.make_node
    inner = helper.make_function("f", "In", ["p"], ["q"], [node("Relu", ["p"], ["q"])], opsets)
    calls = [node("In", ["p"], ["r"], domain="f"), node("In", ["r"], ["q"], domain="f")]
    outer = helper.make_function("f", "Out", ["p"], ["q"], calls, opsets)
    values = [helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy"]
    nodes = [node("Out", ["x"], ["t"], domain="f"), node("Add", ["t", "t"], ["y"])]
    main = helper.make_graph(nodes, "g", values[:1], values[1:])
    return helper.make_model(main, functions=[inner, outer], opset_imports=opsets, ir_version=8)


def _quantized() -> onnx.ModelProto:
    model = graph(
        """(float[1,8] x) => (float[1,4] y) {
            w = DequantizeLinear(q, s, z) a = MatMul(x, w) b = Add(a, c)
            d = Sub(b, c) y = Div(d, e) }""",
        s=0.5,
        c=(4,),
        e=(4,),
    )
    weight = np.arange(32, dtype=np.int8).reshape(8, 4)
    for name, value in (("q", weight), ("z", np.array(0, np.int8))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def _sequences() -> onnx.ModelProto:
    model = graph(
        """(float[N,4] x) => (float[M,4] y, float[N,4] z) {
            s = SequenceConstruct(x, x) e = SequenceEmpty<dtype = 1>() t = SequenceInsert(s, x)
            y = ConcatFromSequence<axis = 0>(t) n = SequenceAt(s, first) o = Optional(n)
            p = OptionalGetElement(o) z = Add(p, k) }""",
        k=(4,),
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    return model


def _contrib() -> onnx.ModelProto:
    model = graph(
        """(float[2,3,8] x) => (float[2,3,8] y) {
            g = Gelu(x) b = BiasGelu(g, c) f = FusedMatMul<alpha = 2.0, transB = 1>(b, w)
            s, m, i = SkipLayerNormalization<epsilon = 0.00001>(f, x, a, c)
            q = QuickGelu<alpha = 1.702>(s) y = Identity(q) }""",
        c=(8,),
        w=(8, 8),
        a=(8,),
    )
    for node in model.graph.node[:-1]:
        node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def _integers() -> onnx.ModelProto:
    """A network as it is quantized, each weight and activation between two conversions."""
    model = graph(
        """(float[1,3,8,8] x) => (float[1,5] y) {
            xq = QuantizeLinear(x, s, u) xd = DequantizeLinear(xq, s, u)
            wd = DequantizeLinear<axis = 0>(w, ws, wz) a = Conv(xd, wd, b)
            aq = QuantizeLinear(a, s, u) ad = DequantizeLinear(aq, s, u) c = Relu(ad)
            p = GlobalAveragePool(c) f = Flatten(p) gd = DequantizeLinear<axis = 0>(g, gs, gz)
            y = Gemm<transB = 1>(f, gd, h) }""",
        s=np.array(0.1, np.float32),
        b=(4,),
        h=(5,),
        ws=np.full(4, 0.02, np.float32),
        gs=np.full(5, 0.02, np.float32),
    )
    dice = np.random.default_rng(0)
    for name, value in (
        ("u", np.array(128, np.uint8)),
        ("w", dice.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)),
        ("wz", np.zeros(4, np.int8)),
        ("g", dice.integers(-127, 128, (5, 4)).astype(np.int8)),
        ("gz", np.zeros(5, np.int8)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def _sparse() -> onnx.ModelProto:
    model = graph("(float[2,4] x) => (float[2,4] y) { m = MatMul(x, w) y = Add(m, k) }", k=(4,))
    sparse = model.graph.sparse_initializer.add(dims=[4, 4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([1.0, 2.0, 3.0], np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 5, 14]), ""))
    return model


SEEDS: tuple[Callable[[], onnx.ModelProto], ...] = (
    _classifier,
    _shapes,
    _bodies,
    _functions,
    _quantized,
)
NEWER_SEEDS = (*SEEDS, _sequences, _contrib, _integers, _sparse)


# ------------------------------------------------------------------------------- the damages


def _graphs(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    found = [model.graph]
    for body in found:
        for node in body.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else []
    return found


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    nodes = [node for body in _graphs(model) for node in body.node]
    return nodes + [node for function in model.functions for node in function.node]


def _node(model: onnx.ModelProto, dice: random.Random) -> onnx.NodeProto:
    return dice.choice(_nodes(model) or [onnx.NodeProto()])


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    lists = [(b.input, b.output, b.value_info) for b in _graphs(model)]
    return [value for three in lists for values in three for value in values]


def _value(model: onnx.ModelProto, dice: random.Random) -> onnx.ValueInfoProto:
    return dice.choice(_values(model) or [onnx.ValueInfoProto()])


def _tensor(model: onnx.ModelProto, dice: random.Random) -> TensorProto:
    tensors = [tensor for body in _graphs(model) for tensor in body.initializer]
    chosen: TensorProto = dice.choice(tensors or [TensorProto()])
    return chosen


def _attribute(model: onnx.ModelProto, dice: random.Random) -> onnx.AttributeProto:
    found = [attribute for node in _nodes(model) for attribute in node.attribute]
    chosen: onnx.AttributeProto = dice.choice(found or [onnx.AttributeProto()])
    return chosen


def _any_name(model: onnx.ModelProto, dice: random.Random) -> str:
    made = [name for node in _nodes(model) for name in (*node.output, *node.input)]
    chosen: str = dice.choice([*made, *_NAMES])
    return chosen


def _put(names: Sequence[str], dice: random.Random, name: str) -> None:
    """Put `name` somewhere into a list of names of a message."""
    if names:
        names[dice.randrange(len(names))] = name  # type: ignore[index]


# values and their types


def dim(model: onnx.ModelProto, dice: random.Random) -> None:
    dims = _value(model, dice).type.tensor_type.shape.dim
    if dims:
        dice.choice(dims).dim_value = dice.choice(_SIZES)


def dim_name(model: onnx.ModelProto, dice: random.Random) -> None:
    dims = _value(model, dice).type.tensor_type.shape.dim
    if dims:
        dice.choice(dims).dim_param = dice.choice(_NAMES)


def more_dims(model: onnx.ModelProto, dice: random.Random) -> None:
    dims = _value(model, dice).type.tensor_type.shape.dim
    for _ in range(dice.choice((1, 2, 60))):
        dims.add().dim_value = dice.choice((0, 1, 2))


def fewer_dims(model: onnx.ModelProto, dice: random.Random) -> None:
    dims = _value(model, dice).type.tensor_type.shape.dim
    del dims[dice.randrange(len(dims) + 1) :]


def no_shape(model: onnx.ModelProto, dice: random.Random) -> None:
    _value(model, dice).type.tensor_type.ClearField("shape")


def no_type(model: onnx.ModelProto, dice: random.Random) -> None:
    _value(model, dice).ClearField("type")


def element_type(model: onnx.ModelProto, dice: random.Random) -> None:
    _value(model, dice).type.tensor_type.elem_type = dice.choice((0, 1, 7, 8, 9, 10, 16, 22, 99))


def other_type(model: onnx.ModelProto, dice: random.Random) -> None:
    value = _value(model, dice)
    kind = dice.choice((value.type.sequence_type, value.type.optional_type))
    kind.elem_type.tensor_type.elem_type = 1


def value_name(model: onnx.ModelProto, dice: random.Random) -> None:
    _value(model, dice).name = _any_name(model, dice)


def output_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    outputs = dice.choice(_graphs(model)).output
    if outputs:
        outputs.append(dice.choice(outputs))


def input_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    inputs = dice.choice(_graphs(model)).input
    if inputs:
        inputs.append(dice.choice(inputs))


def no_outputs(model: onnx.ModelProto, dice: random.Random) -> None:
    del dice.choice(_graphs(model)).output[:]


def no_inputs(model: onnx.ModelProto, dice: random.Random) -> None:
    del dice.choice(_graphs(model)).input[:]


def lying_value_info(model: onnx.ModelProto, dice: random.Random) -> None:
    sizes = [dice.choice(_SIZES) for _ in range(dice.randrange(4))]
    value = helper.make_tensor_value_info(_any_name(model, dice), dice.choice((1, 7)), sizes)
    dice.choice(_graphs(model)).value_info.append(value)


# nodes


def reads_other(model: onnx.ModelProto, dice: random.Random) -> None:
    _put(_node(model, dice).input, dice, _any_name(model, dice))


def reads_itself(model: onnx.ModelProto, dice: random.Random) -> None:
    node = _node(model, dice)
    if node.output:
        _put(node.input, dice, node.output[0])


def cycle(model: onnx.ModelProto, dice: random.Random) -> None:
    nodes = list(model.graph.node)
    if len(nodes) > 1:
        late = nodes[dice.randrange(1, len(nodes))]
        early = nodes[dice.randrange(len(nodes))]
        if late.output:
            _put(early.input, dice, late.output[0])


def reads_nothing(model: onnx.ModelProto, dice: random.Random) -> None:
    del _node(model, dice).input[:]


def reads_more(model: onnx.ModelProto, dice: random.Random) -> None:
    node = _node(model, dice)
    node.input.extend([_any_name(model, dice)] * dice.choice((1, 3, 2000)))


def makes_other(model: onnx.ModelProto, dice: random.Random) -> None:
    _put(_node(model, dice).output, dice, _any_name(model, dice))


def makes_nothing(model: onnx.ModelProto, dice: random.Random) -> None:
    del _node(model, dice).output[:]


def makes_more(model: onnx.ModelProto, dice: random.Random) -> None:
    _node(model, dice).output.extend(f"more{i}" for i in range(dice.choice((1, 3, 2000))))


def node_name(model: onnx.ModelProto, dice: random.Random) -> None:
    _node(model, dice).name = dice.choice(_NAMES)


def same_node_names(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _nodes(model):
        node.name = "same"


def operator(model: onnx.ModelProto, dice: random.Random) -> None:
    _node(model, dice).op_type = dice.choice(_OPERATORS)


def domain(model: onnx.ModelProto, dice: random.Random) -> None:
    _node(model, dice).domain = dice.choice(("", "ai.onnx", "com.microsoft", "f", *_NAMES))


def node_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    body = dice.choice(_graphs(model))
    if body.node:
        body.node.append(dice.choice(body.node))


def node_gone(model: onnx.ModelProto, dice: random.Random) -> None:
    nodes = dice.choice(_graphs(model)).node
    if nodes:
        del nodes[dice.randrange(len(nodes))]


def shuffled(model: onnx.ModelProto, dice: random.Random) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    dice.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def many_nodes(model: onnx.ModelProto, dice: random.Random) -> None:
    name = _any_name(model, dice)
    for index in range(dice.choice((10, 300))):
        model.graph.node.add(op_type="Relu", input=[name], output=[f"r{index}"])
        name = f"r{index}"


def diamonds(model: onnx.ModelProto, dice: random.Random) -> None:
    op, name = dice.choice(("Add", "Mul", "Concat")), _any_name(model, dice)
    for index in range(40):
        node = helper.make_node(op, [name, name], [f"d{index}"])
        if op == "Concat":
            node.attribute.append(helper.make_attribute("axis", 0))
        model.graph.node.append(node)
        name = f"d{index}"


# attributes


def number(model: onnx.ModelProto, dice: random.Random) -> None:
    attribute = _attribute(model, dice)
    if attribute.ints:
        attribute.ints[dice.randrange(len(attribute.ints))] = dice.choice(_NUMBERS)
    else:
        attribute.i = dice.choice(_NUMBERS)


def fraction(model: onnx.ModelProto, dice: random.Random) -> None:
    _attribute(model, dice).f = dice.choice((0.0, -1.0, float("nan"), float("inf"), 1e38))


def attribute_type(model: onnx.ModelProto, dice: random.Random) -> None:
    kinds = list(onnx.AttributeProto.AttributeType.values())
    _attribute(model, dice).type = dice.choice(kinds)


def attribute_name(model: onnx.ModelProto, dice: random.Random) -> None:
    names = ("axis", "axes", "perm", "pads", "value", "body", "to", "epsilon", *_NAMES)
    _attribute(model, dice).name = dice.choice(names)


def attribute_gone(model: onnx.ModelProto, dice: random.Random) -> None:
    del _node(model, dice).attribute[:]


def attribute_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    attributes = _node(model, dice).attribute
    if attributes:
        attributes.append(dice.choice(attributes))


def attribute_added(model: onnx.ModelProto, dice: random.Random) -> None:
    names = ("axis", "axes", "perm", "pads", "group", "kernel_shape", "training_mode", "transA")
    value = dice.choice((dice.choice(_NUMBERS), [dice.choice(_NUMBERS) for _ in range(3)], 0.5))
    _node(model, dice).attribute.append(helper.make_attribute(dice.choice(names), value))


def no_numbers(model: onnx.ModelProto, dice: random.Random) -> None:
    del _attribute(model, dice).ints[:]


def more_numbers(model: onnx.ModelProto, dice: random.Random) -> None:
    _attribute(model, dice).ints.extend([dice.choice(_NUMBERS)] * dice.choice((1, 5, 5000)))


def text(model: onnx.ModelProto, dice: random.Random) -> None:
    attribute = _attribute(model, dice)
    attribute.s = dice.choice((b"SAME_UPPER", b"reflect", b"", b"\xff\xfe", b"n" * 5000))
    attribute.type = onnx.AttributeProto.STRING


def reference(model: onnx.ModelProto, dice: random.Random) -> None:
    _attribute(model, dice).ref_attr_name = dice.choice(("alpha", *_NAMES))


# tensors


def tensor_dims(model: onnx.ModelProto, dice: random.Random) -> None:
    dims = _tensor(model, dice).dims
    if dims:
        dims[dice.randrange(len(dims))] = dice.choice(_SIZES)


def tensor_rank(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    tensor.dims.extend([1] * dice.choice((1, 2, 70)))


def tensor_type(model: onnx.ModelProto, dice: random.Random) -> None:
    _tensor(model, dice).data_type = dice.choice((0, 2, 6, 7, 8, 9, 10, 11, 16, 17, 21, 22, 99))


def tensor_cut(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    tensor.raw_data = tensor.raw_data[: dice.randrange(len(tensor.raw_data) + 1)]


def tensor_values(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[: 1 + dice.randrange(array.size)] = dice.choice(
            (np.nan, np.inf, -0.0, 0.0, 1e38, 1e-45)
        )
        tensor.raw_data = array.tobytes()


def tensor_integers(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    if tensor.data_type == TensorProto.INT64 and tensor.raw_data:
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[0] = dice.choice(_NUMBERS)
        tensor.raw_data = array.tobytes()


def tensor_name(model: onnx.ModelProto, dice: random.Random) -> None:
    _tensor(model, dice).name = _any_name(model, dice)


def tensor_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    model.graph.initializer.append(_tensor(model, dice))


def tensor_gone(model: onnx.ModelProto, dice: random.Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[dice.randrange(len(model.graph.initializer))]


def tensor_fields(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    dice.choice((tensor.float_data, tensor.double_data)).extend([1.0, 2.0])


def tensor_segment(model: onnx.ModelProto, dice: random.Random) -> None:
    _tensor(model, dice).segment.begin = 1


def tensor_outside(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    tensor.data_location = TensorProto.EXTERNAL
    location = dice.choice(("", "none.bin", "../up.bin", "/etc/hostname", "m.onnx", "a\0b", "."))
    for key, value in (
        ("location", location),
        ("offset", dice.choice(("0", "-1", "9" * 30, "x", "16"))),
        ("length", dice.choice(("0", "4", "-1", "9" * 30))),
    ):
        if dice.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


def tensor_sparse(model: onnx.ModelProto, dice: random.Random) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(_tensor(model, dice))
    sparse.indices.data_type = TensorProto.INT64
    sparse.dims.extend([dice.choice(_SIZES) for _ in range(2)])


def default_of_input(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    value = helper.make_tensor_value_info(tensor.name, 1, [dice.choice(_SIZES)])
    model.graph.input.append(value)


# functions and bodies


def function_recursive(model: onnx.ModelProto, dice: random.Random) -> None:
    if model.functions:
        one, other = dice.choice(model.functions), dice.choice(model.functions)
        one.node.add(op_type=other.name, domain=other.domain, input=["p"], output=["again"])


def function_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    if model.functions:
        model.functions.append(dice.choice(model.functions))


def function_laughs(model: onnx.ModelProto, dice: random.Random) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    if model.functions:
        name = model.functions[0].name
        for level in range(dice.choice((8, 30))):
            nodes = [
                helper.make_node(name, ["p"], ["r"], domain="f"),
                helper.make_node(name, ["r"], ["q"], domain="f"),
            ]
            name = f"L{level}"
            model.functions.append(helper.make_function("f", name, ["p"], ["q"], nodes, opsets))
        model.graph.node[0].op_type = name


def function_signature(model: onnx.ModelProto, dice: random.Random) -> None:
    if model.functions:
        function = dice.choice(model.functions)
        _put(dice.choice((function.input, function.output)), dice, _any_name(model, dice))


def function_named_as_operator(model: onnx.ModelProto, dice: random.Random) -> None:
    if model.functions:
        function = dice.choice(model.functions)
        function.name, function.domain = dice.choice(_OPERATORS), dice.choice(("", "ai.onnx"))


def body_gone(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("g") and dice.random() < 0.5:
                del attribute.g.node[:]


def body_output(model: onnx.ModelProto, dice: random.Random) -> None:
    bodies = _graphs(model)[1:]
    if bodies and (outputs := dice.choice(bodies).output):
        dice.choice(outputs).name = _any_name(model, dice)


def nested(model: onnx.ModelProto, dice: random.Random) -> None:
    body = onnx.GraphProto()
    body.CopyFrom(model.graph)
    for _ in range(dice.choice((1, 5, 20))):
        inner = onnx.GraphProto(name="b")
        inner.output.add(name="t")
        node = inner.node.add(op_type="If", input=["c"], output=["t"])
        for name in ("then_branch", "else_branch"):
            node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(body)
            if len(body.node) and body.ByteSize() > 1 << 16:
                break
        body = inner
    model.graph.node.extend(body.node)


# the model


def ir_version(model: onnx.ModelProto, dice: random.Random) -> None:
    model.ir_version = dice.choice((0, 1, 3, 4, 8, 11, 99, 2**40, -1))


def opset(model: onnx.ModelProto, dice: random.Random) -> None:
    if model.opset_import:
        version = dice.choice((0, -1, 1, 6, 9, 11, 12, 13, 21, 99, 2**40))
        dice.choice(model.opset_import).version = version


def opset_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    model.opset_import.add(domain="", version=dice.choice((1, 9, 13, 21)))


def no_opset(model: onnx.ModelProto, dice: random.Random) -> None:
    del model.opset_import[:]


def metadata(model: onnx.ModelProto, dice: random.Random) -> None:
    keys = ("graphpass.native", "graphpass.head", "graphpass.origin", *_NAMES)
    model.metadata_props.add(key=dice.choice(keys), value=dice.choice(_NAMES))


def marks(model: onnx.ModelProto, dice: random.Random) -> None:
    properties = _tensor(model, dice).metadata_props
    for key in ("graphpass.origin", "graphpass.stamp", "graphpass.data_location"):
        properties.add(key=key, value=dice.choice(("external", "raw_data", *_NAMES)))


def annotation(model: onnx.ModelProto, dice: random.Random) -> None:
    entry = model.graph.quantization_annotation.add(tensor_name=_any_name(model, dice))
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=_any_name(model, dice))


DAMAGES: tuple[Damage, ...] = tuple(
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", None) == __name__
    and not name.startswith("_")
)


# ------------------------------------------------- newer damages, for mutants of their own


def kind_of_tensor(model: onnx.ModelProto, dice: random.Random) -> None:
    """Change the type of a tensor, with as many bytes as that type has elements."""
    tensor = _tensor(model, dice)
    kind = dice.choice(tuple(BITS))
    count = byte_count(kind, list(tensor.dims))
    if count is not None and count < 1 << 20:
        name, dims = tensor.name, list(tensor.dims)
        tensor.Clear()
        tensor.name, tensor.data_type = name, kind
        tensor.dims.extend(dims)
        tensor.raw_data = bytes(dice.randrange(256) for _ in range(count))


def kind_everywhere(model: onnx.ModelProto, dice: random.Random) -> None:
    kind = dice.choice((10, 16, 11, 17, 18, 19, 20, 21, 22, 23, 24, 9, 2, 3, 8))
    for value in _values(model):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for body in _graphs(model):
        for tensor in body.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                count = byte_count(kind, list(tensor.dims)) or 0
                tensor.data_type, tensor.raw_data = kind, bytes(count)


def elements_elsewhere(model: onnx.ModelProto, dice: random.Random) -> None:
    """Move the elements to a field that is not for them."""
    tensor = _tensor(model, dice)
    count = min(int(np.prod(tensor.dims, dtype=np.float64)), 1000) if tensor.dims else 1
    tensor.ClearField("raw_data")
    field = dice.choice((tensor.int32_data, tensor.int64_data, tensor.uint64_data))
    field.extend([dice.choice((0, 1, 255, 2**31 - 1))] * dice.choice((count, count + 1, 0)))


def strings(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    count = min(int(np.prod(tensor.dims, dtype=np.float64)), 1000) if tensor.dims else 1
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.STRING
    words = (b"", b"a", b"\xff\xfe", b"\0", b"nan", b"1e999", b"n" * 5000)
    tensor.string_data.extend(
        dice.choice(words) for _ in range(max(count + dice.choice((0, 1)), 0))
    )


def string_input(model: onnx.ModelProto, dice: random.Random) -> None:
    values = [value for value in model.graph.input if value.type.HasField("tensor_type")]
    if values:
        dice.choice(values).type.tensor_type.elem_type = TensorProto.STRING


def container_type(model: onnx.ModelProto, dice: random.Random) -> None:
    kind = _value(model, dice).type
    for _ in range(dice.choice((1, 2, 30))):
        inner = dice.choice((kind.sequence_type, kind.optional_type))
        kind = inner.elem_type
    dice.choice((kind.tensor_type, kind.sparse_tensor_type)).elem_type = dice.choice((1, 7, 8, 99))


def map_type(model: onnx.ModelProto, dice: random.Random) -> None:
    kind = _value(model, dice).type.map_type
    kind.key_type = dice.choice((1, 7, 8, 99))
    kind.value_type.tensor_type.elem_type = 1


def sequence_operator(model: onnx.ModelProto, dice: random.Random) -> None:
    operators = "SequenceConstruct SequenceInsert SequenceErase SequenceAt SequenceLength".split()
    operators += (
        "ConcatFromSequence SplitToSequence SequenceMap Optional OptionalGetElement".split()
    )
    node = _node(model, dice)
    node.op_type, node.domain = dice.choice([*operators, "OptionalHasElement"]), ""


def contrib_operator(model: onnx.ModelProto, dice: random.Random) -> None:
    operators = (
        "Attention BiasGelu EmbedLayerNormalization FusedConv FusedGemm FusedMatMul Gelu"
        " GroupQueryAttention LayerNormalization MatMulNBits MultiHeadAttention NhwcMaxPool QGemm"
        " QLinearAdd QLinearConcat QLinearGlobalAveragePool QLinearMatMul QuickGelu"
        " SkipLayerNormalization SimplifiedLayerNormalization DequantizeLinear QuantizeLinear"
    ).split()
    node = _node(model, dice)
    node.op_type, node.domain = dice.choice(operators), "com.microsoft"
    if dice.random() < 0.8:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def quantization(model: onnx.ModelProto, dice: random.Random) -> None:
    """Damage a scale or a zero point."""
    nodes = [node for node in _nodes(model) if node.op_type.endswith("quantizeLinear")]
    nodes += [node for node in _nodes(model) if node.op_type == "QuantizeLinear"]
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [name for node in nodes for name in node.input[1:] if name in held]
    if not names:
        return
    tensor = held[dice.choice(names)]
    array = numpy_helper.to_array(tensor)
    values = (0.0, -1.0, np.nan, np.inf, 1e-45, 1e38) if array.dtype.kind == "f" else (0, 1, 127)
    shape = dice.choice((array.shape, (), (1,), (3,), (0,), (4, 1), (1, 4)))
    changed = np.full(shape, dice.choice(values)).astype(array.dtype)
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def quantized_axis(model: onnx.ModelProto, dice: random.Random) -> None:
    nodes = [node for node in _nodes(model) if node.op_type.endswith("uantizeLinear")]
    if nodes:
        node = dice.choice(nodes)
        del node.attribute[:]
        name = dice.choice(("axis", "block_size", "saturate", "output_dtype"))
        node.attribute.append(helper.make_attribute(name, dice.choice((*_NUMBERS, 17, 22))))


def sparse_indices(model: onnx.ModelProto, dice: random.Random) -> None:
    for sparse in model.graph.sparse_initializer:
        numbers = [dice.choice((*_NUMBERS, 5, 15)) for _ in range(dice.choice((0, 1, 3, 6)))]
        shape = dice.choice(((len(numbers),), (len(numbers), 1), (len(numbers) // 2, 2)))
        indices = np.array(numbers[: int(np.prod(shape))]).reshape(shape)
        kind = dice.choice((np.int64, np.int32))
        sparse.indices.CopyFrom(numpy_helper.from_array(indices.astype(kind), ""))


def sparse_sizes(model: onnx.ModelProto, dice: random.Random) -> None:
    for sparse in model.graph.sparse_initializer:
        del sparse.dims[:]
        sparse.dims.extend(dice.choice((*_SIZES, 4, 4)) for _ in range(dice.choice((1, 2, 3))))


def sparse_attribute(model: onnx.ModelProto, dice: random.Random) -> None:
    node = _node(model, dice)
    attribute = node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(_tensor(model, dice))
    attribute.sparse_tensor.dims.extend([dice.choice(_SIZES)])
    if dice.random() < 0.5:
        node.op_type = "Constant"
        del node.input[:], node.attribute[:-1]


def training(model: onnx.ModelProto, dice: random.Random) -> None:
    info = model.training_info.add()
    for part in (info.initialization, info.algorithm):
        if dice.random() < 0.7:
            part.CopyFrom(model.graph)
    for bindings in (info.initialization_binding, info.update_binding):
        bindings.add(key=_any_name(model, dice), value=_any_name(model, dice))


def function_in_function(model: onnx.ModelProto, dice: random.Random) -> None:
    """Make functions of nodes that are there, with their attributes by reference."""
    node = _node(model, dice)
    function = model.functions.add(name=node.op_type, domain="g")
    inner = function.node.add(op_type=node.op_type, domain=node.domain)
    inner.input.extend(f"i{n}" for n in range(len(node.input)))
    inner.output.extend(f"o{n}" for n in range(len(node.output)))
    function.input.extend(inner.input)
    function.output.extend(inner.output)
    for attribute in node.attribute:
        inner.attribute.add(name=attribute.name, ref_attr_name=attribute.name, type=attribute.type)
        if dice.random() < 0.7:
            function.attribute.append(attribute.name)
        else:
            function.attribute_proto.append(attribute)
    function.opset_import.extend(model.opset_import)
    if dice.random() < 0.2:
        inner.domain = "g"  # calls itself
    node.domain = "g"
    model.opset_import.append(helper.make_opsetid("g", 1))


def very_deep(model: onnx.ModelProto, dice: random.Random) -> None:
    """Nest an If as deep as protobuf lets it be, or deeper."""
    inner = onnx.GraphProto(name="b")
    inner.output.add(name="t")
    inner.node.add(op_type="Identity", input=[_any_name(model, dice)], output=["t"])
    for _ in range(dice.choice((10, 24, 30, 40))):
        outer = onnx.GraphProto(name="b")
        outer.output.add(name="t")
        node = outer.node.add(op_type="If", input=["c"], output=["t"])
        for name in ("then_branch", "else_branch")[: dice.choice((1, 1, 2)) if not _ else 1]:
            node.attribute.add(name=name, type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)
        inner = outer
    model.graph.node.extend(inner.node)


def outside_overlapping(model: onnx.ModelProto, dice: random.Random) -> None:
    """Keep several tensors in one file: in the model itself, one over another."""
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") and dice.random() < 0.7:
            length = len(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            place = dice.choice(("m.onnx", "./m.onnx", "m.onnx/", "../w/m.onnx"))
            offset = dice.choice((0, 1, 3, 64, 4096, 2**63 - 1, -4))
            length += dice.choice((0, 0, 0, 1, -1))
            for key, value in (("location", place), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def outside_twice(model: onnx.ModelProto, dice: random.Random) -> None:
    tensor = _tensor(model, dice)
    tensor.data_location = TensorProto.EXTERNAL
    for _ in range(2):
        tensor.external_data.add(key="location", value=dice.choice(("m.onnx", "none.bin")))
    key = dice.choice(("checksum", "basepath", "graphpass", ""))
    tensor.external_data.add(key=key, value="x" * dice.choice((0, 1, 5000)))


def loop_trips(model: onnx.ModelProto, dice: random.Random) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == "trips":
            value = np.array(dice.choice((*_NUMBERS, 1000, 30000)))
            tensor.CopyFrom(numpy_helper.from_array(value, "trips"))


def loop_grows(model: onnx.ModelProto, dice: random.Random) -> None:
    for node in _nodes(model):
        if node.op_type == "Add" and len(node.input) == 2:
            node.op_type, node.input[1] = "Concat", node.input[0]
            node.attribute.append(helper.make_attribute("axis", 0))


NEWER_DAMAGES: tuple[Damage, ...] = tuple(
    value
    for name, value in list(globals().items())
    if callable(value)
    and getattr(value, "__module__", None) == __name__
    and not name.startswith("_")
    and value not in DAMAGES
)
# From this number on mutants have newer damages as well; those before stay what they were.
FIRST_NEWER = 1_000_000


def mutant(seed: int) -> onnx.ModelProto:
    """Return the mutant of that number: a seed with one to three damages."""
    dice = random.Random(seed)
    is_newer = seed >= FIRST_NEWER
    model = dice.choice(NEWER_SEEDS if is_newer else SEEDS)()
    if is_newer:
        _make_single(model)
    for index in range(dice.choice((1, 1, 2, 3))):
        damage = dice.choice(NEWER_DAMAGES if is_newer and not index else DAMAGES)
        try:
            damage(model, dice)
        except (ValueError, OverflowError, TypeError, DecodeError):
            continue  # what protobuf cannot hold, no file holds either
    return model


def _make_single(model: onnx.ModelProto) -> None:
    """Make numbers of double precision single ones, so that ONNX Runtime loads what is whole."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def mutants() -> st.SearchStrategy[onnx.ModelProto]:
    """Return models with damages, each a choice of its own, so that they shrink to the culprit."""

    def build(seed: int, damages: list[int], dice: int) -> onnx.ModelProto:
        rolled = random.Random(dice)
        model = NEWER_SEEDS[seed]()
        for index in damages:
            try:
                (*DAMAGES, *NEWER_DAMAGES)[index](model, rolled)
            except (ValueError, OverflowError, TypeError, DecodeError):
                continue
        return model

    return st.builds(
        build,
        st.integers(0, len(NEWER_SEEDS) - 1),
        st.lists(st.integers(0, len(DAMAGES) + len(NEWER_DAMAGES) - 1), min_size=1, max_size=3),
        st.integers(0, 2**32),
    )
