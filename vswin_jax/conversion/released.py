"""Catalog of the released checkpoints that this library can read, from `released.csv`.

Figures are those of the publishers, on their copies of the data; nothing here was measured with
this library. Where publishers err or say nothing: mmaction2 lists the parameters and FLOPs of a
Swin-L for `swin_s_k710_mmaction2`, here those of a Swin-S; accuracies beside ImageNet-22K weights
are those of their fine-tuned versions, so they are left out; `swin_b_w16_in22k_k400_official` was
published without accuracies, as the initial weights of `swin_b_w16_ssv2_official`.
"""

import csv
import dataclasses
import importlib.resources

from vswin_jax.common.checks import closest


@dataclasses.dataclass(frozen=True)
class Released:
  """One published file; None where a figure is not known.

  Attributes:
    name: in this catalog, such as "swin_t_k400_official".
    family: the PyTorch code that it comes from, which decides the names of its parameters.
    model: name in `models.CATALOG` of the model it becomes; 2D weights are inflated to it.
    dataset: data set of the classifier, as in `data.label_names`, or of ImageNet.
    window: tokens of an attention window, (time, height, width), for 2D weights (height, width).
    parameters: number of parameters, with this classifier.
    macs: 10^9 multiply-accumulates of one clip or image: 32 frames at 224 x 224, products of
      attention included; for 2D weights as published; for VTN 250 frames as published, which
      leaves those products out (4397 with them).
    top1, top5: published accuracies in percent.
    views: clips x crops of a video for these accuracies.
    config: the config of this library with the same training recipe.
    size: bytes of the file.
    sha256: leading hexadecimal digits, as many as are known.
    url: its address, which ends with its name, `file`.
  """

  name: str
  family: str
  model: str
  dataset: str
  window: tuple[int, ...] | None
  parameters: int
  macs: float
  top1: float | None
  top5: float | None
  views: str | None
  config: str | None
  size: int | None
  sha256: str | None
  url: str
  file: str


def _parse(row: dict[str, str]) -> Released:
  fields = {name: text or None for name, text in row.items()}
  kinds = {"parameters": int, "macs": float, "top1": float, "top5": float, "size": int}
  for name, kind in kinds.items():
    fields[name] = fields[name] and kind(fields[name])
  if row["window"]:
    fields["window"] = tuple(map(int, row["window"].split("x")))
  return Released(**fields, file=row["url"].rsplit("/", 1)[1])


_CATALOG = importlib.resources.files("vswin_jax.conversion").joinpath("released.csv").read_text()
RELEASED = tuple(map(_parse, csv.DictReader(_CATALOG.splitlines())))


def find(name: str) -> Released:
  """Returns the checkpoint with this catalog name or file name.

  Raises:
    ValueError: there is none; the message suggests the nearest.
  """
  for released in RELEASED:
    if name in (released.name, released.file):
      return released
  known = [released.file if "." in name else released.name for released in RELEASED]
  raise ValueError(f"no file or released checkpoint is called {name!r}: {closest(name, known)}")


def table() -> str:
  """Returns the catalog as text: a header, and one line for each checkpoint."""
  header = "name,family,data set,window,top-1,top-5,M params,GMACs,views,recipe,file"
  rows = [header.split(",")]
  for released in RELEASED:
    window = released.window and "x".join(map(str, released.window))
    millions = round(released.parameters / 1e6, 1)
    cells = (released.name, released.family, released.dataset, window, released.top1, released.top5)
    cells += (millions, released.macs, released.views, released.config, released.url)
    rows.append(["-" if cell is None else str(cell) for cell in cells])
  widths = [max(map(len, column)) for column in zip(*rows)]
  return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
