"""Which annotation files are meant: those given, or those lying about where they usually are."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

from vswin_jax.common.paths import local_path
from vswin_jax.data.annotations.common import AnnotationError, split_called, split_within


@dataclasses.dataclass(frozen=True)
class Source:
  """An annotation file.

  Attributes:
    path: absolute.
    split: of its videos; None: unknown.
    given: the user named the split, so that it overrules what the file says.
    named: the user named the file, not only its folder.
    found: the user named neither.
  """

  path: str
  split: str | None = None
  given: bool = False
  named: bool = False
  found: bool = False

  def split_of(self, column: str, where: str) -> str | None:
    """The split of a row in which the column of splits says `column`, empty if there is none.

    Raises:
      AnnotationError: the column says something unknown.
    """
    if self.given or not column:
      return self.split
    if split := split_called(column):
      return split
    raise AnnotationError(f"{where}: unknown split {column!r}; expected train, validation or test")


def find_sources(
  videos: str,
  arguments: Sequence[str],
  wanted: Callable[[str], bool],
  folders: Sequence[str] = ("annotations",),
  beside: bool = True,
) -> tuple[Source, ...]:
  """Annotation files of a data set, with the splits that the user named.

  Args:
    videos: the folder of videos.
    arguments: files, folders and `SPLIT=FILE`; none: the videos' folder and its parent are
      searched, and the first place with such files counts.
    wanted: whether a name is one of a file of the data set, for files in folders.
    folders: names of folders that hold such files and lie in the places searched.
    beside: the parent of the videos' folder is searched.

  Returns:
    The files found; of no argument perhaps none.

  Raises:
    AnnotationError: an argument stands for no file or a folder without such files, or a file is
      given for two splits.
  """
  if not arguments:
    for place in (videos, os.path.dirname(videos)) if beside else (videos,):
      if found := in_folder(place, wanted, folders):
        return tuple(dataclasses.replace(source, found=True) for source in found)
    return ()
  sources = []
  for argument in arguments:
    name, equals, rest = argument.partition("=")
    split = split_called(name) if equals else None
    path = os.path.abspath(local_path(rest if split else argument))
    if os.path.isfile(path):
      sources.append(Source(path, split, given=split is not None, named=True))
    elif os.path.isdir(path) and not split:
      found = in_folder(path, wanted, folders)
      if not found:
        raise AnnotationError(f"{path} holds no annotation files of this data set; name the files")
      sources.extend(found)
    else:
      what = "it is a folder" if os.path.isdir(path) else "no such file"
      raise AnnotationError(
        f"annotations {argument!r}: {what}; expected a file, a folder that holds the files, or "
        "SPLIT=FILE with a SPLIT of train, validation or test"
      )
  split_of: dict[str, str] = {}
  for source in sources:
    if source.split and split_of.setdefault(source.path, source.split) != source.split:
      raise AnnotationError(
        f"{source.path} is given for {split_of[source.path]} and for {source.split}; a file "
        "belongs to one split, or says itself which videos belong to which"
      )
  return tuple(dict.fromkeys(sources))


def in_folder(
  folder: str, wanted: Callable[[str], bool], inner: Sequence[str] = ("annotations",)
) -> tuple[Source, ...]:
  """Wanted files of a folder; if it has none, of the first of the inner ones that has some."""
  for place in (folder, *(os.path.join(folder, name) for name in inner)):
    try:
      names = sorted(entry.name for entry in os.scandir(place) if entry.is_file())
    except OSError:
      continue
    found = [name for name in names if not name.startswith(".") and wanted(name)]
    if found:
      return tuple(Source(os.path.join(place, name)) for name in found)
  return ()


@contextlib.contextmanager
def telling_origin(sources: Sequence[Source]) -> Iterator[None]:
  """Adds to errors about a file that nobody named that it was found, and how to name another."""
  try:
    yield
  except AnnotationError as error:
    found = [one.path for one in sources if one.found and one.path in str(error)]
    if not found:
      raise
    raise AnnotationError(
      f"{error} ({found[0]} was found by itself; to read other files, name them: "
      "--annotations=FILE)"
    ) from error


def with_splits_of_names(sources: Sequence[Source]) -> tuple[Source, ...]:
  """Fills in the splits that the names of files tell.

  Beside files with clear names, others in a folder are no annotations.

  Raises:
    AnnotationError: a folder holds two files of one split.
  """
  sources = [
    dataclasses.replace(source, split=source.split or split_within(_stem(source.path)))
    for source in sources
  ]
  if any(source.split for source in sources):
    sources = [source for source in sources if source.split or source.named]
  result = []
  for source in sources:
    for other in result:
      if other.split == source.split and not (other.named and source.named):
        raise AnnotationError(
          f"two annotation files of {source.split or 'no clear split'}: {other.path} and "
          f"{source.path}; name those to read, as SPLIT=FILE"
        )
    result.append(source)
  return tuple(result)


def _stem(path: str) -> str:
  return os.path.splitext(os.path.basename(path))[0]


def all_alike(sources: Sequence[Source], is_one: Callable[[str], bool], kinds: str) -> bool:
  """Whether the files, by their paths, are of a kind: all of them or none.

  Raises:
    AnnotationError: they are of both `kinds`.
  """
  found = {is_one(source.path) for source in sources}
  if len(found) > 1:
    raise AnnotationError(f"{kinds} can't be mixed: {describe(sources)}")
  return found == {True}


def describe(sources: Sequence[Source]) -> str:
  """A note that names the files."""
  return f"annotations read: {', '.join(source.path for source in sources)}"
