"""Small networks of the shapes that real ones have, with few channels and random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from graphpass.testing import graph

# name -> (text, opset, weights); every image is [N, 3, 32, 32] unless it says otherwise
_SQUEEZE = """
    s = GlobalAveragePool (a)
    s1 = Conv (s, se1)
    s2 = Relu (s1)
    s3 = Conv (s2, se2)
    judge = HardSigmoid (s3)
    b = Mul (judge, a)
"""
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "alexnet": (
        """(float[N,3,35,35] x) => (float[N,5] prob) {
            c1 = Conv <strides=[2,2]> (x, w1, b1)
            r1 = Relu (c1)
            n1 = LRN <size=3> (r1)
            p1 = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (n1)
            c2 = Conv <pads=[1,1,1,1], group=2> (p1, w2)
            r2 = Relu (c2)
            p2 = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (r2)
            f = Flatten (p2)
            d1 = Gemm <transB=1> (f, w3, b3)
            r3 = Relu (d1)
            e1, m1 = Dropout (r3)
            d2 = Gemm <transB=1> (e1, w4)
            prob = Softmax <axis=1> (d2)
        }""",
        11,
        {"w1": (4, 3, 5, 5), "b1": (4,), "w2": (6, 2, 3, 3), "w3": (7, 96), "b3": (7,)}
        | {"w4": (5, 7)},
    ),
    "vgg": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            c1 = Conv <pads=[1,1,1,1]> (x, w1)
            n1 = BatchNormalization (c1, s, t, mean, var)
            r1 = Relu (n1)
            p1 = MaxPool <kernel_shape=[4,4], strides=[4,4]> (r1)
            c2 = Conv <pads=[1,1,1,1]> (p1, w2)
            p2 = MaxPool <kernel_shape=[2,2], strides=[2,2]> (c2)
            a = AveragePool <kernel_shape=[1,1], strides=[1,1]> (p2)
            shape = Shape (a)
            n = Gather <axis=0> (shape, zero)
            nn = Unsqueeze (n, zeros)
            target = Concat <axis=0> (nn, rest)
            f = Reshape (a, target)
            d1 = MatMul (f, w3)
            d2 = Add (d1, b3)
            r2 = Relu (d2)
            y = Gemm (r2, w4)
        }""",
        17,
        {"w1": (4, 3, 3, 3), "s": (4,), "t": (4,), "mean": (4,), "w2": (6, 4, 3, 3)}
        | {"var": np.ones(4, np.float32), "zero": np.array(0), "zeros": np.array([0])}
        | {"rest": np.array([-1]), "w3": (96, 7), "b3": (7,), "w4": (7, 5)},
    ),
    "resnet": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            c1 = Conv <pads=[3,3,3,3], strides=[2,2]> (x, w1)
            p1 = MaxPool <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]> (c1)
            c2 = Conv <pads=[1,1,1,1], strides=[2,2]> (p1, w2)
            c3 = Conv <strides=[2,2]> (p1, w3)
            a = Add (c2, c3)
            r = Relu (a)
            g = GlobalAveragePool (r)
            f = Flatten (g)
            y = Gemm <transB=1> (f, w4, b4)
        }""",
        17,
        {"w1": (4, 3, 7, 7), "w2": (6, 4, 3, 3), "w3": (6, 4, 1, 1), "w4": (5, 6), "b4": (5,)},
    ),
    "densenet": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            c1 = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1)
            c2 = Conv <pads=[1,1,1,1]> (c1, w2)
            j = Concat <axis=1> (c1, c2)
            t = AveragePool <kernel_shape=[2,2], strides=[2,2]> (j)
            m = ReduceMean <axes=[2,3], keepdims=0> (t)
            y = Gemm (m, w3)
        }""",
        13,
        {"w1": (4, 3, 3, 3), "w2": (2, 4, 3, 3), "w3": (6, 5)},
    ),
    "mobilenet": (
        f"""(float[N,3,32,32] x) => (float[N,5] y) {{
            a = Conv <pads=[1,1,1,1], strides=[4,4]> (x, w1)
            {_SQUEEZE}
            c = Conv <pads=[1,1,1,1], group=4> (b, w2)
            h = HardSwish (c)
            g = GlobalAveragePool (h)
            f = Flatten (g)
            d = Gemm <transB=1> (f, w3, b3)
            e = HardSwish (d)
            y = Gemm <transB=1> (e, w4)
        }}""",
        17,
        {"w1": (4, 3, 3, 3), "se1": (2, 4, 1, 1), "se2": (4, 2, 1, 1), "w2": (4, 1, 3, 3)}
        | {"w3": (7, 4), "b3": (7,), "w4": (5, 7)},
    ),
    "squeeze by window": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1], strides=[4,4]> (x, w1)
            s = AveragePool <kernel_shape=[8,8]> (a)
            judge = Sigmoid (s)
            b = Mul (a, judge)
            g = AveragePool <kernel_shape=[8,8], strides=[8,8]> (b)
            f = Reshape (g, rows)
            y = Gemm (f, w2)
        }""",
        17,
        {"w1": (4, 3, 3, 3), "w2": (4, 5), "rows": np.array([-1, 4])},
    ),
    "shufflenet": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1], strides=[4,4]> (x, w1)
            b = Reshape (a, apart)
            c = Transpose <perm=[0,2,1,3,4]> (b)
            d = Reshape (c, together)
            e = Conv <pads=[1,1,1,1], group=2> (d, w2)
            g = GlobalAveragePool (e)
            f = Flatten (g)
            y = Gemm (f, w3)
        }""",
        17,
        {"w1": (4, 3, 3, 3), "w2": (4, 2, 3, 3), "w3": (4, 5)}
        | {"apart": np.array([-1, 2, 2, 8, 8]), "together": np.array([-1, 4, 8, 8])},
    ),
    "squeezenet": (
        """(float[1,3,32,32] x) => (float[1,5] y) {
            a = Conv <strides=[2,2]> (x, w1)
            e1 = Conv (a, w2)
            e3 = Conv <pads=[1,1,1,1]> (a, w3)
            j = Concat <axis=1> (e1, e3)
            c = Conv (j, w4)
            r = Relu (c)
            g = GlobalAveragePool (r)
            y = Flatten (g)
        }""",
        17,
        {"w1": (4, 3, 3, 3), "w2": (2, 4, 1, 1), "w3": (2, 4, 3, 3), "w4": (5, 4, 1, 1)},
    ),
    "inception": (
        """(float[N,3,33,33] x) => (float[N,5] y) {
            red = Gather <axis=1> (x, first)
            rest = Slice (x, one, three, one)
            z = Concat <axis=1> (red, rest)
            a = Conv <strides=[2,2]> (z, w1)
            b = Conv <pads=[0,3,0,3]> (a, w17)
            c = Conv <pads=[3,0,3,0]> (b, w71)
            p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (a)
            j = Concat <axis=1> (c, p)
            m = MaxPool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1> (j)
            g = GlobalMaxPool (m)
            f = Squeeze (g, pixels)
            y = Gemm (f, w2)
        }""",
        17,
        {"w1": (4, 3, 3, 3), "w17": (2, 4, 1, 7), "w71": (2, 2, 7, 1), "w2": (6, 5)}
        | {"first": np.array([0]), "one": np.array([1]), "three": np.array([3])}
        | {"pixels": np.array([2, 3])},
    ),
    "mtcnn": (
        """(float[N,24,24,3] x) => (float[N,4] box, float[N,6] marks, float[N,2] prob) {
            t = Transpose <perm=[0,3,1,2]> (x)
            a = Conv (t, w1)
            r = PRelu (a, slope)
            p = MaxPool <kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER"> (r)
            b = Conv <strides=[2,2]> (p, w2)
            back = Transpose <perm=[0,2,3,1]> (b)
            f = Flatten (back)
            d = MatMul (f, w3)
            e = Add (d, b3)
            q = PRelu (e, slope2)
            box = MatMul (q, w4)
            marks = MatMul (q, w5)
            logits = MatMul (q, w6)
            prob = Softmax <axis=1> (logits)
        }""",
        12,
        {"w1": (4, 3, 3, 3), "slope": (4, 1, 1), "w2": (5, 4, 3, 3), "w3": (125, 7), "b3": (7,)}
        | {"slope2": (7,), "w4": (7, 4), "w5": (7, 6), "w6": (7, 2)},
    ),
    "convnext": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            a = Conv <strides=[4,4]> (x, w1)
            t = Transpose <perm=[0,2,3,1]> (a)
            l = LayerNormalization <axis=-1> (t, s1)
            d = MatMul (l, m1)
            e = Relu (d)
            u = MatMul (e, m2)
            v = Transpose <perm=[0,3,1,2]> (u)
            w = Add (a, v)
            g = GlobalAveragePool (w)
            f = Flatten (g)
            n = LayerNormalization <axis=-1> (f, s1)
            y = Gemm (n, w2)
        }""",
        17,
        {"w1": (4, 3, 4, 4), "s1": (4,), "m1": (4, 8), "m2": (8, 4), "w2": (4, 5)},
    ),
    "decisions": (
        """(float[N,3,32,32] x) => (float[N,5] y, int64[N] best, float[N,2] top, int64[N,2] which) {
            a = Conv <pads=[1,1,1,1], strides=[4,4]> (x, w1)
            g = ReduceMean <axes=[2,3], keepdims=1> (a)
            f = Flatten (g)
            z = Gemm (f, w2, b2)
            y = LogSoftmax <axis=-1> (z)
            best = ArgMax <axis=1, keepdims=0> (z)
            top, which = TopK <axis=1> (z, two)
        }""",
        13,
        {"w1": (6, 3, 3, 3), "w2": (6, 5), "b2": (5,), "two": np.array([2])},
    ),
    "embedding": (
        """(float[N,3,32,32] x) => (float[N,5] y) {
            a = Conv <pads=[1,1,1,1], strides=[4,4]> (x, w1)
            g = GlobalAveragePool (a)
            f = Flatten (g)
            z = Gemm (f, w2, b2)
            n = ReduceL2 <axes=[1], keepdims=1> (z)
            y = Div (z, n)
        }""",
        13,
        {"w1": (6, 3, 3, 3), "w2": (6, 5), "b2": (5,)},
    ),
}


def network(name: str) -> onnx.ModelProto:
    """Build one of `NETWORKS`."""
    text, opset, weights = NETWORKS[name]
    return graph(text, opset=opset, **weights)
