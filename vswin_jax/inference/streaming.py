"""Streaming inference with VTN: predictions over all frames received so far.

    stream = Stream(load_model("models/vtn_vit_b"))
    for frame in camera:  # uint8 [height, width, 3], RGB
      stream.add_frames(frame[None])
      print(stream.probabilities().argmax())

The backbone runs once per frame. Each call of `probabilities` runs the temporal encoder over all
frames that are kept; with ViT-B, it costs more than the backbone's work on one new frame from about
700 frames on. `max_frames` limits the frames that are kept, and with them memory and time.
"""

import collections

import jax
import numpy as np
from flax import nnx

from vswin_jax.common.checks import check_at_least
from vswin_jax.data.clips import central_view
from vswin_jax.inference.video_model import VideoModel
from vswin_jax.models.outputs import class_probabilities
from vswin_jax.models.parameters import merge_model
from vswin_jax.models.vtn import VTN


class Stream:
  """Frame features of one video, and the class probabilities over all of them."""

  def __init__(self, model: VideoModel, *, max_frames: int | None = None, frames_per_call: int = 8):
    """Starts a stream without frames.

    Args:
      model: VTN from `load_model`; streams of one model share its compiled functions.
      max_frames: number of newest frames to keep; None: all.
      frames_per_call: frames per call of the backbone.

    Raises:
      ValueError: another kind of model, or an invalid number.
    """
    if not isinstance(model.network, VTN):
      raise ValueError(f"a Stream needs a VTN, got a {type(model.network).__name__}")
    check_at_least(1, frames_per_call=frames_per_call)
    if max_frames is not None:
      check_at_least(1, max_frames=max_frames)
    self._model = model
    self._classify = model.jit("classify", lambda graph: _classify_step(graph, model.multi_label))
    self._encode = model.view_step("frame_features")
    self._frames_per_call = frames_per_call
    # Frames that are not encoded yet, and the features of the others, with their positions.
    self._pending: list[tuple[np.ndarray, int]] = []
    self._features: collections.deque[tuple[np.ndarray, int]] = collections.deque(maxlen=max_frames)
    self._next_position = 0

  @property
  def num_frames(self) -> int:
    """Number of frames that predictions cover: all so far, or the newest `max_frames`."""
    frames, max_frames = len(self._features) + len(self._pending), self._features.maxlen
    return frames if max_frames is None else min(frames, max_frames)

  def add_frames(self, frames: np.ndarray, position_ids: np.ndarray | None = None) -> None:
    """Adds the next frames of the video.

    Args:
      frames: uint8 `[count, height, width, 3]`, RGB of any size; resized and center-cropped as in
        evaluation.
      position_ids: int `[count]`, frame numbers; None: continues after the last frame.

    Raises:
      ValueError: wrong shapes or dtypes.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
      raise ValueError(
        f"frames must be uint8 [count, height, width, 3], got {frames.dtype} {list(frames.shape)}"
      )
    position_ids = self._checked_positions(len(frames), position_ids)
    spec, views = self._model.preprocessing.clip, self._model.preprocessing.views
    for frame, position in zip(frames, position_ids):
      # A copy: the caller may reuse the memory of its frames.
      self._pending.append((central_view(frame, spec, views).copy(), position))
      if len(self._pending) == self._frames_per_call:
        self._encode_pending()

  def add_features(self, features: np.ndarray, position_ids: np.ndarray | None = None) -> None:
    """Adds the features of the next frames.

    Args:
      features: float `[count, width]`, as `VTN.frame_features` gives them.
      position_ids: as in `add_frames`.

    Raises:
      ValueError: wrong shapes or dtypes.
    """
    features = np.asarray(features, np.float32)
    width = self._model.network.config.width
    if features.ndim != 2 or features.shape[1] != width:
      raise ValueError(f"features must be [count, {width}], got {list(features.shape)}")
    self._encode_pending()
    positions = self._checked_positions(len(features), position_ids)
    # Copies of the rows: a view would keep the memory of all features.
    self._features.extend((row.copy(), position) for row, position in zip(features, positions))

  def probabilities(self) -> np.ndarray:
    """Returns float32 class probabilities `[num_classes]` over the frames so far, as the model
    gives them for all frames in one call.

    Raises:
      ValueError: there are no frames yet.
    """
    self._encode_pending()
    if not self._features:
      raise ValueError("no frames yet; call add_frames first")
    rows, position_ids = zip(*self._features)
    # Padded to one of a few lengths, each of which compiles once.
    count, length = len(rows), _padded_length(len(rows))
    features = np.zeros((length, len(rows[0])), np.float32)
    np.stack(rows, out=features[:count])
    positions = np.zeros(length, np.int32)
    positions[:count] = position_ids
    return np.asarray(self._classify(features, positions, np.arange(length) < count))

  def _checked_positions(self, count: int, position_ids: np.ndarray | None) -> np.ndarray:
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
    return position_ids

  def _encode_pending(self) -> None:
    if not self._pending:
      return
    frames, position_ids = zip(*self._pending)
    # Padded to a power of two, so that few lengths are compiled.
    count = len(frames)
    length = min(1 << (count - 1).bit_length(), self._frames_per_call)
    frames = np.stack([*frames, *[np.zeros_like(frames[0])] * (length - count)])
    positions = np.resize(np.array(position_ids, np.int32), (1, 1, length))
    # One video with one view.
    features = np.asarray(self._encode(frames[None, None], positions))[0, 0]
    self._features.extend(zip(features, position_ids))
    self._pending = []


def _padded_length(length: int) -> int:
  """Returns the next multiple of 32 or of a quarter of the power of two below, if that is more."""
  step = max(32, 1 << max(length.bit_length() - 3, 0))
  return -(-length // step) * step


def _classify_step(graph: nnx.GraphDef, multi_label: bool):
  def step(params: dict, *arrays: jax.Array) -> jax.Array:
    logits = merge_model(graph, params).classify(*(array[None] for array in arrays))
    return class_probabilities(logits, multi_label)[0]

  return step
