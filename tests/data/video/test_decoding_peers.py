"""The readers that benchmarks/input_pipeline.py compares return the same clips."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parents[3] / "benchmarks" / "input_pipeline.py"


@pytest.fixture(scope="module")
def benchmark():
  spec = importlib.util.spec_from_file_location("input_pipeline", SCRIPT)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # its dataclasses look there
  spec.loader.exec_module(module)
  yield module
  del sys.modules[spec.name]


@pytest.fixture(scope="module")
def video(benchmark):
  return benchmark.encode(benchmark.render(0))


@pytest.mark.parametrize("name", ["decoding_alone", "opencv", "decord"])
def test_readers_give_the_clips_of_this_library(benchmark, video, name):
  if name == "decord":
    pytest.importorskip("decord")
  reader = getattr(benchmark, name)(**({"keep": True} if name == "decoding_alone" else {}))
  ours = benchmark.this_library()
  clips = [benchmark.draw_clip(0, seed) for seed in range(2)]
  assert {clip.flip for clip in clips} == {False, True}
  for clip in clips:
    expected = ours(video, clip)
    assert expected.shape == (32, 224, 224, 3)
    # Another build of FFmpeg may convert colors a little differently.
    difference = np.abs(reader(video, clip).astype(int) - expected)
    assert difference.max() <= 3 and difference.mean() < 0.5
