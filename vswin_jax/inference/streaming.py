"""VTN on a video that is still going on: what it says of all frames so far, at any moment.

    stream = Stream(load_model("models/vtn_vit_b"))
    for frame in camera:  # uint8 [height, width, 3], RGB
      stream.add_frames(frame[None])
      print(stream.probabilities().argmax())

Every frame goes through the backbone once. Every call of `probabilities` runs the temporal encoder
over all frames kept: with ViT-B, that is less than a six-hundredth of the backbone's work on them,
but more than its work on one new frame from some 700 frames on. Features take `4 * width` bytes a
frame: 276 MB for an hour of 25 frames a second at 768 channels. `max_frames` bounds what is kept,
and with it the memory and the time of a call.
"""

import collections
import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from vswin_jax.common.checks import check_at_least
from vswin_jax.data.clips import central_view
from vswin_jax.data.preprocessing import Preprocessing
from vswin_jax.models.outputs import class_probabilities, jitted_view_step
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.vtn import VTN


class Stream:
  """The features of the frames so far, and the class probabilities that they amount to."""

  def __init__(
    self,
    model: nnx.Module,
    preprocessing: Preprocessing | None = None,
    *,
    max_frames: int | None = None,
    frames_per_call: int = 8,
  ):
    """Begins before the first frame.

    Args:
      model: a VTN.
      preprocessing: of frames; None: that of a loaded model. Only `add_frames` needs it.
      max_frames: how many of the newest frames are kept; None: all.
      frames_per_call: frames that the backbone computes at a time.

    Raises:
      ValueError: another kind of model, or numbers that do not fit.
    """
    if not isinstance(model, VTN):
      raise ValueError(f"only a VTN keeps features of frames; got a {type(model).__name__}")
    check_at_least(1, frames_per_call=frames_per_call)
    if max_frames is not None:
      check_at_least(1, max_frames=max_frames)
    self._graph, self._params = split_model(model)
    self._width = model.config.width
    self._multi_label = getattr(model, "multi_label", False)
    self._preprocessing = preprocessing or getattr(model, "preprocessing", None)
    self._max_frames = max_frames
    self._frames_per_call = frames_per_call
    # Frames and their positions, not yet encoded.
    self._pending: list[tuple[np.ndarray, int]] = []
    # Blocks of (features, positions) of frames, in order.
    self._blocks: collections.deque[tuple[np.ndarray, np.ndarray]] = collections.deque()
    self._next_position = 0

  @property
  def num_frames(self) -> int:
    """Frames that count now: all so far, or the newest `max_frames`."""
    frames = sum(len(positions) for _, positions in self._blocks) + len(self._pending)
    return frames if self._max_frames is None else min(frames, self._max_frames)

  def add_frames(self, frames: np.ndarray, position_ids: np.ndarray | None = None) -> None:
    """Takes the next frames of the video.

    Args:
      frames: uint8 `[count, height, width, 3]`, RGB of any size; resized and cropped in the middle
        as in an evaluation.
      position_ids: int `[count]`, their numbers in the video; None: counting on from the last.

    Raises:
      ValueError: arrays that do not fit, or no preprocessing.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
      raise ValueError(
        f"frames must be uint8 [count, height, width, 3], got {frames.dtype} {list(frames.shape)}"
      )
    if self._preprocessing is None:
      raise ValueError("this model came without a checkpoint: give the Stream a preprocessing")
    position_ids = self._count_on(len(frames), position_ids)
    spec, views = self._preprocessing.clip, self._preprocessing.views
    for frame, position in zip(frames, position_ids):
      self._pending.append((central_view(frame, spec, views), position))
      if len(self._pending) == self._frames_per_call:
        self._encode_pending()

  def add_features(self, features: np.ndarray, position_ids: np.ndarray | None = None) -> None:
    """Takes the features of the next frames: float `[count, width]`, from `VTN.frame_features`;
    the rest as in `add_frames`."""
    features = np.asarray(features, np.float32)
    if features.ndim != 2 or features.shape[1] != self._width:
      raise ValueError(f"features must be [count, {self._width}], got {list(features.shape)}")
    self._encode_pending()
    self._keep(features, self._count_on(len(features), position_ids))

  def probabilities(self) -> np.ndarray:
    """What the model says of the frames so far: float32 `[num_classes]`, the softmax of the logits
    that it gives for all of them in one pass, or their sigmoid if it gives several labels.

    Raises:
      ValueError: there are no frames yet.
    """
    self._encode_pending()
    if not self._blocks:
      raise ValueError("no frames yet")
    features, positions = (np.concatenate(parts) for parts in zip(*self._blocks))
    self._blocks = collections.deque([(features, positions)])
    # One of a few lengths, so that a growing video compiles seldom.
    padding = _padded_length(len(features)) - len(features)
    valid = np.arange(len(features) + padding) < len(features)
    features = np.pad(features, [(0, padding), (0, 0)])
    run = _classifier(self._graph, self._multi_label)
    return np.asarray(run(self._params, features, np.pad(positions, (0, padding)), valid))

  def _count_on(self, count: int, position_ids: np.ndarray | None) -> np.ndarray:
    if position_ids is None:
      position_ids = np.arange(self._next_position, self._next_position + count)
    position_ids = np.asarray(position_ids)
    if position_ids.shape != (count,) or position_ids.dtype.kind not in "iu":
      raise ValueError(
        f"position_ids must be {count} integers, got {position_ids.dtype} "
        f"{list(position_ids.shape)}"
      )
    if count:
      self._next_position = int(position_ids[-1]) + 1
    return position_ids.astype(np.int32)

  def _encode_pending(self) -> None:
    if not self._pending:
      return
    count = len(self._pending)
    # One of a few lengths, likewise.
    length = min(1 << (count - 1).bit_length(), self._frames_per_call)
    frames, position_ids = zip(*self._pending)
    frames = np.stack([*frames, *[np.zeros_like(frames[0])] * (length - count)])
    positions = np.array(position_ids, np.int32)
    encode = jitted_view_step(self._graph, "map", self._preprocessing.mean, self._preprocessing.std)
    # One video, one view; the map of a frame is one vector.
    features = encode(self._params, frames[None, None], np.resize(positions, (1, 1, length)))
    self._keep(np.asarray(features)[0, 0, :count, 0, 0], positions)
    self._pending = []

  def _keep(self, features: np.ndarray, positions: np.ndarray) -> None:
    if not len(features):
      return
    self._blocks.append((features, positions))
    if self._max_frames is None:
      return
    surplus = sum(len(block) for _, block in self._blocks) - self._max_frames
    while surplus > 0:
      features, positions = self._blocks.popleft()
      if surplus < len(positions):
        # Copies, so that what is dropped leaves the memory.
        self._blocks.appendleft((features[surplus:].copy(), positions[surplus:].copy()))
      surplus -= len(positions)


def _padded_length(length: int) -> int:
  """The next of lengths 32 or a quarter apart, whichever is more."""
  step = max(32, 1 << max(length.bit_length() - 3, 0))
  return -(-length // step) * step


@functools.lru_cache(maxsize=8)
def _classifier(graph: nnx.GraphDef, multi_label: bool) -> Callable:
  def classify(params: dict, *arrays: jax.Array) -> jax.Array:
    logits = merge_model(graph, params).classify(*(array[None] for array in arrays))
    return class_probabilities(logits, multi_label)[0]

  return jax.jit(classify)
