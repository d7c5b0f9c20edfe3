"""Experiment: a training plan with its data and the folder of its run."""

import dataclasses
import zlib

from vswin_jax.attention.window import IMPLEMENTATIONS
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.checkpoints.selection import newest_step
from vswin_jax.common.logging import logger
from vswin_jax.data import generated
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.data.records import VideoRecords, open_records
from vswin_jax.distributed.consistency import broadcast_from_first, holds_everywhere
from vswin_jax.experiment.config import Settings
from vswin_jax.experiment.plan import Plan, make_mesh, make_plan
from vswin_jax.experiment.workdir import RunFolder
from vswin_jax.inference.self_check import choose_attention


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Plan, data and workdir of a run.

  Attributes:
    plan: model, optimizer, schedule and steps.
    folder: workdir of the run.
    train_records: training split.
    eval_records: evaluation split.
  """

  plan: Plan
  folder: RunFolder
  train_records: VideoRecords
  eval_records: VideoRecords

  @property
  def settings(self) -> Settings:
    return self.plan.settings

  @property
  def class_names(self) -> tuple[str, ...]:
    return self.train_records.class_names

  @property
  def metadata(self) -> CheckpointMetadata:
    """Metadata of the checkpoints of this run."""
    settings = self.settings
    return CheckpointMetadata(
      model=self.plan.model_options,
      preprocessing=Preprocessing(
        settings.data.mean, settings.data.std, settings.clip, settings.test
      ),
      labels=self.class_names,
      multi_label=self.plan.multi_label,
      training={
        "data": settings.data.name,
        "videos": len(self.train_records),
        "batch_size": settings.train.batch_size,
      },
    )

  def shared_values(self) -> dict[str, str]:
    """Returns, by name, what must be equal in all processes besides the config."""
    names = zlib.crc32("\0".join(self.class_names).encode())
    sizes = f"{len(self.train_records)} and {len(self.eval_records)} videos"
    ids = ", ".join(
      records.video_id(index)
      for records in (self.train_records, self.eval_records)
      for index in (0, len(records) // 2, len(records) - 1)
    )
    return {
      "the data set": f"{sizes}, {len(self.class_names)} classes ({names:08x}), such as {ids}",
      "the newest checkpoint": str(newest_step(self.folder.checkpoints)),
    }


def open_experiment(settings: Settings, folder: RunFolder, mode: str) -> Experiment:
  """Opens the data set of a run, which is generated if the library makes it, and plans the run.

  Raises:
    ConfigError: values do not fit the devices, the data or the model.
    DatasetError: the data set can't be read.
  """
  mesh = make_mesh(settings, mode)
  data = settings.data
  generated.ensure(data.name, data.dir)
  train_records, eval_records = (
    open_records(data.name, data.dir, split) for split in (data.train_split, data.eval_split)
  )
  plan = make_plan(
    settings,
    mesh,
    num_classes=len(train_records.class_names),
    num_videos=len(train_records),
    multi_label=train_records.multi_label,
    attention=_choose_attention(settings),
  )
  return Experiment(plan, folder, train_records, eval_records)


def _choose_attention(settings: Settings) -> str | None:
  """Returns the implementation of attention that all processes trust; None: the configured one."""
  clip = settings.clip
  trusted = choose_attention(settings.model, clip.num_frames, clip.size)
  if trusted is None:
    return None
  names = sorted(IMPLEMENTATIONS)
  choice = names[broadcast_from_first(names.index(trusted[0]))]
  if not holds_everywhere(choice in trusted):
    logger.warning("not all processes trust the kernels of %s; XLA computes attention", choice)
    choice = next(name for name in trusted if name in ("xla", "chunked"))
  return choice
