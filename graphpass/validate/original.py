"""The original: feeds that it accepts, its outputs on them, and its noise floor."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from graphpass.errors import RuntimeUnavailableError
from graphpass.validate import noise
from graphpass.validate.channel import Array, Value
from graphpass.validate.compare import Noise, leaves, measure_noise
from graphpass.validate.dims import (
    BATCH,
    Bindings,
    classify,
    first_bindings,
    varied_bindings,
)
from graphpass.validate.feeds import (
    INTEGER_RANGES,
    Feed,
    Recipe,
    draw_feed,
    feed_name,
    overrides,
)
from graphpass.validate.inputs import InputSpec, input_specs
from graphpass.validate.options import ValidationOptions
from graphpass.validate.runtime import RunError, Runtime, Session
from graphpass.validate.user_inputs import InputsError, user_feeds

# After the first feed (normal, batch of 1): kinds of values with the batch that they come in.
_FURTHER_FEEDS = (("large", 2), ("uniform", 3), ("zeros", 1))
# How many of them are run, by how long the first one took: the last entry that is not below it.
_FEWER_FEEDS = ((1.0, 1), (0.25, 2), (0.0, 3))
# Runs quicker than this are cheap enough to measure the noise floor before it is needed.
_EAGER_NOISE_S = 0.1
_MAX_ATTEMPTS = 80
_MAX_SEARCH_S = 60.0
_MAX_OVERRIDE_BYTES = 16 << 20


class ReferenceCannotRunError(RuntimeUnavailableError):
    """ONNX Runtime cannot run the original model; one sentence with its reason and a way out."""


@dataclass
class Point:
    """The original's outputs on one feed and provider; noise is measured as far as needed.

    `noise_level`: 0 nothing, 1 one draw of one ulp, 2 and reordering, 3 and two more draws.
    """

    provider: str
    feed: Feed
    outputs: dict[str, Value]
    seconds: float
    noise: dict[str, Noise] | None = None
    noise_level: int = 0

    def add_noise(self, again: dict[str, Value]) -> None:
        """Join the distance of another run of the original."""
        measured = measure_noise(self.outputs, again)
        known = self.noise
        self.noise = (
            measured
            if known is None
            else {name: measured[name].joined(known[name]) for name in measured}
        )


FULL_NOISE = 3


@dataclass
class Original:
    """Runs the original model, each thing at most once."""

    model: onnx.ModelProto
    options: ValidationOptions
    runtime: Runtime
    dropped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.epsilon = noise.arithmetic_epsilon(self.model)
        self._specs = input_specs(self.model)
        self._classes = classify(self._specs)
        self._points: dict[str, list[Point]] = {}
        self._random: dict[str, set[str]] = {}
        unknown = sorted(set(self.options.bind) - set(self._classes))
        if unknown:
            have = ", ".join(map(repr, self._classes)) or "none"
            raise InputsError(
                f"there is no symbolic dimension '{unknown[0]}' to bind (the model has {have})"
            )

    def points(self, provider: str) -> list[Point]:
        """Run the original on its feeds. Raises ReferenceCannotRunError."""
        if provider not in self._points:
            try:
                session = self.runtime.load(self.model, provider)
            except RunError as error:
                raise ReferenceCannotRunError(
                    f"the original model does not run: {error}"
                ) from error
            with session:
                feeds_known = next(iter(self._points.values()), None)
                if feeds_known is not None:
                    points = self._rerun(session, provider, feeds_known)
                else:
                    points = self._explore(session, provider)
                self._points[provider] = points
                self._random[provider] = self._find_random(session, points[0])
                for point in points:
                    if point is points[0] or point.seconds < _EAGER_NOISE_S:
                        self._add_ulp(session, point, 1)
        return self._points[provider]

    def random_outputs(self, provider: str) -> set[str]:
        """Return the leaves known to differ between two runs of the original."""
        return self._random.get(provider, set())

    def deepen(self, point: Point) -> None:
        """Measure all that can move the original's outputs on this point; done once."""
        if point.noise_level >= FULL_NOISE:
            return
        with self.runtime.load(self.model, point.provider) as session:
            self._random[point.provider] |= self._compare_runs(session, point)
            for draw in range(1, FULL_NOISE + 1):
                self._add_ulp(session, point, draw)
        self._add_reordered(point)
        point.noise_level = FULL_NOISE

    def fallback_scale(self, provider: str, leaf: str, point: Point) -> float:
        """Return a scale for an output that is zero here: that on other points, or the inputs'."""
        values = [leaves(other.outputs).get(leaf) for other in self._points[provider]]
        scale = max((_magnitude(value) for value in values), default=0.0)
        if scale > 0:
            return scale
        inputs = leaves(point.feed.values).values()
        return max((_magnitude(value) for value in inputs), default=0.0) or 1.0

    # Feeds

    def _explore(self, session: Session, provider: str) -> list[Point]:
        if self.options.inputs is not None:
            return self._explore_users(session, provider, self.options.inputs)
        first, recipe, at_once = self._first(session, provider)
        points = [first]
        count = next(count for seconds, count in _FEWER_FEEDS if first.seconds >= seconds)
        for kind, batch in _FURTHER_FEEDS[:count]:
            points.extend(
                self._further(session, provider, replace(recipe, kind=kind), batch, at_once)
            )
        if not any(_all_finite_somewhere(point.outputs) for point in points):
            points.extend(self._further(session, provider, replace(recipe, kind="small"), 1, False))
        points.extend(self._overridden(session, provider, first.feed))
        return points

    def _first(self, session: Session, provider: str) -> tuple[Point, Recipe, bool]:
        """Search bindings and integers that the model accepts; whether the first were."""
        first_error: RunError | None = None
        start = time.monotonic()
        for attempt, recipe in enumerate(itertools.islice(self._recipes(), _MAX_ATTEMPTS)):
            try:
                point = self._run(session, provider, self._draw(recipe))
            except RunError as error:
                first_error = first_error or error
                if error.kind == "timeout" or time.monotonic() - start > _MAX_SEARCH_S:
                    break
                continue
            return point, recipe, attempt == 0
        raise ReferenceCannotRunError(
            f"no inputs were found that the original model accepts ({first_error});"
            " give some with --inputs, or sizes with --bind"
        )

    def _recipes(self, fixed: Bindings | None = None) -> Iterator[Recipe]:
        bindings = list(
            itertools.islice(
                first_bindings(self._classes, {**self.options.bind, **(fixed or {})}),
                _MAX_ATTEMPTS,
            )
        )
        ranges = INTEGER_RANGES if any(map(_is_plain_integer, self._specs)) else INTEGER_RANGES[:1]
        pairs = itertools.product(range(len(bindings)), range(len(ranges)))
        for i, j in sorted(pairs, key=lambda pair: pair[0] + 2 * pair[1]):
            yield Recipe("normal", bindings[i], ranges[j])

    def _draw(self, recipe: Recipe) -> Feed:
        try:
            return draw_feed(self._specs, recipe, self.options.seed)
        except ValueError as error:
            raise ReferenceCannotRunError(f"{error}; give the inputs with --inputs") from error

    def _further(
        self, session: Session, provider: str, recipe: Recipe, batch: int, resize: bool
    ) -> list[Point]:
        tried = varied_bindings(recipe.bindings, self._classes, self.options.bind, batch)
        for bindings in tried:
            if not resize and not _only_batch_differs(bindings, recipe.bindings, self._classes):
                continue
            feed = self._draw(replace(recipe, bindings=bindings))
            try:
                return [self._run(session, provider, feed)]
            except RunError as error:
                self.dropped.append(f"{feed.name}: {error}")
        return []

    def _overridden(self, session: Session, provider: str, feed: Feed) -> list[Point]:
        """Override what has a default, once, if the model runs with it."""
        names = {spec.name for spec in self._specs if spec.overridable}
        tensors = [t for t in self.model.graph.initializer if t.name in names]
        defaults = {
            tensor.name: array
            for tensor in tensors
            if (array := _small_float_array(tensor)) is not None
        }
        if not defaults or sum(array.nbytes for array in defaults.values()) > _MAX_OVERRIDE_BYTES:
            return []
        values = {**feed.values, **overrides(defaults, self.options.seed)}
        moved = Feed(f"{feed.name}, defaults overridden", values, feed.bindings)
        try:
            return [self._run(session, provider, moved)]
        except RunError as error:
            self.dropped.append(f"{moved.name}: {error}")
            return []

    def _explore_users(self, session: Session, provider: str, source: object) -> list[Point]:
        points: list[Point] = []
        last: RunError | None = None
        for given in user_feeds(source, self._specs):  # type: ignore[arg-type]
            clash = [s for s, n in given.bindings.items() if self.options.bind.get(s, n) != n]
            if clash:
                raise InputsError(
                    f"inputs '{given.name}' contradict the value bound to '{clash[0]}'"
                )
            try:
                points.append(self._complete(session, provider, given))
            except RunError as error:
                last = error
                self.dropped.append(f"{given.name}: {error}")
        if not points:
            raise ReferenceCannotRunError(f"the original model does not run on the inputs: {last}")
        return points

    def _complete(self, session: Session, provider: str, given: Feed) -> Point:
        """Run the user's feed, inputs that it lacks drawn in sizes that fit."""
        wanted = {spec.name for spec in self._specs if not spec.overridable}
        if wanted <= set(given.values):
            return self._run(session, provider, given)
        last: RunError | None = None
        for recipe in itertools.islice(self._recipes(given.bindings), _MAX_ATTEMPTS):
            drawn = self._draw(recipe)
            values = {**drawn.values, **given.values}
            name = feed_name(given.name, recipe.bindings)
            try:
                return self._run(session, provider, Feed(name, values, recipe.bindings))
            except RunError as error:
                last = last or error
        assert last is not None
        raise last

    def _rerun(self, session: Session, provider: str, known: Sequence[Point]) -> list[Point]:
        points: list[Point] = []
        for point in known:
            try:
                points.append(self._run(session, provider, point.feed))
            except RunError as error:
                self.dropped.append(f"{point.feed.name} ({provider}): {error}")
                last = error
        if not points:
            raise ReferenceCannotRunError(f"the original model does not run on {provider}: {last}")
        return points

    def _run(self, session: Session, provider: str, feed: Feed) -> Point:
        run = session.run(feed.values)
        return Point(provider, feed, run.outputs, run.seconds)

    # Noise

    def _find_random(self, session: Session, point: Point) -> set[str]:
        if not noise.may_be_random(self.model):
            return set()
        return self._compare_runs(session, point)

    def _compare_runs(self, session: Session, point: Point) -> set[str]:
        again = leaves(session.run(point.feed.values).outputs)
        first = leaves(point.outputs)
        return {name for name in first if not _identical(first[name], again.get(name))}

    def _add_ulp(self, session: Session, point: Point, draw: int) -> None:
        if draw <= point.noise_level:
            return
        seed = self.options.seed + draw
        values, any_moved = noise.moved_by_ulp(point.feed.values, self.epsilon, seed)
        try:
            if any_moved:
                point.add_noise(session.run(values).outputs)
            else:
                self._add_inner_noise(point, seed)
        except RunError as error:
            self.dropped.append(f"noise on {point.feed.name}: {error}")
        point.noise_level = max(point.noise_level, draw)

    def _add_inner_noise(self, point: Point, seed: int) -> None:
        noisy = noise.noisy_model(self.model, seed)
        if noisy is None:
            return
        with self.runtime.load(noisy, point.provider) as session:
            point.add_noise(session.run(point.feed.values).outputs)

    def _add_reordered(self, point: Point) -> None:
        try:
            with self.runtime.load(self.model, point.provider, "extended") as session:
                point.add_noise(session.run(point.feed.values).outputs)
        except RunError as error:
            self.dropped.append(f"reordering on {point.feed.name}: {error}")


def _is_plain_integer(spec: InputSpec) -> bool:
    if spec.dtype is None or spec.overridable or spec.index_bound is not None:
        return False
    return spec.dtype.kind == "b" or (spec.dtype.kind in "iu" and spec.dtype.itemsize > 1)


def _only_batch_differs(one: Bindings, two: Bindings, classes: dict[str, str]) -> bool:
    return all(classes[symbol] == BATCH for symbol in one if one[symbol] != two[symbol])


def _magnitude(value: Array | None) -> float:
    if value is None or value.size == 0 or value.dtype.kind in "OUSb":
        return 0.0
    magnitudes = np.abs(value.astype(np.complex128 if value.dtype.kind == "c" else np.float64))
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))


def _all_finite_somewhere(outputs: dict[str, Value]) -> bool:
    """Whether every output has at least one finite element (or none at all)."""
    arrays = [array for array in leaves(outputs).values() if array is not None and array.size]
    floats = [array for array in arrays if array.dtype.kind not in "OUSbiu"]
    return all(np.isfinite(array.astype(np.complex128)).any() for array in floats)


def _identical(one: Array | None, two: Array | None) -> bool:
    if one is None or two is None:
        return one is two
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if one.dtype.kind in "OUS":
        return bool((one == two).all())
    return one.tobytes() == two.tobytes()


def _small_float_array(tensor: onnx.TensorProto) -> Array | None:
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return None
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        array: Array = numpy_helper.to_array(tensor)
        return array
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = int(entries.get("length", 0))
    if not 0 < length <= _MAX_OVERRIDE_BYTES:
        return None
    with Path("/", entries["location"]).open("rb") as file:
        file.seek(int(entries.get("offset", 0)))
        data = file.read(length)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(data, dtype).reshape(tuple(tensor.dims))
