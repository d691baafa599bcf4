"""A batch that was freed: several rows at once must give what the original gives one by one.

The original is run natively, a batch of its own at a time; nothing of the pass that freed it is
asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from graphpass.validate.compare import (
    Noise,
    OutputComparison,
    Place,
    Policy,
    compare_leaf,
    measure_noise,
)
from graphpass.validate.noise import moved_by_ulp
from graphpass.validate.process.channel import Array, Value
from graphpass.validate.process.runtime import RunError, Runtime, Session

_ROWS = (1, 2, 3, 5)
_FEW_ROWS = (3,)  # of a model that is expensive to run


def batched_inputs(model: onnx.ModelProto) -> list[str]:
    """Return the inputs whose first axis, of the same name for all, is symbolic."""
    found: list[tuple[str, str]] = []
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 1 and not dims[0].HasField("dim_value") and value.name not in weights:
            found.append((value.name, dims[0].dim_param))
    return [name for name, dim in found if dim == found[0][1]]


@dataclass
class Rows:
    """Knows what the original says of single rows. `feed`: inputs that the original takes."""

    model: onnx.ModelProto
    runtime: Runtime
    provider: str
    feed: Mapping[str, Value]
    policy: Policy
    epsilon: float
    cheap: bool
    seed: int = 0

    def compare(
        self, candidate: onnx.ModelProto, random: set[str]
    ) -> tuple[list[OutputComparison], str]:
        """Run `candidate` with several rows; return what was compared, and what else is wrong."""
        counts = _ROWS if self.cheap else _FEW_ROWS
        return self.compare_at(candidate, random, batched_inputs(candidate), counts)

    def compare_at(
        self,
        candidate: onnx.ModelProto,
        random: set[str],
        batched: Sequence[str],
        counts: Sequence[int],
    ) -> tuple[list[OutputComparison], str]:
        """Do so with `counts` rows in the inputs `batched`."""
        names = [name for name in batched if name in self.feed]
        arrays = [self.feed[name] for name in names]
        sizes = {len(array) if isinstance(array, np.ndarray) else 0 for array in arrays}
        if len(sizes) != 1 or sizes == {0}:
            return [], ""
        (native,) = sizes
        most = -(-max(counts) // native) * native  # whole batches of the original's own
        rows = self._drawn(names, most)
        answers = self._one_by_one(self.model, rows, native, most)
        done: list[OutputComparison] = []
        try:
            with self.runtime.load(candidate, self.provider) as session:
                found = {count: self._run(session, rows, count) for count in counts}
        except RunError as error:
            return [], f"with several rows in its batch it does not run: {error}"
        noise: dict[int, dict[str, Noise]] = {}
        for count, outputs in found.items():
            problem = declared_problem(candidate, outputs, self._feed(rows, count))
            if problem:
                return done, f"with a batch of {count}, {problem}"
            expected = _stacked(answers, outputs, native, count)
            for measured in (False, True):
                if measured:
                    noise[count] = self._noise(rows, names, native, count, outputs, expected)
                compared = self._compared(expected, outputs, count, random, noise.get(count))
                if all(c.ok for c in compared):
                    break
            done += compared
        return done, ""

    def _drawn(self, names: Sequence[str], count: int) -> dict[str, Array]:
        """Draw rows that differ, of the kind that the original was fed."""
        rng = np.random.default_rng([self.seed, 77])
        drawn = {}
        for name in names:
            base = np.asarray(self.feed[name])
            shape = (count, *base.shape[1:])
            if base.dtype.kind == "f":
                drawn[name] = rng.standard_normal(shape).astype(base.dtype)
            else:
                flat = base.reshape(-1)
                drawn[name] = flat[rng.integers(0, flat.size, shape)] if flat.size else base
        return drawn

    def _feed(self, rows: Mapping[str, Array], count: int, start: int = 0) -> dict[str, Value]:
        taken = {name: array[start : start + count] for name, array in rows.items()}
        return {**self.feed, **taken}

    def _run(self, session: Session, rows: Mapping[str, Array], count: int) -> dict[str, Value]:
        return session.run(self._feed(rows, count)).outputs

    def _one_by_one(
        self, model: onnx.ModelProto, rows: Mapping[str, Array], native: int, most: int
    ) -> list[dict[str, Value]]:
        with self.runtime.load(model, self.provider) as session:
            return [
                session.run(self._feed(rows, native, start)).outputs
                for start in range(0, most, native)
            ]

    def _noise(
        self,
        rows: Mapping[str, Array],
        names: Sequence[str],
        native: int,
        count: int,
        outputs: Mapping[str, Value],
        expected: Mapping[str, Value],
    ) -> dict[str, Noise]:
        """Measure how far the single answers move with their rows, by ulps."""
        moved = moved_by_ulp(dict(rows), self.epsilon, self.seed + 1)
        if moved is None:
            return {}
        arrays = {name: np.asarray(moved[name]) for name in names}
        most = len(arrays[names[0]])
        again = self._one_by_one(self.model, arrays, native, most)
        return measure_noise(expected, _stacked(again, outputs, native, count))

    def _compared(
        self,
        expected: Mapping[str, Value],
        found: Mapping[str, Value],
        count: int,
        random: set[str],
        noise: Mapping[str, Noise] | None,
    ) -> list[OutputComparison]:
        done = []
        for name, value in expected.items():
            if name in random or name not in found:  # an output that may go, and did
                continue
            other = shaped_like(value, found[name])
            if not isinstance(value, np.ndarray):
                continue
            done.append(
                compare_leaf(
                    Place(name, self.provider, f"batch of {count} against single runs"),
                    value,
                    other,
                    noise=(noise or {}).get(name),
                    policy=self.policy,
                    fallback_scale=lambda: 1.0,
                )
            )
        return done


def _stacked(
    answers: Sequence[Mapping[str, Value]], found: Mapping[str, Value], native: int, count: int
) -> dict[str, Value]:
    """Return what `count` rows must give, by the names of the original's outputs.

    The rows lie on the axis whose size grew; an output without such an axis is the same for all.
    """
    expected: dict[str, Value] = {}
    outputs = list(found.items())
    for index, name in enumerate(answers[0]):
        parts = [answer[name] for answer in answers]
        other = outputs[index][1] if index < len(outputs) else None
        if not all(isinstance(part, np.ndarray) for part in (*parts, other)):
            continue
        arrays = [np.asarray(part) for part in parts]
        expected[name] = arrays[0]
        for stacked in _stacks(arrays, native, count):
            if _wide(stacked.shape) == _wide(np.asarray(other).shape):
                expected[name] = stacked
                break
    return expected


def _stacks(parts: Sequence[Array], native: int, count: int) -> Iterator[Array]:
    for axis in range(parts[0].ndim):
        whole = np.concatenate(parts, axis)
        if parts[0].shape[axis] % native == 0:
            wanted = parts[0].shape[axis] // native * count
            yield whole.take(range(wanted), axis)


def _wide(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def shaped_like(expected: Value, value: Any) -> Any:
    """Return `value` with the shape of `expected`, where they differ only in axes of size 1."""
    if not (isinstance(expected, np.ndarray) and isinstance(value, np.ndarray)):
        return value
    same = _wide(expected.shape) == _wide(value.shape)
    return value.reshape(expected.shape) if same else value


def declared_problem(
    model: onnx.ModelProto, outputs: Mapping[str, Value], feed: Mapping[str, Value]
) -> str:
    """Say where an output has another shape than is declared; "" where none has."""
    bound: dict[str, int] = {}
    for value in model.graph.input:
        array = feed.get(value.name)
        for dim, size in zip(
            value.type.tensor_type.shape.dim, getattr(array, "shape", ()), strict=False
        ):
            if dim.dim_param:
                bound[dim.dim_param] = size
    for value in model.graph.output:
        array = outputs.get(value.name)
        if not isinstance(array, np.ndarray) or not value.type.tensor_type.HasField("shape"):
            continue
        dims = value.type.tensor_type.shape.dim
        wanted = [
            dim.dim_value if dim.HasField("dim_value") else bound.get(dim.dim_param) for dim in dims
        ]
        fits = len(wanted) == array.ndim and all(
            size is None or size == has for size, has in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            shown = [dim.dim_param or dim.dim_value or "?" for dim in dims]
            return (
                f"output '{value.name}' is declared as {shown} and has the shape "
                f"{list(array.shape)}"
            )
    return ""


__all__ = ["Rows", "batched_inputs", "declared_problem", "shaped_like"]
