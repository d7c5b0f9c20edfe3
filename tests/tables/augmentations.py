"""A page of pictures: what each augmentation does to a clip.

`python -m tests.tables.augmentations docs/augmentations.jpg` draws it. Of every clip the first and
the last frame are shown: whatever is drawn at random is the same for both.
"""

import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from tests.helpers.videos import FOOTAGE
from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.augmentation.rand_augment import STYLES, draw_arguments
from vswin_jax.data.clips import ClipSpec, train_clip
from vswin_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vswin_jax.data.video.decoding import decode_frames
from vswin_jax.data.video.encoding import encode_mp4
from vswin_jax.models.normalization import denormalize
from vswin_jax.training.inputs import augment_batch, model_inputs

SIZE, FRAMES, COLUMNS = 112, 8, 6
PIXELS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
# As in the published recipes.
MAGNITUDES = {"imgaug": 7, "timm": 9}


def video(name: str) -> dict:
  """A record of real footage, small."""
  numbers = range(0, 4 * FRAMES, 2)
  content = (FOOTAGE / name).read_bytes()
  frames = decode_frames(content, numbers, lambda image: cv2.resize(image, (228, 128)))
  return {
    "video": encode_mp4(frames, 25, crf=5), "num_frames": len(frames), "fps_numerator": 25,
    "fps_denominator": 1,
  }  # fmt: skip


def host_pictures(record: dict) -> dict[str, np.ndarray]:
  """Clips as they are cut and mirrored while they are decoded, by title."""
  spec = {"num_frames": FRAMES, "frame_interval": 2, "size": SIZE, "train_short_side": 128}
  cuts = {
    "resized crop": ClipSpec(**spec, flip_probability=0.0),
    "jittered crop": ClipSpec(
      **spec, train_crop="jittered", short_side_range=(128, 160), flip_probability=0.0
    ),
    "flip": ClipSpec(**spec, area_range=(1, 1), aspect_ratio_range=(1, 1), flip_probability=1.0),
  }
  return {
    f"{name} {seed + 1}" if name != "flip" else name: train_clip(
      record, cut, np.random.default_rng(seed)
    )[0]
    for name, cut in cuts.items()
    for seed in range(1 if name == "flip" else 3)
  }


def device_pictures(clips: np.ndarray) -> dict[str, np.ndarray]:
  """Clips as a training step sees them, by title; those that mix show the first of two clips."""
  recipes = {
    "color jitter 0.4": Augmentation(color_jitter=0.4),
    "random erasing": Augmentation(erasing_probability=1.0),
    "mixup": Augmentation(mixup_alpha=0.8),
    "cutmix": Augmentation(cutmix_alpha=1.0),
    "RandAugment imgaug, 4 of 7/30": Augmentation(rand_augment="imgaug", magnitude=7),
    "RandAugment timm, 2 of 9/10": Augmentation(
      rand_augment="timm", num_operations=2, magnitude=9, magnitude_std=0.5
    ),
  }

  def augment(video, key, augmentation):
    batch = {"video": video, "label": np.arange(len(video))}
    pixels, _ = model_inputs(
      augment_batch(batch, key, augmentation), key, augmentation, num_classes=2, **PIXELS
    )
    return denormalize(pixels, **PIXELS)

  compiled = jax.jit(augment, static_argnums=2)
  return {
    f"{name} ({seed + 1})": np.asarray(compiled(clips, jax.random.key(seed), augmentation))[0]
    for name, augmentation in recipes.items()
    for seed in range(2)
  }


def operation_pictures(clip: np.ndarray) -> dict[str, np.ndarray]:
  """Every operation of every style of RandAugment, by title."""
  pictures = {}
  for style_name, magnitude in MAGNITUDES.items():
    style = STYLES[style_name]
    for name, operation in style.operations.items():
      arguments = draw_arguments(style, magnitude, jax.random.key(0), *clip.shape[1:3])[name]
      planes = operation(jnp.moveaxis(clip, -1, 1), *arguments)
      pictures[f"{style_name}: {name} {magnitude}"] = np.moveaxis(np.asarray(planes), 1, -1)
  return pictures


def draw(path, pictures: dict[str, np.ndarray]) -> None:
  """Draws the first and the last frame of clips uint8 `[time, height, width, 3]`, by title."""
  rows = -(-len(pictures) // COLUMNS)
  figure = Figure(figsize=(2.3 * COLUMNS, 1.35 * rows), layout="constrained", facecolor="white")
  for axes in figure.subplots(rows, COLUMNS).flat:
    axes.axis("off")
  for axes, (title, clip) in zip(figure.axes, pictures.items()):
    axes.imshow(np.concatenate([clip[0], clip[-1]], 1))
    axes.set_title(title, fontsize=7, loc="left")
  figure.savefig(path, dpi=90)


def main(path: str) -> None:
  host = host_pictures(video("bigbuckbunny.mp4"))
  other = host_pictures(video("bikes.mp4"))["jittered crop 3"]
  clips = np.stack([host["resized crop 1"], other])
  pictures = {**host, **device_pictures(clips)}
  draw(path, {**pictures, **operation_pictures(clips[0])})


if __name__ == "__main__":
  main(sys.argv[1])
