"""Makes a data set of video files: `python -m vswin_jax.prepare --dataset=NAME --videos=DIR`.

The result is a TFDS data set of encoded videos, `--config.data.name=NAME --config.data.dir=DIR` of
`vswin_jax.main`. Stopped at any moment, the same command goes on.
"""

import sys

from absl import app, flags
from tqdm import tqdm

from vswin_jax.common.cli import one_line_errors, refuse_arguments
from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations import DATASETS
from vswin_jax.data.video.encoding import PRESETS

# Nothing heavy is imported here: worker processes that decode video import this module too.

_DATASET = flags.DEFINE_enum(
  "dataset", None, sorted(DATASETS), "How videos and labels are laid out."
)
_VIDEOS = flags.DEFINE_string("videos", None, "Folder of the video files.")
_ANNOTATIONS = flags.DEFINE_multi_string(
  "annotations",
  [],
  "Annotation file, folder of them, or SPLIT=FILE; may be repeated. Default: searched in --videos "
  "and the folder above it; beside folders of classes, none.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Folder of data sets.")
_NAME = flags.DEFINE_string(
  "name", None, "Of the data set; default: that of --dataset, and its split number if there is one."
)
_SPLIT_NUMBER = flags.DEFINE_integer(
  "split_number", 1, "Which official split of UCF-101 or HMDB-51.", lower_bound=1, upper_bound=3
)
_VALIDATION_SHARE = flags.DEFINE_float(
  "validation_share", 0.1, "Of every class, where there are no splits.", 0.0, 0.9
)
_GROUP_PATTERN = flags.DEFINE_string(
  "group_pattern",
  "",
  "Regular expression whose first group, in a file's path, names what must not be divided between "
  "splits, such as a recording.",
)
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "Text file of class names, one a line.")
_MULTI_LABEL = flags.DEFINE_bool("multi_label", False, "Videos have any number of labels.")
_TRANSCODE = flags.DEFINE_integer(
  "transcode",
  0,
  "Encode videos anew, quick to decode, with this short side in pixels (256, 320, 340; smaller "
  "videos keep theirs); 0: keep the files as they are.",
  lower_bound=0,
)
_CRF = flags.DEFINE_integer("crf", 23, "Of --transcode: quality, lower is better.", 0, 51)
_PRESET = flags.DEFINE_enum("preset", "medium", PRESETS, "Of --transcode: slower is smaller.")
_KEYFRAME_INTERVAL = flags.DEFINE_integer(
  "keyframe_interval", 32, "Of --transcode: frames between keyframes at most.", lower_bound=1
)
_MAX_MINUTES = flags.DEFINE_float("max_minutes", 60.0, "Longer videos are left out.", 0.0)
_MAX_PROBLEM_SHARE = flags.DEFINE_float(
  "max_problem_share", 0.02, "Stop if more of the videos are missing or damaged.", 0.0, 1.0
)
_SHARD_MEGABYTES = flags.DEFINE_integer(
  "shard_megabytes", 128, "Of the video files in one shard, about.", lower_bound=1
)
_WORKERS = flags.DEFINE_integer(
  "workers", None, "Processes; default: one for every core.", lower_bound=1
)
_BEAM = flags.DEFINE_string(
  "beam_pipeline_options",
  None,
  "Work on a cluster with Apache Beam, as in runner=FlinkRunner,flink_master=HOST:8081.",
)


def main(arguments: list[str]) -> None:
  refuse_arguments(arguments)
  with one_line_errors("what is finished is kept, the same command goes on"):
    _prepare()


def _prepare() -> None:
  from vswin_jax.data.annotations import (
    AnnotationOptions,
    default_name,
    read_annotations,
    read_class_names,
  )
  from vswin_jax.data.preparation import datasets, engines
  from vswin_jax.data.video.encoding import H264
  from vswin_jax.data.video.transcoding import Transcoding
  from vswin_jax.data.worker_processes import usable_cores

  options = AnnotationOptions(
    split_number=_SPLIT_NUMBER.value,
    validation_share=_VALIDATION_SHARE.value,
    group_pattern=_GROUP_PATTERN.value,
    class_names=_CLASS_NAMES.value and read_class_names(local_path(_CLASS_NAMES.value)),
    multi_label=_MULTI_LABEL.value,
  )
  h264 = H264(_CRF.value, _KEYFRAME_INTERVAL.value, _PRESET.value)
  transcoding = Transcoding(_TRANSCODE.value, h264) if _TRANSCODE.value else None
  if _BEAM.value is None:
    engine = engines.on_this_machine(_WORKERS.value or usable_cores())
  else:
    engine = engines.on_beam(_BEAM.value)

  annotations = read_annotations(
    _DATASET.value, local_path(_VIDEOS.value), _ANNOTATIONS.value, options
  )
  for line in (*annotations.notes, annotations.describe()):
    print(line, flush=True)
  # In a log, a line now and then.
  pause = 0.5 if sys.stderr.isatty() else 30.0
  with tqdm(desc="preparing", unit="video", mininterval=pause, dynamic_ncols=True) as bar:

    def progress(done: int, total: int) -> None:
      if bar.total is None:
        bar.reset(total)
        # What was done before says nothing of the time that is left.
        bar.initial = bar.n = done
      bar.update(done - bar.n)

    summary = datasets.prepare_dataset(
      annotations,
      name=_NAME.value or default_name(_DATASET.value, options),
      data_dir=local_path(_DATA_DIR.value),
      engine=engine,
      transcoding=transcoding,
      max_seconds=60 * _MAX_MINUTES.value,
      shard_bytes=_SHARD_MEGABYTES.value << 20,
      max_problem_share=_MAX_PROBLEM_SHARE.value,
      progress=progress,
    )
  print(datasets.describe(summary))


if __name__ == "__main__":
  flags.mark_flags_as_required(["dataset", "videos"])
  app.run(main)
