"""Converts PyTorch weights: `python -m vswin_jax.convert SOURCE DEST`.

SOURCE is a file (.pth, .pt, .pyth, .safetensors; its contents decide, not its name) or a name in
`--list`. Downloads are kept in $VSWIN_JAX_CACHE, or ~/.cache/vswin_jax. DEST is a new folder, for
`vswin_jax.predict --model`, `vswin_jax.main --config.init_from` and `--checkpoint`, and
`vswin_jax.load_model`.
"""

import os
import pathlib
import sys

# Set before JAX is imported: a conversion needs no accelerator.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import app, flags

from vswin_jax.common.cli import one_line_errors
from vswin_jax.common.logging import set_up_logging
from vswin_jax.common.paths import cache_folder, local_path
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
  "tables are resized. Default: that of the file; 8,SIDE,SIDE for 2D weights. If the tables fit "
  "several windows, that of the file.",
)
_OPTIONS = (
  flags.DEFINE_enum("inflation", None, INFLATIONS, "Inflation of 2D weights; default: mean."),
  flags.DEFINE_enum("to", "video_swin", ARCHITECTURES, "Model that 2D Swin weights become."),
  flags.DEFINE_integer(
    "num_heads", None, "Heads of a VTN's encoder; default: of the released model, or width / 64.", 1
  ),
  flags.DEFINE_integer("backbone_heads", None, "Heads of a ViT; default: width / 64.", 1),
  flags.DEFINE_integer(
    "attention_window", None, "Frames that a frame of a VTN attends to; default: 18.", 2
  ),
  flags.DEFINE_integer("num_classes", None, "Number of classes of a new head.", 1),
  flags.DEFINE_multi_enum("allow_missing", [], ["head"], "Parts that may be missing or replaced."),
  flags.DEFINE_string("labels", None, "Text file of class names, one per line."),
)
_CLIP = (
  flags.DEFINE_integer("num_frames", None, "Frames of a clip; default: as published.", 1),
  flags.DEFINE_integer("frame_interval", None, "Distance of frames; default: as published.", 1),
  flags.DEFINE_enum("sampling", None, SAMPLINGS, "Temporal sampling; default: as published."),
  flags.DEFINE_integer("size", None, "Pixels of a side of clips; default: as published.", 1),
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
    window=_window(_WINDOW.value),
    clip={flag.name: flag.value for flag in _CLIP if flag.value is not None},
    **{flag.name: flag.value for flag in _OPTIONS},
  )
  file = _find_source(source)
  print(describe(file, convert_file(file, destination, options)))
  print(f"written to {destination}")


def _find_source(source: str) -> pathlib.Path:
  """Returns a local path: of `source` itself, or of a released checkpoint, downloaded if needed."""
  path = local_path(source)
  if os.path.lexists(path) or os.sep in source:
    return path
  return download.fetch(released.find(source), cache_folder())


def _window(sizes: list[str] | None) -> tuple[int, ...] | None:
  if sizes is None:
    return None
  if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
    sys.exit(
      f"error: --window={','.join(sizes)} is not a window; expected TIME,HEIGHT,WIDTH in tokens, "
      "as in 8,7,7"
    )
  return tuple(map(int, sizes))


if __name__ == "__main__":
  app.run(main)
