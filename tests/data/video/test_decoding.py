"""Decoding of real footage and H.264 variants, against decoding of all frames from the start."""

import fractions
import io

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.videos import FOOTAGE, count_decoded, moving_bars
from vswin_jax.data.video import decoding
from vswin_jax.data.video.decoding import VideoError, decode_frames, probe
from vswin_jax.data.video.encoding import encode_mp4


def all_frames(video: bytes) -> np.ndarray:
  """Decodes all frames that a player shows from the start."""
  with av.open(io.BytesIO(video)) as container:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(
  "name, metadata",
  [
    ("bikes.mp4", (250, 272, 640, 25, 1)),
    ("bigbuckbunny.mp4", (132, 720, 1280, 25, 1)),
    ("carphone_pristine.mp4", (120, 144, 176, 30000, 1001)),
  ],
)
def test_real_footage_equals_full_decoding(name, metadata):
  video = (FOOTAGE / name).read_bytes()
  found = probe(video)
  assert (
    found.num_frames, found.height, found.width, found.fps_numerator, found.fps_denominator
  ) == metadata  # fmt: skip
  expected = all_frames(video)
  assert len(expected) == found.num_frames
  random = np.random.default_rng(0)
  dense = (random.integers(found.num_frames) + 2 * np.arange(32)) % found.num_frames
  for indices in (dense, random.integers(found.num_frames, size=9), [found.num_frames - 1]):
    np.testing.assert_array_equal(decode_frames(video, indices), expected[indices])


GOP = encode_mp4(moving_bars(90), 30, keyframe_interval=12)
GOP_FRAMES = all_frames(GOP)
with av.open(io.BytesIO(GOP)) as _container:
  GOP_TIMES = np.array([frame.pts for frame in _container.decode(video=0)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 89), min_size=1, max_size=20))
def test_any_frames_in_any_order(indices):
  np.testing.assert_array_equal(decode_frames(GOP, indices), GOP_FRAMES[indices])


def test_only_the_frames_from_a_keyframe_on_are_decoded(monkeypatch):
  """Two distant frames cost at most two groups of 12 frames."""
  decoded = count_decoded(monkeypatch)
  np.testing.assert_array_equal(decode_frames(GOP, [20, 80]), GOP_FRAMES[[20, 80]])
  assert set(GOP_TIMES[[20, 80]]) <= {frame.pts for frame in decoded}
  assert len(decoded) <= 2 * 12


def encode_h264(frames, **options) -> bytes:
  """Returns an mp4 file encoded with options of x264, with underscores for dashes."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
    parameters = (f"{name.replace('_', '-')}={value}" for name, value in options.items())
    stream.options = {"x264-params": ":".join(parameters)}
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
  return buffer.getvalue()


def test_frames_that_nothing_refers_to_are_not_decoded(monkeypatch):
  """I b b P b b P ..., where no frame needs a b."""
  options = {"bframes": 2, "b_adapt": 0, "b_pyramid": "none", "scenecut": 0, "keyint": 60}
  video = encode_h264(moving_bars(30), **options)
  expected = all_frames(video)
  decoded = count_decoded(monkeypatch)
  for index, needed in ((9, [0, 3, 6, 9]), (10, [0, 3, 6, 9, 10]), (0, [0])):
    decoded.clear()
    np.testing.assert_array_equal(decode_frames(video, [index])[0], expected[index])
    step = decoded[0].duration
    assert [frame.pts // step - decoded[0].pts // step for frame in decoded] == needed


@pytest.mark.parametrize(
  "options",
  [
    {"bframes": 3, "b_pyramid": "normal", "keyint": 250},
    {"bframes": 5, "b_pyramid": "strict", "b_adapt": 2, "keyint": 16, "ref": 4},
    {"bframes": 3, "open_gop": 1, "keyint": 12, "weightp": 2, "weightb": 1},
    {"bframes": 3, "keyint": 20, "direct": "temporal", "slices": 3, "no_cabac": 1},
    {"bframes": 0, "keyint": 30, "scenecut": 100},
  ],
)
def test_skipped_frames_change_no_other_frame(options):
  """Every 1st to 5th frame of noise that moves."""
  random = np.random.default_rng(0)
  noise = random.integers(0, 256, (20, 28, 3), np.uint8).repeat(4, 0).repeat(4, 1)
  frames = [np.roll(noise, (t, 3 * t), (0, 1))[:64, :96].copy() for t in range(80)]
  for t, frame in enumerate(frames):
    frame[t % 40 : t % 40 + 20, 10:30] = random.integers(0, 256, (20, 20, 3))
  video = encode_h264(frames, **options)
  expected = all_frames(video)
  for step in (1, 2, 3, 5):
    for start in random.integers(80 - 12 * step, size=4):
      indices = start + step * np.arange(12)
      np.testing.assert_array_equal(decode_frames(video, indices), expected[indices])


def remux(video: bytes, shift) -> bytes:
  """Copies packets, with timestamps changed by `shift(pts, dts)`."""
  buffer = io.BytesIO()
  with av.open(io.BytesIO(video)) as source, av.open(buffer, "w", format="mp4") as target:
    stream = target.add_stream_from_template(source.streams.video[0])
    for packet in source.demux(video=0):
      if packet.dts is None:
        continue
      packet.pts, packet.dts = shift(packet.pts, packet.dts)
      packet.stream = stream
      target.mux(packet)
  return buffer.getvalue()


def test_variable_frame_rate():
  frames = moving_bars(60)
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
    stream.options = {"g": "10", "bf": "2"}
    stream.codec_context.time_base = fractions.Fraction(1, 1000)
    times = np.cumsum(np.random.default_rng(0).integers(10, 90, len(frames)))
    for time, pixels in zip(times, frames):
      frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
      frame.pts, frame.time_base = int(time), fractions.Fraction(1, 1000)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  video = buffer.getvalue()
  expected = all_frames(video)
  assert probe(video).num_frames == len(expected) == 60
  for indices in ([0, 59], [31, 7, 8, 45], range(0, 60, 3)):
    np.testing.assert_array_equal(decode_frames(video, indices), expected[list(indices)])


def test_frames_hidden_by_an_edit_list_are_not_counted():
  start = 5 * 512  # of a stream with 15360 ticks per second, at 30 frames per second
  video = remux(GOP, lambda pts, dts: (pts - start, dts - start))
  expected = all_frames(video)
  assert probe(video).num_frames == len(expected)
  indices = [0, 3, len(expected) - 1, 40]
  np.testing.assert_array_equal(decode_frames(video, indices), expected[indices])


@pytest.mark.parametrize(
  "video, message",
  [
    (b"", "not a readable video"),
    (b"<html><body>404</body></html>", "not a readable video"),
    (GOP[: len(GOP) // 2], "not a readable video"),
    (GOP.replace(b"avc1", b"xxxx"), "no decoder for the video stream"),
  ],
)
def test_other_data_are_refused(video, message):
  with pytest.raises(VideoError, match=message):
    decode_frames(video, [0])


def test_damaged_frames_are_refused():
  middle = len(GOP) // 2
  damaged = GOP[:100] + bytes(middle) + GOP[100 + middle :]
  with pytest.raises(VideoError):
    decode_frames(damaged, range(90))


def test_most_flipped_bytes_are_noticed():
  """Frames that the decoder flags as corrupt are refused; others go unnoticed."""
  start = GOP.index(b"mdat") + 4
  random = np.random.default_rng(0)
  refused = 0
  for _ in range(40):
    damaged = bytearray(GOP)
    for position in random.integers(start + 700, start + 700 + (len(GOP) - start) // 2, 5):
      damaged[position] ^= 0xFF
    try:
      decode_frames(bytes(damaged), range(90))
    except VideoError:
      refused += 1
  assert refused >= 30


@pytest.mark.parametrize("marked", [0, 1])
def test_a_stream_without_marked_keyframes_is_decoded_from_its_start(monkeypatch, marked):
  original = decoding.read_packets

  def without_keyframes(stream):
    for number, packet in enumerate(original(stream)):
      packet.is_keyframe = number < marked
      yield packet

  monkeypatch.setattr(decoding, "read_packets", without_keyframes)
  assert probe(GOP).num_frames == 90
  np.testing.assert_array_equal(decode_frames(GOP, [50, 89]), GOP_FRAMES[[50, 89]])


def test_frames_outside_the_video_are_refused():
  with pytest.raises(VideoError, match="frames 3 to 90 were asked for, the video has 90"):
    decode_frames(GOP, [3, 90])
  with pytest.raises(VideoError, match=r"counted from 0; got \[-1, 5\]"):
    decode_frames(GOP, [-1, 5])


def test_odd_sizes_can_not_be_encoded():
  with pytest.raises(ValueError, match="even frame sizes, got 31 x 48"):
    encode_mp4(moving_bars(3, height=31), 30)
