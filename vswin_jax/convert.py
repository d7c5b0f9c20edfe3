"""Converts PyTorch weights: `python -m vswin_jax.convert SOURCE DEST`.

SOURCE is a file (.pth, .pt, .pyth, .safetensors; its contents decide, not its name) or a name in
`--list`. DEST is a new folder, for `vswin_jax.predict --model`, `vswin_jax.main
--config.init_from` and `--checkpoint`, and `vswin_jax.load_model`.
"""

import os
import pathlib
import sys

# Set before JAX is imported: a conversion needs no accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import app, flags

from vswin_jax.common.cli import one_line_errors
from vswin_jax.common.logging import set_up_logging
from vswin_jax.common.paths import local_path
from vswin_jax.conversion import download, released
from vswin_jax.conversion.convert import convert_file, describe
from vswin_jax.conversion.families import ARCHITECTURES, ConversionOptions
from vswin_jax.conversion.inflation import INFLATIONS
from vswin_jax.data.clips import SAMPLINGS

_LIST = flags.DEFINE_bool("list", False, "Print the released checkpoints and exit.")
_WINDOW = flags.DEFINE_list(
  "window",
  None,
  "Attention window of the result in tokens, as in 8,7,7. 2D weights are inflated to it, 3D bias "
  "tables are resized. Default: that of the file; 8,SIDE,SIDE for 2D weights.",
)
_SOURCE_WINDOW = flags.DEFINE_list(
  "source_window", None, "Attention window of the file, if its bias tables fit several."
)
_INFLATION = flags.DEFINE_enum(
  "inflation", None, INFLATIONS, "Inflation of 2D weights; default: mean, as in the reference."
)
_TO = flags.DEFINE_enum(
  "to", "video_swin", ARCHITECTURES, "Model to make of 2D Swin weights; vtn: its backbone."
)
_NUM_HEADS = flags.DEFINE_integer(
  "num_heads",
  None,
  "Attention heads of a VTN's temporal encoder; default: as in the catalog, or 64 channels each.",
  lower_bound=1,
)
_BACKBONE_HEADS = flags.DEFINE_integer(
  "backbone_heads", None, "Attention heads of a ViT; default: 64 channels each.", lower_bound=1
)
_ATTENTION_WINDOW = flags.DEFINE_integer(
  "attention_window",
  None,
  "Frames that each frame of a VTN attends to besides itself, an even number; default: 18.",
  lower_bound=2,
)
_NUM_CLASSES = flags.DEFINE_integer(
  "num_classes", None, "Number of classes of a new head.", lower_bound=1
)
_ALLOW_MISSING = flags.DEFINE_multi_enum(
  "allow_missing", [], ["head"], "Parts that may be missing or replaced, with random values."
)
_LABELS = flags.DEFINE_string("labels", None, "Text file of class names, one per line.")
_CACHE = flags.DEFINE_string(
  "cache", None, "Folder for downloads; default: $VSWIN_JAX_CACHE, or ~/.cache/vswin_jax."
)
_NUM_FRAMES = flags.DEFINE_integer(
  "num_frames", None, "Frames of a clip; default: as published.", lower_bound=1
)
_FRAME_INTERVAL = flags.DEFINE_integer(
  "frame_interval", None, "Distance between the frames of a clip; default: as published.", 1
)
_SAMPLING = flags.DEFINE_enum(
  "sampling", None, SAMPLINGS, "Temporal sampling of clips; default: as published."
)
_SIZE = flags.DEFINE_integer(
  "size", None, "Height and width of clips in pixels; default: as published.", lower_bound=1
)


def main(arguments: list[str]) -> None:
  set_up_logging()
  if not _LIST.value and len(arguments) != 3:
    sys.exit("usage: python -m vswin_jax.convert SOURCE DEST [--flags]; see --help, --list")
  with one_line_errors("nothing was written"):
    if _LIST.value:
      print(released.table(), flush=True)
    else:
      _convert(*arguments[1:])


def _convert(source: str, destination: str) -> None:
  options = ConversionOptions(
    num_classes=_NUM_CLASSES.value,
    allow_missing=tuple(_ALLOW_MISSING.value),
    window=_window(_WINDOW),
    source_window=_window(_SOURCE_WINDOW),
    inflation=_INFLATION.value,
    to=_TO.value,
    num_heads=_NUM_HEADS.value,
    backbone_heads=_BACKBONE_HEADS.value,
    attention_window=_ATTENTION_WINDOW.value,
    labels=None if _LABELS.value is None else local_path(_LABELS.value),
    clip={
      flag.name: flag.value
      for flag in (_NUM_FRAMES, _FRAME_INTERVAL, _SAMPLING, _SIZE)
      if flag.value is not None
    },
  )
  file = _find_source(source)
  print(describe(file, convert_file(file, destination, options)))
  print(f"written to {destination}")


def _find_source(source: str) -> pathlib.Path:
  """Returns a local path: of `source` itself, or of a released checkpoint, downloaded if needed."""
  path = local_path(source)
  if os.path.lexists(path) or os.sep in source:
    return path
  try:
    entry = released.find(source)
  except released.UnknownName as error:
    raise released.UnknownName(f"there is no file {source}, and {error}") from error
  return download.fetch(entry, _CACHE.value or download.default_cache())


def _window(flag) -> tuple[int, int, int] | None:
  if flag.value is None:
    return None
  if len(flag.value) != 3 or not all(size.isdigit() and int(size) for size in flag.value):
    sys.exit(
      f"error: --{flag.name}={','.join(flag.value)} is not a window; expected TIME,HEIGHT,WIDTH "
      "in tokens, as in 8,7,7"
    )
  return tuple(map(int, flag.value))


if __name__ == "__main__":
  app.run(main)
