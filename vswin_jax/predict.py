"""Labels videos: `python -m vswin_jax.predict --model=PATH VIDEO [VIDEO ...]`.

PATH is a run of `vswin_jax.main` or a result of `vswin_jax.convert`; a VIDEO is a file, a folder or
a glob. Exit status 1 if any video could not be read; the results of the others are kept.
"""

import os
import sys

# Python's resource tracker removes the shared memory of batches that are alive at the end, and
# would say so as if it were a fault.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

from absl import app, flags

from vswin_jax.common.cli import one_line_errors

# Nothing heavy is imported here: worker processes that decode video import this module too.

_MODEL = flags.DEFINE_string("model", None, "Folder of a trained or converted model.")
_VIEWS = flags.DEFINE_string(
  "views", None, "Clips x crops of each video, as in 4x3 (crops: 1 or 3). Default: the model's own."
)
_TOP = flags.DEFINE_integer("top", 5, "Classes to name for each video.", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a line instead of a table.")
_CSV = flags.DEFINE_bool("csv", False, "Print CSV instead of a table.")
_WHOLE = flags.DEFINE_bool(
  "whole", False, "Slide over whole videos: a CSV file and a picture of labels over time for each."
)
_FEATURES = flags.DEFINE_enum(
  "features", None, ["pooled", "map"], "Write features of every view as .npz instead of labels."
)
_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir", ".", "Where --whole and --features write their files."
)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 4, "Videos (--whole: clips) at a time on the device.", lower_bound=1
)
_WORKERS = flags.DEFINE_integer(
  "num_workers", min(os.cpu_count() or 1, 8), "Processes that decode.", lower_bound=0
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["float32", "bfloat16"], "Of the computation; default: the model's own."
)


def main(arguments: list[str]) -> None:
  if len(arguments) < 2:
    sys.exit("usage: python -m vswin_jax.predict --model=PATH VIDEO [VIDEO ...]; see --help")
  if sum(map(bool, (_JSON.value, _CSV.value, _WHOLE.value, _FEATURES.value))) > 1:
    sys.exit("error: choose one of --json, --csv, --whole and --features")

  from vswin_jax.common.progress import set_up_logging
  from vswin_jax.inference import output_files

  set_up_logging()
  for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")
  with one_line_errors("what was written is complete"):
    failed = output_files.predict_files(
      _MODEL.value,
      arguments[1:],
      kind=_kind(),
      views=_VIEWS.value,
      dtype=_DTYPE.value,
      output_dir=_OUTPUT_DIR.value,
      top=_TOP.value,
      batch_size=_BATCH_SIZE.value,
      num_workers=_WORKERS.value,
    )
  sys.exit(1 if failed else 0)


def _kind() -> str:
  if _FEATURES.value:
    return _FEATURES.value
  return next((flag.name for flag in (_JSON, _CSV, _WHOLE) if flag.value), "table")


if __name__ == "__main__":
  flags.mark_flag_as_required("model")
  app.run(main)
