"""fold-batchnorm through drawn chains of operators: never wrong to the bit, nor more nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphpass.rewrite.registry import make
from graphpass.testing import apply_to, check_equal, check_valid, graph

from .test_fold_batchnorm_properties import powers, statistics, values

FOLD = make("fold-batchnorm")
SHAPE = (2, 4, 4, 2)  # of what the chain begins with


class Drawn:
    """A chain of operators on `value`, which has `shape`, as text and constants."""

    def __init__(self, draw: st.DrawFn, value: str) -> None:
        self.draw = draw
        self.value = value
        self.shape = list(SHAPE)
        self.text = ""
        self.constants: dict[str, Any] = {}

    def step(self) -> None:
        """Append an operator."""
        kinds = [name for name in dir(self) if name.startswith("on_")]
        getattr(self, self.draw(st.sampled_from(kinds)))()

    def put(self, call: str, *constants: Any, shape: list[int] | None = None) -> None:
        """Append `call`, in which {x} is the value and {0}, {1}, … are constants."""
        names = [f"k{len(self.constants) + index}" for index in range(len(constants))]
        self.constants.update(zip(names, constants, strict=True))
        made = f"v{self.text.count('=')}"
        self.text += f" {made} = {call.format(*names, x=self.value)}"
        self.value, self.shape = made, self.shape if shape is None else shape

    def axis(self) -> int:
        return self.draw(st.integers(0, len(self.shape) - 1))

    def on_transpose(self) -> None:
        perm = self.draw(st.permutations(range(len(self.shape))))
        self.put(f"Transpose<perm={list(perm)}>({{x}})", shape=[self.shape[a] for a in perm])

    def on_merged(self) -> None:
        if len(self.shape) > 2:
            at = self.draw(st.integers(0, len(self.shape) - 2))
            size = self.shape[at] * self.shape[at + 1]
            shape = [*self.shape[:at], size, *self.shape[at + 2 :]]
            self.put("Reshape({x}, {0})", np.array(shape), shape=shape)

    def on_split(self) -> None:
        at = self.axis()
        if self.shape[at] % 2 == 0 and len(self.shape) < 6:
            shape = [*self.shape[:at], 2, self.shape[at] // 2, *self.shape[at + 1 :]]
            self.put("Reshape({x}, {0})", np.array(shape), shape=shape)

    def on_slice(self) -> None:
        at, step = self.axis(), self.draw(st.sampled_from([-2, -1, 1, 2]))
        start, end = (99, -99) if step < 0 else (0, 99)
        shape = list(self.shape)
        shape[at] = len(range(shape[at])[::step])
        parts = (np.array([part]) for part in (start, end, at, step))
        self.put("Slice({x}, {0}, {1}, {2}, {3})", *parts, shape=shape)

    def on_gather(self) -> None:
        at = self.axis()
        picked = self.draw(st.lists(st.integers(0, self.shape[at] - 1), min_size=1, max_size=4))
        shape = [*self.shape[:at], len(picked), *self.shape[at + 1 :]]
        self.put(f"Gather<axis={at}>({{x}}, {{0}})", np.array(picked), shape=shape)

    def on_joined(self) -> None:
        at, size = self.axis(), self.draw(st.integers(1, 2))
        other = [*self.shape[:at], size, *self.shape[at + 1 :]]
        shape = [*self.shape[:at], self.shape[at] + size, *self.shape[at + 1 :]]
        call = self.draw(st.sampled_from(["{x}, {0}", "{0}, {x}"]))
        self.put(f"Concat<axis={at}>({call})", values(size, tuple(other)), shape=shape)

    def on_padded(self) -> None:
        at, mode = self.axis(), self.draw(st.sampled_from(["edge", "constant"]))
        pads = np.zeros(2 * len(self.shape), np.int64)
        pads[at] = 1
        shape = list(self.shape)
        shape[at] += 1
        self.put(f'Pad<mode="{mode}">({{x}}, {{0}})', pads, shape=shape)

    def on_reduced(self) -> None:
        at, kept = self.axis(), self.draw(st.integers(0, 1))
        if self.shape[at] not in (1, 2, 4) or len(self.shape) < 3:
            return
        op = self.draw(st.sampled_from(["ReduceMean", "ReduceMax"]))
        shape = [size for axis, size in enumerate(self.shape) if axis != at]
        if kept:
            shape.insert(at, 1)
        self.put(f"{op}<axes=[{at}], keepdims={kept}>({{x}})", shape=shape)

    def on_pooled(self) -> None:
        if len(self.shape) == 4 and min(self.shape[2:]) >= 2:
            op = self.draw(st.sampled_from(["AveragePool", "MaxPool"]))
            shape = [*self.shape[:2], self.shape[2] - 1, self.shape[3] - 1]
            self.put(f"{op}<kernel_shape=[2,2]>({{x}})", shape=shape)

    def on_blocks(self) -> None:
        if len(self.shape) == 4 and self.shape[1] % 4 == 0:
            mode = self.draw(st.sampled_from(["DCR", "CRD"]))
            n, c, h, w = self.shape
            shape = [n, c // 4, 2 * h, 2 * w]
            self.put(f'DepthToSpace<blocksize=2, mode="{mode}">({{x}})', shape=shape)

    def on_term(self) -> None:
        op = self.draw(st.sampled_from(["Add", "Sub", "Mul"]))
        own = [size if self.draw(st.booleans()) else 1 for size in self.shape]
        call = self.draw(st.sampled_from(["{x}, {0}", "{0}, {x}"]))
        self.put(f"{op}({call})", powers(len(self.text), tuple(own)))

    def on_relu(self) -> None:
        self.put("Relu({x})")

    def normalization(self, seed: int) -> None:
        if len(self.shape) < 2:
            self.on_term()
            return
        found = statistics(seed, self.shape[1])
        call = "BatchNormalization<epsilon=0.25>({x}, {0}, {1}, {2}, {3})"
        self.put(call, *(found[name] for name in ("scale", "offset", "mean", "variance")))


def checked(drawn: Drawn, text: str, **constants: Any) -> None:
    model = graph(
        f"(float[2,3,4,2] x) => (float y) {{{text} y = Identity({drawn.value})}}",
        **{**drawn.constants, **constants},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    result, _ = apply_to(FOLD, model)
    check_valid(model, result)
    check_equal(model, result, exact=True, seeds=[0])
    assert len(result.graph.node) <= len(model.graph.node)


LEAD = "c = Conv(x, W, b) d = Conv(x, V, b) e = Conv(x, V) s = Add(d, e)"


@st.composite
def above(draw: st.DrawFn) -> tuple[Drawn, str]:
    drawn = Drawn(draw, draw(st.sampled_from(["c", "s"])))
    for _ in range(draw(st.integers(1, 4))):
        drawn.step()
    drawn.normalization(draw(st.integers(0, 9)))
    return drawn, LEAD + drawn.text


@st.composite
def below(draw: st.DrawFn) -> tuple[Drawn, str]:
    drawn = Drawn(draw, "r")
    drawn.normalization(draw(st.integers(0, 9)))
    for _ in range(draw(st.integers(1, 4))):
        drawn.step()
    if len(drawn.shape) >= 2:
        width = drawn.shape[-1]
        drawn.put("MatMul({x}, {0})", values(3, (width, 2)), shape=[*drawn.shape[:-1], 2])
    return drawn, "p = Conv(x, W, b) r = Relu(p)" + drawn.text


WEIGHTS: dict[str, Any] = {"W": values(1, (4, 3, 1, 1)), "b": values(2, (4,))}
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@QUICK
@given(above())
def test_whatever_lies_before_a_normalization(case: tuple[Drawn, str]) -> None:
    checked(*case, **WEIGHTS, V=values(5, (4, 3, 1, 1)))


@QUICK
@given(below())
def test_whatever_lies_behind_a_normalization(case: tuple[Drawn, str]) -> None:
    checked(*case, **WEIGHTS)


def test_the_chains_are_not_all_refused() -> None:
    """Most of what was drawn would say little if nothing were folded."""
    folded = 0

    @settings(QUICK, max_examples=20)
    @given(above())
    def count(case: tuple[Drawn, str]) -> None:
        nonlocal folded
        drawn, text = case
        model = graph(
            f"(float[2,3,4,2] x) => (float y) {{{text} y = Identity({drawn.value})}}",
            **{**drawn.constants, **WEIGHTS, "V": values(5, (4, 3, 1, 1))},
        )
        folded += any(r.rule == "IntoSources" for r in apply_to(FOLD, model)[1].rewrites)

    count()
    assert folded >= 5
