"""Training against the reference implementations, step for step."""

import pytest

from tests.tables.golden_training import CASES, training_errors


@pytest.mark.parametrize("case", CASES)
def test_training_equals_the_reference_step_for_step(case):
  errors = training_errors(case)
  assert errors["losses"] < 1e-5, errors
  assert errors["learning rates"] < 1e-6, errors
  assert max(errors.values()) < 1e-4, errors
