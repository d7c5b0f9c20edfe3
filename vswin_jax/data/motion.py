"""Builder of a small generated data set whose classes are motions and nothing else.

Each clip shows a bright, textured, wobbling shape over a dim, changing background. Position and
size of the shape take the same values in every class: the component that the class names takes
them in order, the others in random order. So neither a frame nor all frames of a clip without
their order tell anything about the class; see `poses`.
"""

import contextlib
import types

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vswin_jax.data.records import features, record
from vswin_jax.data.video.decoding import probe
from vswin_jax.data.video.encoding import encode_mp4
from vswin_jax.data.worker_processes import map_in_order, usable_cores

# Class -> the component of the pose that moves (see `poses`), and its direction.
MOTIONS = {
  "left": (0, -1),
  "right": (0, 1),
  "up": (1, -1),
  "down": (1, 1),
  "zoom_in": (2, 1),
  "zoom_out": (2, -1),
}
NUM_FRAMES = 16
SIZE = 48
FPS = 8

# Largest offsets from the center: column and row in frame sizes, logarithm of the size.
_AMPLITUDE = np.array([0.25, 0.25, 0.35])
_WOBBLE = 0.5  # radians
_COLOR = (255.0, 220.0, 90.0)
_SIDES = (4, 6, 48)
_TEXTURE_SIZE = 64


class MotionClips(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of the data set: 6 classes, H.264 mp4 clips of 16 frames of 48 x 48."""

  VERSION = tfds.core.Version("1.0.0")
  NUM_CLIPS = types.MappingProxyType({"train": 4096, "validation": 512})

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Clips of a moving shape; only the order of the frames tells the class.",
      features=features(list(MOTIONS)),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    splits = enumerate(self.NUM_CLIPS.items())
    return {split: self._generate_examples(number, count) for number, (split, count) in splits}

  def _generate_examples(self, split_number: int, count: int):
    seeds = [(split_number, number) for number in range(count)]
    records = map_in_order(make_record, seeds, num_workers=usable_cores())
    with contextlib.closing(records):
      yield from enumerate(records)


def make_record(seed: tuple[int, int]) -> dict:
  """Returns the record of clip `seed[1]` of split `seed[0]`; labels take turns."""
  random = np.random.default_rng(seed)
  names = list(MOTIONS)
  label = seed[1] % len(names)
  video = encode_mp4(render(poses(names[label], random), random), FPS)
  return record(video, f"{names[label]}_{seed[0]}_{seed[1]:05d}", label, probe(video))


def poses(motion: str, random: np.random.Generator) -> np.ndarray:
  """Returns the poses of the shape in the frames of a clip of a class of `MOTIONS`.

  Each of the three components (column, row, logarithm of size) takes the same evenly spaced values
  between -1 and 1: that of the class in ascending or descending order, the others in random order.

  Returns:
    float64 `[NUM_FRAMES, 3]`, in units of the largest offset from the center.
  """
  component, direction = MOTIONS[motion]
  steps = (np.arange(NUM_FRAMES) + random.uniform(size=(3, 1))) / NUM_FRAMES * 2 - 1
  values = random.permuted(steps, axis=1)
  values[component] = steps[component, ::direction]
  return values.T


def render(poses: np.ndarray, random: np.random.Generator) -> np.ndarray:
  """Returns a clip: uint8 RGB `[NUM_FRAMES, SIZE, SIZE, 3]`."""
  shape, opacity = _draw_shape(random)
  middle = np.array([*random.uniform(0.42, 0.58, 2), np.log(random.uniform(0.44, 0.5))])
  background = _texture(random, 2 * SIZE, SIZE // 6, (20, 50), channels=3)
  start, drift = random.uniform(0, SIZE / 2, 2), random.uniform(-1, 1, 2)
  frames = np.empty((len(poses), SIZE, SIZE, 3), np.uint8)
  for number, pose in enumerate(poses):
    column, row, log_size = middle + _AMPLITUDE * pose
    angle, scale = random.uniform(-_WOBBLE, _WOBBLE), np.exp(log_size) * SIZE / _TEXTURE_SIZE
    center = _TEXTURE_SIZE / 2
    place = cv2.getRotationMatrix2D((center, center), -np.rad2deg(angle), scale)
    place[:, 2] += column * SIZE - center, row * SIZE - center
    mask = cv2.warpAffine(opacity, place, (SIZE, SIZE))[..., None]
    image = cv2.warpAffine(shape, place, (SIZE, SIZE), borderMode=cv2.BORDER_REPLICATE)
    corner = np.clip(start + drift * number, 0, SIZE - 1) + (SIZE - 1) / 2
    behind = cv2.getRectSubPix(background, (SIZE, SIZE), corner.tolist())
    frames[number] = np.clip(image * mask + behind * (1 - mask), 0, 255)
  return frames


def _draw_shape(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Returns a square, hexagon or disc: colors `[size, size, 3]` and opacity `[size, size]`."""
  middle = _TEXTURE_SIZE / 2
  sides = random.choice(_SIDES)
  turns = (np.arange(sides) + 0.5) / sides * 2 * np.pi
  corners = middle * (1 + 0.84 * np.stack([np.cos(turns), np.sin(turns)], 1))
  opacity = np.zeros((_TEXTURE_SIZE, _TEXTURE_SIZE), np.float32)
  cv2.fillPoly(opacity, [np.round(corners).astype(np.int32)], 1.0, cv2.LINE_AA)
  shade = _texture(random, _TEXTURE_SIZE, 4, (0.6, 1.1), channels=1)
  return np.array(_COLOR, np.float32) * shade, opacity


def _texture(random, size: int, cells: int, levels: tuple[float, float], channels: int):
  """Returns smooth random blotches: float32 `[size, size, channels]`."""
  coarse = random.uniform(*levels, (cells, cells, channels)).astype(np.float32)
  smooth = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
  return smooth.reshape(size, size, channels)
