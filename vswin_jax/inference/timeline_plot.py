"""Plots of timelines: thumbnails above a heat map of the most probable classes over time."""

import os

import numpy as np
from matplotlib.figure import Figure

from vswin_jax.common.messages import shorten
from vswin_jax.data import transforms
from vswin_jax.data.video.decoding import VideoError, decode_frames, probe
from vswin_jax.inference.timeline import Timeline

_CLASSES, _THUMBNAILS = 6, 8


def draw_timeline(path: str | os.PathLike, timeline: Timeline) -> None:
  """Draws the classes with the highest peaks, in the order of their peaks, into a PNG file."""
  probabilities = np.nan_to_num(timeline.probabilities)
  shown = np.argsort(-probabilities.max(0), kind="stable")[:_CLASSES]
  shown = shown[np.argsort(probabilities[:, shown].argmax(0), kind="stable")]
  figure = Figure(figsize=(12, 2.2 + 0.4 * len(shown)), layout="constrained")
  strip, heat = figure.subplots(2, 1, height_ratios=(1.2, 0.4 * len(shown)))
  _draw_thumbnails(strip, timeline.path)
  # File names need not be valid text.
  name = os.fsencode(os.path.basename(timeline.path)).decode(errors="replace")
  strip.set_title(name, loc="left", parse_math=False)
  edges = np.append(timeline.start, timeline.end[-1:])
  mesh = heat.pcolormesh(
    edges,
    np.arange(len(shown) + 1),
    np.ma.masked_invalid(timeline.probabilities[:, shown].T),
    cmap="viridis",
    vmin=0.0,
    vmax=1.0,
  )
  heat.set_facecolor("lightgrey")
  names = [shorten(timeline.labels[index], 34) for index in shown]
  heat.set_yticks(np.arange(len(shown)) + 0.5, names, parse_math=False)
  heat.invert_yaxis()
  heat.set_xlabel("seconds (gray: could not be decoded)" if timeline.error else "seconds")
  figure.colorbar(mesh, ax=[strip, heat], label="probability", pad=0.01)
  figure.savefig(path, dpi=110, format="png")


def _draw_thumbnails(axes, path: str) -> None:
  axes.axis("off")
  try:
    num_frames = probe(path).num_frames
    count = min(_THUMBNAILS, num_frames)
    indices = ((np.arange(count) + 0.5) * num_frames / count).astype(int)
    frames = decode_frames(path, indices)
  except VideoError:
    return  # reported with the timeline
  side = min(frames.shape[1:3])
  frames = transforms.crop(frames, transforms.center_crop_box(*frames.shape[1:3], side))
  step = max(1, side // 180)
  axes.imshow(np.concatenate(frames[:, ::step, ::step], axis=1), aspect="auto")
