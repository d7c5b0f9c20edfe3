"""Checkpoint metadata: what is needed to use the weights, and where they come from."""

import dataclasses
from collections.abc import Mapping

from vswin_jax.data.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class CheckpointMetadata:
  """Metadata that is saved with the weights of a model, as JSON.

  Attributes:
    model: arguments of `create_model`.
    preprocessing: conversion of a video to the input of the model.
    labels: class names by index; None: unknown.
    multi_label: a video may show any number of classes; probabilities are sigmoids.
    training: `data`, `videos` and `batch_size` of the run that trained the weights; None if they
      were converted.
    source: of converted weights, `file`, `sha256`, `family`, `license`, `notes` and `random`; None
      if they were trained.
  """

  model: dict
  preprocessing: Preprocessing
  labels: tuple[str, ...] | None = None
  multi_label: bool = False
  training: dict | None = None
  source: dict | None = None

  @property
  def random(self) -> tuple[str, ...]:
    """Prefixes of the paths of parameters that were not in the source, so are random."""
    return tuple((self.source or {}).get("random", ()))

  def to_json(self) -> dict:
    labels = None if self.labels is None else list(self.labels)
    return vars(self) | {"preprocessing": self.preprocessing.to_metadata(), "labels": labels}

  @classmethod
  def from_json(cls, values: Mapping) -> "CheckpointMetadata":
    """Inverse of `to_json`; unknown keys are ignored.

    Raises:
      ValueError: values are missing or malformed.
    """
    try:
      return cls(
        model=dict(values["model"]),
        preprocessing=Preprocessing.from_metadata(values["preprocessing"]),
        labels=tuple(values["labels"]) if values.get("labels") else None,
        multi_label=bool(values.get("multi_label")),
        training=values.get("training"),
        source=values.get("source"),
      )
    except (KeyError, TypeError) as error:
      raise ValueError(repr(error)) from error
