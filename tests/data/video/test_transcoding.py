"""Transcoded videos equal their sources frame by frame, within encoding error."""

import dataclasses
import io

import av
import cv2
import numpy as np
import pytest

from tests.helpers.video_kinds import KINDS, decode_plainly, encode, scene
from tests.helpers.videos import FOOTAGE, moving_bars
from vswin_jax.data.video.container import VideoError
from vswin_jax.data.video.decoding import decode_frames, probe
from vswin_jax.data.video.encoding import encode_mp4
from vswin_jax.data.video.transcoding import (
  Transcoding,
  check_frames,
  fit_short_side,
  transcode,
)

BEST = Transcoding(short_side=1000, crf=1, preset="ultrafast")


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
  return np.abs(actual.astype(int) - expected).mean()


def assert_same_pictures(video: bytes, expected: np.ndarray, pixels: str = "yuv420p") -> None:
  """Checks that every frame is closest to the expected one, and near it."""
  metadata = probe(video)
  assert (metadata.num_frames, metadata.height, metadata.width) == expected.shape[:3]
  for number, frame in enumerate(decode_frames(video, range(len(expected)))):
    errors = [difference(frame, other) for other in expected]
    assert np.argmin(errors) == number
    # Sharp colors do not survive yuv420p, and a full range is rounded.
    assert errors[number] < (1 if pixels == "yuv420p" else 25)
    bias = frame.mean((0, 1)) - expected[number].mean((0, 1))
    np.testing.assert_allclose(bias, 0, atol=0.2 if pixels == "yuv420p" else 3)


def test_real_footage_gets_smaller_and_keeps_its_colors():
  source = (FOOTAGE / "bigbuckbunny.mp4").read_bytes()
  result = transcode(source, Transcoding(short_side=256))
  metadata = probe(result)
  assert (metadata.num_frames, metadata.height, metadata.width) == (132, 256, 456)
  assert len(result) < len(source) / 2
  numbers = range(0, 132, 20)
  expected = decode_frames(
    source, numbers, lambda image: cv2.resize(image, (456, 256), interpolation=cv2.INTER_AREA)
  )
  actual = decode_frames(result, numbers)
  assert difference(actual, expected) < 4
  bias = actual.mean((0, 1, 2)) - expected.mean((0, 1, 2))
  np.testing.assert_allclose(bias, 0, atol=0.7)


def test_keyframe_interval():
  source = (FOOTAGE / "bikes.mp4").read_bytes()
  result = transcode(source, Transcoding(short_side=64, keyframe_interval=12))
  with av.open(io.BytesIO(result)) as container:
    assert not container.streams.audio
    video = container.streams.video[0]
    assert video.codec_context.name == "h264" and video.average_rate == 25
    keyframes = [n for n, packet in enumerate(container.demux(video)) if packet.is_keyframe]
  assert max(np.diff(keyframes)) <= 12


def test_the_same_video_gives_the_same_bytes(tmp_path):
  source = (FOOTAGE / "carphone_pristine.mp4").read_bytes()
  (tmp_path / "a.mp4").write_bytes(source)
  assert transcode(source, Transcoding(128)) == transcode(tmp_path / "a.mp4", Transcoding(128))


def test_variable_frame_rates_become_constant(tmp_path):
  times = [0, 1, 2, 3, 10, 11, 12, 13, 22, 23, 24, 25]
  frames = scene(12)
  path = encode(tmp_path / "a.mkv", *KINDS["h264.mkv"], frames=frames, times=times)
  result = transcode(path, BEST)
  assert_same_pictures(result, decode_plainly(path))
  with av.open(io.BytesIO(result)) as container:
    pts = sorted(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
  assert len(set(np.diff(pts))) == 1


@pytest.mark.parametrize(
  "size, short_side, expected",
  [
    ((720, 1280), 256, (256, 456)),
    ((1280, 720), 256, (456, 256)),
    ((144, 176), 256, (144, 176)),
    ((145, 177), 256, (144, 176)),
    ((272, 640), 256, (256, 602)),
    ((3, 400), 256, (4, 400)),
  ],
)
def test_sizes_are_even_and_never_grow(size, short_side, expected):
  assert fit_short_side(*size, short_side) == expected


def test_damage_in_the_middle_is_an_error():
  source = bytearray(encode_mp4(moving_bars(90), 30, keyframe_interval=12))
  with av.open(io.BytesIO(bytes(source))) as container:
    packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
  position, size = packets[40]
  source[position : position + size] = b"\xff" * size
  metadata = probe(bytes(source))
  with pytest.raises(VideoError, match=r"damaged video: frame 4\d can't"):
    check_frames(bytes(source), metadata)
  with pytest.raises(VideoError, match=r"damaged video: frame 4\d can't"):
    transcode(bytes(source), Transcoding())


def test_intact_videos_pass():
  for name in ("bikes.mp4", "carphone_pristine.mp4"):
    path = FOOTAGE / name
    check_frames(path, probe(path))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotated_videos_become_upright(tmp_path, degrees):
  """Rotates the pixels, since readers treat the tag differently."""
  path = encode(tmp_path / "a.mp4", *KINDS["h264.mp4"], rotation=(degrees, False, True))
  assert_same_pictures(transcode(path, BEST), decode_frames(path, range(len(scene()))), "rgb24")


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_video(tmp_path, name):
  path = encode(tmp_path / name, *KINDS[name])
  pixels = "rgb24" if "interlaced" in name else KINDS[name][1]
  assert_same_pictures(transcode(path, BEST), decode_plainly(path), pixels)


@pytest.mark.parametrize("space, number", [("bt709", 1), ("smpte170m", 6)])
def test_color_spaces(tmp_path, space, number):
  """Large videos use another color space than small ones."""
  colors = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
  frames = [np.full((32, 48, 3), color, np.uint8) for color in colors]
  options = {"crf": "1", "colorspace": space, "x264-params": f"colormatrix={space}"}
  path = encode(tmp_path / "a.mp4", "libx264", "yuv420p", options, frames=frames)
  with av.open(str(path)) as container:
    assert container.streams.video[0].codec_context.colorspace == number
  expected = decode_frames(path, range(3)).astype(int)
  np.testing.assert_allclose(decode_frames(transcode(path, BEST), range(3)), expected, atol=2)


@pytest.mark.parametrize("name", ["mjpeg.avi", "deep.mov"])
def test_frames_do_not_keep_the_type_of_their_source(tmp_path, name):
  """A source of keyframes alone does not give keyframes alone."""
  path = encode(tmp_path / name, *KINDS[name])
  with av.open(io.BytesIO(transcode(path, Transcoding()))) as container:
    packets = [packet for packet in container.demux(video=0) if packet.size]
  assert [number for number, packet in enumerate(packets) if packet.is_keyframe] == [0]


def test_very_slow_videos():
  source = (FOOTAGE / "carphone_pristine.mp4").read_bytes()
  metadata = dataclasses.replace(probe(source), fps_numerator=1, fps_denominator=5000)
  assert probe(transcode(source, Transcoding(64), metadata)).fps_numerator == 25


def test_frame_size_that_changes(tmp_path):
  """All frames of two joined recordings get the size of the first."""
  parts = [
    encode(tmp_path / f"{width}.ts", *KINDS["h264.ts"], frames=scene(12, 32, width))
    for width in (48, 64)
  ]
  path = tmp_path / "both.ts"
  path.write_bytes(b"".join(part.read_bytes() for part in parts))
  metadata = probe(path)
  result = probe(transcode(path, Transcoding(), metadata))
  assert (result.num_frames, result.height, result.width) == (metadata.num_frames, 32, 48)
