"""A resolution that was freed: at other sizes the network must say what the original says.

Two witnesses, neither of which asks the pass: the original itself, declared for other sizes,
where nothing inside fixes them; and, where something does, the original on a crop of the image.
Which places of the large answer a crop decides is found by changing the rest of the image: what
does not move does not depend on it, and must be what the original makes of the crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

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
from graphpass.validate.rows import declared_problem, shaped_like

_CHANGES = 2  # how often the rest of an image is changed: a Relu may hide one of them


def free_axes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Return, by input, the axes but the first that are symbolic."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        axes = [axis for axis, dim in enumerate(dims) if axis and not dim.HasField("dim_value")]
        if axes and value.name not in weights:
            found[value.name] = axes
    return found


@dataclass
class Resolutions:
    """Knows what the original says at other sizes. `feed`: inputs that the original takes."""

    model: onnx.ModelProto
    runtime: Runtime
    provider: str
    feed: Mapping[str, Value]
    policy: Policy
    epsilon: float
    seed: int = 0

    def compare(
        self, candidate: onnx.ModelProto, random: set[str]
    ) -> tuple[list[OutputComparison], str]:
        """Run `candidate` at other sizes; return what was compared, and what else is wrong."""
        free = free_axes(candidate)
        if len(free) != 1:
            return [], ""
        ((name, axes),) = free.items()
        base = self.feed[name]
        if not isinstance(base, np.ndarray):
            return [], ""
        done: list[OutputComparison] = []
        answered = {value.name for value in self.model.graph.output}
        try:
            with (
                self.runtime.load(candidate, self.provider) as session,
                self.runtime.load(self.model, self.provider) as original,
            ):
                for shape in _shapes(base.shape, axes):
                    image = self._drawn(base, shape)
                    found = session.run({**self.feed, name: image}).outputs
                    where = _spelled(shape, axes)
                    problem = declared_problem(candidate, found, {**self.feed, name: image})
                    if problem:
                        return done, f"at {where}, {problem}"
                    rebuilt = self._beside_rebuilt(name, image, found, where, random)
                    answered &= {compared.name for compared in rebuilt}
                    done += rebuilt
                # the original's own word at that size is the better one: a crop knows of no places
                fully = answered == {value.name for value in self.model.graph.output} - random
                for axis in () if fully or _looks_by_size(self.model) else axes:
                    done += self._beside_crops(session, original, name, base, axis, random)
        except RunError as error:
            return done, f"at another size of '{name}' it does not run: {error}"
        return done, ""

    def _drawn(self, base: Array, shape: Sequence[int], salt: int = 0) -> Array:
        rng = np.random.default_rng([self.seed, salt, *shape])
        if base.dtype.kind == "f":
            return rng.standard_normal(shape).astype(base.dtype)
        return base.reshape(-1)[rng.integers(0, base.size, shape)]

    def _beside_rebuilt(
        self, name: str, image: Array, found: Mapping[str, Value], where: str, random: set[str]
    ) -> list[OutputComparison]:
        """Compare with the original declared for this size, where it runs and answers so."""
        rebuilt = _declared_for(self.model, name, image.shape)
        feed = {**self.feed, name: image}
        try:
            with self.runtime.load(rebuilt, self.provider) as session:
                expected = session.run(feed).outputs
                moved = moved_by_ulp(feed, self.epsilon, self.seed + 1)
                again = expected if moved is None else session.run(moved).outputs
        except RunError:
            return []  # something inside fixes the size
        noise = measure_noise(expected, again)
        return [
            self._compared(output, value, found[output], f"{where}, original rebuilt", noise)
            for output, value in expected.items()
            if output not in random
            and isinstance(value, np.ndarray)
            and isinstance(other := found.get(output), np.ndarray)
            and value.shape == other.shape
        ]

    def _beside_crops(
        self,
        session: Session,
        original: Session,
        name: str,
        base: Array,
        axis: int,
        random: set[str],
    ) -> list[OutputComparison]:
        """Compare what one end of an image decides with the original's answer to that end."""
        native = base.shape[axis]
        shape = [2 * size if place == axis else size for place, size in enumerate(base.shape)]
        image = self._drawn(base, shape, axis)
        whole = session.run({**self.feed, name: image}).outputs
        done: list[OutputComparison] = []
        for start in (0, native):
            crop = image.take(range(start, start + native), axis)
            feed = {**self.feed, name: np.ascontiguousarray(crop)}
            answers = original.run(feed).outputs
            moved = moved_by_ulp(feed, self.epsilon, self.seed + 1)
            noise = measure_noise(
                answers, answers if moved is None else original.run(moved).outputs
            )
            others = []
            for salt in range(_CHANGES):
                changed = 4 * self._drawn(base, shape, 10 + salt)
                index = [slice(None)] * image.ndim
                index[axis] = slice(start, start + native)
                changed[tuple(index)] = crop
                others.append(session.run({**self.feed, name: changed}).outputs)
            where = f"{'far' if start else 'near'} end of {_spelled(shape, [axis])}"
            for output, value in answers.items():
                if output in random or not isinstance(value, np.ndarray):
                    continue
                runs = [run[output] for run in (whole, *others)]
                pairs = _decided(value, runs, bool(start))
                done += [
                    self._compared(output, expected, got, where, noise if same else None)
                    for expected, got, same in pairs
                ]
        return done

    def _compared(
        self,
        name: str,
        expected: Array,
        found: Value,
        where: str,
        noise: Mapping[str, Noise] | None,
    ) -> OutputComparison:
        return compare_leaf(
            Place(name, self.provider, where),
            expected,
            shaped_like(expected, found),
            noise=None if noise is None else noise.get(name),
            policy=self.policy,
            fallback_scale=lambda: 1.0,
        )


def _decided(
    native: Array, runs: Sequence[Value], far: bool
) -> Iterator[tuple[Array, Array, bool]]:
    """Yield the part of the original's answer, and of the large one, that the crop decides."""
    arrays = [run for run in runs if isinstance(run, np.ndarray)]
    whole = arrays[0]
    if len(arrays) != len(runs) or whole.ndim != native.ndim:
        return
    grown = [i for i, (a, b) in enumerate(zip(native.shape, whole.shape, strict=True)) if a != b]
    if len(grown) != 1:
        return
    (axis,) = grown
    moved = np.zeros(whole.shape[axis], bool)
    for other in arrays[1:]:
        differs = (whole != other) & ~((whole != whole) & (other != other))
        moved |= differs.any(axis=tuple(i for i in range(whole.ndim) if i != axis))
    places = np.flatnonzero(moved)
    if not places.size:
        return
    size, length = native.shape[axis], whole.shape[axis]
    if far:
        first = int(places[-1]) + 1
        taken = range(first, length)
        own = range(first - (length - size), size)
    else:
        taken = own = range(min(int(places[0]), size))
    if len(taken) and own.start >= 0:
        yield native.take(own, axis), whole.take(taken, axis), len(taken) == size


def _shapes(base: Sequence[int], axes: Sequence[int]) -> Iterator[list[int]]:
    """Yield other shapes: larger along all axes, and along each by another factor."""
    yield [2 * size if axis in axes else size for axis, size in enumerate(base)]
    if len(axes) > 1:
        for order in (axes, axes[::-1]):
            factors = dict(zip(order, range(2, 2 + len(order)), strict=True))
            yield [size * factors.get(axis, 1) for axis, size in enumerate(base)]


def _looks_by_size(model: onnx.ModelProto) -> bool:
    """Whether places of the answer look elsewhere in an image of another size: a crop says less."""
    return any(
        attribute.name == "coordinate_transformation_mode" and attribute.s == b"align_corners"
        for node in model.graph.node
        for attribute in node.attribute
    )


def _spelled(shape: Sequence[int], axes: Sequence[int]) -> str:
    return "x".join(str(shape[axis]) for axis in axes)


def _declared_for(model: onnx.ModelProto, name: str, shape: Sequence[int]) -> onnx.ModelProto:
    """Return the original with another declared size, and nothing said of what comes of it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for value in copy.graph.input:
        if value.name == name:
            for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
                if dim.HasField("dim_value"):
                    dim.dim_value = size
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


__all__ = ["Resolutions", "free_axes"]
