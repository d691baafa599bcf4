"""Small models drawn at random over the table of operators, for properties that hold for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from graphpass.ir.operators import Trait, named

Shape = tuple[int, ...]
_F = np.float32
BATCH = 3  # what a symbolic batch is when a model is run

# Where the function jumps, has poles or grows fast, the last bit of an argument decides: a rewrite
# that may round otherwise may end elsewhere. What is left moves no more than its argument.
_LEFT_OUT = frozenset(
    """Acos Acosh Asin Atanh BitwiseNot Cast CastLike Ceil Cosh Exp Floor IsInf IsNaN Log Not
    Reciprocal Round Shrink Sign Sinh Sqrt Tan ThresholdedRelu""".split()
)


_SCHEMAS = [schema for schema in defs.get_all_schemas_with_history() if schema.domain == ""]
_FIRST = {
    name: min(s.since_version for s in _SCHEMAS if s.name == name) for name in named(Trait(0))
}


@dataclass
class Draw:
    """A graph that grows node by node; `shapes` of float tensors, the batch as a number."""

    rng: np.random.Generator
    opset: int
    prefix: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    held: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def one_of(self, choices: Any) -> Any:
        """Choose one."""
        return choices[int(self.rng.integers(len(choices)))]

    def name(self) -> str:
        """Make a name up."""
        return f"{self.prefix}t{len(self.nodes)}_{len(self.held)}"

    def constant(self, value: Any) -> str:
        """Add an initializer or a Constant node."""
        array = np.asarray(value)
        name = f"{self.name()}c"
        tensor = numpy_helper.from_array(array, name)
        if self.rng.random() < 0.3:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.held.append(tensor)
        return name

    def weight(self, *shape: int) -> str:
        """Add weights of about unit gain."""
        fan = int(np.prod(shape[1:])) or 1
        return self.constant((self.rng.normal(size=shape) / np.sqrt(fan)).astype(_F))

    def add(self, op: str, inputs: list[str], shape: Shape, **attrs: Any) -> str:
        """Add a node with one output."""
        name = self.name()
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        self.shapes[name] = shape
        return name

    def pick(self, rank: int | None = None) -> str | None:
        """Choose a tensor, more often one of the last; None where there is none."""
        fits = [n for n, s in self.shapes.items() if rank is None or len(s) == rank]
        return None if not fits else fits[-1 - min(int(self.rng.exponential(1)), len(fits) - 1)]


Step = Callable[[Draw], "str | None"]


def _unary(g: Draw) -> str | None:
    op = g.one_of([o for o in named(Trait.ELEMENTWISE) if o not in _LEFT_OUT])
    x = g.pick()
    if x is None or _FIRST[op] > g.opset:
        return None
    attrs: dict[str, Any] = {"min": -1.0, "max": 2.0} if op == "Clip" and g.opset < 11 else {}
    inputs = [x]
    if op == "Clip" and g.opset >= 11:
        inputs += [g.constant(_F(-1)), g.constant(_F(2))]
    return g.add(op, inputs, g.shapes[x], **attrs)


def _binary(g: Draw) -> str | None:
    x = g.pick()
    if x is None:
        return None
    shape = g.shapes[x]
    op = g.one_of(["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"])
    if op in ("Max", "Min") and g.opset < 8:
        return None
    kind = g.rng.integers(4)
    same = [n for n, s in g.shapes.items() if s == shape]
    if kind == 0 and op not in ("Div", "PRelu"):
        return g.add(op, [x, g.one_of(same)], shape)
    sizes = [n if g.rng.random() < 0.5 else 1 for n in shape]
    sizes[:1] = [1] * len(sizes[:1])
    drop = int(g.rng.integers(len(shape) + 1)) if kind == 1 else 0
    value = g.rng.uniform(0.5, 2, sizes[drop:]) * g.rng.choice([-1, 1], sizes[drop:])
    if kind == 2:
        value = np.ones(sizes[drop:]) * (op in ("Mul", "Div"))
    c = g.constant(value.astype(_F))
    turned = op not in ("Div", "PRelu") and kind == 3
    return g.add(op, [c, x] if turned else [x, c], shape)


def _conv(g: Draw) -> str | None:
    x = g.pick(4)
    if x is None:
        return None
    n, c, h, w = g.shapes[x]
    k, out = int(g.one_of([1, 1, 3])), int(g.one_of([2, 3, 4]))
    if min(h, w) < 1 or c < 1:
        return None
    pad = k // 2 if g.rng.random() < 0.7 or min(h, w) < k else 0
    group = c if g.rng.random() < 0.2 else 1
    out = out if group == 1 else c
    turned = group == 1 and g.rng.random() < 0.2
    weight = g.weight(c, out, k, k) if turned else g.weight(out, c // group, k, k)
    inputs = [x, weight, *([g.weight(out)] if g.rng.random() < 0.5 else [])]
    grown = (k - 1 - 2 * pad) * (1 if turned else -1)
    attrs = {"kernel_shape": [k, k], "pads": [pad] * 4, "group": group}
    op = "ConvTranspose" if turned else "Conv"
    return g.add(op, inputs, (n, out, h + grown, w + grown), **attrs)


def _norm(g: Draw) -> str | None:
    x = g.pick(4) if g.rng.random() < 0.7 else g.pick(2)
    if x is None:
        return None
    c = g.shapes[x][1]
    vectors = [g.constant(g.rng.uniform(0.5, 2, c).astype(_F)) for _ in range(4)]
    return g.add("BatchNormalization", [x, *vectors], g.shapes[x])


def _pool(g: Draw) -> str | None:
    x = g.pick(4)
    if x is None:
        return None
    n, c, h, w = g.shapes[x]
    if g.rng.random() < 0.4:
        return g.add(g.one_of(["GlobalAveragePool", "GlobalMaxPool"]), [x], (n, c, 1, 1))
    k = int(g.one_of([1, 2, h]))
    if k > min(h, w):
        return None
    op = g.one_of(["AveragePool", "MaxPool"])
    return g.add(op, [x], (n, c, h - k + 1, w - k + 1), kernel_shape=[k, k])


def _dense(g: Draw) -> str | None:
    x = g.pick(2)
    if x is None:
        x = g.pick()
        if x is None:
            return None
        *lead, k = g.shapes[x]
        m = int(g.one_of([2, 3]))
        return g.add("MatMul", [x, g.weight(k, m)], (*lead, m)) if lead else None
    n, k = g.shapes[x]
    m = int(g.one_of([2, 3, 5]))
    if g.rng.random() < 0.5:
        return g.add("MatMul", [x, g.weight(k, m)], (n, m))
    turned = int(g.rng.integers(2))
    weight = g.weight(m, k) if turned else g.weight(k, m)
    return g.add("Gemm", [x, weight, g.weight(m)], (n, m), transB=turned)


def _left(g: Draw) -> str | None:
    """MatMul by a constant from the left: which axis its rows are, the ranks of both say."""
    x = g.pick()
    if x is None or not g.shapes[x] or (g.shapes[x][0] == BATCH and len(g.shapes[x]) < 3):
        return None
    shape = g.shapes[x]
    k, m = shape[-2] if len(shape) > 1 else shape[0], int(g.one_of([2, 3]))
    made = (*shape[:-2], m, shape[-1]) if len(shape) > 1 else (m,)
    return g.add("MatMul", [g.weight(m, k), x], made)


def _view(g: Draw) -> str | None:
    x = g.pick()
    if x is None or not g.shapes[x]:
        return None
    shape = g.shapes[x]
    kind = g.rng.integers(6)
    rest = int(np.prod(shape[1:]))
    if kind == 0:
        return g.add("Flatten", [x], (shape[0], rest))
    if kind == 1:
        order = [0, *(1 + g.rng.permutation(len(shape) - 1)).tolist()]
        return g.add("Transpose", [x], tuple(shape[i] for i in order), perm=order)
    if kind == 2:
        return g.add("Reshape", [x, g.constant(np.array([0, -1]))], (shape[0], rest))
    axes = [axis for axis, n in enumerate(shape) if n == 1 and axis]
    if kind == 3 and axes:
        made = tuple(n for axis, n in enumerate(shape) if axis not in axes)
        if g.opset < 13:
            return g.add("Squeeze", [x], made, axes=axes)
        return g.add("Squeeze", [x, g.constant(np.array(axes))], made)
    if kind == 4 and len(shape) < 4:
        if g.opset < 13:
            return g.add("Unsqueeze", [x], (*shape, 1), axes=[len(shape)])
        return g.add("Unsqueeze", [x, g.constant(np.array([len(shape)]))], (*shape, 1))
    return _shaped(g, x)


def _shaped(g: Draw, x: str) -> str:
    """Reshape by what is computed from the input's own sizes."""
    shape = g.shapes[x]
    sizes = g.add("Shape", [x], ())
    first = g.add("Gather", [sizes, g.constant(np.array([0]))], (), axis=0)
    target = g.add("Concat", [first, g.constant(np.array([-1]))], (), axis=0)
    for name in (sizes, first, target):
        del g.shapes[name]
    return g.add("Reshape", [x, target], (shape[0], int(np.prod(shape[1:]))))


def _along(g: Draw) -> str | None:
    x = g.pick()
    if x is None or len(g.shapes[x]) < 2:
        return None
    shape = g.shapes[x]
    axis = int(g.rng.integers(1, len(shape)))
    kind = g.rng.integers(5)
    if kind == 0:
        return g.add(g.one_of(["Softmax", "LogSoftmax"]), [x], shape, axis=axis)
    if kind == 1:
        op = g.one_of(["ReduceMean", "ReduceMax", "ReduceL1", "ReduceSum"])
        listed = g.opset < 13 if op == "ReduceSum" else g.opset < 18
        kept = int(g.rng.integers(2))
        made = tuple(n if i != axis else 1 for i, n in enumerate(shape) if kept or i != axis)
        if listed:
            return g.add(op, [x], made, axes=[axis], keepdims=kept)
        return g.add(op, [x, g.constant(np.array([axis]))], made, keepdims=kept)
    if kind == 2:
        made = tuple(2 * n if i == axis else n for i, n in enumerate(shape))
        same = [n for n, s in g.shapes.items() if s == shape]
        return g.add("Concat", [x, g.one_of(same)], made, axis=axis)
    if kind == 3 and g.opset >= 10 and shape[axis] > 1:
        made = tuple(n - 1 if i == axis else n for i, n in enumerate(shape))
        bounds = [g.constant(np.array([value])) for value in (0, -1, axis)]
        return g.add("Slice", [x, *bounds], made)
    pads = [0] * (2 * len(shape))
    pads[axis] = 1
    made = tuple(n + 1 if i == axis else n for i, n in enumerate(shape))
    if g.opset < 11:
        return g.add("Pad", [x], made, pads=pads)
    return g.add("Pad", [x, g.constant(np.array(pads))], made)


def _body(g: Draw, x: str, inner: str, prefix: str) -> tuple[Draw, str]:
    body = Draw(g.rng, g.opset, prefix)
    body.shapes[inner] = g.shapes[x]
    made = inner
    for _ in range(int(g.rng.integers(1, 4))):
        step = g.one_of([_unary, _binary, _norm])
        made = step(body) or made
    made = body.add("Identity", [made], g.shapes[x]) if made == inner else made
    return body, made


def _control(g: Draw) -> str | None:
    x = g.pick()
    if x is None or g.opset < 11:
        return None
    shape = g.shapes[x]
    if g.rng.random() < 0.5:
        branches = {}
        for key in ("then_branch", "else_branch"):
            body, made = _body(g, x, x, f"{g.name()}{key[0]}")
            value = helper.make_tensor_value_info(made, TensorProto.FLOAT, [None] * len(shape))
            branches[key] = helper.make_graph(body.nodes, key, [], [value], body.held)
        condition = g.constant(np.array(bool(g.rng.integers(2))))
        return g.add("If", [condition], shape, **branches)
    stem = g.name()
    body, made = _body(g, x, f"{stem}v", f"{stem}b")
    body.nodes.append(helper.make_node("Identity", [f"{stem}c"], [f"{stem}k"]))
    dims = [None] * len(shape)
    graph = helper.make_graph(
        body.nodes,
        "body",
        [
            helper.make_tensor_value_info(f"{stem}i", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{stem}c", TensorProto.BOOL, []),
            helper.make_tensor_value_info(f"{stem}v", TensorProto.FLOAT, dims),
        ],
        [
            helper.make_tensor_value_info(f"{stem}k", TensorProto.BOOL, []),
            helper.make_tensor_value_info(made, TensorProto.FLOAT, dims),
        ],
        body.held,
    )
    return g.add("Loop", [g.constant(np.array(2)), "", x], shape, body=graph)


def _scan(g: Draw) -> str | None:
    """Step along an axis, with or without something that is carried from step to step."""
    x = g.pick()
    if x is None or g.opset < 9 or len(g.shapes[x]) < 2:
        return None
    shape = g.shapes[x]
    axis = int(g.rng.integers(1, len(shape)))
    sliced = (*shape[:axis], *shape[axis + 1 :])
    if not shape[axis]:
        return None
    stem = g.name()
    g.shapes[f"{stem}v"] = sliced
    body, made = _body(g, f"{stem}v", f"{stem}v", f"{stem}b")
    del g.shapes[f"{stem}v"]
    carried = [name for name, s in g.shapes.items() if s == sliced and g.rng.random() < 0.5][:1]
    dims = [None] * len(sliced)
    inputs, outputs = [f"{stem}v"], [made]
    if carried:
        body.nodes.append(helper.make_node("Add", [f"{stem}s", made], [f"{stem}o"]))
        inputs, outputs = [f"{stem}s", *inputs], [f"{stem}o", made]
    graph = helper.make_graph(
        body.nodes,
        "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in outputs],
        body.held,
    )
    attrs: dict[str, Any] = {"scan_input_axes": [axis], "scan_output_axes": [axis]}
    attrs |= {"body": graph, "num_scan_inputs": 1}
    if not carried:
        return g.add("Scan", [x], shape, **attrs)
    last, name = f"{stem}l", g.name()
    g.nodes.append(helper.make_node("Scan", [*carried, x], [last, name], **attrs))
    g.shapes |= {last: sliced, name: shape}
    return name


def _foreign(g: Draw) -> str | None:
    """Operators of ONNX Runtime's own, and of classical machine learning."""
    x = g.pick()
    if x is None or not g.shapes[x]:
        return None
    shape = g.shapes[x]
    own: dict[str, Any] = {"domain": "com.microsoft"}
    kind = g.rng.integers(3)
    if kind == 0:
        op = g.one_of(["Gelu", "FastGelu", "QuickGelu"])
        return g.add(op, [x], shape, **own)
    if kind == 1 and len(shape) > 1:
        if g.rng.random() < 0.5:
            return g.add("BiasGelu", [x, g.weight(shape[-1])], shape, **own)
        turned, m = int(g.rng.integers(2)), int(g.one_of([2, 3]))
        weight = g.weight(m, shape[-1]) if turned else g.weight(shape[-1], m)
        attrs = {"transB": turned, "alpha": float(g.one_of([1.0, 0.5])), **own}
        return g.add("FusedMatMul", [x, weight], (*shape[:-1], m), **attrs)
    return _classical(g)


def _classical(g: Draw) -> str | None:
    x = g.pick(2)
    if x is None:
        return None
    shape = g.shapes[x]
    count = shape[1]
    own: dict[str, Any] = {"domain": "ai.onnx.ml"}
    op = g.one_of(["Scaler", "Normalizer", "LinearRegressor", "Imputer"])
    factors = g.rng.uniform(0.5, 2, count).tolist()
    if op == "Scaler":
        return g.add(op, [x], shape, scale=factors, offset=factors[::-1], **own)
    if op == "Normalizer":
        return g.add(op, [x], shape, norm="L2", **own)
    if op == "Imputer":
        attrs = {"imputed_value_floats": factors, "replaced_value_float": 7.0, **own}
        return g.add(op, [x], shape, **attrs)
    coefficients = {"coefficients": factors * 2, "intercepts": [1.0, -0.5], "targets": 2}
    return g.add(op, [x], (shape[0], 2), **coefficients, **own)


def _more(g: Draw) -> str | None:
    """What picks, repeats and normalizes."""
    x = g.pick()
    if x is None or len(g.shapes[x]) < 2 or 0 in g.shapes[x]:
        return None
    shape = g.shapes[x]
    axis = int(g.rng.integers(1, len(shape)))
    kind = g.rng.integers(8)
    if kind == 0 and g.opset >= 17:
        factors = g.constant(g.rng.uniform(0.5, 2, shape[-1]).astype(_F))
        return g.add("LayerNormalization", [x, factors, g.weight(shape[-1])], shape, axis=-1)
    if kind == 1:
        indices = g.rng.integers(shape[axis], size=int(g.one_of([1, 2, shape[axis]])))
        made = tuple(len(indices) if i == axis else n for i, n in enumerate(shape))
        return g.add("Gather", [x, g.constant(indices)], made, axis=axis)
    if kind == 2 and g.opset >= 9:
        mask = g.constant(g.rng.random([1, *shape[1:]]) < g.one_of([0, 0.5, 1]))
        same = [n for n, s in g.shapes.items() if s == shape]
        return g.add("Where", [mask, x, g.one_of(same)], shape)
    if kind == 3 and g.opset >= 8:
        made = tuple(3 if i == axis and n == 1 else n for i, n in enumerate(shape))
        return g.add("Expand", [x, g.constant(np.array([1, *made[1:]]))], made)
    if kind == 4:
        made = tuple(2 * n if i == axis else n for i, n in enumerate(shape))
        repeats = np.array([2 if i == axis else 1 for i in range(len(shape))])
        return g.add("Tile", [x, g.constant(repeats)], made)
    if kind == 5 and len(shape) == 4:
        n, c, h, w = shape
        if g.rng.random() < 0.5 and h % 2 == w % 2 == 0:
            return g.add("SpaceToDepth", [x], (n, 4 * c, h // 2, w // 2), blocksize=2)
        if c % 4 == 0:
            return g.add("DepthToSpace", [x], (n, c // 4, 2 * h, 2 * w), blocksize=2)
        if g.opset >= 13:
            scales = g.constant(np.array([1, 1, 2, 2], _F))
            mode = g.one_of(["nearest", "linear"])
            return g.add("Resize", [x, "", scales], (n, c, 2 * h, 2 * w), mode=mode)
    if kind == 6 and len(shape) > 2:
        factors = g.constant(g.rng.uniform(0.5, 2, shape[1]).astype(_F))
        return g.add("InstanceNormalization", [x, factors, g.weight(shape[1])], shape)
    if kind == 7 and g.opset >= 13 and shape[axis] > 1:
        parts = np.array([1, shape[axis] - 1])
        names = [f"{g.name()}a", f"{g.name()}b"]
        g.nodes.append(helper.make_node("Split", [x, g.constant(parts)], names, axis=axis))
        for name, size in zip(names, parts.tolist(), strict=True):
            g.shapes[name] = tuple(size if i == axis else n for i, n in enumerate(shape))
        return names[1]
    return None


def _strided(g: Draw) -> str | None:
    """Windows with strides, dilations, automatic and uneven pads."""
    x = g.pick(4)
    if x is None or min(g.shapes[x]) < 1:
        return None
    n, c, h, w = g.shapes[x]
    k, stride = int(g.one_of([1, 2, 3])), int(g.one_of([1, 2]))
    if k > min(h, w):
        return None
    kind = g.rng.integers(4)
    attrs: dict[str, Any] = {"kernel_shape": [k, k], "strides": [stride, stride]}
    padded = [h, w]
    if kind == 0:
        attrs["auto_pad"] = g.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
        if attrs["auto_pad"] != "VALID":
            padded = [-(-size // stride) * stride + k - stride for size in padded]
    elif kind == 1:
        pads = [int(p) for p in g.rng.integers(0, k, 4)]
        attrs["pads"] = pads
        padded = [h + pads[0] + pads[2], w + pads[1] + pads[3]]
    sizes = tuple((size - k) // stride + 1 for size in padded)
    op = g.one_of(["Conv", "Conv", "AveragePool", "MaxPool", "LpPool"])
    if op != "Conv":
        if op == "LpPool" and "auto_pad" in attrs:
            return None
        if op == "AveragePool":
            attrs["count_include_pad"] = int(g.rng.integers(2))
        return g.add(op, [x], (n, c, *sizes), **attrs)
    out = int(g.one_of([2, 3]))
    if kind == 2 and stride == 1 and 2 * (k - 1) < min(h, w):
        attrs["dilations"] = [2, 2]
        sizes = (h - 2 * (k - 1), w - 2 * (k - 1))
    inputs = [x, g.weight(out, c, k, k), *([g.weight(out)] if g.rng.random() < 0.5 else [])]
    return g.add("Conv", inputs, (n, out, *sizes), **attrs)


def _picked(g: Draw) -> str | None:
    """Elements by their places, filled edges, running sums."""
    x = g.pick()
    if x is None or len(g.shapes[x]) < 2 or 0 in g.shapes[x] or g.opset < 11:
        return None
    shape = g.shapes[x]
    axis = int(g.rng.integers(1, len(shape)))
    kind = g.rng.integers(7)
    if kind == 0:
        return g.add("CumSum", [x, g.constant(np.array(axis))], shape, exclusive=1)
    if kind == 1:
        indices = g.rng.integers(shape[axis], size=shape)
        return g.add("GatherElements", [x, g.constant(indices)], shape, axis=axis)
    if kind == 2 and g.opset >= 14 and len(shape) > 2:
        return g.add("Trilu", [x], shape, upper=int(g.rng.integers(2)))
    if kind == 3 and shape[axis] > 1:
        made = tuple(n + 1 if i == axis else n for i, n in enumerate(shape))
        pads = np.array([int(i == axis) for i in range(len(shape))] + [0] * len(shape))
        return g.add("Pad", [x, g.constant(pads)], made, mode=g.one_of(["reflect", "edge"]))
    if kind == 4:
        update = g.constant(g.rng.normal(size=shape[1:]).astype(_F)[None])
        place = g.constant(np.array([[0]]))
        return g.add("ScatterND", [x, place, update], shape)
    if kind == 5 and shape[axis] > 1:
        step = int(g.one_of([-1, 2, -2]))
        bounds = (-1, -(2**31), axis, step) if step < 0 else (0, 2**31, axis, step)
        made = tuple(-(-n // abs(step)) if i == axis else n for i, n in enumerate(shape))
        return g.add("Slice", [x, *(g.constant(np.array([b])) for b in bounds)], made)
    if len(shape) == 2:
        turned = g.one_of(["nc,ck->nk", "nc,ck->kn"])
        made = (shape[0], 3) if turned.endswith("nk") else (3, shape[0])
        if g.opset < 12 or made[0] != shape[0]:
            return None
        return g.add("Einsum", [x, g.weight(shape[1], 3)], made, equation=turned)
    return None


def _normalized(g: Draw) -> str | None:
    x = g.pick()
    if x is None or len(g.shapes[x]) < 2 or 0 in g.shapes[x]:
        return None
    shape = g.shapes[x]
    kind = g.rng.integers(5)
    if kind == 0 and len(shape) == 4:
        return g.add("LRN", [x], shape, size=3)
    if kind == 1 and len(shape) == 4 and g.opset >= 9:
        return g.add("MeanVarianceNormalization", [x], shape)
    if kind == 2 and len(shape) > 2 and g.opset >= 21 and shape[1] % 2 == 0:
        factors = g.constant(g.rng.uniform(0.5, 2, shape[1]).astype(_F))
        inputs = [x, factors, g.weight(shape[1])]
        return g.add("GroupNormalization", inputs, shape, num_groups=2)
    if kind == 3 and g.opset >= 23:
        factors = g.constant(g.rng.uniform(0.5, 2, shape[-1]).astype(_F))
        return g.add("RMSNormalization", [x, factors], shape)
    # a normalization as exporters write it out
    mean = _reduced(g, x)
    apart = g.add("Sub", [x, mean], shape)
    squared = g.add("Mul", [apart, apart], shape)
    spread = g.add("Add", [_reduced(g, squared), g.constant(_F(1))], (*shape[:-1], 1))
    root = g.add("Sqrt", [spread], (*shape[:-1], 1))
    made = g.add("Div", [apart, root], shape)
    for name in (spread, squared, root):
        del g.shapes[name]
    return made


def _reduced(g: Draw, x: str) -> str:
    shape = (*g.shapes[x][:-1], 1)
    if g.opset < 18:
        return g.add("ReduceMean", [x], shape, axes=[-1 if g.opset >= 11 else len(shape) - 1])
    return g.add("ReduceMean", [x, g.constant(np.array([-1]))], shape)


def _quantized(g: Draw) -> str | None:
    """A layer whose weights are integers in small form."""
    x = g.pick(2)
    if x is None or g.opset < 13:
        return None
    n, k = g.shapes[x]
    m = int(g.one_of([2, 3]))
    integers = g.constant(g.rng.integers(-9, 10, (k, m)).astype(np.int8))
    by_column = g.rng.random() < 0.5
    scale = g.constant(g.rng.uniform(0.1, 0.3, m if by_column else ()).astype(_F))
    weight = g.add("DequantizeLinear", [integers, scale], (), axis=1)
    del g.shapes[weight]
    return g.add(g.one_of(["MatMul", "Gemm"]), [x, weight], (n, m))


def _recurrent(g: Draw) -> str | None:
    x = g.pick(3)
    if x is None or g.opset < 14:
        return None
    n, t, k = g.shapes[x]
    op, gates, m = g.one_of([("LSTM", 4, 2), ("GRU", 3, 2), ("RNN", 1, 3)])
    steps = g.add("Transpose", [x], (), perm=[1, 0, 2])
    inputs = [steps, g.weight(1, gates * m, k), g.weight(1, gates * m, m)]
    if g.rng.random() < 0.5:
        inputs.append(g.weight(1, 2 * gates * m))
    states = g.add(op, inputs, (), hidden_size=m)
    for name in (steps, states):
        del g.shapes[name]
    return g.add("Transpose", [states], (n, t, 1, m), perm=[2, 0, 1, 3])


def _attended(g: Draw) -> str | None:
    """Softmax(x·xᵀ)·x."""
    x = g.pick(3)
    if x is None or 0 in g.shapes[x]:
        return None
    n, t, k = g.shapes[x]
    turned = g.add("Transpose", [x], (n, k, t), perm=[0, 2, 1])
    scores = g.add("MatMul", [x, turned], (n, t, t))
    scaled = g.add("Mul", [scores, g.constant(_F(0.5))], (n, t, t))
    weights = g.add("Softmax", [scaled], (n, t, t), axis=2)
    return g.add("MatMul", [weights, x], (n, t, k))


_STEPS: tuple[Step, ...] = (
    *(_unary, _unary, _binary, _binary, _binary, _conv, _conv, _norm, _norm),
    *(_pool, _dense, _dense, _left, _view, _view, _view, _along, _along, _control),
    *(_scan, _foreign, _more, _more, _more, _strided, _strided, _picked, _picked),
    *(_normalized, _quantized, _recurrent, _attended),
)


def drawn(seed: int, nodes: int, opset: int, fixed: bool) -> onnx.ModelProto:
    """Return a model of about `nodes` nodes; `fixed`: its batch is, or it is symbolic."""
    rng = np.random.default_rng(seed)
    g = Draw(rng, opset)
    first: Shape = (BATCH, 3, 4, 4) if rng.random() < 0.75 else (BATCH, 6)
    g.shapes["x"] = first
    made = "x"
    while len(g.nodes) < nodes:
        made = g.one_of(_STEPS)(g) or made
        if int(np.prod(g.shapes[made])) > 20_000:
            break
    made = g.add("Identity", [made], g.shapes[made]) if made == "x" else made
    outputs = {made, *(n for n in [g.pick()] if n is not None and n != "x")}
    batch: Any = BATCH if fixed else "N"
    graph = helper.make_graph(
        g.nodes,
        "drawn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *first[1:]])],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(g.shapes[n]))
            for n in sorted(outputs)
        ],
        g.held,
    )
    imports = [helper.make_opsetid("", opset)]
    used = {node.domain for node in g.nodes}
    versions = {"com.microsoft": 1, "ai.onnx.ml": 3}
    imports += [helper.make_opsetid(d, v) for d, v in versions.items() if d in used]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
