"""Labels videos: `python -m vswin_jax.predict --model=PATH VIDEO [VIDEO ...]`.

PATH is the workdir of `vswin_jax.main` or the result of `vswin_jax.convert`; a VIDEO is a file, a
folder or a glob. The exit status is 1 if any video could not be read; the others are still labeled.
"""

import os
import sys

# Python's resource tracker warns about the batches in shared memory that it frees at exit.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

from absl import app, flags

from vswin_jax.common.cli import one_line_errors
from vswin_jax.common.huge_pages import restart_with_huge_pages

# No heavy imports here: decoding processes import this module too.

_MODEL = flags.DEFINE_string("model", None, "Folder of a trained or converted model.")
_VIEWS = flags.DEFINE_string(
  "views", None, "Clips x crops per video, as in 4x3 (crops: 1, 3 or 5). Default: the model's own."
)
_TOP = flags.DEFINE_integer("top", 5, "Number of classes to name per video.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object per video instead of a table.")
_CSV = flags.DEFINE_bool("csv", False, "Print CSV instead of a table.")
_WHOLE = flags.DEFINE_bool(
  "whole", False, "Slide over whole videos: write labels over time as a CSV file and a picture."
)
_FEATURES = flags.DEFINE_enum(
  "features", None, ["pooled", "map"], "Write the features of all views as .npz instead of labels."
)
_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", ".", "Folder of the files that --whole and --features write."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 4, "Videos (--whole: clips) per batch.", lower_bound=1
)
_WORKERS = flags.DEFINE_integer(
  "num_workers", min(os.cpu_count() or 1, 8), "Decoding processes.", lower_bound=0
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "Dtype of the computation. Default: the model's own."
)


def main(arguments: list[str]) -> None:
  if len(arguments) < 2:
    sys.exit("usage: python -m vswin_jax.predict --model=PATH VIDEO [VIDEO ...]; see --help")
  kinds = [flag.name for flag in (_JSON, _CSV, _WHOLE) if flag.value]
  kinds += [_FEATURES.value] if _FEATURES.value else []
  if len(kinds) > 1:
    sys.exit("error: choose one of --json, --csv, --whole and --features")

  from vswin_jax.common.logging import set_up_logging
  from vswin_jax.data.pipeline import LostWorkerError
  from vswin_jax.distributed.compilation_cache import use_compilation_cache
  from vswin_jax.inference.output_files import predict_files

  set_up_logging()
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")
  use_compilation_cache()
  with one_line_errors("files that were written are complete", (ValueError, LostWorkerError)):
    success = predict_files(
      _MODEL.value,
      arguments[1:],
      kind=kinds[0] if kinds else "table",
      views=_VIEWS.value,
      dtype=_DTYPE.value,
      output_dir=_OUTPUT_DIR.value,
      top=_TOP.value,
      batch_size=_BATCH_SIZE.value,
      num_workers=_WORKERS.value,
    )
  sys.exit(0 if success else 1)


if __name__ == "__main__":
  restart_with_huge_pages()
  flags.mark_flag_as_required("model")
  app.run(main)
