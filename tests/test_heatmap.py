"""A map of scores over a picture: what is drawn, which boxes, and how pixels became numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from graphpass.cli import run
from graphpass.dense.convolutionalize import convolutionalize
from graphpass.dense.drawing import Drawing, said
from graphpass.dense.heatmap import Cell, Scores
from graphpass.dense.picture import Preprocessing
from graphpass.errors import ModelError, UsageError
from tests.small_networks import network

FIXTURES = Path(__file__).parents[1] / "fixtures"
DIGITS_SCALE = 1 / 127.5
BYTES = Preprocessing(1.0, (0.0,), (1.0,))


def scores(values: Any, size: tuple[int, int] = (48, 64), channels: int = 3) -> Scores:
    """Return the scores of one class in cells 8 pixels apart, each of which scores 16x16."""
    pixels = np.zeros((*size, channels), np.uint8)
    held = np.asarray(values, float)[:, :, None]
    return Scores("y", pixels, held, (8, 8), (8.0, 8.0), (16, 16), BYTES)


def drawn(found: Scores, target: Path, cells: list[Cell], *, overlay: bool) -> npt.NDArray[Any]:
    Drawing(found, 0, "cat", cells, "cat  0.9  ·  m.onnx").write(target, overlay_only=overlay)
    with Image.open(target) as picture:
        return np.asarray(picture)


# ------------------------------------------------------------------------------------- boxes


def test_of_boxes_that_overlap_the_strongest_is_told() -> None:
    values = np.full((5, 7), 0.1)
    values[1, 1], values[1, 2], values[4, 6] = 0.9, 0.8, 0.7
    found = scores(values)
    cells = found.strongest_cells(0, 2, overlap=0.1)
    assert [(cell.row, cell.column) for cell in cells] == [(1, 1), (4, 6)]
    assert cells[0].box == (8, 8, 24, 24)
    plain = found.strongest_cells(0, 2)
    assert [(cell.row, cell.column) for cell in plain] == [(1, 1), (1, 2)]
    # neighbours share a third: 8x16 of 24x16 pixels
    near = found.strongest_cells(0, 2, overlap=0.34)
    assert [(cell.row, cell.column) for cell in near] == [(1, 1), (1, 2)]
    assert len(found.strongest_cells(0, 9, least=0.75)) == 2
    with pytest.raises(UsageError, match="there is no class 1: the map has 1"):
        found.strongest_cells(1, 1)


# ---------------------------------------------------------------------------------- the scale


def test_probabilities_have_the_whole_scale_and_others_their_own() -> None:
    assert scores([[0.2, 0.6]]).limits(0) == (0.0, 1.0)
    assert scores([[0.2, 1.0000001]]).limits(0) == (0.0, 1.0)
    assert scores([[-3.0, 5.0]]).limits(0) == (-3.0, 5.0)


def test_softmax_makes_probabilities_of_logits() -> None:
    two = replace(scores([[0.0, 0.0]]), values=np.array([[[1000.0, 0.0], [2.0, 2.0]]]))
    assert not two.probabilities
    assert two.softmax().values.tolist() == [[[1.0, 0.0], [0.5, 0.5]]]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([[0.5, 0.54]], "scores hardly differ between places (0.5 to 0.54)"),
        ([[0.5, 0.56]], ""),
        ([[100.0, 101.0]], "scores hardly differ between places (100 to 101)"),
        ([[-100.0, 101.0]], ""),
        ([[0.0, 0.0]], "scores hardly differ between places (0 to 0)"),
        ([[0.5]], "the map has one cell: a larger picture has more"),
    ],
)
def test_flat_maps_are_told(values: Any, told: str) -> None:
    assert scores(values).flat(0) == told


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.5, "0.50"), (0.004, "0.004"), (0.0, "0"), (-3.25, "-3.25"), (123.4, "1.2e+02")],
)
def test_scores_are_short(score: float, text: str) -> None:
    assert said(score) == text


# --------------------------------------------------------------------------------- the picture


@pytest.mark.parametrize("channels", [1, 3])
def test_the_overlay_is_as_large_as_the_picture_and_transparent(
    tmp_path: Path, channels: int
) -> None:
    values = np.zeros((5, 7))
    values[2, 3] = 1.0  # its middle is the pixel (24, 32)
    pixels = drawn(scores(values, channels=channels), tmp_path / "o.png", [], overlay=True)
    assert pixels.shape == (48, 64, 4)
    opaque = pixels[:, :, 3]
    assert opaque[24, 32] > 150 and opaque[24, 32] >= opaque.max() - 25
    assert opaque[2, 2] == 0 and opaque[24, 50] == 0


def test_the_map_fades_towards_the_edges(tmp_path: Path) -> None:
    opaque = drawn(scores(np.ones((5, 7))), tmp_path / "o.png", [], overlay=True)[:, :, 3]
    # cells answer for the pixels 4 to 44 and 4 to 60; beyond, there is less and less
    assert opaque[24, 32] == opaque[10, 10] > 190
    assert opaque[24, 0] < opaque[24, 2] < opaque[24, 5]
    assert opaque[47, 32] < opaque[45, 32] < opaque[42, 32]


def test_a_box_has_a_dark_halo(tmp_path: Path) -> None:
    cells = [Cell(2, 3, 0.9, (100, 80, 200, 180))]
    pixels = drawn(scores(np.zeros((37, 47)), (300, 380)), tmp_path / "o.png", cells, overlay=True)
    row = pixels[130, 90:112].astype(int)
    bright, dark = (row[:, 0] > 230) & (row[:, 3] > 230), (row[:, 0] < 60) & (row[:, 3] > 150)
    assert bright.any() and dark[: np.argmax(bright)].any() and dark[np.argmax(bright) :].any()


def test_small_pictures_are_drawn_large_and_large_ones_as_they_are(tmp_path: Path) -> None:
    small = drawn(scores(np.zeros((5, 7))), tmp_path / "a.png", [], overlay=False)
    assert small.shape[1] == 10 * 64 + 90 and small.shape[0] == 10 * 48 + 60
    large = drawn(scores(np.zeros((5, 7)), (700, 900)), tmp_path / "b.png", [], overlay=False)
    assert large.shape[:2] == (700 + 60, 900 + 90)


# ---------------------------------------------------------------------------- the preprocessing


def test_what_convolutionalize_was_told_is_noted_and_used(tmp_path: Path, capfd: Any) -> None:
    model, page = tmp_path / "dense.onnx", tmp_path / "page.png"
    told = ["--scale", str(DIGITS_SCALE), "--mean", "1", "-q"]
    source = str(FIXTURES / "digits.onnx")
    assert run(["convolutionalize", source, "-o", str(model), "--no-validate", *told]) == 0
    noted = {entry.key: entry.value for entry in onnx.load(model).metadata_props}
    assert noted["graphpass.scale"] == repr(DIGITS_SCALE) and noted["graphpass.mean"] == "1.0"
    assert "graphpass.std" not in noted and "accuracy.scores" in noted
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(page)
    arguments = ["heatmap", str(model), str(page), "-o", str(tmp_path / "o.png")]
    assert run(arguments) == 0
    assert "input: (pixel · 0.007843 − [1]) / [1]" in capfd.readouterr().out
    assert run([*arguments, "--mean", "0.5", "--overlay-only"]) == 0
    assert "input: (pixel · 0.007843 − [0.5]) / [1]" in capfd.readouterr().out
    with Image.open(tmp_path / "o.png") as picture:
        assert picture.size == (64, 48)
    # also into a model that is dense already, in place of what is there
    assert run(["convolutionalize", str(model), "-o", str(model) + "2", "--mean", "2"]) == 0
    noted = {entry.key: entry.value for entry in onnx.load(str(model) + "2").metadata_props}
    assert noted["graphpass.mean"] == "2.0" and "graphpass.scale" in noted


def test_a_note_of_somebody_else_is_refused_by_name() -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key="graphpass.mean", value="a,b")
    with pytest.raises(ModelError, match=r"graphpass\.mean is no list of numbers: a,b"):
        Preprocessing.noted(model)


def test_preprocessing_says_all_that_it_applies() -> None:
    how = Preprocessing().resolved(3, np.dtype(np.float32))
    assert str(how) == "(pixel · 0.003922 − [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]"
    assert Preprocessing().resolved(3, np.dtype(np.uint8)) == BYTES
    assert Preprocessing(mean=(1.0,)).over(Preprocessing(2.0, (3.0,))) == Preprocessing(2.0, (1.0,))
    with pytest.raises(UsageError, match="--std has 2 numbers, but the network sees 3 channels"):
        Preprocessing(std=(1.0, 2.0)).resolved(3, np.dtype(np.float32))


def test_scores_that_are_none_or_flat_are_warned_of(tmp_path: Path, capfd: Any) -> None:
    model, page = tmp_path / "dense.onnx", tmp_path / "page.png"
    convolutionalize(network("vgg"), check=False).save(model)
    Image.fromarray(np.full((80, 80, 3), 127, np.uint8)).save(page)
    arguments = ["heatmap", str(model), str(page), "-o", str(tmp_path / "o.png"), "--class", "0"]
    assert run(arguments) == 0
    assert "the scores are no probabilities (--softmax makes some of" in capfd.readouterr().err
    assert run([*arguments, "--softmax", "--top", "0"]) == 0
    done = capfd.readouterr()
    assert "no probabilities" not in done.err and len(done.out.splitlines()) == 2
