"""Preprocessing of videos, as stored in checkpoints."""

import dataclasses
from collections.abc import Mapping

from vswin_jax.data.clips import ClipSpec, Views

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# VTN uses these with every backbone.
VTN_MEAN = (114.75, 114.75, 114.75)
VTN_STD = (57.375, 57.375, 57.375)

# The fields of `ClipSpec` that inference needs; the others are for training.
_CLIP_FIELDS = ("num_frames", "frame_interval", "frame_rate", "sampling", "size", "rounding")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Normalization, clips and views of a model.

  Attributes:
    mean: mean of red, green and blue, on a scale of 0 to 255.
    std: standard deviation of red, green and blue, on the same scale.
    clip: sampling and cropping of clips.
    views: views (clips x crops) of each video, over which probabilities are averaged.
  """

  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  clip: ClipSpec = dataclasses.field(default_factory=ClipSpec)
  views: Views = dataclasses.field(default_factory=Views)

  def to_metadata(self) -> dict:
    """Returns the fields that inference needs, as JSON for a checkpoint."""
    return {
      "mean": list(self.mean),
      "std": list(self.std),
      "clip": {name: getattr(self.clip, name) for name in _CLIP_FIELDS},
      "views": dataclasses.asdict(self.views),
    }

  @classmethod
  def from_metadata(cls, metadata: Mapping) -> "Preprocessing":
    """Builds the preprocessing from the result of `to_metadata`.

    Raises:
      ValueError: fields are missing, unknown or invalid.
    """
    try:
      mean, std = tuple(metadata["mean"]), tuple(metadata["std"])
      return cls(mean, std, ClipSpec(**metadata["clip"]), Views(**metadata["views"]))
    except (KeyError, TypeError) as error:
      raise ValueError(f"invalid preprocessing metadata: {error!r}") from error
