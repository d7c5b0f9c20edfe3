"""Checks that the configurations of models share; each raises ValueError with one line."""

import difflib
from collections.abc import Collection, Iterable, Sequence


def set_sizes(config, name: str) -> None:
  """Makes a field of a frozen dataclass a tuple of positive integers."""
  sizes = getattr(config, name)
  is_sequence = isinstance(sizes, Sequence) and not isinstance(sizes, str)
  if not (is_sequence and sizes and all(isinstance(size, int) and size > 0 for size in sizes)):
    raise ValueError(f"{name} must be positive integers, got {sizes!r}")
  object.__setattr__(config, name, tuple(sizes))


def check_at_least(smallest: int, config, *names: str) -> None:
  for name in names:
    if getattr(config, name) < smallest:
      raise ValueError(f"{name} must be at least {smallest}, got {getattr(config, name)}")


def check_rates(config, *names: str) -> None:
  for name in names:
    if not 0 <= getattr(config, name) < 1:
      raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(config, name)}")


def check_choices(config, known: Collection[str], *names: str) -> None:
  for name in names:
    if getattr(config, name) not in known:
      raise ValueError(
        f"unknown {name} {getattr(config, name)!r}; choose one of {', '.join(sorted(known))}"
      )


def check_heads(channels: int, heads: int, what: str) -> None:
  if channels % heads:
    raise ValueError(f"{what}: {channels} channels are not divisible by {heads} heads")


def closest(name: str, known: Iterable[str]) -> str:
  """The end of an error line about an unknown name: the nearest known one, or all of them."""
  match = difflib.get_close_matches(name, list(known), n=1)
  return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(sorted(known))}"
