"""Class names of public data sets, in the order of the logits of the released models."""

import functools
import importlib.resources

NAMED_DATASETS = (
  "kinetics400", "kinetics600", "kinetics700", "kinetics710", "something_something_v2"
)  # fmt: skip


@functools.cache
def label_names(dataset: str) -> tuple[str, ...] | None:
  """Returns the class names of a data set such as "kinetics400", or None if unknown."""
  if dataset not in NAMED_DATASETS:
    return None
  file = importlib.resources.files("vswin_jax.data").joinpath("labels", f"{dataset}.txt")
  return tuple(file.read_text(encoding="utf-8").splitlines())
