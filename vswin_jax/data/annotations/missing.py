"""Why videos that annotation files list are not found."""

import functools
from collections.abc import Callable, Sequence

from vswin_jax.data.annotations.tree import FileTree, without_suffix


def likely_cause(tree: FileTree, paths: Sequence[str]) -> str | None:
  """What most likely keeps videos from being found, with an example; None: nothing stands out.

  Args:
    tree: of the folder of videos.
    paths: of those missing, as annotation files write them.
  """
  if not tree.videos:
    return f"there are no video files below {tree.root}"
  # What says more comes first: a file of the right name is elsewhere in other cases, too.
  for explain in (_backslashes, _name_of_root, _elsewhere, _other_case):
    if cause := _first(functools.partial(explain, tree), paths):
      return cause
  return None


def _first(explain: Callable[[str], str | None], paths: Sequence[str]) -> str | None:
  return next(filter(None, map(explain, paths)), None)


def _backslashes(tree: FileTree, path: str) -> str | None:
  del tree
  return f"paths are written with \\, such as {path}; write / instead" if "\\" in path else None


def _name_of_root(tree: FileTree, path: str) -> str | None:
  parent, _, name = tree.root.rpartition("/")
  first, slash, rest = path.removeprefix("./").partition("/")
  if not slash or first != name or not tree.with_path(rest, None):
    return None
  return (
    f"paths begin with {name}/, the name of the folder of videos, such as {path}; give the folder "
    f"above it, {parent or '/'}, as that of videos, or write them without it"
  )


def _elsewhere(tree: FileTree, path: str) -> str | None:
  found = tree.with_stem(_stem(path), None)
  return found and (
    f"files of these names are in other folders, such as {found} for {path}; paths in lists are "
    f"relative to {tree.root}"
  )


def _other_case(tree: FileTree, path: str) -> str | None:
  found = tree.with_other_case(_stem(path))
  return found and (
    f"names differ in small and capital letters, such as {found} for {path}; write them alike"
  )


def _stem(path: str) -> str:
  return without_suffix(path.rpartition("/")[2])
