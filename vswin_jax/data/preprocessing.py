"""How pixels become the input of a model: what a checkpoint remembers besides weights."""

import dataclasses
from collections.abc import Mapping

from vswin_jax.data.clips import ClipSpec, Views

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)
# VTN's, whatever its backbone was trained with.
VTN_MEAN = (114.75, 114.75, 114.75)
VTN_STD = (57.375, 57.375, 57.375)

# What of a `ClipSpec` matters for using a model; the rest is about training it.
_CLIP_FACTS = ("num_frames", "frame_interval", "frame_rate", "sampling", "size", "rounding")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """From a video to the input of a model.

  Attributes:
    mean: of red, green and blue (0-255), subtracted before the division by `std`.
    std: likewise.
    clip: how clips are cut.
    views: the views of each video whose probabilities are averaged.
  """

  mean: tuple[float, float, float] = IMAGENET_MEAN
  std: tuple[float, float, float] = IMAGENET_STD
  clip: ClipSpec = dataclasses.field(default_factory=ClipSpec)
  views: Views = dataclasses.field(default_factory=Views)

  def to_metadata(self) -> dict:
    """JSON for a checkpoint."""
    return {
      "mean": list(self.mean),
      "std": list(self.std),
      "clip": {name: getattr(self.clip, name) for name in _CLIP_FACTS},
      "views": dataclasses.asdict(self.views),
    }

  @classmethod
  def from_metadata(cls, metadata: Mapping) -> "Preprocessing":
    """Inverse of `to_metadata`.

    Raises:
      ValueError: metadata of something else.
    """
    try:
      return cls(
        mean=tuple(metadata["mean"]),
        std=tuple(metadata["std"]),
        clip=ClipSpec(**metadata["clip"]),
        views=Views(**metadata["views"]),
      )
    except (KeyError, TypeError) as error:
      raise ValueError(f"incomplete metadata about preprocessing: {error!r}") from error
