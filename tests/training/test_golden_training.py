"""Training against the reference implementations, step for step."""

import pytest

from tests.tables.golden_training import CASES, training_errors

# AdamW moves parameters without a gradient, such as the biases of keys, by rounding errors.
LIMITS = {
  "losses": 1e-5,
  "learning rates": 1e-6,
  "gradient norms": 1e-5,
  "norms": 1e-4,
  "moved": 2e-4,
  "final": 1e-5,
}


@pytest.mark.parametrize("case", CASES)
def test_training_equals_the_reference_step_for_step(case):
  errors = training_errors(case)
  assert errors.keys() == LIMITS.keys()
  assert all(errors[kind] < limit for kind, limit in LIMITS.items()), errors
