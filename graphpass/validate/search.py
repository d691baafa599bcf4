"""Find feeds that the original accepts: few, unlike each other, each symbol bound differently."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx

from graphpass.ir.cost import shapes_of_outputs
from graphpass.ir.operators import Trait, traits
from graphpass.ir.proto_walk import all_nodes
from graphpass.storage.wire import WireError, tensor_array
from graphpass.validate.baseline import Point, ReferenceCannotRunError
from graphpass.validate.cost import work
from graphpass.validate.distance import is_discrete, leaves, wide
from graphpass.validate.feeds.drawn import (
    INTEGER_RANGES,
    Feed,
    Recipe,
    TooLargeError,
    draw_feed,
    feed_name,
    overrides,
    too_large,
)
from graphpass.validate.feeds.given import InputsError, require_symbols, user_feeds
from graphpass.validate.feeds.sizes import Bindings, classify, first_bindings, resized, with_batch
from graphpass.validate.feeds.specs import InputSpec, input_specs
from graphpass.validate.noise import arithmetic_epsilon, may_be_random
from graphpass.validate.options import ValidationOptions
from graphpass.validate.process.channel import Array, Value
from graphpass.validate.process.runtime import RunError, Session

# Models cheaper than this (multiply-adds) are run as often as may tell something.
_CHEAP_COST = 3e8
_CHEAP_BYTES = 32 << 20  # of inputs
_INPUT_BYTES = 1 << 12  # as long as it takes to draw and send these, it takes for any input at all
_COSTLY_COST = 1e10  # where each run of it is most of what all costs: VGG's have 1.5e10
# After the first feed (normal, batch of 1): kinds of values with the batch that they come in.
_FURTHER_FEEDS = (("large", 2), ("uniform", 5), ("zeros", 1))
# How many of them are run, by multiply-adds of the first: 1e9 take about 30 ms on one core.
_FEWER_FEEDS = ((_COSTLY_COST, 0), (1e9, 1), (_CHEAP_COST, 2), (0.0, 3))
_GENTLER_FEEDS = ("uniform", "small")
_POSITIVE_FEEDS = ("uniform", "one to two")  # probabilities, scales
_SINGLE_EPSILON = 2.0**-23
_MAX_ATTEMPTS = 80
_MAX_SEARCH_S = 60.0
_MAX_OVERRIDE_BYTES = 16 << 20


class FeedSearch:
    """Draws feeds for one model and runs it on them. Raises InputsError for unknown bindings.

    `dropped` collects, one sentence each, the feeds that the model did not take, or that it takes
    too long for.
    """

    def __init__(
        self, model: onnx.ModelProto, options: ValidationOptions, epsilon: float | None = None
    ) -> None:
        self.dropped: list[str] = []
        self._model, self._options = model, options
        self._specs = input_specs(model)
        self._costs: dict[str, float] = {}
        # Half precision overflows where single does not, and what is left then is chance.
        finest = arithmetic_epsilon(model) if epsilon is None else epsilon
        self._large = 100.0 if finest <= _SINGLE_EPSILON else 8.0
        self._classes = classify(self._specs)
        self._may_resize = self._may_batch = True
        self._start = time.monotonic()
        require_symbols(options.bind, self._classes)

    def points(self, session: Session, provider: str) -> list[Point]:
        """Run the user's feeds, or drawn ones. Raises ReferenceCannotRunError, InputsError."""
        self._start = time.monotonic()
        if self._options.inputs is not None:
            return self._users_points(session, provider)
        points, recipe = self._in_one_batch(session, provider) or self._first(session, provider)
        first = points[0]
        if self.is_costly(first.feed):
            self.dropped.append(
                f"other values and sizes than {first.feed.name}: a run of more than "
                f"{_COSTLY_COST:,.0f} multiply-adds is made once; each rewrite is run on them alone"
            )
        for kind, batch in self._further_feeds(first.feed)[len(points) - 1 :]:
            point = self._varied(session, provider, replace(recipe, kind=kind), batch)
            if point is not None and point.feed.name != first.feed.name:
                points.append(point)
        for kind in _GENTLER_FEEDS:
            # A feed on which all is NaN tests nothing, and must not be all that there is.
            if not any(_finite_somewhere(point.outputs) for point in points):
                feed = self._draw(replace(recipe, kind=kind))
                points.extend(self._try(session, provider, feed))
        if self.is_cheap(first.feed) and _passes_on(self._model):
            points.extend(self._try(session, provider, self._draw(replace(recipe, kind="special"))))
        points.extend(self._overridden(session, provider, first.feed))
        for point in points:
            self._require_elements(point)
        return points

    def cost(self, feed: Feed) -> float:
        """Estimate the multiply-adds of one run on this feed."""
        if feed.name not in self._costs:
            self._costs[feed.name] = work(self._model, feed.shapes)
        return self._costs[feed.name]

    def is_cheap(self, feed: Feed) -> bool:
        """Whether running the model on it more often than needed costs next to nothing."""
        return self.cost(feed) < _CHEAP_COST and _bytes(feed) < _CHEAP_BYTES

    def is_costly(self, feed: Feed) -> bool:
        """Whether a single run of the model on it is felt."""
        return self.cost(feed) >= _COSTLY_COST

    def _further_feeds(self, first: Feed) -> tuple[tuple[str, int], ...]:
        # bytes that are drawn, sent and compared cost as much as a few operations each
        cost = max(self.cost(first), _bytes(first) * _CHEAP_COST / _CHEAP_BYTES)
        count = next(count for threshold, count in _FEWER_FEEDS if cost >= threshold)
        return _FURTHER_FEEDS[:count]

    # The first feed

    def _in_one_batch(self, session: Session, provider: str) -> tuple[list[Point], Recipe] | None:
        """Run the first two feeds as one batch where a run is expensive; None where it cannot be.

        What the first gives alone is taken to be the first row, until that is doubted.
        """
        recipe = next(self._recipes(dict(self._options.bind)))
        try:
            first = self._draw(recipe)
        except TooLargeError:
            return None
        if self.is_cheap(first) or self.is_costly(first) or may_be_random(self._model):
            return None
        kind, batch = _FURTHER_FEEDS[0]
        bindings = with_batch(recipe.bindings, self._classes, self._options.bind, batch)
        if resized(bindings, self._classes, self._options.bind) != bindings:
            return None  # the second has sizes of its own
        second = self._draw(replace(recipe, kind=kind, bindings=bindings))
        values = {
            name: _beginning_with(first.values[name], second.values[name]) for name in first.values
        }
        if any(value is None for value in values.values()):
            return None
        feed = Feed(feed_name(f"{recipe.kind} and {kind}", bindings), values, bindings)
        try:
            both = run_point(session, provider, feed)
        except RunError:
            return None
        outputs = {name: _first_row(value, batch) for name, value in both.outputs.items()}
        if any(value is None for value in outputs.values()):
            return None
        return [Point(provider, first, outputs, is_assumed=True), both], recipe

    def _first(self, session: Session, provider: str) -> tuple[list[Point], Recipe]:
        first_error: RunError | TooLargeError | None = None
        for recipe in itertools.islice(self._recipes(dict(self._options.bind)), _MAX_ATTEMPTS):
            try:
                point = run_point(session, provider, self._draw(recipe))
                return self._with_elements(session, point, recipe)
            except TooLargeError as error:  # smaller sizes are further on
                first_error = first_error or error
            except RunError as error:
                first_error = first_error or error
                if error.kind == "timeout" or self._is_late:
                    break
        raise ReferenceCannotRunError(
            f"no inputs were found that the original model accepts ({first_error});"
            " give some with --inputs, or sizes with --bind"
        )

    @property
    def _is_late(self) -> bool:
        """Whether the search has used up its time: one budget for all that it tries."""
        return time.monotonic() - self._start > _MAX_SEARCH_S

    def _with_elements(
        self, session: Session, point: Point, recipe: Recipe
    ) -> tuple[list[Point], Recipe]:
        """Return a point whose outputs are not all empty, where other values make one."""
        for kind in _POSITIVE_FEEDS:
            if not _all_empty(point.outputs):
                break
            other = replace(recipe, kind=kind)
            for found in self._try(session, point.provider, self._draw(other)):
                if not _all_empty(found.outputs):
                    return [found], other
        return [point], recipe

    def _recipes(self, fixed: Bindings) -> Iterator[Recipe]:
        """Yield sizes with ranges of integers, plausible ones first."""
        fitting = (b for b in first_bindings(self._classes, fixed) if not too_large(self._specs, b))
        bindings = list(itertools.islice(fitting, _MAX_ATTEMPTS))
        bindings = bindings or [next(first_bindings(self._classes, fixed))]  # to be named
        ranges = INTEGER_RANGES if any(map(_is_plain_integer, self._specs)) else INTEGER_RANGES[:1]
        pairs = itertools.product(range(len(bindings)), range(len(ranges)))
        likely = sorted(pairs, key=lambda pair: pair[0] + 2 * pair[1])
        for i, j in likely[: _MAX_ATTEMPTS - len(ranges)]:
            yield Recipe("normal", bindings[i], ranges[j], self._large)
        # Ratios, scales and the like must not be negative.
        for integers in ranges:
            yield Recipe("uniform", bindings[0], integers, self._large)

    def _draw(self, recipe: Recipe) -> Feed:
        try:
            return draw_feed(self._specs, recipe, self._options.seed)
        except TooLargeError:
            raise
        except ValueError as error:
            raise ReferenceCannotRunError(f"{error}; give the inputs with --inputs") from error

    # Variations of it

    def _varied(self, session: Session, provider: str, recipe: Recipe, batch: int) -> Point | None:
        """Run a feed of other sizes if the model takes them, what it refused once left alone."""
        fixed = self._options.bind
        plain = recipe.bindings
        batched = with_batch(plain, self._classes, fixed, batch) if self._may_batch else plain
        bold = resized(batched, self._classes, fixed) if self._may_resize else batched
        tried: list[Bindings] = []
        for bindings in (bold, batched, plain):
            if bindings in tried:
                continue
            tried.append(bindings)
            if self._is_late:
                self.dropped.append(
                    f"{recipe.kind}: the search for inputs took {_MAX_SEARCH_S:g} s"
                )
                return None
            try:
                feed = self._draw(replace(recipe, bindings=bindings))
            except TooLargeError as error:
                self.dropped.append(f"{feed_name(recipe.kind, bindings)}: {error}")
                continue
            found = self._try(session, provider, feed)
            if found:
                return found[0]
            self._may_resize &= bindings == batched
            self._may_batch &= bindings != batched or batched == plain
        return None

    def _try(self, session: Session, provider: str, feed: Feed) -> list[Point]:
        try:
            return [run_point(session, provider, feed)]
        except RunError as error:
            if not any(entry.startswith(f"{feed.name}: ") for entry in self.dropped):
                self.dropped.append(f"{feed.name}: {error}")
            return []

    def _overridden(self, session: Session, provider: str, feed: Feed) -> list[Point]:
        """Override everything that has a default, once."""
        names = {spec.name for spec in self._specs if spec.overridable}
        tensors = [tensor for tensor in self._model.graph.initializer if tensor.name in names]
        floats = [tensor for tensor in tensors if tensor.data_type in _OVERRIDDEN_TYPES]
        if not floats or sum(_elements(tensor) * 8 for tensor in floats) > _MAX_OVERRIDE_BYTES:
            return []
        try:
            defaults: dict[str, Array] = {tensor.name: tensor_array(tensor) for tensor in floats}
        except WireError as error:
            self.dropped.append(f"defaults overridden: {error}")
            return []
        values = {**feed.values, **overrides(defaults, self._options.seed)}
        name = f"{feed.name}, defaults overridden"
        return self._try(session, provider, Feed(name, values, feed.bindings))

    # The user's feeds

    def _users_points(self, session: Session, provider: str) -> list[Point]:
        points: list[Point] = []
        last: RunError | None = None
        assert self._options.inputs is not None
        for given in user_feeds(self._options.inputs, self._specs):
            for symbol, size in given.bindings.items():
                if self._options.bind.get(symbol, size) != size:
                    raise InputsError(
                        f"inputs '{given.name}': '{symbol}' is {size},"
                        f" but bound to {self._options.bind[symbol]}"
                    )
            try:
                point = self._complete(session, provider, given)
                self._require_elements(point)
                points.append(point)
            except RunError as error:
                last = error
                self.dropped.append(f"{given.name}: {error}")
        if not points:
            raise ReferenceCannotRunError(f"the original model does not run on the inputs: {last}")
        telling = [point for point in points if not is_blank(point.feed.values)]
        if len(telling) < len(points) and telling:
            blank = (point.feed.name for point in points if point not in telling)
            self.dropped.extend(f"{name}: NaN throughout, which tells nothing" for name in blank)
        return telling or points

    def _require_elements(self, point: Point) -> None:
        """Refuse sizes that were asked for and leave an output without elements."""
        empty = [n for n, a in leaves(point.outputs).items() if a is not None and a.size == 0]
        if not empty or not (self._options.bind or self._options.inputs is not None):
            return
        inferred = shapes_of_outputs(self._model, point.feed.shapes)
        for name in empty:
            if 0 in inferred.get(name, ()):
                raise InputsError(
                    f"with {point.feed.name}, output '{name}' has no elements, so that nothing"
                    " could be compared: give larger sizes"
                )

    def _complete(self, session: Session, provider: str, given: Feed) -> Point:
        """Run the user's feed, inputs that it lacks drawn in sizes that fit. Raises RunError."""
        wanted = {spec.name for spec in self._specs if not spec.overridable}
        if wanted <= set(given.values):
            return run_point(session, provider, given)
        first_error: RunError | None = None
        fixed = {**self._options.bind, **given.bindings}
        for recipe in itertools.islice(self._recipes(fixed), _MAX_ATTEMPTS):
            name = feed_name(given.name, recipe.bindings)
            try:
                values: dict[str, Value] = {**self._draw(recipe).values, **given.values}
                return run_point(session, provider, Feed(name, values, recipe.bindings))
            except TooLargeError as error:
                first_error = first_error or RunError("run", str(error))
            except RunError as error:
                first_error = first_error or error
                if self._is_late:
                    break
        assert first_error is not None
        raise first_error


_OVERRIDDEN_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)


def run_point(session: Session, provider: str, feed: Feed) -> Point:
    """Run the original on one feed. Raises RunError."""
    return Point(provider, feed, session.run(feed.values).outputs)


def is_blank(values: Mapping[str, Value]) -> bool:
    """Whether there are floats among the inputs, and all of them are NaN."""
    arrays = [array for array in leaves(values).values() if array is not None]
    floats = [array for array in arrays if array.size and not is_discrete(array)]
    return bool(floats) and all(np.isnan(wide(array)).all() for array in floats)


def _bytes(feed: Feed) -> int:
    arrays = [array for array in leaves(feed.values).values() if array is not None]
    return sum(array.nbytes + _INPUT_BYTES for array in arrays)


def _passes_on(model: onnx.ModelProto) -> bool:
    """Whether each operator hands on NaN and infinities: none sums or decides."""
    kept = Trait.ELEMENTWISE | Trait.KEEPS_NAN, Trait.BROADCASTING | Trait.KEEPS_NAN
    return all(
        Trait.MOVEMENT in traits(node.op_type, node.domain)
        or any(kind in traits(node.op_type, node.domain) for kind in kept)
        for node in all_nodes(model)
    )


def _all_empty(outputs: Mapping[str, Value]) -> bool:
    arrays = [array for array in leaves(outputs).values() if array is not None]
    return bool(arrays) and not any(array.size for array in arrays)


def _beginning_with(row: Value, rows: Value) -> Value:
    """Return `rows` with `row` for the first; None where they are no batches, of 1 and of more."""
    if not (isinstance(row, np.ndarray) and isinstance(rows, np.ndarray) and row.ndim):
        return None
    if len(row) != 1 or len(rows) < 2 or row.shape[1:] != rows.shape[1:]:
        return None
    return np.concatenate([row, rows[1:]])


def _first_row(value: Value, batch: int) -> Value:
    if isinstance(value, np.ndarray) and value.ndim and len(value) == batch:
        return value[:1]
    return None


def _is_plain_integer(spec: InputSpec) -> bool:
    if spec.dtype is None or spec.overridable or spec.index_bound is not None:
        return False
    return spec.dtype.kind == "b" or (spec.dtype.kind in "iu" and spec.dtype.itemsize > 1)


def _elements(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _finite_somewhere(outputs: dict[str, Value]) -> bool:
    """Whether every output has at least one finite element (or none at all)."""
    arrays = [array for array in leaves(outputs).values() if array is not None and array.size]
    floats = [array for array in arrays if not is_discrete(array)]
    return all(np.isfinite(array.astype(np.complex128)).any() for array in floats)
