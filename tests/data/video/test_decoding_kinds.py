"""Decoding of many codecs and containers, against decoding of all frames from the start."""

import tracemalloc

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from tests.helpers.video_kinds import (
  COUNT,
  GROUP,
  HEIGHT,
  KINDS,
  WIDTH,
  decode_plainly,
  encode,
  scene,
)  # fmt: skip
from tests.helpers.videos import count_decoded
from vswin_jax.data.clips import ClipSpec, train_clip
from vswin_jax.data.video import decoding
from vswin_jax.data.video.decoding import VideoError, decode_frames, frame_times, probe


def copy(source, target, change=lambda number, packet: packet):
  """Copies a video, with packets changed or dropped (None) by `change`, and returns its path."""
  with av.open(str(source)) as origin, av.open(str(target), "w") as container:
    stream = container.add_stream_from_template(origin.streams.video[0])
    packets = (packet for packet in origin.demux(video=0) if packet.size)
    for number, packet in enumerate(packets):
      changed = change(number, packet)
      if isinstance(changed, bytes):
        changed = av.Packet(changed)
        for name in ("pts", "dts", "time_base", "duration", "is_keyframe"):
          setattr(changed, name, getattr(packet, name))
      if changed is not None:
        changed.stream = stream
        container.mux(changed)
  return target


def check(path, count: int) -> None:
  """Checks number, pixels and times of the frames, in any order, for path and bytes."""
  expected = decode_plainly(path)
  assert len(expected) == count
  random = np.random.default_rng(0)
  choices = [[count - 1], range(count), *(random.integers(count, size=(4, 5)))]
  for video in (path, path.read_bytes()):
    metadata = probe(video)
    assert (metadata.num_frames, metadata.height, metadata.width) == expected.shape[:3]
    times = frame_times(video)
    assert times.shape == (count,) and times.dtype == np.float64 and times[0] == 0
    assert (np.diff(times) > 0).all()
    for indices in choices:
      np.testing.assert_array_equal(decode_frames(video, indices), expected[list(indices)])
    with pytest.raises(VideoError, match=f"{count} were asked for, the video has {count}"):
      decode_frames(video, [0, count])
  for index in range(count):
    np.testing.assert_array_equal(decode_frames(path, [index])[0], expected[index])


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_full_decoding(tmp_path, name):
  check(encode(tmp_path / name, *KINDS[name]), COUNT)
  metadata = probe(tmp_path / name)
  assert metadata.fps_numerator == 25 * metadata.fps_denominator
  np.testing.assert_allclose(frame_times(tmp_path / name), np.arange(COUNT) / 25, atol=6e-4)


@pytest.mark.parametrize("name", ["h264_444.mp4", "vp9.webm", "deep.mkv", "mpeg4.avi"])
def test_odd_sizes(tmp_path, name):
  check(encode(tmp_path / name, *KINDS[name], frames=scene(12, 37, 53)), 12)


@pytest.mark.parametrize(
  "name", ["h264.mp4", "mpeg4.avi", "vp9.webm", "moving.gif", "h264.ts", "h264.h264"]
)
def test_one_frame(tmp_path, name):
  check(encode(tmp_path / name, *KINDS[name], frames=scene(1)), 1)


@pytest.mark.parametrize(
  "name", ["h264.mp4", "h264.mkv", "h264.avi", "mpeg4.avi", "mjpeg.avi", "h264.ts", "h264.flv"]
)
def test_only_needed_frames_of_a_path_are_decoded(tmp_path, name, monkeypatch):
  path = encode(tmp_path / name, *KINDS[name], frames=scene(5 * GROUP))
  num_frames = probe(path).num_frames
  expected = decode_plainly(path)
  decoded = count_decoded(monkeypatch)
  for index in (num_frames - 2, 3 * GROUP, 2 * GROUP + 3):
    decoded.clear()
    np.testing.assert_array_equal(decode_frames(path, [index])[0], expected[index])
    assert len(decoded) <= 2 * GROUP


def test_a_path_is_indexed_once_until_the_file_changes(tmp_path, monkeypatch):
  indexed = []
  original = decoding._index_packets
  monkeypatch.setattr(
    decoding, "_index_packets", lambda stream: indexed.append(1) or original(stream)
  )
  path = encode(tmp_path / "a.mp4", *KINDS["h264.mp4"])
  for _ in range(3):
    decode_frames(path, [5])
    decode_frames(str(path), [20])
    frame_times(path)
  assert len(indexed) == 1
  encode(path, *KINDS["h264.mp4"], frames=scene(9))
  assert probe(path).num_frames == 9


def test_a_path_is_not_read_into_memory(tmp_path):
  path = encode(tmp_path / "raw.avi", *KINDS["raw.avi"], frames=scene(40, 240, 320))
  probe(path)
  tracemalloc.start()
  decode_frames(path, [39])
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert most < path.stat().st_size / 4


def test_file_names_are_no_urls_or_patterns(tmp_path):
  encode(tmp_path / "a.mp4", *KINDS["h264.mp4"])
  strange = (tmp_path / "a.mp4").rename(tmp_path / "file:a%03d?.m3u8")
  check_frames = decode_frames(strange, [3])
  np.testing.assert_array_equal(check_frames, decode_frames(strange.read_bytes(), [3]))


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_rotated_and_mirrored_as_displayed(tmp_path, degrees, flips):
  """The metadata rotate counterclockwise, then mirror."""
  for name in ("turned.mp4", "turned.mov", "turned.mkv"):
    path = encode(tmp_path / name, *KINDS["h264.mp4"], rotation=(degrees, *flips))
    expected = np.rot90(decode_plainly(path), degrees // 90, axes=(1, 2))
    expected = expected[:, :: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
    for video in (path, path.read_bytes()):
      np.testing.assert_array_equal(decode_frames(video, [9, 2, 25]), expected[[9, 2, 25]])
      assert (probe(video).height, probe(video).width) == expected.shape[1:3]


@pytest.mark.parametrize("degrees", [0, 90, 180])
def test_rotated_frames_can_be_resized(tmp_path, degrees):
  """OpenCV takes no arrays with negative strides."""
  path = encode(tmp_path / "a.mp4", *KINDS["h264.mp4"], rotation=(degrees, False, False))
  expected = [cv2.resize(frame, (30, 20)) for frame in decode_frames(path, [4, 9])]
  resized = decode_frames(path, [4, 9], lambda frame: cv2.resize(frame, (30, 20)))
  np.testing.assert_array_equal(resized, expected)


def test_frames_of_two_sizes_are_refused(tmp_path):
  parts = [
    encode(tmp_path / f"{width}.h264", *KINDS["h264.h264"], frames=scene(4, HEIGHT, width))
    for width in (64, 96)
  ]
  video = b"".join(part.read_bytes() for part in parts)
  assert decode_frames(video, [4, 5]).shape == (2, HEIGHT, 96, 3)
  with pytest.raises(VideoError, match="the frames of the video differ in size"):
    decode_frames(video, [3, 4])
  with pytest.raises(VideoError, match="the frames of the video differ in size"):
    spec = ClipSpec(num_frames=8, frame_interval=1, size=32, train_short_side=HEIGHT)
    train_clip({"video": video, "num_frames": 8}, spec, np.random.default_rng(0))


def encode_streams(path, kinds):
  """Writes a stream of each kind: "sound", "cover" or a video encoder; the last is the default."""
  encoders = {"sound": "aac", "cover": "png"}
  with av.open(str(path), "w") as container:
    streams = []
    for kind in kinds:
      rate = 44100 if kind == "sound" else 25
      stream = container.add_stream(encoders.get(kind, kind), rate=rate)
      stream.disposition = Disposition.attached_pic if kind == "cover" else Disposition(0)
      if kind != "sound":
        stream.height, stream.width = HEIGHT, WIDTH
        stream.pix_fmt = "rgb24" if kind == "cover" else "yuv420p"
      streams.append(stream)
    if kinds[-1] not in encoders:
      stream.disposition = Disposition.default
    for kind, stream in zip(kinds, streams):
      if kind == "sound":
        for number in range(COUNT * 44100 // 25 // 1024):
          sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
          sound.sample_rate, sound.pts = 44100, number * 1024
          container.mux(stream.encode(sound))
      else:
        for array in scene(1 if kind == "cover" else COUNT):
          container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
      container.mux(stream.encode(None))
  return path


@pytest.mark.parametrize(
  "kinds", [("sound", "libx264"), ("libx264", "sound"), ("cover", "libx264")]
)
def test_the_video_among_other_streams(tmp_path, kinds):
  path = encode_streams(tmp_path / "a.mp4", kinds)
  expected = decode_plainly(path)
  assert len(expected) == COUNT
  for video in (path, path.read_bytes()):
    np.testing.assert_array_equal(decode_frames(video, range(COUNT)), expected)


def test_the_default_one_of_two_videos(tmp_path):
  path = encode_streams(tmp_path / "a.mkv", ("libx264", "ffv1"))
  with av.open(str(path)) as container:
    frames = container.decode(video=1)
    expected = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
  np.testing.assert_array_equal(decode_frames(path, range(COUNT)), expected)


def test_a_cover_picture_is_no_video(tmp_path):
  encode_streams(tmp_path / "a.mp4", ("cover", "sound"))
  path = (tmp_path / "a.mp4").rename(tmp_path / "song.m4a")
  for video in (path, path.read_bytes()):
    with pytest.raises(VideoError, match="the file has only a cover picture"):
      probe(video)


@pytest.mark.parametrize(
  "name, stored",
  [("h264.mp4", True), ("vp9.webm", True), ("h264.ts", True), ("h264.h264", False)],
)
def test_times_of_variable_frame_rate(tmp_path, name, stored):
  """With a late start and gaps; without stored times, they follow from the frame rate."""
  ticks = 50 + np.cumsum(np.random.default_rng(0).integers(1, 4, COUNT))
  path = encode(tmp_path / name, *KINDS[name], times=ticks.tolist())
  check(path, COUNT)
  expected = (ticks - ticks[0] if stored else np.arange(COUNT)) / 25
  for video in (path, path.read_bytes()):
    np.testing.assert_allclose(frame_times(video), expected, atol=6e-4)


def test_skipped_frames_of_an_avi(tmp_path):
  """All frames of an avi have one duration: gaps are filled with empty packets."""
  times = [number + 3 * (number > 12) for number in range(COUNT)]
  check(encode(tmp_path / "a.avi", *KINDS["mpeg4_in_order.avi"], times=times), COUNT)


def test_frames_with_equal_times(tmp_path):
  def halve(_, packet):
    packet.pts = packet.dts = packet.pts // 2
    return packet

  source = encode(tmp_path / "a.avi", *KINDS["mjpeg.avi"])
  path = copy(source, tmp_path / "a.mkv", halve)
  expected = decode_plainly(source)
  for video in (path, path.read_bytes()):
    assert probe(video).num_frames == COUNT
    np.testing.assert_array_equal(decode_frames(video, range(COUNT)), expected)
    np.testing.assert_allclose(frame_times(video), np.arange(COUNT) // 2 / 25, atol=6e-4)


def test_frames_without_times_of_their_own(tmp_path):
  """The frames of an avi in another container."""
  path = copy(encode(tmp_path / "a.avi", *KINDS["h264_in_order.avi"]), tmp_path / "a.mkv")
  check(path, COUNT)


def hide_vp8(number, packet):
  """Clears the bit that means "shown"."""
  data = bytearray(bytes(packet))
  data[0] &= ~0x10
  return bytes(data) if number in (5, 13) else packet


def say_nothing_changed(number, packet):
  """Ends an MPEG-4 packet after the bit that means "coded", cleared."""
  if number not in (6, 21):
    return packet
  bits = "".join(f"{byte:08b}" for byte in bytes(packet)[:12])
  end = bits.index("0", 34) + 1 + 1 + 5 + 1  # whole seconds, marker, 1/25 s, marker
  assert bits[end] == "1"
  return int(bits[:end].ljust(8 * (end // 8 + 1), "0"), 2).to_bytes(end // 8 + 1, "big")


@pytest.mark.parametrize(
  "name, copied, change",
  [
    ("vp8.webm", "a.webm", hide_vp8),
    ("mpeg4_in_order.avi", "a.avi", say_nothing_changed),
    ("mpeg4_in_order.avi", "a.mp4", say_nothing_changed),
  ],
)
def test_packets_that_show_nothing_are_not_counted(tmp_path, name, copied, change):
  source = encode(tmp_path / f"source_{name}", *KINDS[name])
  check(copy(source, tmp_path / copied, change), COUNT - 2)


@pytest.mark.parametrize("name", ["hevc.mkv", "h264_open.mp4", "mpeg2.ts"])
@pytest.mark.parametrize("first", [GROUP, 3])
def test_files_cut_before_or_after_a_keyframe(tmp_path, name, first):
  """Frames that refer to missing ones are not shown."""
  source = encode(tmp_path / f"source_{name}", *KINDS[name])
  path = copy(
    source,
    (tmp_path / name).with_suffix(".mkv"),
    lambda number, packet: packet if number >= first else None,
  )
  expected = len(decode_plainly(path))
  assert 0 < expected < COUNT
  check(path, expected)


@pytest.mark.parametrize(
  "name", ["h264.mkv", "h264.ts", "h264.h264", "h264.avi", "mpeg4.avi", "mpeg2.mpg", "vp9.webm"]
)
def test_truncated_files_keep_the_frames_before_the_end(tmp_path, name):
  whole = encode(tmp_path / name, *KINDS[name])
  expected = decode_plainly(whole)
  path = tmp_path / f"cut_{name}"
  with av.open(str(whole)) as container:
    last = [packet for packet in container.demux(video=0) if packet.size][2 * GROUP + 3]
  end = whole.stat().st_size * 2 // 3 if last.pos is None else last.pos + last.size // 2
  path.write_bytes(whole.read_bytes()[:end])
  num_frames = probe(path).num_frames
  assert 2 * GROUP <= num_frames < COUNT
  assert len(frame_times(path)) == num_frames
  intact = range(num_frames - 3)  # decoders may conceal the last frames without an error
  for video in (path, path.read_bytes()):
    np.testing.assert_array_equal(decode_frames(video, intact), expected[intact])
    with pytest.raises(VideoError):
      decode_frames(video, range(COUNT))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "mpeg4_in_order.avi", "mjpeg.avi"])
def test_damaged_files_keep_the_other_groups_of_frames(tmp_path, name):
  path = encode(tmp_path / name, *KINDS[name], frames=scene(3 * GROUP))
  expected = decode_plainly(path)
  with av.open(str(path)) as container:
    hurt = [packet for packet in container.demux(video=0) if packet.size][GROUP]
  data = bytearray(path.read_bytes())
  data[hurt.pos + 12 : hurt.pos + hurt.size] = bytes(hurt.size - 12)
  path.write_bytes(data)
  after = 3 * GROUP - 3
  for video in (path, path.read_bytes()):
    for indices in ([2], [after], range(GROUP - 3)):
      np.testing.assert_array_equal(decode_frames(video, indices), expected[list(indices)])
    with pytest.raises(VideoError, match="damaged video: frame 8 "):
      decode_frames(video, [GROUP])


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("missing.mp4", None, "missing.mp4: No such file or directory"),
    ("empty.mp4", b"", "empty.mp4: not a readable video: the file is empty"),
    ("notes.txt", b"no video " * 99, "notes.txt: not a readable video: "),
    ("a.ffconcat", b"ffconcat version 1.0\nfile a.mp4\n", "a.ffconcat: not a readable video: "),
  ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  for function in (probe, frame_times, lambda video: decode_frames(video, [0])):
    with pytest.raises(VideoError, match=message) as error:
      function(path)
    assert "\n" not in str(error.value)


def test_a_folder_is_refused(tmp_path):
  with pytest.raises(VideoError, match="it is a folder; expected a video file"):
    decode_frames(tmp_path, [0])
