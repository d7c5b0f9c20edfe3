"""Writes a checkpoint as a PyTorch file: `python -m vswin_jax.export SOURCE OUT --to=official`.

SOURCE is the workdir of a run or the result of a conversion. OUT ends in .safetensors, or in .pth
or .pt if PyTorch is installed.
"""

import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import app, flags

from vswin_jax.common.cli import one_line_errors
from vswin_jax.common.logging import set_up_logging
from vswin_jax.conversion.export import export_file
from vswin_jax.conversion.layouts import VIDEO_SWIN_FAMILIES

_TO = flags.DEFINE_enum("to", None, VIDEO_SWIN_FAMILIES, "The PyTorch code to write the file for.")


def main(arguments: list[str]) -> None:
  set_up_logging()
  if len(arguments) != 3:
    sys.exit("usage: python -m vswin_jax.export SOURCE OUT --to=FAMILY; see --help")
  _, source, destination = arguments
  with one_line_errors("nothing was written"):
    count = export_file(source, destination, _TO.value)
  print(f"{count} tensors written to {destination} for {_TO.value}")


if __name__ == "__main__":
  flags.mark_flag_as_required("to")
  app.run(main)
