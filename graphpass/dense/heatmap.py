"""Where a dense network sees a class in a picture. Needs Pillow (`graphpass[image]`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from graphpass.dense.map_geometry import NATIVE, OFFSET, STRIDE, WINDOW
from graphpass.dense.picture import ImageInput, Preprocessing, read_picture
from graphpass.errors import ModelError, RuntimeUnavailableError, UsageError
from graphpass.follow.image_input import images
from graphpass.follow.trace import LAYOUTS
from graphpass.ir.model import Model
from graphpass.ir.questions import Tensor
from graphpass.ir.weight import Array
from graphpass.validate.growth import limits_unasked
from graphpass.validate.process.runtime import RunError, Runtime

Pair = tuple[int, int]

_PICTURE_RANK = 4
_ROUNDING = 1e-6
_FLAT = 0.05  # of the scale: so much should a map differ between places


@dataclass(frozen=True)
class Cell:
    """A cell of the map, its score, and the crop that it scores: left, upper, right, lower."""

    row: int
    column: int
    score: float
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Scores:
    """The map of one picture: `values` float [h, w, classes]; the geometry in pixels (y, x).

    `preprocessing`: how pixels became numbers, every default filled in.
    """

    output: str
    pixels: Array
    values: Array
    stride: Pair
    center: tuple[float, float]
    native: Pair
    preprocessing: Preprocessing

    @property
    def height(self) -> int:
        """Rows of cells."""
        return int(self.values.shape[0])

    @property
    def width(self) -> int:
        """Columns of cells."""
        return int(self.values.shape[1])

    @property
    def strongest_class(self) -> int:
        """The class with the largest score anywhere."""
        return int(self.values.max(axis=(0, 1)).argmax())

    @property
    def probabilities(self) -> bool:
        """Whether all scores lie between 0 and 1."""
        return bool((self.values >= 0).all() and (self.values <= 1 + _ROUNDING).all())

    def softmax(self) -> Scores:
        """Take the scores of a cell as logits of one distribution over the classes."""
        powers = np.exp(self.values - self.values.max(axis=2, keepdims=True))
        return replace(self, values=powers / powers.sum(axis=2, keepdims=True))

    def limits(self, index: int) -> tuple[float, float]:
        """Return the scale of a class: 0 to 1, or its smallest and largest score."""
        if self.probabilities:
            return 0.0, 1.0
        scores = self.values[:, :, index]
        return float(scores.min()), float(scores.max())

    def flat(self, index: int) -> str:
        """Say why a map tells nothing about places, "" where it does."""
        scores = self.values[:, :, index]
        low, high = float(scores.min()), float(scores.max())
        if scores.size == 1:
            return "the map has one cell: a larger picture has more"
        if high - low >= _FLAT * (1.0 if self.probabilities else max(abs(low), abs(high), 1e-30)):
            return ""
        return f"scores hardly differ between places ({low:.3g} to {high:.3g})"

    def strongest_cells(
        self, index: int, count: int, *, least: float = -np.inf, overlap: float = 1.0
    ) -> list[Cell]:
        """Return the cells with the largest scores of a class, strongest first.

        `least`: the smallest score of interest. `overlap`: how much of the area that the crops of
        two cells cover together they may share (intersection over union); of those that share
        more, only the stronger is returned.
        """
        self.require_class(index)
        scores = self.values[:, :, index]
        found: list[Cell] = []
        for place in np.argsort(-scores, axis=None, kind="stable"):
            row, column = divmod(int(place), self.width)
            score = float(scores[row, column])
            if len(found) == count or not score >= least:
                break
            box = self._box(row, column)
            if all(_shared(box, other.box) <= overlap for other in found):
                found.append(Cell(row, column, score, box))
        return found

    def require_class(self, index: int) -> None:
        """Raise `UsageError` where there is no such class."""
        if index >= self.values.shape[2]:
            raise UsageError(f"there is no class {index}: the map has {self.values.shape[2]}")

    def _box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Return the crop of the native size around the middle of what the cell sees."""
        edges = []
        for place, dim in ((column, 1), (row, 0)):
            middle = self.center[dim] + place * self.stride[dim]
            low = max(0, round(middle - self.native[dim] / 2))
            high = min(self.pixels.shape[dim], round(middle + self.native[dim] / 2))
            edges.append((low, high))
        (left, right), (upper, lower) = edges
        return left, upper, right, lower


def _shared(one: tuple[int, int, int, int], two: tuple[int, int, int, int]) -> float:
    """Return intersection over union of two boxes."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    common = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return common / (sum(areas) - common) if common else 0.0


def score(
    model: Path | onnx.ModelProto | Model,
    picture: Path,
    preprocessing: Preprocessing,
    map_name: str | None = None,
) -> Scores:
    """Run a dense model on a picture of any size.

    What `preprocessing` leaves open is taken from the model, where `convolutionalize` noted it.

    Raises ModelError where the model is not dense or does not say where its cells lie (only
    `convolutionalize` writes that); UsageError where the picture is too small or no picture.
    """
    loaded = Model.load(model)
    wanted = image_input(loaded)
    output = _map_of(loaded, map_name)
    stride, window, offset, native = (
        _noted(loaded, key, output.name) for key in (STRIDE, WINDOW, OFFSET, NATIVE)
    )
    pixels = read_picture(picture, wanted.channels)
    if pixels.shape[0] < native[0] or pixels.shape[1] < native[1]:
        raise UsageError(
            f"{picture} has {pixels.shape[0]}x{pixels.shape[1]} pixels, fewer than the "
            f"{native[0]}x{native[1]} that the network needs"
        )
    how = preprocessing.over(Preprocessing.noted(loaded.proto))
    how = how.resolved(wanted.channels, wanted.dtype)
    feed = wanted.batch(how.apply(pixels, wanted.dtype)[None])
    try:
        with Runtime() as runtime:
            shapes = {wanted.name: feed.shape}
            runtime.restrict(limits_unasked(loaded.proto, runtime.limits, shapes))
            with runtime.load(loaded.proto, level="all") as session:
                found = np.asarray(session.run({wanted.name: feed}).outputs[output.name])
    except RunError as error:
        raise RuntimeUnavailableError(str(error)) from None
    values = found[0] if wanted.layout == "NHWC" else found[0].transpose(1, 2, 0)
    center = (offset[0] + window[0] / 2, offset[1] + window[1] / 2)
    return Scores(output.name, pixels, values.astype(np.float64), stride, center, native, how)


def image_input(model: Model) -> ImageInput:
    """Return what the model's image input wants. Raises ModelError where there is not just one."""
    found = images(model.graph)
    shape = (found[0].shape or []) if found else []
    if len(found) != 1 or len(shape) != _PICTURE_RANK:
        raise ModelError("the model does not have exactly one image input")
    layout = "NCHW" if isinstance(shape[1], int) else "NHWC"
    if isinstance(shape[1], int) and isinstance(shape[3], int):
        layout = "NHWC" if shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4) else "NCHW"
    channels = shape[6 - sum(LAYOUTS[layout])]
    if not isinstance(channels, int):
        raise ModelError(f"how many channels '{found[0].name}' has is not known")
    height, width = (shape[axis] for axis in LAYOUTS[layout])
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    return ImageInput(found[0].name, size, channels, layout, np.dtype(found[0].dtype))


def _map_of(model: Model, name: str | None) -> Tensor:
    maps = [o for o in model.graph.outputs if o.shape is not None and len(o.shape) == 4]
    if name is not None:
        maps = [output for output in maps if output.name == name]
    if not maps:
        what = f"no map '{name}' among its outputs" if name else "no map among its outputs"
        raise ModelError(f"the model has {what}: make one with graphpass convolutionalize")
    found: Tensor = maps[0]
    return found


def _noted(model: Model, key: str, output: str) -> Pair:
    """Read "32,32" or "a=32,32;b=16,16" from the metadata."""
    text = next((e.value for e in model.proto.metadata_props if e.key == key), None)
    if text is None:
        raise ModelError(
            f"the model does not say where its cells lie ({key} is missing from its metadata)"
        )
    for part in text.split(";"):
        name, _, pair = part.rpartition("=")
        if not name or name == output:
            height, _, width = pair.partition(",")
            return int(height), int(width)
    raise ModelError(f"{key} says nothing about the output '{output}'")


def read_labels(path: Path) -> list[str]:
    """Read the names of the classes, one a line."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None


def class_name(scores: Scores, index: int, labels: list[str] | None) -> str:
    """Return the label of a class, or its number."""
    named = labels is not None and index < len(labels)
    return labels[index] if labels is not None and named else f"class {index}"
