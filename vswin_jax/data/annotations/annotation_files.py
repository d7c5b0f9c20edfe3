"""Search for annotation files: named by the user, or in the usual places."""

import glob
import os
from collections.abc import Callable, Sequence

from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations.common import AnnotationError, split_called

# Names in the official downloads of the data sets, and common ones.
_SUBFOLDERS = (
  "annotations",
  "labels",
  "ucfTrainTestlist",
  "testTrainMulti_7030_splits",
  "test_train_splits",
)


def find_annotation_files(
  arguments: Sequence[str], folders: Sequence[str], is_annotation_file: Callable[[str], bool]
) -> list[tuple[str, str | None]]:
  """Returns the absolute paths of annotation files, each with the split that the user gave for it.

  Args:
    arguments: files, folders and `SPLIT=FILE`.
    folders: searched in this order if there are no arguments.
    is_annotation_file: whether a file name is that of an annotation file of the data set.

  Raises:
    AnnotationError: an argument is no file and no folder with annotation files.
  """
  if not arguments:
    found = (_files_in(folder, is_annotation_file) for folder in folders)
    return next(filter(None, found), [])
  files = []
  for argument in arguments:
    name, _, rest = argument.partition("=")
    split = split_called(name) if rest else None
    path = os.path.abspath(local_path(rest if split else argument))
    found = [(path, split)] if os.path.isfile(path) else []
    if not found and not split:
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
  for subfolder in ("", *_SUBFOLDERS):
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), subfolder, "*")))
    names = ((path, os.path.basename(path)) for path in paths)
    found = [path for path, name in names if is_annotation_file(name) and os.path.isfile(path)]
    if found:
      return [(path, None) for path in found]
  return []
