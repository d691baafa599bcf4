"""The batch varies where that is proven: rows of any number equal the single runs of the original.

Each kind of network must be freed, and then is run with 1, 2, 3 and 5 rows beside the original,
or be refused with the node that is in the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check_refused, check_untouched, graph, session

ROWS = (1, 2, 3, 5)
CONV = "c = Conv<pads=[1,1,1,1]>(x, k) r = Relu(c)"  # [1,3,6,6] -> r [1,4,6,6]
TOKENS = (  # [1,36,4] u, and the token with the largest mean, of each row [1] i
    "w1 = Reshape(r, t1) u = Transpose<perm=[0,2,1]>(w1) s = ReduceMean<axes=[2], keepdims=0>(u)"
    " i = ArgMax<axis=1, keepdims=0>(s)"
)
SHAPE = "s = Shape(x) b = Gather<axis=0>(s, first)"
CONSTANTS: dict[str, Any] = {
    "k": (4, 3, 3, 3),
    "w": (144, 5),
    "first": np.array([0]),
    "zero": np.array(0),
}

# kind: (nodes after CONV, output, constants, what is said of the change; "" for none)
FREED: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "Reshape to a constant shape": (
        "y = Reshape(r, t)",
        "float[1,144] y",
        {"t": np.array([1, -1])},
        "Reshape of 'y' takes the batch as it comes",
    ),
    "Reshape to a concatenated shape": (
        "t = Concat<axis=0>(one, rest) y = Reshape(r, t)",
        "float[1,144] y",
        {"one": np.array([1]), "rest": np.array([144])},
        "Reshape of 'y' takes the batch as it comes",
    ),
    "Reshape to a computed shape": (
        f"{SHAPE} t = Concat<axis=0>(b, rest) y = Reshape(r, t)",
        "float[1,144] y",
        {"rest": np.array([-1])},
        "",
    ),
    "Reshape by -1 that stands for another axis": (
        "v = Reshape(r, t) m = Softmax<axis=1>(v) y = Reshape(m, u)",
        "float[1,4,6,6] y",
        {"t": np.array([4, -1]), "u": np.array([1, 4, 6, 6])},
        "Reshape of 'v' takes the batch as it comes",
    ),
    "Flatten of everything": (
        "v = Flatten<axis=0>(r) y = Gemm(v, w)",
        "float[1,5] y",
        {},
        "Flatten of 'v' takes the batch as it comes",
    ),
    "windows as a batch": (
        "v = Reshape(r, t) u = Transpose<perm=[0,2,4,1,3,5]>(v) q = Reshape(u, a)"
        " m = Softmax<axis=-1>(q) z = Reshape(m, back) y = Transpose<perm=[0,3,1,4,2,5]>(z)",
        "float[1,4,2,3,2,3] y",
        {
            "t": np.array([1, 4, 2, 3, 2, 3]),
            "a": np.array([4, 4, 9]),
            "back": np.array([1, 2, 2, 4, 3, 3]),
        },
        "Reshape of 'z' takes the batch as it comes",
    ),
    "a token beside the rows": (
        "v = Reshape(r, t) u = Concat<axis=1>(cls, v) y = ReduceMean<axes=[1]>(u)",
        "float[1,1,36] y",
        {"t": np.array([0, 4, 36]), "cls": (1, 1, 36)},
        "'cls' is repeated for each row at Concat of 'u'",
    ),
    "states of an LSTM": (
        "v = Reshape(r, t) u = Transpose<perm=[2,0,1]>(v)"
        " o, h, e = LSTM<hidden_size=3>(u, W, R, , , h0, c0) y = Squeeze(h, zero1)",
        "float[1,3] y",
        {
            "t": np.array([1, 4, 36]),
            "W": (1, 12, 4),
            "R": (1, 12, 3),
            "h0": (1, 1, 3),
            "c0": (1, 1, 3),
            "zero1": np.array([0]),
        },
        "'h0' is repeated for each row at LSTM of 'o'",
    ),
    "Resize by sizes": (
        "y = Resize<mode='nearest'>(r, , , t)".replace("'", '"'),
        "float[1,4,12,9] y",
        {"t": np.array([1, 4, 12, 9])},
        "Resize of 'y' computes the size of the batch",
    ),
    "maximum of everything": (
        "m = ReduceMax(r) y = Div(r, m)",
        "float[1,4,6,6] y",
        {},
        "ReduceMax of 'm' leaves the batch out of what it reduces over",
    ),
    "mean over the batch alone": ("y = ReduceMean<axes=[0]>(r)", "float[1,4,6,6] y", {}, ""),
    "the first image": (
        "y = Slice(r, first, one, first)",
        "float[1,4,6,6] y",
        {"one": np.array([1])},
        "Slice of 'y' takes every row",
    ),
    "a constant expanded to the batch": (
        f"{SHAPE} t = Concat<axis=0>(b, rest) e = Expand(bias, t) y = Add(r, e)",
        "float[1,4,6,6] y",
        {"rest": np.array([4, 1, 1]), "bias": (1, 4, 1, 1)},
        "",
    ),
    "zeros as many as the batch": (
        f"{SHAPE} t = Concat<axis=0>(b, rest) e = ConstantOfShape(t) y = Concat<axis=1>(r, e)",
        "float[1,6,6,6] y",
        {"rest": np.array([2, 6, 6])},
        "",
    ),
    "attention": (
        "v = Reshape(r, t) u = Transpose<perm=[0,2,1]>(v) a = MatMul(v, u)"
        " p = Softmax<axis=-1>(a) z = MatMul(p, v) y = LayerNormalization<axis=-1>(z, g)",
        "float[1,4,36] y",
        {"t": np.array([1, 4, 36]), "g": (36,)},
        "Reshape of 'v' takes the batch as it comes",
    ),
    "sequence first": (
        "v = Reshape(r, t) u = Transpose<perm=[2,0,1]>(v) a = MatMul(u, m)"
        " p = Transpose<perm=[1,0,2]>(a) y = ReduceMax<axes=[1], keepdims=0>(p)",
        "float[1,5] y",
        {"t": np.array([1, 4, 36]), "m": (4, 5)},
        "Reshape of 'v' takes the batch as it comes",
    ),
    "channels shuffled through a sequence": (
        "q = SplitToSequence<axis=1>(r, two) a = SequenceAt(q, zero) b = SequenceAt(q, one)"
        " y = Concat<axis=1>(b, a)",
        "float[1,4,6,6] y",
        {"two": np.array(2), "one": np.array(1)},
        "",
    ),
    "one change after the other": (
        "m = ReduceMax(r) v = Reshape(m, t) u = Flatten<axis=0>(v) y = Slice(u, first, one, first)",
        "float[1,1] y",
        {"t": np.array([1, 1, 1]), "one": np.array([1])},
        "Slice of 'y' takes every row",
    ),
    "a row that comes to lie between others": (
        "v = Reshape(r, t) u = Transpose<perm=[2,0,1]>(v)"
        ' o, h = GRU<hidden_size=3, direction="bidirectional">(u, W, R) j = Reshape(o, one_row)'
        " q, p = GRU<hidden_size=2>(j, V, S) y = Squeeze(p, zero1)",
        "float[1,2] y",
        {
            "t": np.array([1, 4, 36]),
            "W": (2, 9, 4),
            "R": (2, 9, 3),
            "one_row": np.array([36, 1, 6]),
            "V": (1, 6, 6),
            "S": (1, 6, 2),
            "zero1": np.array([0]),
        },
        "Reshape of 'j' keeps the rows of the batch on an axis of their own",
    ),
    "a row that would be mixed where it comes to lie": (
        "v = Reshape(r, t) m = Softmax<axis=0>(v) y = Reshape(m, u)",
        "float[1,4,6,6] y",
        {"t": np.array([4, 1, 36]), "u": np.array([1, 4, 6, 6])},
        "Reshape of 'v' keeps the rows of the batch on an axis of their own",
    ),
    "elements of a row by their places": (
        "v = Reshape(r, t) y = Gather(v, places)",
        "float[1,2,3] y",
        {"t": np.array([-1]), "places": np.array([[[0, 143, 7], [-1, 35, 36]]])},
        "Gather of 'y' picks within each row",
    ),
    "one part of a row": (
        "v = Reshape(r, t) y = Gather(v, third)",
        "float[1,36] y",
        {"t": np.array([4, 36]), "third": np.array([2])},
        "Gather of 'y' picks within each row",
    ),
    "elements of the one row": (
        "y = GatherND(r, places)",
        "float[1,2,6,6] y",
        {"places": np.array([[[0, 3], [0, 1]]])},
        "GatherND of 'y' picks within each row",
    ),
    "the same elements of each row": (
        "y = GatherElements<axis=1>(r, places)",
        "float[1,2,6,6] y",
        {"places": np.arange(72).reshape(1, 2, 6, 6) % 4},
        "'places' is repeated for each row at GatherElements of 'y'",
    ),
    "each row its brightest token": (
        f"{TOKENS} v = Reshape(u, t) y = Gather(v, i)",
        "float[1,4] y",
        {"t1": np.array([1, 4, 36]), "t": np.array([36, 4])},
        "Gather of 'y' picks within each row",
    ),
    "each row its brightest token, counted from the batch on": (
        f"{TOKENS} e = Unsqueeze(i, one) j = Concat<axis=1>(none, e) y = GatherND(u, j)",
        "float[1,4] y",
        {"t1": np.array([1, 4, 36]), "one": np.array([1]), "none": np.array([[0]])},
        "GatherND of 'y' picks within each row",
    ),
    "a number for each part of a row": (
        "v = Reshape(r, t) a = Add(v, parts) b = MatMul(a, turns) y = Reshape(b, u)",
        "float[1,4,6,6] y",
        {
            "t": np.array([4, 6, 6]),
            "u": np.array([1, 4, 6, 6]),
            "parts": (4, 1, 1),
            "turns": (4, 6, 6),
        },
        "'turns' is repeated for each row at MatMul of 'b'",
    ),
    "classes, one of which is hot": (
        f"{TOKENS} y = OneHot<axis=0>(i, depth, hot)",
        "float[36,1] y",
        {"t1": np.array([1, 4, 36]), "depth": np.array(36), "hot": np.array([-1, 2], np.float32)},
        "",
    ),
    "images sampled at the same places": (
        "y = GridSample(r, places)",
        "float[1,4,3,5] y",
        {"places": (1, 3, 5, 2)},
        "'places' is repeated for each row at GridSample of 'y'",
    ),
    "each image sampled where it says": (
        "p = Conv(r, two) g = Transpose<perm=[0,2,3,1]>(p) y = GridSample(r, g)",
        "float[1,4,6,6] y",
        {"two": (2, 4, 1, 1)},
        "",
    ),
    "an output without a batch": (
        "temperature = Identity(scale) y = Mul(r, scale)",
        "float[1,4,6,6] y, float[1] temperature",
        {"scale": (1,)},
        "",
    ),
}

# kind: (nodes after CONV, output, constants, opset, why not)
REFUSED: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "sum over the batch": (
        "y = ReduceSum<keepdims=0>(r, first)",
        "float[4,6,6] y",
        {},
        17,
        "ReduceSum of 'y' reduces over axis 0 of 'r', where the rows of a batch lie",
    ),
    "Softmax over the batch": (
        "y = Softmax<axis=0>(r)",
        "float[1,4,6,6] y",
        {},
        17,
        "Softmax of 'y' normalizes over axis 0 of 'r'",
    ),
    "running sum over the batch": (
        "y = CumSum(r, zero)",
        "float[1,4,6,6] y",
        {},
        17,
        "CumSum of 'y' sums up along axis 0 of 'r'",
    ),
    "images side by side": (
        "s = Sigmoid(r) t = Concat<axis=0>(r, s) y = ReduceMean<axes=[0]>(t)",
        "float[1,4,6,6] y",
        {},
        17,
        "Concat of 't' joins its inputs along axis 0",
    ),
    "the first of the images": (
        "t = Gather<axis=0>(r, zero) y = Unsqueeze(t, first)",
        "float[1,4,6,6] y",
        {},
        17,
        "Gather of 't' picks from axis 0 of 'r'",
    ),
    "a batch that is squeezed": (
        "p = GlobalAveragePool(r) q = Squeeze(p) z = Softmax<axis=0>(q) y = Unsqueeze(z, first)",
        "float[1,4] y",
        {},
        17,
        "Squeeze of 'q' drops every axis of size 1, the batch too",
    ),
    "the axis of the batch squeezed": (
        "q = Squeeze(r, first) y = Unsqueeze(q, first)",
        "float[1,4,6,6] y",
        {},
        17,
        "Squeeze of 'q' drops the axis along which the batch lies",
    ),
    "the batch as columns of a Gemm": (
        "v = Flatten(r) t = Transpose<perm=[1,0]>(v) g = Gemm(t, m) y = ReduceMean<axes=[0]>(g)",
        "float[1,5] y",
        {"m": (1, 5)},
        17,
        "Gemm of 'g' sums over axis 1 of 't', where the rows of a batch lie",
    ),
    "the batch multiplied with itself": (
        "v = Flatten(r) t = Transpose<perm=[1,0]>(v) y = MatMul(v, t)",
        "float[1,1] y",
        {},
        17,
        "MatMul of 'y' reads the batch on different axes of its inputs",
    ),
    "the largest of the batch": (
        "v, i = TopK<axis=0>(r, one) y = Identity(v)",
        "float[1,4,6,6] y",
        {"one": np.array([1])},
        17,
        "TopK of 'v' compares along axis 0 of 'r'",
    ),
    "a BatchNormalization in training": (
        "y, m, v = BatchNormalization<training_mode=1>(r, g, g, g, g)",
        "float[1,4,6,6] y",
        {"g": np.ones(4, np.float32)},
        17,
        "BatchNormalization of 'y' has statistics of axis 0 of 'r'",
    ),
    "sums that Einsum takes over the batch": (
        'y = Einsum<equation="nchw->chw">(r)',
        "float[4,6,6] y",
        {},
        17,
        "Einsum of 'y' sums over axis 0 of 'r'",
    ),
    "what is not zero": (
        "n = NonZero(r) y = Cast<to=1>(n)",
        "float[4,M] y",
        {},
        17,
        "NonZero of 'n' is not known to treat the rows of a batch one by one",
    ),
    "as many classes as images": (
        f"{SHAPE} f = Flatten(r) i = ArgMax<axis=1, keepdims=0>(f) j = Mul(i, zero)"
        " h = OneHot(j, b, hot) y = ReduceMean<axes=[1], keepdims=0>(h)",
        "float[1] y",
        {"hot": np.array([0, 1], np.float32)},
        17,
        "OneHot of 'h' computes with the size of the batch: 'b'",
    ),
    "images sampled along what is not the batch": (
        "t = Transpose<perm=[1,0,2,3]>(r) y = GridSample(t, places)",
        "float[4,1,3,5] y",
        {"places": (4, 3, 5, 2)},
        17,
        "GridSample of 'y' takes axis 1 of 't', where the rows of a batch lie, for something else",
    ),
    "as many numbers as images": (
        f"{SHAPE} n = Squeeze(b, first) i = Range(zero, n, one) f = Cast<to=1>(i)"
        " u = Unsqueeze(f, rest) y = Add(r, u)",
        "float[1,4,6,6] y",
        {"one": np.array(1), "rest": np.array([1, 2, 3])},
        17,
        "Range of 'i' computes with the size of the batch",
    ),
    "divided by the number of images": (
        f"{SHAPE} f = Cast<to=1>(b) y = Div(r, f)",
        "float[1,4,6,6] y",
        {},
        17,
        "Div of 'y' computes with the size of the batch",
    ),
    "an operator of somebody else": (
        "y = somebody.Mystery(r)",
        "float[1,4,6,6] y",
        {},
        17,
        "Mystery of 'y' is not known to treat the rows of a batch one by one",
    ),
    "an If that reads the images": (
        "y = If(yes) <then_branch = a () => (float[1,4,6,6] p) { p = Relu(r) },"
        " else_branch = b () => (float[1,4,6,6] q) { q = Neg(r) }>",
        "float[1,4,6,6] y",
        {"yes": np.array(True)},
        17,
        "If of 'y' reads 'r', which depends on the batch, in a body of its own",
    ),
    "indices through the whole batch": (
        "v, i = MaxPool<kernel_shape=[2,2]>(r) y = Cast<to=1>(i)",
        "float[1,4,5,5] y",
        {},
        17,
        "MaxPool of 'v' gives indices that count through the whole batch",
    ),
    "a weight with rows of its own": (
        "v = Flatten(r) y = Add(v, rows)",
        "float[3,144] y",
        {"rows": (3, 144)},
        17,
        "Add of 'y' takes axis 0 of 'rows', which does not depend on the batch",
    ),
    "channels and batch exchanged": (
        "t = Transpose<perm=[1,0,2,3]>(r) y = InstanceNormalization(t, g, g)",
        "float[4,1,6,6] y",
        {"g": np.ones(1, np.float32)},
        17,
        "InstanceNormalization of 'y' takes axis 0 of 'g'",
    ),
    "a scale of the whole batch": (
        "q, s, z = DynamicQuantizeLinear(r) y = DequantizeLinear(q, s, z)",
        "float[1,4,6,6] y",
        {},
        17,
        "DynamicQuantizeLinear of 'q' is not known to treat the rows of a batch one by one",
    ),
    "rows in what a Gemm adds": (
        "v = Flatten(r) y = Gemm(a1, b1, v)",
        "float[1,144] y",
        {"a1": (1, 5), "b1": (5, 144)},
        17,
        "Gemm of 'y' takes rows from 'v' alone, and has the shape of its other inputs",
    ),
    "boxes cut out of images that are numbered": (
        "y = RoiAlign<output_height=2, output_width=2>(r, boxes, which)",
        "float[2,4,2,2] y",
        {"boxes": (2, 4), "which": np.array([0, 0])},
        17,
        "RoiAlign of 'y' is not known to treat the rows of a batch one by one",
    ),
    "written into the first image": (
        "y = ScatterND(r, where, what)",
        "float[1,4,6,6] y",
        {"where": np.array([[0]]), "what": (1, 4, 6, 6)},
        17,
        "ScatterND of 'y' is not known to treat the rows of a batch one by one",
    ),
    "one image after the other": (
        "v = Flatten(r) s = Identity(start) last, y = Scan<num_scan_inputs=1, body = b"
        " (float[144] h, float[144] e) => (float[144] n, float[144] o)"
        " { n = Add(h, e) o = Identity(n) }>(s, v)",
        "float[1,144] y",
        {"start": (144,)},
        17,
        "Scan of 'last' is not known to treat the rows of a batch one by one",
    ),
    "images as steps in time": (
        "v = Reshape(r, t) o, h = GRU<hidden_size=3>(v, W, R) y = Squeeze(o, rest)",
        "float[1,4,3] y",
        {"t": np.array([1, 4, 36]), "W": (1, 9, 36), "R": (1, 9, 3), "rest": np.array([1])},
        17,
        "GRU of 'o' takes axis 0 of 'v', where the rows of a batch lie, for something else",
    ),
    "elements of all images by their places": (
        "v = Reshape(r, t) y = Gather(v, places)",
        "float[2,3] y",
        {"t": np.array([-1]), "places": np.array([[0, 143, 7], [-1, 35, 36]])},
        17,
        "Gather of 'y' picks from axis 0 of 'v', where the rows of a batch lie",
    ),
    "elements along the images": (
        "y = GatherElements<axis=0>(r, places)",
        "float[1,4,6,6] y",
        {"places": np.zeros((1, 4, 6, 6), np.int64)},
        17,
        "GatherElements of 'y' picks along axis 0",
    ),
    "images repeated": (
        "y = Tile(r, t)",
        "float[3,4,6,6] y",
        {"t": np.array([3, 1, 1, 1])},
        17,
        "Tile of 'y' works along axis 0 of 'r'",
    ),
    "no axis for the batch": (
        "y = Reshape(r, t)",
        "float[144] y",
        {"t": np.array([-1])},
        17,
        "the output 'y' has no axis for the batch alone",
    ),
    "the size of the batch as an answer": (
        f"{SHAPE} y = Cast<to=1>(b)",
        "float[1] y",
        {},
        17,
        "the output 'y' is computed from the size of the batch",
    ),
}


def network(
    nodes: str, outputs: str, constants: dict[str, Any], opset: int = 17, batch: str = "1"
) -> onnx.ModelProto:
    text = f"(float[{batch},3,6,6] x) => ({outputs}) {{ {CONV} {nodes} }}"
    used = {name: value for name, value in CONSTANTS.items() if name not in constants}
    domains = {"somebody": 1} if "somebody" in nodes else None
    return graph(text, opset=opset, domains=domains, **used, **constants)


def differences(original: onnx.ModelProto, freed: onnx.ModelProto) -> list[str]:
    """Run the freed network with several rows; say which outputs are not the single runs'."""
    one, many = session(original), session(freed)
    images = np.random.default_rng(0).normal(size=(max(ROWS), 3, 6, 6)).astype(np.float32)
    singles = [one.run(None, {"x": images[row : row + 1]}) for row in range(max(ROWS))]
    wrong = []
    for rows in ROWS:
        found = many.run(None, {"x": images[:rows]})
        for index, value in enumerate(many.get_outputs()):
            free = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
            answers = [single[index] for single in singles[:rows]]
            expected = np.concatenate(answers, free[0]) if free else answers[0]
            near = expected.shape == found[index].shape and np.allclose(
                found[index], expected, rtol=1e-4, atol=1e-5
            )
            if not near:
                wrong.append(f"'{value.name}' with {rows} rows")
    return wrong


@pytest.mark.parametrize("kind", FREED)
def test_what_keeps_rows_apart_is_freed(kind: str) -> None:
    nodes, outputs, constants, note = FREED[kind]
    original = network(nodes, outputs, constants)
    freed, applied = apply_to(make("free-batch"), original)
    assert note in [*applied.notes, ""], applied.notes
    assert applied.notes[-1:] == ["the batch of 'x' varies"], applied.refusals
    onnx.checker.check_model(freed, full_check=True)
    assert freed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert not differences(original, freed)
    check_untouched(make("free-batch"), freed)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_mixes_rows_is_refused(kind: str) -> None:
    nodes, outputs, constants, opset, reason = REFUSED[kind]
    check_refused(make("free-batch"), network(nodes, outputs, constants, opset), reason)


def test_a_slope_is_stretched_to_its_map_and_not_the_map_to_a_slope() -> None:
    model = network("y = PRelu(map, r)", "float[1,4,6,6] y", {"map": (1, 4, 6, 6)})
    reason = "PRelu of 'y' takes rows from 'r' alone, and has the shape of its other inputs"
    check_refused(make("free-batch"), model, reason)  # ONNX says so, though a runtime may do more


def test_softmax_that_flattened_works_on_each_row() -> None:
    nodes = "v = Flatten(r) y = Softmax<axis=0>(v)"
    original = network(nodes, "float[1,144] y", {}, opset=11)
    freed, _ = apply_to(make("free-batch"), original)
    assert not differences(original, freed)


def test_a_changed_node_keeps_its_name() -> None:
    nodes, outputs, constants, _ = FREED["Reshape to a constant shape"]
    model = network(nodes, outputs, constants)
    model.graph.node[2].name = "to_rows"
    freed, _ = apply_to(make("free-batch"), model)
    assert [node.name for node in freed.graph.node if node.op_type == "Reshape"] == ["to_rows"]


def test_an_output_without_a_batch_keeps_its_shape() -> None:
    nodes, outputs, constants, _ = FREED["an output without a batch"]
    freed, _ = apply_to(make("free-batch"), network(nodes, outputs, constants))
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in freed.graph.output]  # fmt: skip
    assert shapes == [["N", 4, 6, 6], [1]]


@pytest.mark.parametrize("kind", ["Reshape to a constant shape", "states of an LSTM"])
def test_a_symbolic_batch_that_is_fixed_inside_is_freed(kind: str) -> None:
    nodes, outputs, constants, _ = FREED[kind]
    symbolic = outputs.replace("[1,", "[B,")
    freed, applied = apply_to(make("free-batch"), network(nodes, symbolic, constants, batch="B"))
    assert applied.notes
    assert freed.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "B"
    assert not differences(network(nodes, outputs, constants), freed)


def test_a_batch_that_varies_already_is_left_alone() -> None:
    check_untouched(make("free-batch"), network("y = Relu(r)", "float[B,4,6,6] y", {}, batch="B"))


def test_a_batch_of_four_varies_where_rows_are_alike() -> None:
    nodes = "v = Reshape(r, t) u = Concat<axis=1>(cls, v) y = Reshape(u, flat)"
    cls = np.broadcast_to(np.arange(36, dtype=np.float32), (4, 1, 36)).copy()
    constants = {"t": np.array([4, 4, 36]), "flat": np.array([4, 180]), "cls": cls}
    original = network(nodes, "float[4,180] y", constants, batch="4")
    freed, _ = apply_to(make("free-batch"), original)
    images = np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)
    (expected,) = session(original).run(None, {"x": images})
    for rows in (1, 3, 4):
        (found,) = session(freed).run(None, {"x": images[:rows]})
        np.testing.assert_allclose(found, expected[:rows], rtol=1e-5)
    cls[2] += 1
    check_refused(
        make("free-batch"),
        network(nodes, "float[4,180] y", {**constants, "cls": cls}, batch="4"),
        "Concat of 'u' reads 'cls', which has other values for each row",
    )


def test_several_inputs_are_freed_together() -> None:
    text = """(float[1,3,6,6] x, float[1,4] z, float[2] other) => (float[1,4,6,6] y) {
        c = Conv<pads=[1,1,1,1]>(x, k) u = Unsqueeze(z, last) y = Add(c, u)
    }"""
    model = graph(text, k=(4, 3, 3, 3), last=np.array([2, 3]))
    freed, applied = apply_to(make("free-batch"), model)
    assert applied.notes == ["the batch of 'x', 'z' varies"]
    inputs = {
        "x": np.ones((3, 3, 6, 6), np.float32),
        "z": np.arange(12, dtype=np.float32).reshape(3, 4),
        "other": np.ones(2, np.float32),
    }
    assert session(freed).run(None, inputs)[0].shape == (3, 4, 6, 6)
