"""Small folders of videos and annotation files."""

import pathlib

from vswin_jax.data.annotations import Annotations


def touch(root: pathlib.Path, *names: str) -> pathlib.Path:
  """Makes empty files, with the folders they are in; returns the root."""
  for name in names:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return root


def write(path: pathlib.Path, text: str | bytes) -> str:
  """Writes a file, with the folders it is in; returns its name."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(text.encode() if isinstance(text, str) else text)
  return str(path)


def labels_of(annotations: Annotations) -> dict[str, dict[str, tuple[int, ...]]]:
  """Labels by id by split."""
  return {
    split: {video.id: video.labels for video in videos}
    for split, videos in annotations.splits.items()
  }


def files_of(annotations: Annotations, root: pathlib.Path) -> dict[str, str | None]:
  """Found files relative to the root by id; None for missing ones."""
  return {
    video.id: str(pathlib.Path(video.path).relative_to(root)) if video.exists else None
    for videos in annotations.splits.values()
    for video in videos
  }
