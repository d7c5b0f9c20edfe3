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

FAMILIES = ("official", "mmaction2", "torchvision", "swin_2d", "vtn")
# Number of classes of each data set.
NUM_CLASSES = {
  "kinetics400": 400,
  "kinetics600": 600,
  "kinetics700": 700,
  "kinetics710": 710,
  "something_something_v2": 174,
  "imagenet_1k": 1000,
  "imagenet_22k": 21841,
}


class UnknownName(ValueError):
  """Raised for a name of no released checkpoint; the message suggests the nearest."""


@dataclasses.dataclass(frozen=True)
class Released:
  """One published file; None where a figure is not known.

  Attributes:
    name: in this catalog, such as "swin_t_k400_official".
    family: one of `FAMILIES`, the naming scheme of its parameters.
    model: name in `models.CATALOG` of the model it becomes; 2D weights are inflated to it.
    dataset: data set of the classifier, a key of `NUM_CLASSES`.
    window: tokens of an attention window, (time, height, width), for 2D weights (height, width).
    parameters: number of parameters, with this classifier.
    macs: 10^9 multiply-accumulates of one clip or image: 32 frames at 224 x 224, products of
      attention included; for 2D weights as published; for VTN 250 frames as published, which
      leaves those products out (4397 with them).
    top1: published accuracy in percent.
    top5: published accuracy in percent.
    views: clips x crops of a video for these accuracies.
    config: the config of this library with the same training recipe.
    size: bytes of the file.
    sha256: leading hexadecimal digits, as many as are known.
    url: its address.
    file: its file name.
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
  fields["window"] = fields["window"] and tuple(map(int, fields["window"].split("x")))
  return Released(**fields, file=row["url"].rsplit("/", 1)[1])


def _read_catalog() -> tuple[Released, ...]:
  text = importlib.resources.files("vswin_jax.conversion").joinpath("released.csv").read_text()
  return tuple(map(_parse, csv.DictReader(text.splitlines())))


RELEASED = _read_catalog()


def find(name: str) -> Released:
  """Returns the checkpoint with this catalog name or file name.

  Raises:
    UnknownName: there is none.
  """
  for released in RELEASED:
    if name in (released.name, released.file):
      return released
  known = [released.file if "." in name else released.name for released in RELEASED]
  raise UnknownName(f"no released checkpoint is called {name!r}: {closest(name, known)}")


def identify(path_name: str, sha256: str, size: int) -> Released | None:
  """Returns the released checkpoint that a file is; None if it is none of them.

  The SHA-256 decides where it is known, so that a renamed file is recognized and another of the
  same name is not; elsewhere the name does, and the size if that is known.

  Args:
    path_name: the file's name, or a path to it.
    sha256: SHA-256 of its contents, 64 hexadecimal digits.
    size: bytes of the file.
  """
  file = path_name.replace("\\", "/").rsplit("/", 1)[-1]
  for released in RELEASED:
    if released.sha256 is None:
      if released.file == file and released.size in (None, size):
        return released
    elif sha256.lower().startswith(released.sha256):
      return released
  return None


def table() -> str:
  """Returns the catalog as text: a header, and one line for each checkpoint."""
  figures = ("top-1", "top-5", "M params", "GMACs")
  rows = [("name", "family", "data set", "window", *figures, "views", "recipe", "file")]
  for released in RELEASED:
    cells = (
      released.name,
      released.family,
      released.dataset,
      None if released.window is None else "x".join(map(str, released.window)),
      None if released.top1 is None else f"{released.top1:.1f}",
      None if released.top5 is None else f"{released.top5:.1f}",
      f"{released.parameters / 1e6:.1f}",
      released.macs,
      released.views,
      released.config,
      released.url,
    )
    rows.append(tuple("-" if cell is None else str(cell) for cell in cells))
  widths = [max(map(len, column)) for column in zip(*rows)]
  is_number = [title in figures for title in rows[0]]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if number else cell.ljust(width)
      for cell, width, number in zip(row, widths, is_number)
    ).rstrip()
    for row in rows
  )
