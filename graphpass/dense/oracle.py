"""The window oracle: what a score map must hold, from the original network alone.

The original's trunk runs on the large image. Out of its feature map every window of the native
size is cut, and the *original's own head* answers for each. That is what the map's cell must be.
Unlike the scores of image crops this is exact for padded trunks, too: a crop sees zeros around
it, the window sees its neighbours (Long, Shelhamer & Darrell, 2015, section 3.1).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphpass.dense.map_geometry import Size, spelled
from graphpass.dense.trunk_and_heads import (
    Head,
    cut_heads,
    cut_trunk,
    declared,
    start_of,
)
from graphpass.errors import DifferenceError, ModelError, RuntimeUnavailableError
from graphpass.follow.image_input import trace_image
from graphpass.follow.trace import LAYOUTS
from graphpass.follow.traced import Collapse, Trace
from graphpass.ir.model import Model
from graphpass.ir.questions import operator
from graphpass.ir.weight import Array
from graphpass.validate.compare import (
    Noise,
    OutputComparison,
    Place,
    Policy,
    compare_leaf,
    measure_noise,
)
from graphpass.validate.growth import GrowthError, limits_unasked
from graphpass.validate.logits import softmax_outputs, with_logits
from graphpass.validate.noise import arithmetic_epsilon, base_tolerance, moved_by_ulp
from graphpass.validate.process.runtime import Limits, RunError, Runtime, Session
from graphpass.validate.resolutions import Resolutions

Cell = tuple[int, ...]  # its image, and where in it

_CELLS_AT_ONCE = 32
_MOST_CELLS = 256  # of one output at one size; beyond, a seeded sample with the corners in it
# A cell that reads other pixels is off by the scale itself; one that sums them in another order
# by a few noise floors. The factor may be generous, between 1e-6 and 1 there is room.
_NOISE_FACTOR = 32.0
_MOST_VALUES = 20_000_000  # of the images of a batch
_DRAWN = 100  # integers that an image of integers is drawn from, when it is not bytes


@dataclass(frozen=True)
class Checked:
    """One output at one size and batch: how far the map was from the original's own answers.

    `size`: the image, (height, width) in pixels or such. `map_size`: cells. `cells`: how many of
    them were compared, over all images of the batch.
    """

    output: str
    size: Size
    batch: int
    map_size: Size
    cells: int
    comparison: OutputComparison

    @property
    def ok(self) -> bool:
        """Whether every cell is within the tolerance."""
        return self.comparison.ok


@dataclass(frozen=True)
class Probe:
    """Inputs and the outputs that the checked model gave: the delivered file must give the same.

    `limits`, `custom_ops`: of the runtime that the file is run in.
    """

    feed: Mapping[str, Array]
    outputs: Mapping[str, Array]
    limits: Limits
    custom_ops: Sequence[Path] = ()

    def fails(self, path: Path) -> str | None:
        """Run the model file; return how it differs, None where it gives the same bits."""
        try:
            with (
                Runtime(self.limits, custom_ops=self.custom_ops) as runtime,
                runtime.load(path) as session,
            ):
                found = session.run(dict(self.feed)).outputs
        except RunError as error:
            return str(error)
        for name, expected in self.outputs.items():
            if not np.array_equal(expected, np.asarray(found[name]), equal_nan=True):
                return f"output '{name}' is not what it was"
        return None


class Oracle:
    """Knows the answers of one original network. `close` frees the runtime's memory."""

    def __init__(
        self,
        original: Model,
        native: Trace,
        runtime: Runtime,
        *,
        pooled: bool,
        cams: Mapping[str, str] | None = None,
    ) -> None:
        """`native`: the original traced at its native resolution. `pooled`: one answer an image.

        `cams`: class activation maps by the name of the output that each is of.
        """
        self.native = native
        self.pooled = pooled
        self.runtime = runtime
        self.original = original
        self.epsilon = arithmetic_epsilon(original.proto)
        self.policy = Policy(base_tolerance(self.epsilon), _NOISE_FACTOR)
        self.maps = [t.name for t in native.graph.outputs if native.is_map(t)]
        self.heads = cut_heads(original.proto, native)
        own, self.trunk, self.freed = cut_trunk(original, native, self.maps)
        if self.freed:
            self._require_equal(own)
        self.cams = dict(cams or {})
        self.bare, self.logit_heads = self._logit_heads() if self.cams else (native, [])
        self._sessions: dict[str, Session] = {}

    def _require_equal(self, own: onnx.ModelProto) -> None:
        """Hold a trunk in which something had to be freed against the original's own.

        Raises DifferenceError where it is another at other sizes.
        """
        image = self.native.image.name
        feed = {image: self._draw(self.native.size, self.fixed_batch or 1)}
        judge = Resolutions(own, self.runtime, "cpu", feed, self.policy, self.epsilon)
        compared, problem = judge.compare(self.trunk, set())
        wrong = [f"'{c.name}' {c.reason} at {c.feed}" for c in compared if not c.ok]
        if problem or wrong:
            raise DifferenceError(
                f"the part of the network that makes maps is another at other sizes: "
                f"{problem or wrong[0]}; nothing was written"
            )

    def _logit_heads(self) -> tuple[Trace, list[Head]]:
        """Trace the original without the Softmax at its end, and cut out its heads."""
        bare = giving_logits(self.original)
        found = trace_image(bare.graph)
        return found, cut_heads(bare.proto, found)

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the network is made for, if it takes no other."""
        batch = self.native.axes[id(self.native.image)][0]
        return batch if isinstance(batch, int) else None

    def check(self, candidate: Session, size: Size, batch: int) -> list[Checked]:
        """Compare every output of `candidate` on a drawn image of `size` pixels."""
        image = self._draw(size, batch)
        name = self.native.image.name
        self._require_little(image.shape)
        found = candidate.run({name: image}).outputs
        expected = self._expected(image, size)
        checks = [self._compare(out, expected, found, size, batch, None) for out in expected]
        if all(check.ok for check in checks):
            return checks
        noise = self._noise(image, size, expected)
        return [self._compare(out, expected, found, size, batch, noise[out]) for out in expected]

    def _noise(
        self, image: Array, size: Size, expected: Mapping[str, tuple[Array, Any]]
    ) -> dict[str, Noise]:
        """Measure how far the answers move with the image, and with what the head reads, by ulps.

        The head has a noise of its own: pooling a window and pooling the whole map round
        differently, and that difference is not averaged away as one in each pixel is.
        """
        name = self.native.image.name
        moved = moved_by_ulp({name: image}, self.epsilon, 1)
        other = image if moved is None else np.asarray(moved[name])
        runs = [self._expected(other, size), self._expected(image, size, stirred=True)]
        noise = {}
        for output, (rows, _) in expected.items():
            one, two = (
                measure_noise({output: rows}, {output: run[output][0]})[output] for run in runs
            )
            noise[output] = one.joined(two)
        return noise

    def check_native(self, candidate: Session, batch: int) -> list[Checked]:
        """Compare with the original itself at its native size, where the map is one cell."""
        image = self._draw(self.native.size, batch)
        self._require_little(image.shape)
        feed = {self.native.image.name: image}
        found = candidate.run(feed).outputs
        moved = moved_by_ulp(feed, self.epsilon, 1) or feed
        key = "original"
        answers = self._by_batch(key, self.original.proto, image)
        again = self._by_batch(key, self.original.proto, np.asarray(moved[self.native.image.name]))
        self._sessions.pop(key).close()  # it holds as much memory as all others together
        checks = []
        for name, value in answers.items():
            expected, noisy = (np.asarray(v).reshape(batch, -1) for v in (value, again[name]))
            cells = np.asarray(found[name]).reshape(batch, -1)
            noise = measure_noise({name: expected}, {name: noisy})[name]
            compared = self._compared(name, expected, cells, "native size", noise)
            one = (1,) * len(self.native.size)
            checks.append(Checked(name, self.native.size, batch, one, batch, compared))
        return checks

    def probe(self, candidate: Session) -> Probe:
        """Return one image and what the candidate makes of it, to know it again by."""
        batch = self.fixed_batch or 1
        feed = {self.native.image.name: self._draw(self.native.size, batch)}
        answers = {n: np.asarray(v) for n, v in candidate.run(feed).outputs.items()}
        libraries = [Path(library) for library in self.runtime.custom_ops]
        return Probe(feed, answers, self.runtime.limits, libraries)

    def close(self) -> None:
        """Close the sessions."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    # ------------------------------------------------------------------------ what must come

    def _draw(self, size: Size, batch: int) -> Array:
        shape = [int(s) if isinstance(s, int) else 0 for s in self.native.image.shape or ()]
        shape[0] = batch
        for axis, pixels in zip(LAYOUTS[self.native.layout], size, strict=True):
            shape[axis] = pixels
        kind = np.dtype(self.native.image.dtype)
        if math.prod(shape) > _MOST_VALUES:
            raise RuntimeUnavailableError(
                f"an image of {spelled(size)} pixels has {math.prod(shape)} values, too many "
                "to check anything with (--no-validate writes without running the model)"
            )
        rng = np.random.default_rng([*size, batch])
        if kind.kind == "f":  # in half the memory of doubles
            return rng.standard_normal(shape, np.float32).astype(kind, copy=False)
        return rng.integers(0, 256 if kind == np.uint8 else _DRAWN, shape).astype(kind)

    def _require_little(self, shape: Sequence[int]) -> None:
        """Refuse what paddings or strides without end make of an image of this shape."""
        try:
            limits_unasked(self.trunk, self.runtime.limits, {self.native.image.name: shape})
        except GrowthError as error:
            raise RuntimeUnavailableError(
                f"{error} (--no-validate writes without running it)"
            ) from None

    def _expected(
        self, image: Array, size: Size, *, stirred: bool = False
    ) -> dict[str, tuple[Array, Any]]:
        """Return, for each output, its cells as rows and which cells these are.

        `stirred`: what the head reads, pooled where it pools, is moved by rounding errors.
        """
        features = self._by_batch("trunk", self.trunk, image)
        expected: dict[str, tuple[Array, Any]] = {}
        for number, head in enumerate(self.heads):
            if self.pooled:
                cells = [(index, *[0] * len(size)) for index in range(len(image))]
                inputs = self._pooled_inputs(head, features)
            else:
                cells = self._cells(head, features, size)
                inputs = self._windows(head, features, cells)
            pooled = self.pooled
            if stirred and not pooled:
                inputs, pooled = self._pooled_windows(head, inputs), True
            if stirred:
                inputs = self._stirred(head, inputs)
            answers = self._answers(f"head {number}", head, inputs, len(cells), pooled)
            for name in head.outputs:
                expected[name] = (answers[name].reshape(len(cells), -1), cells)
        for name in self.maps:
            expected[name] = (features[name].reshape(len(image), -1), None)
        for number, head in enumerate(self.logit_heads):
            expected.update(self._pixels(number, head, features))
        return expected

    def _pixels(
        self, number: int, head: Head, features: Mapping[str, Array]
    ) -> dict[str, tuple[Array, Any]]:
        """Let the head answer for every pixel of the map as if that were the mean: the CAM."""
        wanted = {out: cam for out, cam in self.cams.items() if out in head.outputs}
        (collapse,) = head.collapses
        places = self.bare.places(collapse.source)
        array = np.moveaxis(features[collapse.source.name], places, range(1, 1 + len(places)))
        cells = _sample(array.shape[: 1 + len(places)])
        rows = np.stack([array[cell] for cell in cells])
        start = start_of(collapse, True)
        shape = [s if isinstance(s, int) else -1 for s in declared(self.bare, start)[1]]
        inputs = {start.name: rows.reshape(len(cells), *shape[1:])}
        answers = self._answers(f"logits {number}", head, inputs, len(cells), True)
        return {cam: (answers[out], cells) for out, cam in wanted.items()}

    def _stirred(self, head: Head, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Move what the head reads by an ulp; a mean over n pixels by √n, as its rounding errors.

        (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 4.2: a sum of n
        terms is off by up to n−1 roundings, by about √n of them where they are independent.)
        """
        terms = [
            np.prod(self.native.map_size(c.source)) for c in head.collapses if c.kind == "pool"
        ]
        epsilon = self.epsilon * float(np.sqrt(max(terms, default=1)))
        moved = moved_by_ulp(inputs, epsilon, 2) or inputs
        return {name: np.asarray(value) for name, value in moved.items()}

    def _pooled_inputs(self, head: Head, features: Mapping[str, Array]) -> dict[str, Array]:
        """Pool every feature map over the whole of each image."""
        return {
            c.node.outputs[0].name: _pooled(c, self.native, features[c.source.name])
            for c in head.collapses
        }

    def _windows(
        self, head: Head, features: Mapping[str, Array], cells: Sequence[Cell]
    ) -> dict[str, Array]:
        """Cut a window of the native size for each cell; they lie along the batch."""
        return {
            c.source.name: np.concatenate([_cut_window(self.native, c, features, n) for n in cells])
            for c in head.collapses
        }

    def _pooled_windows(self, head: Head, windows: Mapping[str, Array]) -> dict[str, Array]:
        """Pool those windows that the head pools; the others stay."""
        pooled = {}
        for collapse in head.collapses:
            window = windows[collapse.source.name]
            if collapse.kind == "pool":
                window = _pooled(collapse, self.native, window)
            pooled[start_of(collapse, True).name] = window
        return pooled

    def _cells(self, head: Head, features: Mapping[str, Array], size: Size) -> list[Cell]:
        """Return the cells to look at, such as (image, row, column): all, or a sample."""
        counts = set()
        for collapse in head.collapses:
            array = features[collapse.source.name]
            places = self.native.places(collapse.source)
            window = self.native.map_size(collapse.source)
            counts.add(tuple(array.shape[p] - w + 1 for p, w in zip(places, window, strict=True)))
        if len(counts) != 1:
            raise ModelError(
                f"the head joins maps whose windows differ in number at {spelled(size)}"
            )
        batch = len(features[head.collapses[0].source.name])
        return _sample((batch, *counts.pop()))

    def _answers(
        self, key: str, head: Head, inputs: Mapping[str, Array], count: int, pooled: bool
    ) -> dict[str, Array]:
        """Run the original's head on `count` windows, as many at a time as its batch allows."""
        proto = head.from_pooled if pooled else head.from_maps
        key = f"{key} {'pooled' if pooled else ''}"
        at_once = self.fixed_batch or _CELLS_AT_ONCE
        image = self.native.image
        wants_image = any(value.name == image.name for value in proto.graph.input)
        parts: dict[str, list[Array]] = {name: [] for name in head.outputs}
        for start in range(0, count, at_once):
            stop = min(start + at_once, count)
            rows = [min(row, count - 1) for row in range(start, start + at_once)]
            rows = rows if self.fixed_batch else rows[: stop - start]
            feed = {name: np.ascontiguousarray(array[rows]) for name, array in inputs.items()}
            if wants_image:  # for its batch alone: what has pixels comes through the windows
                feed[image.name] = np.zeros_like(self._draw(self.native.size, len(rows)))
            answers = self._run(key, proto, feed)
            for name, parts_of in parts.items():
                parts_of.append(answers[name].reshape(len(rows), -1)[: stop - start])
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def _by_batch(self, key: str, proto: onnx.ModelProto, image: Array) -> dict[str, Array]:
        """Run a part of the original on images, as many at a time as its batch allows."""
        at_once = self.fixed_batch or len(image)
        name = self.native.image.name
        runs = [
            self._run(key, proto, {name: image[start : start + at_once]})
            for start in range(0, len(image), at_once)
        ]
        return {out: np.concatenate([run[out] for run in runs]) for out in runs[0]}

    def _run(self, key: str, proto: onnx.ModelProto, feed: Mapping[str, Array]) -> dict[str, Array]:
        if key not in self._sessions:
            self._sessions[key] = self.runtime.load(proto)
        outputs = self._sessions[key].run(dict(feed)).outputs
        return {name: np.asarray(value) for name, value in outputs.items()}

    # ---------------------------------------------------------------------------- comparison

    def _compare(
        self,
        name: str,
        expected: Mapping[str, tuple[Array, Any]],
        found: Mapping[str, Any],
        size: Size,
        batch: int,
        noise: Noise | None,
    ) -> Checked:
        rows, cells = expected[name]
        array = np.asarray(found[name])
        map_size: Size = (1,) * len(size)
        if cells is None or (self.pooled and name not in self.cams.values()):
            picked = array.reshape(batch, -1)
        else:
            channels_last = self.native.channels_last or array.ndim == 1 + len(size)
            by_cell = array if channels_last else np.moveaxis(array, 1, -1)
            map_size = by_cell.shape[1 : 1 + len(size)]
            windows = tuple(max(cell[1 + dim] for cell in cells) + 1 for dim in range(len(size)))
            if map_size != windows:  # not as many cells as there are windows
                picked = np.empty((0, 0), array.dtype)
            else:
                picked = np.stack([by_cell[cell].reshape(-1) for cell in cells])
        feed = f"{spelled(size)}, batch {batch}"
        compared = self._compared(name, rows, picked, feed, noise)
        return Checked(name, size, batch, map_size, len(rows), compared)

    def _compared(
        self, name: str, expected: Array, found: Array, feed: str, noise: Any
    ) -> OutputComparison:
        return compare_leaf(
            Place(name, "cpu", feed),
            expected,
            found,
            noise=noise,
            policy=self.policy,
            fallback_scale=lambda: 1.0,
        )


def giving_logits(model: Model) -> Model:
    """Return a model whose outputs are what its own Softmax reads, where they are a Softmax."""
    bare = model.copy()
    bare.restore(with_logits(bare.proto, softmax_outputs(bare.proto)))
    return bare


def _sample(shape: Sequence[int]) -> list[Cell]:
    """Return the index of every cell; of many, a seeded sample and the corners."""
    if math.prod(shape) <= _MOST_CELLS:
        return list(np.ndindex(*shape))
    picked = np.random.default_rng(0).choice(math.prod(shape), _MOST_CELLS, replace=False)
    corners = itertools.product((0,), *[(0, size - 1) for size in shape[1:]])
    last = tuple(size - 1 for size in shape)
    drawn = zip(*(index.tolist() for index in np.unravel_index(picked, shape)), strict=True)
    return sorted({*corners, last, *drawn})


def _cut_window(
    native: Trace, collapse: Collapse, features: Mapping[str, Array], cell: Cell
) -> Array:
    image, *corner = cell
    array = features[collapse.source.name]
    places = native.places(collapse.source)
    index: list[slice] = [slice(None)] * array.ndim
    index[0] = slice(image, image + 1)
    for place, start, length in zip(places, corner, native.map_size(collapse.source), strict=True):
        index[place] = slice(start, start + length)
    return array[tuple(index)]


def _pooled(collapse: Collapse, native: Trace, feature: Array) -> Array:
    """Pool over the whole map in double precision."""
    axes = native.places(collapse.source)
    maximum = operator(collapse.node) in ("GlobalMaxPool", "MaxPool", "ReduceMax")
    wide = feature.astype(np.float64)
    pooled = wide.max(axes) if maximum else wide.mean(axes)
    shape = [size if isinstance(size, int) else -1 for size in _declared_out(native, collapse)]
    shape[0] = len(feature)
    result: Array = pooled.reshape(shape).astype(feature.dtype)
    return result


def _declared_out(native: Trace, collapse: Collapse) -> list[int | None]:
    return declared(native, collapse.node.outputs[0])[1]


__all__ = ["Checked", "Oracle", "Probe", "giving_logits"]
