"""The original: its outputs on feeds that it accepts, and its noise floor as far as needed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from graphpass.validate import noise
from graphpass.validate.baseline import (
    FULL_NOISE,
    ONE_DRAW,
    REORDERED,
    Point,
    ReferenceCannotRunError,
)
from graphpass.validate.cost import natural_shapes
from graphpass.validate.distance import identical, is_discrete, leaves, magnitude, wide
from graphpass.validate.growth import GrowthError, limits_unasked
from graphpass.validate.options import ValidationOptions
from graphpass.validate.process.channel import Array, Value
from graphpass.validate.process.runtime import Level, RunError, Runtime, Session
from graphpass.validate.search import FeedSearch, is_blank, run_point
from graphpass.validate.verdict import SILENT

_LEVELS: tuple[Level, ...] = ("none", "extended", "all")


class Original:
    """Runs the original model, each thing at most once. Raises InputsError."""

    def __init__(
        self,
        model: onnx.ModelProto,
        options: ValidationOptions,
        runtime: Runtime,
        epsilon: float | None = None,
    ) -> None:
        """`epsilon`: of what candidates compute in, where that is coarser than the original."""
        self.model = model
        self.epsilon = noise.arithmetic_epsilon(model) if epsilon is None else epsilon
        self._options, self._runtime = options, runtime
        self._search = FeedSearch(model, options, self.epsilon)
        self._points: dict[str, list[Point]] = {}
        self._random: dict[str, set[str]] = {}
        self._sizes: dict[int, dict[str, Sequence[int]]] = {}  # that were asked for, of a point

    @property
    def dropped(self) -> list[str]:
        """Feeds that the original did not take, each with the reason."""
        return self._search.dropped

    def points(self, provider: str) -> list[Point]:
        """Run the original on its feeds. Raises ReferenceCannotRunError, InputsError."""
        if provider not in self._points:
            self._points[provider] = self._first_runs(provider)
        return self._points[provider]

    def is_cheap(self, point: Point) -> bool:
        """Whether running it more often than needed costs next to nothing."""
        return self._search.is_cheap(point.feed)

    def is_costly(self, point: Point) -> bool:
        """Whether a single run of the model on it is felt."""
        return self._search.is_costly(point.feed)

    def shapes(
        self, names: Collection[str], point: Point | None = None
    ) -> Mapping[str, Sequence[int]]:
        """Return the shapes that values of the main graph have in a run, not the smallest one.

        `point`: the run.
        """
        point = self._typical if point is None else point
        if point is None:
            return {}
        known = self._sizes.setdefault(id(point), {**point.feed.shapes, **_shapes(point.outputs)})
        made = (name for node in self.model.graph.node for name in node.output)
        told = known.keys() | {value.name for value in self.model.graph.output}
        wanted = [name for name in made if name in names and name not in told]
        if wanted:
            wider = onnx.ModelProto()
            wider.CopyFrom(self.model)
            wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
            with (
                contextlib.suppress(RunError),
                self._runtime.load(wider, point.provider) as session,
            ):
                known |= {**session.shapes(point.feed.values), **known}
        return {name: shape for name, shape in known.items() if name in names}

    @property
    def bindings(self) -> Mapping[str, int]:
        """The sizes of the symbolic dimensions in the run that `shapes` tells of."""
        return {} if self._typical is None else self._typical.feed.bindings

    @property
    def _typical(self) -> Point | None:
        """The second point, whose batch is more than one, or what there is."""
        return next(reversed(next(iter(self._points.values()), [])[:2]), None)

    def random_outputs(self, provider: str) -> set[str]:
        """Return the leaves known to differ between two runs of the original."""
        return self._random.get(provider, set())

    def silent_outputs(self, provider: str) -> set[str]:
        """Return the leaves that have no elements, or are NaN throughout, on every feed."""
        found = [leaves(point.outputs) for point in self._points.get(provider, ())]
        return {
            name
            for name in (found[0] if found else ())
            if all(_is_silent(outputs.get(name)) for outputs in found)
        }

    def silence(self, provider: str) -> str:
        """Say why no output tells anything, in one sentence; "" where one does."""
        points = self.points(provider)
        if all(is_blank(point.feed.values) for point in points):
            return "all inputs are NaN throughout, so that outputs tell nothing"
        silent = self.silent_outputs(provider)
        if silent and all(name in silent for point in points for name in leaves(point.outputs)):
            return f"output '{min(silent)}' {SILENT}, and so are all others"
        return ""

    def deepen(self, point: Point) -> bool:
        """Measure more of what moves the original's outputs; False where all is measured."""
        if point.noise_level == FULL_NOISE:
            return False
        point.noise_level += 1
        if point.noise_level == REORDERED:
            self._add_run(point, self.model, "extended")
            self._add_run(point, self.model, "all", jumps_only=True)
            self._add_inner_noise(point, 1)
            return True
        with self._runtime.load(self.model, point.provider) as session:
            self._add_draw(session, point, point.noise_level)
            if point.noise_level == FULL_NOISE:
                self._random[point.provider] |= _unsteady(session, point)
        if point.noise_level == FULL_NOISE:
            self._add_inner_noise(point, 2)
        return True

    def is_run_alone(self, point: Point) -> bool:
        """Run what is assumed of a row of a batch; False where it does not run alone."""
        if point.is_assumed:
            try:
                with self._runtime.load(self.model, point.provider) as session:
                    point.outputs = session.run(point.feed.values).outputs
            except RunError as error:
                self.dropped.append(f"{point.feed.name}: {error}")
                return False
            point.is_assumed = False
        return True

    def as_users_run_it(self, point: Point) -> Point | None:
        """Return the point with outputs at ORT's default level; None where that does not run."""
        try:
            with self._runtime.load(self.model, point.provider, "all") as session:
                return replace(point, outputs=session.run(point.feed.values).outputs)
        except RunError:
            return None

    def given_at(self, point: Point, outputs: Mapping[str, Value]) -> bool:
        """Whether the original itself gives these outputs, to the bit, at some level of ORT.

        Where it jumps between its own levels (ties of TopK, boxes that suppress each other), what
        equals one of them is not wrong, however far it is from the others.
        """
        candidate = leaves(outputs)
        for level in _LEVELS:
            try:
                with self._runtime.load(self.model, point.provider, level) as session:
                    own = leaves(session.run(point.feed.values).outputs)
            except RunError:
                continue
            if own.keys() == candidate.keys() and all(
                identical(own[name], candidate[name]) for name in own
            ):
                return True
        return False

    def fallback_scale(self, point: Point, leaf: str) -> float:
        """Return a scale for an output that is zero here: that on other points, or the inputs'."""
        values = [leaves(other.outputs).get(leaf) for other in self._points[point.provider]]
        scale = max((magnitude(value) for value in values), default=0.0)
        if scale > 0:
            return scale
        inputs = leaves(point.feed.values).values()
        return max((magnitude(value) for value in inputs), default=0.0) or 1.0

    def _first_runs(self, provider: str) -> list[Point]:
        if self._options.memory_limit_mib is None:
            shapes = {}
            if self._options.inputs is None:
                shapes = natural_shapes(self.model, self._options.bind)
            try:
                limits = limits_unasked(self.model, self._runtime.limits, shapes)
            except GrowthError as error:
                raise GrowthError(f"{error} (--memory-limit lets it run)") from None
            self._runtime.restrict(limits)
        try:
            session = self._runtime.load(self.model, provider)
        except RunError as error:
            raise ReferenceCannotRunError(f"the original model does not run: {error}") from error
        with session:
            known = next(iter(self._points.values()), None)
            if known is None:
                points = self._search.points(session, provider)
            else:
                points = self._rerun(session, provider, known)
            random = noise.may_be_random(self.model)
            self._random[provider] = _unsteady(session, points[0]) if random else set()
            if self.is_cheap(points[0]):
                for point in points:
                    self._add_draw(session, point, ONE_DRAW)
                    point.noise_level = ONE_DRAW
        return points

    def _rerun(self, session: Session, provider: str, known: Sequence[Point]) -> list[Point]:
        """Run the feeds that another provider has taken."""
        points: list[Point] = []
        last: RunError | None = None
        for point in known:
            try:
                points.append(run_point(session, provider, point.feed))
            except RunError as error:
                self.dropped.append(f"{point.feed.name} ({provider}): {error}")
                last = error
        if not points:
            raise ReferenceCannotRunError(f"the original model does not run on {provider}: {last}")
        return points

    def _add_draw(self, session: Session, point: Point, draw: int) -> None:
        """Move the inputs by one ulp; where they are no floats, the first floats inside."""
        moved = noise.moved_by_ulp(point.feed.values, self.epsilon, self._options.seed + draw)
        if moved is None:
            self._add_inner_noise(point, draw)
            return
        # Should it not run so, other sources of noise remain.
        with contextlib.suppress(RunError):
            point.add_noise(session.run(moved).outputs)

    def _add_inner_noise(self, point: Point, draw: int) -> None:
        zeros = not any(magnitude(value) for value in leaves(point.feed.values).values())
        seed = self._options.seed + draw
        noisy = noise.noisy_model(self.model, seed, constant_maps=zeros)
        if noisy is not None:
            self._add_run(point, noisy, "none")

    def _add_run(
        self, point: Point, model: onnx.ModelProto, level: Level, *, jumps_only: bool = False
    ) -> None:
        with (
            contextlib.suppress(RunError),
            self._runtime.load(model, point.provider, level) as session,
        ):
            point.add_noise(session.run(point.feed.values).outputs, jumps_only=jumps_only)


def _shapes(outputs: Mapping[str, Value]) -> dict[str, Sequence[int]]:
    found = leaves(outputs).items()
    return {name: array.shape for name, array in found if array is not None}


def _is_silent(array: Array | None) -> bool:
    if array is None:
        return False
    if is_discrete(array):
        return array.size == 0
    return bool(np.isnan(wide(array)).all())  # of none, all are


def _unsteady(session: Session, point: Point) -> set[str]:
    """Run once more, in a session that has run before: a fresh one repeats its random numbers."""
    again = leaves(session.run(point.feed.values).outputs)
    first = leaves(point.outputs)
    return {name for name in first if not identical(first[name], again.get(name))}
