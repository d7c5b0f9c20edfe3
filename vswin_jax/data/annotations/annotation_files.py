"""Search for annotation files: named by the user, or in the usual places."""

import os
from collections.abc import Callable, Sequence

from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations.common import AnnotationError, split_called

# Names in the official downloads of the data sets, and common ones.
_FOLDERS = (
  "annotations",
  "labels",
  "ucfTrainTestlist",
  "testTrainMulti_7030_splits",
  "test_train_splits",
)


def find_annotation_files(
  videos: str,
  arguments: Sequence[str],
  is_annotation_file: Callable[[str], bool],
  search_parent: bool = True,
) -> list[tuple[str, str | None]]:
  """Returns the absolute paths of annotation files, each with the split that the user gave for it.

  Args:
    videos: the folder of videos, which is searched if there are no arguments.
    arguments: files, folders and `SPLIT=FILE`.
    is_annotation_file: whether a file name is that of an annotation file of the data set.
    search_parent: whether to search the parent of `videos`, too.

  Raises:
    AnnotationError: an argument is no file and no folder with annotation files.
  """
  if not arguments:
    places = (videos, os.path.dirname(videos)) if search_parent else (videos,)
    return next(filter(None, (_files_in(place, is_annotation_file) for place in places)), [])
  files = []
  for argument in arguments:
    name, equals, rest = argument.partition("=")
    split = split_called(name) if equals else None
    path = os.path.abspath(local_path(rest if split else argument))
    found = [(path, split)] if os.path.isfile(path) else []
    if not split and os.path.isdir(path):
      found = _files_in(path, is_annotation_file)
    if not found:
      raise AnnotationError(
        f"annotations {argument!r}: no such file, or no annotation files in the folder; expected a "
        "file, a folder, or SPLIT=FILE with a SPLIT of train, validation or test"
      )
    files += found
  return files


def _files_in(folder: str, is_annotation_file: Callable[[str], bool]) -> list[tuple[str, None]]:
  """Returns the annotation files of a folder, or of the first usual subfolder that has any."""
  for place in (folder, *(os.path.join(folder, name) for name in _FOLDERS)):
    try:
      names = sorted(entry.name for entry in os.scandir(place) if entry.is_file())
    except OSError:
      continue
    found = [name for name in names if not name.startswith(".") and is_annotation_file(name)]
    if found:
      return [(os.path.join(place, name), None) for name in found]
  return []
