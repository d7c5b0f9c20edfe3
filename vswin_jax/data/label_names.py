"""Names of the classes of public data sets, in the order of the released models' logits."""

import functools
import importlib.resources

DATASETS = (
  "kinetics400",
  "kinetics600",
  "kinetics700",
  "kinetics710",
  "something_something_v2",
)


@functools.cache
def label_names(dataset: str) -> tuple[str, ...] | None:
  """Names of the classes of a data set; None if they are not in this package.

  Args:
    dataset: such as "kinetics400".
  """
  if dataset not in DATASETS:
    return None
  file = importlib.resources.files("vswin_jax.data").joinpath("labels", f"{dataset}.txt")
  return tuple(file.read_text(encoding="utf-8").splitlines())
