"""The options of validation are declared once, and read from what public functions take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphpass
from graphpass.testing import graph
from graphpass.validate.options import ValidationArguments, ValidationOptions

MODEL = graph("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")


def test_public_functions_take_every_option() -> None:
    assert set(ValidationArguments.__annotations__) == set(ValidationOptions.__dataclass_fields__)


def test_arguments_are_brought_into_one_form() -> None:
    array = np.zeros(3, np.float32)
    found = ValidationOptions.of(providers=["cpu", "cpu"], inputs="a.npz", bind=None, seed=7)
    assert found == ValidationOptions(inputs=Path("a.npz"), seed=7)
    assert ValidationOptions.of(inputs={"x": array}).inputs == {"x": array}
    assert ValidationOptions.of() == ValidationOptions()


def test_an_option_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(TypeError, match="rtoll"):
        graphpass.optimize(MODEL, rtoll=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="rtoll"):
        graphpass.compare(MODEL, MODEL, rtoll=1.0)  # type: ignore[call-arg]
