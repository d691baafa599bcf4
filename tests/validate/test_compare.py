from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphpass.validate.compare import (
    Noise,
    OutputComparison,
    Place,
    Policy,
    compare_leaf,
    measure_noise,
)
from graphpass.validate.distance import leaves
from graphpass.validate.process.channel import Value

from .models import Array

BASE = 2e-6
RNG = np.random.default_rng(0)


def compare(
    reference: Any,
    candidate: Any,
    *,
    noise: Noise | None = None,
    policy: Policy | None = None,
    fallback_scale: float = 1.0,
) -> OutputComparison:
    return compare_leaf(
        Place("y", "cpu", "normal"),
        reference,
        candidate,
        noise=noise,
        policy=policy or Policy(BASE),
        fallback_scale=lambda: fallback_scale,
    )


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def test_distance_is_relative_to_the_largest_element() -> None:
    close = compare(floats(1000, 0.001), floats(1000, 0.002))
    assert close.ok and close.scale == 1000
    assert close.error == pytest.approx(1e-6, rel=1e-3)
    assert close.needed_tolerance == close.error
    far = compare(floats(1000, 0.001), floats(1000, 0.011))
    assert not far.ok and far.comparable
    assert far.reason == "differs by 1e-05 of its scale"


def test_figures_are_reported() -> None:
    found = compare(floats(1, 2, 4), floats(1, 2, 4.000001))
    assert found.max_abs_error == pytest.approx(1e-6, rel=0.1)
    assert found.max_rel_error == pytest.approx(2.5e-7, rel=0.1)
    assert found.max_ulps == 2
    assert found.cosine == pytest.approx(1)
    assert found.top1_agreement is None and found.noise_floor is None


def test_class_scores_are_counted_by_their_largest() -> None:
    scores, other = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    other[0, 3] = 2
    assert compare(scores, other).top1_agreement == 0.75


def test_the_floor_gives_room() -> None:
    one, two = floats(1, 1), floats(1, 1.001)
    assert not compare(one, two).ok
    assert compare(one, two, noise=Noise(2e-4)).ok
    assert not compare(one, two, noise=Noise(2e-5)).ok


def test_a_huge_floor_is_no_licence() -> None:
    noise = Noise(0.2)
    unsure = compare(floats(1, 1), floats(1, 1.5), noise=noise)
    assert not unsure.ok and not unsure.comparable
    off = compare(floats(1, 1), floats(1, 100), noise=noise)
    assert not off.ok and off.comparable
    equal = compare(floats(1, 1), floats(1, 1 + 1e-6), noise=noise)
    assert equal.ok and equal.comparable


def test_zeros_take_their_scale_from_elsewhere() -> None:
    zeros = floats(0, 0)
    assert compare(zeros, floats(0, 1e-5), fallback_scale=10).ok
    assert not compare(zeros, floats(0, 1e-5), fallback_scale=1).ok
    assert compare(zeros, zeros).ok


def test_nan_and_infinity_must_stay_in_place() -> None:
    one = floats(np.nan, np.inf, -np.inf, 1)
    assert compare(one, one.copy()).ok
    assert compare(one, floats(np.nan, np.inf, -np.inf, 1 + 1e-6)).ok
    for other in (
        floats(np.nan, np.inf, np.inf, 1),
        floats(1, np.inf, -np.inf, 1),
        floats(np.nan, np.inf, -np.inf, np.nan),
    ):
        found = compare(one, other, noise=Noise(0.2))
        assert not found.ok and found.comparable
        assert found.reason == "has NaN or infinity in other places (1 elements)"
        unstable = one != other
        assert compare(one, other, noise=Noise(unstable=unstable)).ok


def test_nan_throughout_is_blank() -> None:
    assert not compare(floats(np.inf), floats(np.inf)).blank
    assert compare(floats(np.nan), floats(np.nan)).blank
    assert not compare(floats(np.nan, 1), floats(np.nan, 1)).blank


def test_shape_and_dtype_must_be_the_same() -> None:
    one = np.zeros((2, 3), np.float32)
    assert compare(one, one.T).reason == "has shape [3, 2] instead of [2, 3]"
    assert compare(one, one.astype(np.float64)).reason == "has dtype float64 instead of float32"
    assert compare(one, None).reason == "is missing"
    assert compare(None, one).reason == "is there, but was not"
    assert compare(None, None).ok
    assert compare(one[:0], one[:0]).ok
    moving = compare(one, one.T, noise=Noise(structure_changed=True))
    assert not moving.ok and not moving.comparable


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (np.arange(100), np.where(np.arange(100) == 7, 0, np.arange(100))),
        (np.zeros(100, bool), np.arange(100) == 7),
        (np.array(["a"] * 100, object), np.array([*"a" * 99, "b"], object)),
    ],
)
def test_what_is_not_float_must_be_equal_unless_noise_flips_it(one: Array, two: Array) -> None:
    assert compare(one, one.copy()).ok
    found = compare(one, two)
    assert not found.ok and found.error == 0.01
    assert found.reason == "differs in 1.00% of its elements"
    assert compare(one, two, noise=Noise(0.01)).ok
    assert not compare(one, two, noise=Noise(0.2)).comparable


def test_a_tolerance_of_the_user_replaces_the_floor() -> None:
    one, two = floats(100, 1), floats(100, 1.5)
    noise = Noise(50.0)
    assert not compare(one, two, noise=noise, policy=Policy(BASE, rtol=1e-3)).ok
    assert compare(one, two, noise=noise, policy=Policy(BASE, rtol=1e-2)).ok
    assert compare(one, two, policy=Policy(BASE, atol=0.6)).ok
    assert not compare(one, two, policy=Policy(BASE, atol=0.4)).ok
    assert not compare(one, floats(100, 1.0001), policy=Policy(BASE, rtol=0.0)).ok
    whole = np.arange(3)
    assert not compare(whole, whole + 1, policy=Policy(BASE, rtol=1.0)).ok


def test_a_slice_is_measured_by_its_own_scale() -> None:
    boxes_and_scores = RNG.uniform(0, 1, (1, 5, 100)).astype(np.float32)
    boxes_and_scores[:, :4] *= 640
    moved = boxes_and_scores.copy()
    moved[0, 4, 17] += 5e-4
    found = compare(boxes_and_scores, moved)
    assert not found.ok and found.part == "[:, 4]"
    assert found.scale <= 1 and found.error == pytest.approx(5e-4, rel=0.1)
    assert found.reason.endswith("of its scale in [:, 4]")
    noisy = measure_noise({"y": boxes_and_scores}, {"y": moved})["y"]
    assert compare(boxes_and_scores, moved, noise=noisy).ok
    assert compare(boxes_and_scores, moved, policy=Policy(BASE, rtol=1e-5)).ok


def test_a_slice_may_move_as_far_as_those_of_its_kind_did() -> None:
    one = RNG.uniform(1e-3, 2e-3, (50, 50)).astype(np.float32)
    again, two = one.copy(), one.copy()
    again[7, 7] += 5e-4
    two[8, 8] += 5e-4
    noise = measure_noise({"y": one}, {"y": again})["y"]
    assert not compare(one, two).ok
    found = compare(one, two, noise=noise)
    assert not found.ok and not found.comparable


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.complex64])
def test_every_float_is_compared_as_float(dtype: Any) -> None:
    one = np.array([1, 2, 4]).astype(dtype)
    two = np.array([1, 2, 5]).astype(dtype)
    found = compare(one, two)
    assert found.error == 0.25 and not found.ok
    assert compare(one, two, policy=Policy(0.3)).ok


def test_noise_is_measured_and_joined() -> None:
    before: dict[str, Value] = {"y": floats(1, 2, np.inf), "z": np.array([1, 2])}
    one = measure_noise(before, {"y": floats(1, 2.5, 3), "z": np.array([1, 3])})
    assert one["y"].distance == 0.5 and one["z"].distance == 0.5
    assert one["y"].unstable is not None and one["y"].unstable.tolist() == [False, False, True]
    two = measure_noise(before, {"y": floats(1, 2.25, np.inf), "z": np.array([1, 2])})
    joined = two["y"].joined(one["y"])
    assert joined.distance == 0.5
    assert joined.unstable is not None and joined.unstable.tolist() == [False, False, True]
    gone = measure_noise(before, {"y": floats(1), "z": np.array([1, 2])})["y"]
    assert gone.structure_changed and gone.joined(one["y"]).structure_changed


def test_sequences_and_maps_are_flattened() -> None:
    flat = leaves({"s": [floats(1), [floats(2)]], "m": [{"cat": 0.5}], "n": None})
    assert list(flat) == [
        "len(s)",
        "s[0]",
        "len(s[1])",
        "s[1][0]",
        "len(m)",
        "m[0][cat]",
        "n",
    ]
    assert flat["n"] is None and flat["m[0][cat]"] == 0.5


@given(st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30))
def test_scaling_both_changes_no_verdict(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    one = rng.standard_normal((3, 40))
    two = one + rng.standard_normal((3, 40)) * 10.0 ** rng.uniform(-9, -3)
    plain = compare(one, two)
    scaled = compare(one * factor, two * factor)
    assert scaled.error == pytest.approx(plain.error, rel=1e-6)
    if plain.error != pytest.approx(plain.tolerance, rel=1e-6):
        assert scaled.ok == plain.ok
