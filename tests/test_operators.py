"""What the table says of operators, held against ONNX's schemas and against ONNX Runtime."""

from __future__ import annotations

import ast
import zlib
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphpass import optimize
from graphpass.ir.mixing import mixed_axes
from graphpass.ir.model import Model
from graphpass.ir.nodes import Node
from graphpass.ir.operators import (
    UNCLASSIFIED,
    Trait,
    has,
    is_random,
    is_training,
    named,
    of_node,
    row,
    traits,
)
from graphpass.testing import graph

_OPSETS = (22, 24, 20, 17)  # the first for which ONNX Runtime has a kernel
_F = np.float32
_SHAPE = (2, 3, 4, 4)

# how an operator is run where it takes more than floats x[2, 3, 4, 4]: attributes, then the
# further inputs; "x" is drawn like the first, arrays are constants
_KERNEL = np.array([[[[1, -2], [0.5, 3]]] * 3] * 2, _F)
_MATRIX = np.array([[1, -2, 0.5], [3, 1, -1], [0.25, 2, 1], [-1, 0.5, 2]], _F)
_STATISTICS = [np.array([s, 2, -1], _F) for s in (0.5, 1, 0.25)]
_ORT = ort.capi.onnxruntime_pybind11_state
_NO_KERNEL_ERRORS = (_ORT.Fail, _ORT.NotImplemented, _ORT.InvalidGraph)
_PLAIN: list[tuple[dict[str, Any], list[Any]]] = [({}, [])]
_CALLS: dict[str, list[tuple[dict[str, Any], list[Any]]]] = {
    "Cast": [({"to": onnx.TensorProto.DOUBLE}, [])],
    "CastLike": [({}, [np.zeros((), np.float64)])],
    "Clip": [({}, [_F(-1), _F(1)]), ({}, [])],
    "LeakyRelu": [({"alpha": 0.1}, [])],
    "PRelu": [({}, [np.array([0.25], _F)])],
    "ReduceMean": [({}, [np.array([1])]), ({"keepdims": 0}, [np.array([-1, 2])])],
    "ArgMax": [({"axis": 2}, [])],
    "ArgMin": [({"axis": -1, "keepdims": 0}, [])],
    "Softmax": [({"axis": 1}, []), ({}, [])],
    "LpNormalization": [({"axis": 2}, [])],
    "CumSum": [({}, [np.array(1)])],
    "TopK": [({"axis": 1}, [np.array([2])])],
    "Reshape": [({}, [np.array([2, 12, 4])])],
    "Flatten": [({"axis": axis}, []) for axis in (0, 1, 2, 4)],
    "Squeeze": [({}, [])],
    "Unsqueeze": [({}, [np.array([1, 3])])],
    "Transpose": [({"perm": [2, 0, 3, 1]}, [])],
    "Expand": [({}, [np.array([5, 1, 1, 1, 4])])],
    "Tile": [({}, [np.array([1, 2, 1, 1])])],
    "Slice": [({}, [np.array([1]), np.array([3]), np.array([2])]), ({}, [[0], [1]])],
    "Split": [({"axis": 2, "num_outputs": 2}, [])],
    "Gather": [({"axis": 2}, [np.array([[1, 0], [3, 3]])])],
    "GatherElements": [({"axis": 1}, [np.ones((2, 1, 4, 4), np.int64)])],
    "GatherND": [({}, [np.array([[1, 0], [0, 2]])])],
    "Concat": [({"axis": 1}, ["x"])],
    "DepthToSpace": [({"blocksize": 1}, [])],
    "SpaceToDepth": [({"blocksize": 2}, [])],
    "ReverseSequence": [({"time_axis": 1, "batch_axis": 0}, [np.array([3, 2])])],
    "Compress": [({"axis": 3}, [np.array([True, False, True])])],
    "CenterCropPad": [({"axes": [2, 3]}, [np.array([2, 6])])],
    "Pad": [({}, [np.array([0, 0, 1, 0, 0, 0, 2, 0])])],
    "ScatterElements": [({"axis": 1}, [np.zeros((1, 1, 1, 1), np.int64), np.ones((1,) * 4, _F)])],
    "ScatterND": [({}, [np.array([[1, 2]]), np.ones((1, 4, 4), _F)])],
    "TensorScatter": [],  # no kernel yet
    "Where": [({}, [])],
    "Conv": [({"dilations": [2, 1]}, [_KERNEL]), ({"auto_pad": "SAME_UPPER"}, [_KERNEL])],
    "ConvTranspose": [({"strides": [2, 1]}, [np.concatenate([_KERNEL, _KERNEL[:1]])])],
    "Gemm": [],
    "MatMul": [({}, [_MATRIX])],
    "Einsum": [({"equation": "nchw,wk->nkch"}, [_MATRIX])],
    "BatchNormalization": [({}, [*_STATISTICS, np.array([1, 2, 3], _F)])],
    "InstanceNormalization": [({}, _STATISTICS[:2])],
    "GroupNormalization": [({"num_groups": 3}, _STATISTICS[:2])],
    "LayerNormalization": [({"axis": 3}, [np.array([1, 2, 3, 4], _F)])],
    "LRN": [({"size": 3}, [])],
    "QuantizeLinear": [({}, [_F(0.1), np.uint8(3)])],
    "Upsample": [],
    "Resize": [({}, ["", np.array([1, 1, 2, 3], _F)])],
}
_CALLS |= {name: _CALLS["ReduceMean"] for name in named(Trait.REDUCTION) if "Reduce" in name}
_CALLS |= dict.fromkeys(("LogSoftmax", "Hardmax"), _CALLS["Softmax"])
_POOL: dict[str, Any] = {"kernel_shape": [2, 3], "pads": [0, 1, 0, 1]}
_CALLS |= {name: [(_POOL, [])] for name in ("AveragePool", "LpPool", "MaxPool")}
_BOOLEAN = frozenset("And Or Xor Not".split())
_INTEGER = frozenset("BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor".split())
_POSITIVE = frozenset("Acosh Log Sqrt ReduceLogSum".split())
_DROP = frozenset("Slice Split Compress CenterCropPad".split())
_NO_KERNEL = frozenset("CumProd TensorScatter EyeLike RMSNormalization".split())


def _session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options)


class Sample:
    """One way to run an operator; `data`: indices of the inputs that are drawn."""

    def __init__(self, op: str, attrs: dict[str, Any], further: list[Any], version: int) -> None:
        found = row(op)
        assert found is not None
        self.op, self.version = op, version
        several = Trait.BROADCASTING in found.traits and found.data is None
        shapes = [_SHAPE, *([(4, 1)] if several else [])]
        shapes += [_SHAPE for given in further if isinstance(given, str) and given == "x"]
        self.shapes = shapes
        self.names = [f"x{i}" for i in range(len(shapes))]
        kind = bool if op in _BOOLEAN else np.uint8 if op in _INTEGER else _F
        self.kinds = [np.dtype(kind)] * len(shapes)
        if op == "Where":
            self.kinds, self.names = [np.dtype(_F)] * 2, ["x0", "x1"]
        constants = [g for g in further if not (isinstance(g, str) and g == "x")]
        names = [*self.names]
        if op == "Where":
            constants, names = [np.array([[True], [False], [True], [False]])], []
        held = []
        for i, given in enumerate(constants):
            names.append(f"c{i}" if not isinstance(given, str) else "")
            if not isinstance(given, str):
                held.append(numpy_helper.from_array(np.asarray(given), f"c{i}"))
        names += self.names if op == "Where" else []
        if op == "BitShift":
            attrs = {"direction": "LEFT"}
        if op == "Mod":
            attrs = {"fmod": 1}
        outputs = ["y", "z"] if op in ("Split", "TopK") else ["y"]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(k), None)
            for name, k in zip(self.names, self.kinds, strict=True)
        ]
        body = helper.make_graph(
            [helper.make_node(op, names, outputs, **attrs)],
            "one",
            inputs,
            [onnx.ValueInfoProto(name="y")],
            held,
        )
        imports = [helper.make_opsetid("", version)]
        self.model = helper.make_model(body, opset_imports=imports, ir_version=10)
        self.session = _session(self.model)

    @cached_property
    def node(self) -> Node:
        node: Node = Model.load(self.model).graph.nodes[0]
        for tensor, shape in zip(node.inputs, self.shapes, strict=False):
            if tensor.name.startswith("x"):
                tensor.shape = list(shape)
        node.outputs[0].dtype = np.dtype(_F)
        return node

    def drawn(self, seed: int = 0) -> list[Any]:
        rng = np.random.default_rng([seed, zlib.crc32(self.op.encode())])
        made = []
        for shape, kind in zip(self.shapes, self.kinds, strict=True):
            if kind.kind != "f":
                made.append(rng.integers(0, 2 if kind.kind == "b" else 7, shape).astype(kind))
                continue
            x = rng.normal(size=shape) * 2
            if self.op in _POSITIVE:
                x = np.abs(x) + 1
            if self.op in ("Acos", "Asin", "Atanh"):
                x = np.tanh(x)
            made.append(x.astype(kind))
        return made

    def with_constants(self, change: Callable[[Any], Any]) -> Any:
        """Return how to run it with other float constants."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == _F:
                tensor.CopyFrom(numpy_helper.from_array(change(array), tensor.name))
        return _session(model).run

    def __call__(self, *data: Any) -> Any:
        return self.session.run(["y"], dict(zip(self.names, data, strict=True)))[0]


def _samples(trait: Trait) -> list[Any]:
    """Return each operator of a trait with the ways to run it, for a parametrized test."""
    names = [name for name in named(trait) if name not in _NO_KERNEL]
    return [
        pytest.param(name, attrs, further, id=f"{name}-{i}")
        for name in names
        for i, (attrs, further) in enumerate(_CALLS.get(name, _PLAIN))
    ]


def _of(trait: Trait) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("op", "attrs", "further"), _samples(trait))


@pytest.fixture
def sample(op: str, attrs: dict[str, Any], further: list[Any]) -> Sample:
    return _made(op, _CALLS.get(op, _PLAIN).index((attrs, further)))


@cache
def _made(op: str, index: int) -> Sample:
    attrs, further = _CALLS.get(op, _PLAIN)[index]
    for version in _OPSETS:
        try:
            return Sample(op, attrs, further, version)
        except _NO_KERNEL_ERRORS:
            continue
    raise AssertionError(f"no opset of {_OPSETS} has a kernel for {op}")


def test_every_operator_of_the_newest_opset_is_classified_or_listed_as_not() -> None:
    known = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
    table = {name for name in known if row(name) is not None}
    assert table | UNCLASSIFIED == known
    assert not table & UNCLASSIFIED


def test_rows_are_of_operators_and_opsets_that_exist() -> None:
    versions: dict[str, set[int]] = {}
    for schema in defs.get_all_schemas_with_history():
        versions.setdefault(schema.name, {1}).add(schema.since_version)
    for name in named(Trait(0)):
        found = row(name)
        assert found is not None and found.since in versions[name]
        assert not found.positive or set(found.positive) & set(defs.get_schema(name).attributes)


@_of(Trait.ELEMENTWISE)
def test_elementwise(sample: Sample) -> None:
    (x,) = sample.drawn()
    if has(sample.node, Trait.RANDOM):
        return
    y = sample(x)
    order = np.random.default_rng(0).permutation(x.size)
    shuffled = sample(x.reshape(-1)[order].reshape(x.shape))
    assert np.array_equal(shuffled.reshape(-1), y.reshape(-1)[order], equal_nan=True)


@_of(Trait.BROADCASTING)
def test_broadcasting(sample: Sample) -> None:
    data = sample.drawn()
    if sample.op == "PRelu":
        data = [data[0]]
    y = sample(*data)
    assert y.shape == _SHAPE
    if len(data) == 2:
        same = sample(*(np.broadcast_to(x, _SHAPE) for x in data))
        assert np.array_equal(same, y, equal_nan=True)
    cut = [x[:, :, 1:3] if x.ndim == 4 else x[1:3] for x in data]
    if sample.op != "Where":
        assert np.array_equal(sample(*cut), y[:, :, 1:3], equal_nan=True)


@_of(Trait.PICKS)
def test_picks(sample: Sample) -> None:
    data = sample.drawn()
    assert set(sample(*data).reshape(-1)) <= {0, *np.concatenate([x.reshape(-1) for x in data])}


@_of(Trait.VIEW)
def test_view(sample: Sample) -> None:
    data = sample.drawn()
    assert np.array_equal(sample(*data).reshape(-1), data[0].reshape(-1))


@_of(Trait.HOMOGENEOUS)
def test_homogeneous(sample: Sample) -> None:
    if has(sample.node, Trait.HOMOGENEOUS):
        data = sample.drawn()
        assert np.array_equal(sample(*(x * _F(4) for x in data)), sample(*data) * _F(4))
        assert not np.array_equal(sample(*data), sample(*data) * _F(4))


@_of(Trait.MONOTONE)
def test_monotone(sample: Sample) -> None:
    assert has(sample.node, Trait.MONOTONE)
    data = sample.drawn()
    for place in range(len(data)):
        for size in (1e-3, 0.1, 5):
            more = [x + _F(size) * np.abs(x) * (i == place) for i, x in enumerate(data)]
            if sample.op in ("Asin", "Atanh"):
                more = [np.maximum(y, np.clip(x, -1, 1)) for x, y in zip(more, data, strict=True)]
            low, high = sample(*data), sample(*more)
            slack = 1e-6 * np.maximum(np.abs(low), 1)
            assert (high >= low - slack).all()


@_of(Trait.KEEPS_ZERO)
def test_keeps_zero(sample: Sample) -> None:
    assert has(sample.node, Trait.KEEPS_ZERO)
    assert not sample(*(np.zeros_like(x) for x in sample.drawn())).any()


@_of(Trait.KEEPS_NAN)
def test_keeps_nan(sample: Sample) -> None:
    assert has(sample.node, Trait.KEEPS_NAN)
    data = sample.drawn()
    for place in range(len(data)):
        for index in ((0,) * data[place].ndim, (-1,) * data[place].ndim):
            results = []
            for value in (-2.5, -0.5, 0.25, 0.9, 1.5, 60, np.nan):
                changed = [x.copy() for x in data]
                changed[place][index] = value
                results.append(sample(*changed).astype(np.float64))
            differ = [~np.isclose(r, results[0], equal_nan=True) for r in results[:-1]]
            reads = np.logical_or.reduce(differ)
            assert reads.any() or sample.op.startswith("Gather") or sample.op in _DROP, index
            assert np.isnan(results[-1][reads]).all(), index


@_of(Trait.ON_MAGNITUDES)
def test_on_magnitudes(sample: Sample) -> None:
    data = sample.drawn()
    run = sample.with_constants(np.abs)
    (bound,) = run(["y"], {n: np.abs(x) for n, x in zip(sample.names, data, strict=True)})
    assert (np.abs(sample(*data)) <= bound * 1.0001).all()


@_of(Trait.TAME)
def test_tame(sample: Sample) -> None:
    (x,) = sample.drawn()
    if has(sample.node, Trait.TAME):
        assert (np.abs(sample(x)) <= 1.8 * np.abs(x)).all()
        assert (np.abs(sample(x + _F(0.01)) - sample(x)) <= 0.02).all()


@_of(Trait.BOUNDED)
def test_bounded(sample: Sample) -> None:
    (x,) = sample.drawn()
    assert (np.abs(sample(x)) <= 2 * np.abs(x).max() + 1.5).all()


@_of(Trait.KEEPS_AXES)
def test_keeps_axes(sample: Sample) -> None:
    """A part of the data along an axis that is not mixed gives that part along the same axis."""
    (x, *rest) = sample.drawn()
    y = sample(x, *rest)
    grown = y.ndim - x.ndim
    assert sample.op == "Expand" or not grown
    own = {0} if sample.op == "ReverseSequence" else set()  # its lengths have that axis
    for axis in set(range(4)) - own - (mixed_axes(sample.node) or set(range(4))):
        part = [each.take([1], axis) for each in (x, *rest)]
        assert np.allclose(sample(*part), y.take([1], axis + grown), 1e-4, 1e-5)


@_of(Trait.COMMUTATIVE)
def test_commutative(sample: Sample) -> None:
    (x, small) = sample.drawn()
    y = np.ascontiguousarray(np.broadcast_to(small, x.shape))
    if sample.kinds[0].kind == "f":
        x[0, 0, :, 0], y[0, 0, 0] = [0, -0.0, np.inf, -np.inf], [0, -0.0, np.inf, -np.inf]
    assert sample(x, y).tobytes() == sample(y, x).tobytes()


@_of(Trait.OF_ONE_ITSELF)
def test_of_one_itself(sample: Sample) -> None:
    (x,) = sample.drawn()
    x = x[:, :1, :1, :1]
    assert sample(x).tobytes() == x.tobytes()


def _with_zeros(sample: Sample) -> Iterator[tuple[Any, Any]]:
    """Yield results for data with zeros, and for the same with the sign of each zero changed."""
    for size in (0, 0.7, 1):  # how many of them are zeros
        data = sample.drawn()
        is_zero = [np.random.default_rng(i).random(x.shape) < size for i, x in enumerate(data)]
        plus = [np.where(z, x.dtype.type(0), x) for x, z in zip(data, is_zero, strict=True)]
        minus = [np.where(z, -x, x) for x, z in zip(plus, is_zero, strict=True)]
        yield sample(*plus), sample(*minus)


@_of(Trait.LOSES_SIGN_OF_ZERO)
def test_loses_the_sign_of_zero(sample: Sample) -> None:
    for one, other in _with_zeros(sample):
        assert one.tobytes() == other.tobytes()


@_of(Trait.PASSES_SIGN_OF_ZERO)
def test_passes_the_sign_of_zero_and_no_more(sample: Sample) -> None:
    for one, other in _with_zeros(sample):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("op", ["Reciprocal", "Div", "Pow", "Sign"])
def test_what_tells_zeros_apart_has_neither_trait(op: str) -> None:
    found = row(op)
    assert found is not None
    assert not found.traits & (Trait.LOSES_SIGN_OF_ZERO | Trait.PASSES_SIGN_OF_ZERO)


def _exact_samples() -> list[Any]:
    more = _samples(Trait.EXACT) + _samples(Trait.EXACT_ON_INTEGERS)
    odd = ("ConstantOfShape", "CastLike", "Range")  # ask for what no sample gives
    return [one for one in more if one.values[0] not in odd]


@pytest.mark.parametrize(("op", "attrs", "further"), _exact_samples())
def test_exact_in_onnx_runtime_and_in_onnx(sample: Sample) -> None:
    data = sample.drawn()
    if has(sample.node, Trait.EXACT_ON_INTEGERS):
        data = [np.trunc(x) + _F(0) for x in data]  # no −0
    if Trait.MOVEMENT not in traits(sample.op) and sample.op not in ("Div", "Mod"):
        data[0].reshape(-1)[0] = 0
    (found,) = ReferenceEvaluator(sample.model).run(
        ["y"], dict(zip(sample.names, data, strict=True))
    )
    assert sample(*data).tobytes() == np.asarray(found).tobytes()


@_of(Trait.SIZES_ONLY)
def test_sizes_only(sample: Sample) -> None:
    same = np.array_equal(sample(*sample.drawn(0)), sample(*sample.drawn(1)))
    assert same != has(sample.node, Trait.RANDOM)


@pytest.mark.parametrize(
    ("op", "attrs", "further"), [s for s in _samples(Trait.CONTRACTION) if s.values[0] in _CALLS]
)
def test_contraction(sample: Sample) -> None:
    (x,) = sample.drawn()
    assert np.array_equal(sample(x * _F(2)), 2 * sample(x))
    run = sample.with_constants(lambda weight: 2 * weight)
    assert np.allclose(run(["y"], {"x0": x})[0], 2 * sample(x), 1e-5, 1e-5)


@pytest.mark.parametrize(
    ("op", "index"), [(op, index) for op in sorted(_CALLS) for index in range(len(_CALLS[op]))]
)
def test_what_is_not_mixed_is_computed_slice_by_slice(op: str, index: int) -> None:
    sample = _made(op, index)
    mixed = mixed_axes(sample.node)
    data = sample.drawn()
    if mixed is None:
        return
    y = sample(*data)
    for axis in set(range(4)) - mixed:
        if len(data) > 1 and data[1].ndim != 4 and axis > 1:
            continue
        for i in range(_SHAPE[axis]):
            parts = [x.take([i], axis) if x.ndim == 4 else x for x in data]
            try:
                part = sample(*parts)
            except Exception:  # a parameter has an element for each position of this axis
                continue
            same = [
                y.take([i], place)
                for place in range(y.ndim)
                if y.shape[place] == _SHAPE[axis] and part.shape[place] == 1
            ]
            same += [y] if part.shape == y.shape else []
            assert any(
                one.shape == part.shape and np.allclose(one, part, 1e-4, 1e-5) for one in same
            ), (axis, i)


def _node(text: str, opset: int, **constants: Any) -> Node:
    node: Node = Model.load(graph(text, opset=opset, **constants)).graph.nodes[-1]
    return node


@pytest.mark.parametrize(
    ("call", "opset", "mixed"),
    [
        ("Softmax<axis=1>(x)", 13, {1}),
        ("Softmax<axis=1>(x)", 12, {1, 2, 3}),
        ("Softmax(x)", 13, {3}),
        ("Softmax(x)", 12, {1, 2, 3}),
        ("Flatten(x)", 13, {1, 2, 3}),
        ("Flatten<axis=0>(x)", 13, {0, 1, 2, 3}),
        ("Flatten<axis=-1>(x)", 13, {0, 1, 2}),
        ("MatMul(x, w)", 13, {3}),
        ('Einsum<equation="abcd,de->abce">(x, w)', 13, {3}),
        ('Einsum<equation="aacd,de->ace">(x, w)', 13, {0, 1, 3}),
        ("Reshape(x, w)", 13, None),
        ("Add(x, w)", 7, set()),
        ("Add(x, w)", 6, None),
        ("Dropout(x)", 12, set()),
        ("ReduceMean(x)", 13, {0, 1, 2, 3}),
        ("ReduceMean<axes=[-1, 1]>(x)", 13, {1, 3}),
        ("ReduceSum<noop_with_empty_axes=1>(x)", 13, set()),
        ("ArgMax(x)", 13, {0}),
        ("Conv<kernel_shape=[1, 1]>(x, w)", 13, {1, 2, 3}),
        ("MaxPool<kernel_shape=[1, 1]>(x)", 13, {2, 3}),
        ("GlobalMaxPool(x)", 13, {2, 3}),
        ("Concat<axis=-1>(x, x)", 13, {3}),
        ("Transpose<perm=[1, 0, 2, 3]>(x)", 13, set()),
        ("BatchNormalization(x, w, w, w, w)", 9, set()),
        ("BatchNormalization<training_mode=1>(x, w, w, w, w)", 15, {0, 2, 3}),
        ("LayerNormalization<axis=-2>(x, w)", 17, {2, 3}),
        ("NonZero(x)", 13, None),
    ],
)
def test_mixed_axes(call: str, opset: int, mixed: set[int] | None) -> None:
    text = f"(float[N,3,4,5] x, float[K,L] w) => (float[A] y) {{ y = {call} }}"
    assert mixed_axes(_node(text, opset)) == mixed


@pytest.mark.parametrize(
    ("call", "index", "mixed"),
    [
        ("Gemm(w, x, c)", 0, {1}),
        ("Gemm<transA=1>(w, x, c)", 0, {0}),
        ("Gemm(w, x, c)", 1, {0}),
        ("Gemm<transB=1>(w, x, c)", 1, {1}),
        ("Gemm(w, x, c)", 2, set()),
        ("MatMul(w, x)", 1, {0}),
        ("MatMul(x, v)", 1, {0}),
        ("Gather(w, x)", 1, set()),
        ("Add(w, x)", 1, set()),
        ("Conv(w, x)", 1, None),
        ("Relu(x)", 1, None),
    ],
)
def test_mixed_axes_of_another_input(call: str, index: int, mixed: set[int] | None) -> None:
    text = (
        f"(float[K,M] w, float[M,N] x, float[K,N] c, float[N] v) => (float[A] y) {{ y = {call} }}"
    )
    assert mixed_axes(_node(text, 13), index) == mixed


@pytest.mark.parametrize(
    ("call", "opset", "trains"),
    [
        ("y = BatchNormalization(x, s, s, s, s)", 6, True),
        ("y = BatchNormalization<is_test=1>(x, s, s, s, s)", 6, False),
        ("y = BatchNormalization(x, s, s, s, s)", 7, False),
        ("y, m, v = BatchNormalization(x, s, s, s, s)", 9, True),
        ("y, m, v, k, l = BatchNormalization(x, s, s, s, s)", 12, True),
        ("y = BatchNormalization(x, s, s, s, s)", 14, False),
        ("y, m, v = BatchNormalization<training_mode=1>(x, s, s, s, s)", 14, True),
        ("y = BatchNormalization<training_mode=1>(x, s, s, s, s)", 15, True),
        ("y = Dropout(x)", 6, True),
        ("y = Dropout<is_test=1>(x)", 6, False),
        ("y, m = Dropout(x)", 7, False),
        ("y = Dropout(x)", 12, False),
        ("y = Dropout(x, r, no)", 12, False),
        ("y = Dropout(x, r, yes)", 12, True),
        ("y = Dropout(x, r, t)", 13, True),
        ("y = Relu(x)", 13, False),
    ],
)
def test_is_training(call: str, opset: int, trains: bool) -> None:
    node = _node(
        f"(float[N,3] x, float[3] s, bool t) => (float[N,3] y) {{ {call} }}",
        opset,
        r=np.array(0.5, _F),
        no=np.array(False),
        yes=np.array(True),
    )
    assert is_training(node) is trains
    assert is_random(node) is (trains and node.op == "Dropout")


def test_attributes_and_bounds_decide_what_holds() -> None:
    def holds(call: str, trait: Trait, opset: int = 13) -> bool:
        text = f"(float[N] x, float[N] z) => (float[N] y) {{ y = {call} }}"
        return has(_node(text, opset, one=np.array(1, _F)), trait)

    assert holds("LeakyRelu<alpha=0.5>(x)", Trait.MONOTONE)
    assert not holds("LeakyRelu<alpha=-0.5>(x)", Trait.MONOTONE)
    assert holds("Clip(x)", Trait.KEEPS_ZERO)
    assert not holds("Clip(x, one)", Trait.KEEPS_ZERO)
    assert not holds("Clip(x, z)", Trait.KEEPS_ZERO)
    assert holds("Cast<to=11>(x)", Trait.KEEPS_ZERO)
    assert not holds("Cast<to=7>(x)", Trait.KEEPS_NAN)
    assert holds("Add(x, z)", Trait.BROADCASTING, 7)
    assert not holds("Add(x, z)", Trait.BROADCASTING, 6)


def test_nothing_is_known_of_what_a_model_defines_itself() -> None:
    model = graph("(float[N] x) => (float[N] y) { y = Relu(x) }")
    model.functions.append(
        helper.make_function(
            "", "Relu", ["a"], ["b"], [helper.make_node("Exp", ["a"], ["b"])], model.opset_import
        )
    )
    node = Model.load(model).graph.nodes[0]
    assert of_node(node) is None and not has(node, Trait.ELEMENTWISE) and is_random(node) is False


_ROOT = Path(__file__).parent.parent
_HOME = {_ROOT / "graphpass/ir" / name for name in ("operators.py", "mixing.py")}
_NAMES = {schema.name for schema in defs.get_all_schemas()}
_MOST_IN_A_PATTERN = 4  # as many operators as one pattern, or one branch, may list by name


def _lists(tree: ast.Module) -> Iterator[tuple[int, list[str]]]:
    """Yield, by line, the operators that a tuple, list, set or split text names.

    A dict from operators to functions says what is done for each, not what they are.
    """
    for node in ast.walk(tree):
        texts: list[str] = []
        if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
            texts = [
                e.value for e in node.elts if isinstance(e, ast.Constant) and e.value in _NAMES
            ]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
            texts = words if len(words) > 1 and all(word in _NAMES for word in words) else []
        if texts:
            yield getattr(node, "lineno", 0), texts


def test_a_second_table_is_found() -> None:
    tree = ast.parse('a = ("Relu", "Abs", "Neg", "Exp", "Log")\nb = "Relu Abs Neg"\nc = "Relu"')
    assert [(line, len(names)) for line, names in _lists(tree)] == [(1, 5), (2, 3)]


def test_what_is_known_of_operators_is_written_in_one_place() -> None:
    """Ask `graphpass.ir.operators` for a property, or add it there as a trait."""
    files = [p for folder in ("graphpass", "passes") for p in (_ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(_ROOT)}:{line} lists {' '.join(names)}"
        for path in files
        if path not in _HOME
        for line, names in _lists(ast.parse(path.read_text(encoding="utf-8")))
        if len(names) > _MOST_IN_A_PATTERN
    ]
    assert not found


_TRAINING = [
    (9, "b, m, v_, p, q", ""),
    (12, "b, m, v_, p, q", ""),
    (15, "b, m, v_", "<training_mode=1>"),
]


@pytest.mark.parametrize("view", ["Flatten", "Relu", "Identity", "Transpose<perm=[0,2,3,1]>"])
@pytest.mark.parametrize(("opset", "outputs", "mode"), _TRAINING)
def test_no_pass_touches_a_batch_normalization_that_trains(
    view: str, opset: int, outputs: str, mode: str
) -> None:
    """Statistics that are asked for, even if nobody reads them, are those of this batch."""
    model = graph(
        "(float[2,3,2,2] x) => (float[2,L] y) {"
        "    c = Conv<kernel_shape=[2,2]>(x, W)"
        f"   v = {view}(c)"
        f"   {outputs} = BatchNormalization{mode}(v, s, s, s, s)"
        "    f = Flatten(b)"
        "    y = MatMul(f, G)"
        "}",
        opset=opset,
        W=(1, 3, 2, 2),
        s=np.array([0.5], _F),
        G=(1, 5),
    )
    result = optimize(model, validate=False).model
    kept = [n for n in result.graph.node if n.op_type == "BatchNormalization"]
    assert [list(n.output) for n in kept] == [outputs.split(", ")]
    x = {"x": np.random.default_rng(0).normal(size=(2, 3, 2, 2)).astype(_F)}
    (before,), (after,) = (_session(m).run(["y"], x) for m in (model, result))
    assert np.allclose(before, after, 1e-4, 1e-4)
