"""Files that can't be read at the moment."""

import io

import pytest

from tests.data.preparation.files import OPTIONS, annotate
from vswin_jax.data.preparation.video_to_record import Problem, prepare_video


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm"])
@pytest.mark.parametrize("reads", [None, 0, 2])
def test_failing_storage_is_a_problem_of_its_own_kind(videos, monkeypatch, name, reads):
  """The file can't be opened, or the network fails after some reads."""
  folder, _, _ = videos
  video = annotate(folder, [name]).splits["train"][0]

  class Failing(io.FileIO):
    def __init__(self, path):
      if reads is None:
        raise OSError(5, "Input/output error")
      super().__init__(path)
      self._left = reads

    def read(self, *arguments):
      self._left -= 1
      if self._left < 0:
        raise OSError(5, "Input/output error")
      return super().read(min(arguments[0], 1000))

  monkeypatch.setattr("vswin_jax.data.video.container.io.FileIO", Failing)
  assert prepare_video(video, OPTIONS) == Problem(
    video.path, video.id, "unreadable", "Input/output error"
  )
