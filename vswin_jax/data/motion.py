"""A small generated data set whose classes are motions and nothing else.

Each clip shows a bright textured shape over a dim, drifting background. Poses (place, angle,
size) are drawn so that the frames of a clip, taken without their order, are distributed alike for
every class: only the order in time tells the class. See `poses`.
"""

import concurrent.futures
import multiprocessing
import os

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vswin_jax.data.decoding import probe
from vswin_jax.data.encoding import encode_mp4
from vswin_jax.data.records import features, record

# Class -> (component of the pose, direction in which it moves).
MOTIONS = {
  "left": (0, -1),
  "right": (0, 1),
  "up": (1, -1),
  "down": (1, 1),
  "clockwise": (2, 1),
  "counterclockwise": (2, -1),
  "zoom_in": (3, 1),
  "zoom_out": (3, -1),
}
CLASSES = tuple(MOTIONS)
NUM_FRAMES = 16
SIZE = 48
FPS = 8

_SPLITS = {"train": 3072, "validation": 512}
