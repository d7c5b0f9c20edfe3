"""Prepares a data set of video files: `python -m vswin_jax.prepare --dataset=NAME --videos=DIR`.

The result is a TFDS data set of encoded videos for `--config.data.name=NAME --config.data.dir=DIR`
of `vswin_jax.main`. Stopped at any moment, the same command resumes.
"""

from absl import app, flags

from vswin_jax.common.cli import one_line_errors, refuse_arguments
from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations import DATASETS
from vswin_jax.data.video.encoding import PRESETS

# Worker processes import this module too, so heavy imports are in `_prepare`.

_DATASET = flags.DEFINE_enum("dataset", None, sorted(DATASETS), "Layout of the annotations.")
_VIDEOS = flags.DEFINE_string("videos", None, "Folder of the video files.")
_ANNOTATIONS = flags.DEFINE_multi_string(
  "annotations",
  [],
  "Annotation file, folder of annotation files, or SPLIT=FILE; may be repeated. Default: search "
  "--videos and its parent folder, but not where folders of classes give the labels.",
)
_DATA_DIR = flags.DEFINE_string("data_dir", "~/tensorflow_datasets", "Folder of data sets.")
_NAME = flags.DEFINE_string("name", None, "Name of the data set; default: --dataset[_splitNUMBER].")
_SPLIT_NUMBER = flags.DEFINE_integer("split_number", 1, "Split of UCF-101 or HMDB-51.", 1, 3)
_VALIDATION_SHARE = flags.DEFINE_float(
  "validation_share", 0.1, "Share of every class for validation if there are no splits.", 0.0, 0.9
)
_GROUP_PATTERN = flags.DEFINE_string(
  "group_pattern",
  "",
  "Regular expression searched in paths; videos with the same first group share a split.",
)
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "Text file with one class name a line.")
_MULTI_LABEL = flags.DEFINE_bool("multi_label", False, "Allow any number of labels for a video.")
_TRANSCODE = flags.DEFINE_integer(
  "transcode",
  0,
  "Encode videos again, fast to decode, with this short side in pixels (256, 320, 340); smaller "
  "videos keep their size. 0: keep the files as they are.",
  lower_bound=0,
)
_CRF = flags.DEFINE_integer("crf", 23, "Quality of --transcode, lower is better.", 0, 51)
_PRESET = flags.DEFINE_enum(
  "preset", "medium", PRESETS, "Preset of --transcode; slower ones make smaller files."
)
_KEYFRAME_INTERVAL = flags.DEFINE_integer(
  "keyframe_interval", 32, "Frames between keyframes of --transcode at most.", lower_bound=1
)
_MAX_MINUTES = flags.DEFINE_float("max_minutes", 60.0, "Longer videos are left out.", 0.0)
_MAX_PROBLEM_SHARE = flags.DEFINE_float(
  "max_problem_share", 0.02, "Stop if a larger share of the videos has problems.", 0.0, 1.0
)
_SHARD_MEGABYTES = flags.DEFINE_integer(
  "shard_megabytes", 128, "Approximate size of the video files of one shard.", lower_bound=1
)
_WORKERS = flags.DEFINE_integer("workers", None, "Worker processes; default: one per core.", 1)
_BEAM = flags.DEFINE_string(
  "beam_pipeline_options",
  None,
  "Run on a cluster with Apache Beam, for example runner=FlinkRunner,flink_master=HOST:8081.",
)


def main(arguments: list[str]) -> None:
  refuse_arguments(arguments)
  with one_line_errors("finished shards are kept, repeat the command to resume"):
    _prepare()


def _prepare() -> None:
  from vswin_jax.data.annotations import (
    AnnotationOptions,
    default_name,
    read_annotations,
    read_class_names,
  )
  from vswin_jax.data.preparation.backends import apache_beam, local_processes
  from vswin_jax.data.preparation.dataset import describe, prepare_dataset
  from vswin_jax.data.video.transcoding import Transcoding
  from vswin_jax.data.worker_processes import usable_cores

  options = AnnotationOptions(
    split_number=_SPLIT_NUMBER.value,
    validation_share=_VALIDATION_SHARE.value,
    group_pattern=_GROUP_PATTERN.value,
    class_names=_CLASS_NAMES.value and read_class_names(local_path(_CLASS_NAMES.value)),
    multi_label=_MULTI_LABEL.value,
  )
  transcoding = None
  if _TRANSCODE.value:
    transcoding = Transcoding(_TRANSCODE.value, _CRF.value, _KEYFRAME_INTERVAL.value, _PRESET.value)
  if _BEAM.value is None:
    backend = local_processes(_WORKERS.value or usable_cores())
  else:
    backend = apache_beam(_BEAM.value)
  annotations = read_annotations(
    _DATASET.value, local_path(_VIDEOS.value), _ANNOTATIONS.value, options
  )
  for line in (*annotations.notes, annotations.describe()):
    print(line, flush=True)
  summary = prepare_dataset(
    annotations,
    name=_NAME.value or default_name(_DATASET.value, options),
    data_dir=local_path(_DATA_DIR.value),
    backend=backend,
    transcoding=transcoding,
    max_seconds=60 * _MAX_MINUTES.value,
    shard_bytes=_SHARD_MEGABYTES.value << 20,
    max_problem_share=_MAX_PROBLEM_SHARE.value,
  )
  print(describe(summary))


if __name__ == "__main__":
  flags.mark_flags_as_required(["dataset", "videos"])
  app.run(main)
