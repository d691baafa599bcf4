"""Random graphs of operators that keep a layout or need it, and Transposes between them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from graphpass.testing import graph

_LAYOUTS = {
    3: ([0, 2, 1],),
    4: ([0, 2, 3, 1], [0, 3, 1, 2]),
    5: ([0, 2, 3, 4, 1], [0, 4, 1, 2, 3]),
}
_LARGEST = 1 << 20  # all numbers are integers below: sums and products of float32 are exact
_MOST_ELEMENTS = 2000
_STEPS = (
    *("turned",) * 5,
    *("pointwise", "constant") * 3,
    *("two",) * 4,
    *("conv", "conv", "pad", "reduced", "concat", "hardmax"),
)


class Drawn:
    """A graph of `steps` operators, drawn by `rng`."""

    def __init__(self, rng: random.Random, opset: int, steps: int) -> None:
        self.rng, self.opset = rng, opset
        self.lines: list[str] = []
        self.constants: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.largest: dict[str, int] = {}  # magnitude of any element
        self.read: set[str] = set()
        self.usual = rng.choice((0.6, 0.95))  # how often a Transpose is one of a layout
        shape = rng.sample((1, 2, 3, 4, 2, 3), rng.choice((3, 4, 4, 4, 5)))
        self.inputs = [self._tensor("x", shape, 4) for _ in range(rng.randint(1, 2))]
        for _ in range(steps):
            getattr(self, f"_{rng.choice(_STEPS)}")(self._any())

    def model(self) -> onnx.ModelProto | None:
        """Return the model; None where no step could be made."""
        made = [name for name in self.shapes if name not in self.inputs]
        outputs = [n for n in made if n not in self.read or self.rng.random() < 0.1]
        if not outputs:
            return None
        inputs, results = (
            ", ".join(f"float[{_listed(self.shapes[name])}] {name}" for name in names)
            for names in (self.inputs, outputs)
        )
        text = f"({inputs}) => ({results}) {{ {' '.join(self.lines)} }}"
        return graph(text, opset=self.opset, **self.constants)

    def _tensor(self, letter: str, shape: Sequence[int], largest: int) -> str:
        name = f"{letter}{len(self.shapes)}"
        self.shapes[name], self.largest[name] = tuple(shape), largest
        return name

    def _put(self, text: str, shape: Sequence[int], largest: int, *read: str) -> None:
        if largest <= _LARGEST and math.prod(shape) <= _MOST_ELEMENTS:
            self.lines.append(f"{self._tensor('t', shape, largest)} = {text}")
            self.read.update(read)

    def _named(self, array: npt.NDArray[Any] | np.generic) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def _any(self) -> str:
        names = list(self.shapes)
        return self.rng.choice(names[-4:] if self.rng.random() < 0.6 else names)

    def _turned(self, x: str) -> None:
        shape = self.shapes[x]
        perm = self.rng.sample(range(len(shape)), len(shape))
        if len(shape) in _LAYOUTS and self.rng.random() < self.usual:
            perm = self.rng.choice(_LAYOUTS[len(shape)])
        text = f"Transpose<perm=[{_listed(perm)}]>({x})"
        if self.rng.random() < 0.1:
            perm, text = list(range(len(shape)))[::-1], f"Transpose({x})"
        self._put(text, [shape[axis] for axis in perm], self.largest[x], x)

    def _pointwise(self, x: str) -> None:
        op = self.rng.choice(("Relu", "Neg", "Abs", "LeakyRelu<alpha=2.>", "Identity", "Clip"))
        more = ""
        if op == "Clip" and self.opset < 11:
            op = "Clip<min=-3.>"
        elif op == "Clip":
            more = f", {self._named(np.float32(-3))}"
        self._put(f"{op}({x}{more})", self.shapes[x], self.largest[x] * 2, x)

    def _constant(self, x: str) -> None:
        sizes = [size if self.rng.random() < 0.5 else 1 for size in self.shapes[x]]
        if sizes and self.rng.random() < 0.15:
            axis = self.rng.randrange(len(sizes))
            sizes[axis] = 2 if self.shapes[x][axis] == 1 else sizes[axis]  # widens
        if self.rng.random() < 0.4:
            sizes = sizes[self.rng.randint(0, len(sizes)) :]
        values = [self.rng.randint(-2, 2) for _ in range(math.prod(sizes))]
        c = self._named(np.array(values, np.float32).reshape(sizes))
        shape = np.broadcast_shapes(tuple(sizes), self.shapes[x])
        op = self.rng.choice(("Add", "Sub", "Mul", "Max", "Min"))
        left, right = (x, c) if self.rng.random() < 0.6 else (c, x)
        if shape == self.shapes[x] and self.rng.random() < 0.15:
            op, left, right = "PRelu", x, c
        self._put(f"{op}({left}, {right})", shape, self.largest[x] * 2 + 2, x)

    def _two(self, x: str) -> None:
        fits = [name for name in self.shapes if _broadcast(self.shapes[x], self.shapes[name])]
        same = [name for name in fits if self.shapes[name] == self.shapes[x] and name != x]
        y = self.rng.choice(same if same and self.rng.random() < 0.8 else fits)
        op = self.rng.choice(("Add", "Sub", "Max", "Mul", "Add"))
        a, b = self.largest[x], self.largest[y]
        shape = np.broadcast_shapes(self.shapes[x], self.shapes[y])
        self._put(f"{op}({x}, {y})", shape, a * b if op == "Mul" else a + b, x, y)

    def _pad(self, x: str) -> None:
        shape = self.shapes[x]
        mode = self.rng.choice(("constant", "constant", "edge", "reflect"))
        ends = [
            self.rng.choice((0, 0, 1)) if size > 1 or mode != "reflect" else 0
            for size in (*shape, *shape)
        ]
        begins, count = ends[: len(shape)], len(shape)
        padded = [a + size + b for a, size, b in zip(begins, shape, ends[count:], strict=True)]
        if self.opset < 11:
            text = f'Pad<mode="{mode}", pads=[{_listed(ends)}]>({x})'
        else:
            text = f'Pad<mode="{mode}">({x}, {self._named(np.array(ends, np.int64))})'
        self._put(text, padded, self.largest[x], x)

    def _reduced(self, x: str) -> None:
        shape = self.shapes[x]
        count = len(shape)
        if count < 2:
            return
        op = self.rng.choice(("ReduceSum", "ReduceL1", "ReduceMin"))
        axes = sorted(self.rng.sample(range(count), self.rng.randint(1, count - 1)))
        if count == 4 and self.rng.random() < 0.5:
            axes = self.rng.choice(([1, 2], [2, 3]))
        keep = int(self.rng.random() < 0.7)
        left = [
            1 if axis in axes else size
            for axis, size in enumerate(shape)
            if keep or axis not in axes
        ]
        given = [axis - count if self.rng.random() < 0.3 else axis for axis in axes]
        largest = self.largest[x] * math.prod(shape[axis] for axis in axes)
        if self.opset >= 18 or (self.opset >= 13 and op == "ReduceSum"):
            text = f"{op}<keepdims={keep}>({x}, {self._named(np.array(given, np.int64))})"
        else:
            text = f"{op}<axes=[{_listed(given)}], keepdims={keep}>({x})"
        self._put(text, left, largest, x)

    def _concat(self, x: str) -> None:
        shape = self.shapes[x]
        if not shape:
            return
        axis = self.rng.randrange(len(shape))
        rest = _without(shape, axis)
        fits = [name for name, found in self.shapes.items() if _without(found, axis) == rest]
        parts = [x, *(self.rng.choice(fits) for _ in range(self.rng.randint(1, 2)))]
        joined = list(shape)
        joined[axis] = sum(self.shapes[part][axis] for part in parts)
        given = axis - len(shape) if self.rng.random() < 0.3 else axis
        largest = max(self.largest[part] for part in parts)
        self._put(f"Concat<axis={given}>({', '.join(parts)})", joined, largest, *parts)

    def _conv(self, x: str) -> None:
        shape = self.shapes[x]
        if len(shape) not in (3, 4, 5):
            return
        channels = shape[1]
        values = [self.rng.randint(-1, 1) for _ in range(channels * channels)]
        weight = np.array(values, np.float32).reshape(channels, channels, *[1] * (len(shape) - 2))
        self._put(f"Conv({x}, {self._named(weight)})", shape, self.largest[x] * channels, x)

    def _hardmax(self, x: str) -> None:
        count = len(self.shapes[x])
        if count and self.opset >= 13:
            axis = self.rng.randrange(-count, count)
            self._put(f"Hardmax<axis={axis}>({x})", self.shapes[x], 1, x)


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...] | None:
    """Return the sizes that parts of a Concat share."""
    return None if axis >= len(shape) else (len(shape), *shape[:axis], *shape[axis + 1 :])


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(a, b)
    except ValueError:
        return False
    return True
