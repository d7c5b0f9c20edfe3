"""Inspects a data set: `python -m vswin_jax.inspect --dataset=NAME`.

Prints counts, lengths, sizes and class balance, and draws augmented training clips beside
evaluation views.
"""

import os

# Set before jax is imported: accelerators are of no use here.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import app, flags
from ml_collections import config_flags

from vswin_jax.common.cli import one_line_errors, parse_config_flags, refuse_arguments

_DATASET = flags.DEFINE_string("dataset", None, "Name of the data set; default: from the config.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of data sets; default: from the config.")
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Config of the clips, views and augmentations to show.", lock_config=True
)
_SPLIT = flags.DEFINE_string("split", None, "Split to show; default: the training split.")
_OUTPUT = flags.DEFINE_string("output", "inspect.png", "Image file to write.")
_EXAMPLES = flags.DEFINE_integer("examples", 8, "Number of videos to show.", lower_bound=1)
_MAX_VIDEOS = flags.DEFINE_integer(
  "max_videos", 5000, "Videos of a split to read for the statistics, evenly spaced; 0: all.", 0
)


def main(arguments: list[str]) -> None:
  refuse_arguments(arguments)
  with one_line_errors("nothing was written"):
    _inspect()


def _inspect() -> None:
  from vswin_jax.augmentation.augmentation import Augmentation
  from vswin_jax.common.logging import set_up_logging
  from vswin_jax.common.paths import file_path, local_path, replacing
  from vswin_jax.data.clips import ClipSpec, Views, check_views, describe_views
  from vswin_jax.data.records import open_records, split_names
  from vswin_jax.experiment import contact_sheet
  from vswin_jax.experiment.config import DataSettings, Settings, TrainSettings, base_config
  from vswin_jax.experiment.initialization import override_config

  set_up_logging()
  config = _CONFIG.value or base_config()
  overridden_keys = config_flags.get_override_values(flags.FLAGS["config"]) if _CONFIG.value else ()
  if config.init_from not in (None, "random"):
    source = file_path(config.init_from)
    config = override_config(config, source, mode="train", overridden_keys=overridden_keys)
  elif config.model.name is None:
    print("shown as the config is; for the preprocessing of weights: --config.init_from=DIR")
  # Without a model, which a config may leave to its weights.
  settings = Settings(
    model={},
    seed=config.seed,
    data=DataSettings(**config.data),
    clip=ClipSpec(**config.clip),
    test=Views(**config.test),
    train=TrainSettings(**config.train),
    augmentation=Augmentation(**config.augmentation),
  )
  check_views(settings.clip, settings.test, "config.test")
  name = _DATASET.value or settings.data.name
  data_dir = _DATA_DIR.value or settings.data.dir
  shown = _SPLIT.value or settings.data.train_split
  found = {}
  for split in dict.fromkeys([shown, *split_names(name, data_dir)]):
    records = open_records(name, data_dir, split)
    found[split] = contact_sheet.read_statistics(records, _MAX_VIDEOS.value)
    text = contact_sheet.describe(split, len(records), found[split], records.class_names)
    print(text, flush=True)
  records = open_records(name, data_dir, shown)
  examples = contact_sheet.make_examples(records, settings, _EXAMPLES.value)
  size = settings.clip.size
  title = (
    f"{name}, {shown}: {settings.clip.num_frames} frames of {size} x {size} as fed; right: frames "
    f"of {describe_views(settings.clip, settings.test)} evaluation views (clips x crops)"
  )
  path = local_path(_OUTPUT.value)
  with replacing(path) as temporary:
    contact_sheet.draw_contact_sheet(temporary, title, examples, found[shown], records.class_names)
  print(f"picture: {path}")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_config_flags)
