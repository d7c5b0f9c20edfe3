"""Checks of values from users; each raises ValueError with one line that names the value."""

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Sequence


def fields(config, *names: str) -> dict:
  """Returns attributes by name, as in `check_at_least(1, **fields(config, "width"))`."""
  return {name: getattr(config, name) for name in names}


def set_sizes(config, name: str) -> None:
  """Converts a field of a frozen dataclass to a tuple, after checking for positive integers."""
  sizes = getattr(config, name)
  is_sequence = isinstance(sizes, Sequence) and not isinstance(sizes, str)
  if not (is_sequence and sizes and all(isinstance(size, int) and size > 0 for size in sizes)):
    raise ValueError(f"{name} must be positive integers, got {sizes!r}")
  object.__setattr__(config, name, tuple(sizes))


def set_range(config, name: str) -> None:
  """Converts a field of a frozen dataclass to a tuple, after checking 0 < low <= high."""
  low_high = tuple(getattr(config, name))
  if len(low_high) != 2 or not 0 < low_high[0] <= low_high[1]:
    raise ValueError(f"{name} must be (low, high) with 0 < low <= high; got {low_high}")
  object.__setattr__(config, name, low_high)


def check_at_least(smallest: int, **values: float) -> None:
  for name, value in values.items():
    if not value >= smallest:  # so that NaN is refused
      raise ValueError(f"{name} must be at least {smallest}, got {value}")


def check_at_most(largest: float, **values: float) -> None:
  for name, value in values.items():
    if not value <= largest:
      raise ValueError(f"{name} must be at most {largest:g}, got {value:g}")


def check_rates(**values: float) -> None:
  for name, value in values.items():
    if not 0 <= value < 1:
      raise ValueError(f"{name} must be at least 0 and below 1, got {value}")


def check_choices(known: Collection[str], **values: str) -> None:
  for name, value in values.items():
    if value not in known:
      raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(sorted(known))}")


def check_heads(channels: int, heads: int, what: str) -> None:
  if channels % heads:
    raise ValueError(f"{what}: {channels} channels are not divisible by num_heads {heads}")


def closest(name: str, known: Iterable[str]) -> str:
  """Returns a hint for an unknown name: the closest known name, or all known names."""
  match = difflib.get_close_matches(name, list(known), n=1)
  return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}"


def replace_fields(config, name: str, overrides: dict):
  """Returns a copy of a dataclass with some fields replaced.

  Args:
    config: the dataclass.
    name: what it configures, for messages.
    overrides: new values by field.

  Raises:
    ValueError: a field is unknown, or a value invalid.
  """
  known = {field.name for field in dataclasses.fields(config)}
  for field in overrides:
    if field not in known:
      raise ValueError(f"{name} has no option {field!r}: {closest(field, known)}")
  return dataclasses.replace(config, **overrides)
