import pytest

from graphpass.validate import ValidationOptions, Validator

from .models import convnet


@pytest.mark.parametrize("seed", range(5))
def test_a_right_fold_is_within_tolerance_and_one_wrong_weight_is_not(seed: int) -> None:
    with Validator(convnet(seed=seed), ValidationOptions(seed=seed)) as validator:
        right = validator.check(convnet(seed=seed, folded=True))
        wrong = validator.check(convnet(seed=seed, folded=True, weight_error=0.01))
    assert right.status == "within tolerance"
    assert all(c.tolerance < 1e-5 for c in right.comparisons)
    assert wrong.status == "differs"
    assert "output 'y' differs by" in wrong.reason
