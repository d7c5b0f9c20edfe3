"""From rows whose videos have been looked for to annotations."""

import collections
import dataclasses
import os
import re
from collections.abc import Iterable, Sequence

from vswin_jax.data.annotations.common import (
  SPLITS,
  AnnotationError,
  Annotations,
  Options,
  Video,
)
from vswin_jax.data.annotations.missing import likely_cause
from vswin_jax.data.annotations.rows import Row
from vswin_jax.data.annotations.splitting import digest, scene, validation_groups
from vswin_jax.data.annotations.tree import FileTree, without_suffix
from vswin_jax.data.video_files import VIDEO_SUFFIXES

_FEWEST_TO_EXPLAIN = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """A row, and its video in the terms of `Video`."""

  row: Row
  path: str
  id: str
  labels: tuple[int, ...]
  exists: bool


def locate(
  tree: FileTree, row: Row, labels: tuple[int, ...], parts: int = 0, id: str = ""
) -> Entry:
  """Looks for the video of a row that gives a path.

  It is found below the root, in a folder of its split, outside the root, under another suffix.

  Args:
    labels: of the row.
    parts: so much of the end of a path tells videos apart that they may be anywhere below the
      root: 1 for the file's name, 2 for its folder, too; 0: they may not.
    id: the data set's own; empty: follows from the path.

  Raises:
    AnnotationError: a path that leads out of the root to no file.
  """
  path = os.path.normpath(os.path.join(tree.root, row.path))
  relative = tree.relative(path)
  if not os.path.isabs(relative):
    found = tree.with_path(relative, row.split)
    # The tree lacks hidden files, and folders under a second name.
    if not found and os.path.isfile(path):
      found = relative
    if not found and parts:
      found = tree.with_tail(relative, parts)
    relative = found or relative
  else:
    stem = without_suffix(path)
    names = (path, *(stem + suffix for suffix in sorted(VIDEO_SUFFIXES)))
    found = next((name for name in names if os.path.isfile(name)), None)
    if not found and not os.path.isabs(row.path):
      raise AnnotationError(
        f"{row.where}: {row.path!r} leads out of {tree.root} to no file; expected a path relative "
        "to the folder of videos"
      )
    relative = found or path
    if not os.path.isabs(row.path):
      relative = os.path.relpath(relative, tree.root)
  path = os.path.normpath(tree.absolute(relative))
  return Entry(row, path, id or without_suffix(relative), labels, found is not None)


def locate_by_name(
  tree: FileTree, row: Row, labels: tuple[int, ...], usual_suffix: str, other_name: str = ""
) -> Entry:
  """Looks for the video of a row whose path is the name of a file without suffix, and its id.

  Args:
    labels: of the row.
    usual_suffix: of the name that is expected of a missing file.
    other_name: another name that counts if there is no file of the first.
  """
  found = tree.with_stem(row.path, row.split)
  if not found and other_name:
    found = tree.with_stem(other_name, row.split)
  path = tree.absolute(found or row.path + usual_suffix)
  return Entry(row, path, row.path, labels, found is not None)


def assemble(
  tree: FileTree,
  entries: Iterable[Entry],
  class_names: Sequence[str],
  options: Options,
  multi_label: bool = False,
  other_files: Sequence[tuple[str, str]] = (),
  notes: Sequence[str] = (),
  drop_conflicts: bool = False,
) -> Annotations:
  """Annotations of entries; those of no split are split by group.

  Args:
    drop_conflicts: of one id there is one video, and one with two labels or in two splits is a
      problem, not an error.

  Raises:
    AnnotationError: one video with two labels or in two splits, names that can't be told apart.
  """
  notes = list(notes)
  problems = list(tree.problems)
  if drop_conflicts:
    entries = _without_conflicts(list(entries), problems, notes)
  entries = _without_repetition(entries, multi_label, notes)
  if any(entry.row.split is None for entry in entries):
    groups = [_group(tree, entry, options.group_pattern) for entry in entries]
    splits = _split_by_group(entries, groups, class_names, options.validation_share, notes)
  else:
    splits = [entry.row.split for entry in entries]
    _note_shared_groups(tree, entries, options.group_pattern, notes)
  videos = {split: [] for split in SPLITS}
  for entry, name, split in zip(entries, _distinct_ids(entries), splits):
    videos[split].append(Video(entry.path, name, entry.labels, entry.exists))
  for split in SPLITS:
    videos[split].sort(key=lambda video: digest(video.id))
    _note_missing(split, videos[split], notes)
  _note_cause(tree, entries, notes)
  _note_empty_classes(entries, class_names, notes)
  paths = {entry.path for entry in entries}
  return Annotations(
    class_names=tuple(class_names),
    splits={split: tuple(found) for split, found in videos.items() if found},
    multi_label=multi_label,
    problems=tuple(one for one in problems if one[0] not in paths),
    other_files=tuple(other_files),
    notes=tuple(notes),
  )


def _without_conflicts(
  entries: Sequence[Entry], problems: list[tuple[str, str]], notes: list[str]
) -> list[Entry]:
  """Entries but those of ids with two labels or in two splits; these become problems."""
  first: dict[str, Entry] = {}
  conflicts: dict[str, str] = {}
  for entry in entries:
    one = first.setdefault(entry.id, entry)
    if conflict := _conflict(one, entry, multi_label=False):
      conflicts.setdefault(entry.id, conflict)
  if not conflicts:
    return entries
  example = next(iter(conflicts.values()))
  if len(conflicts) == len(first):
    raise AnnotationError(f"{example}; so it is with all videos: nothing is left")
  problems += [(first[id].path, conflict) for id, conflict in conflicts.items()]
  notes.append(f"left out, with two labels or in two splits: {len(conflicts):,}, such as {example}")
  return [entry for entry in entries if entry.id not in conflicts]


def _conflict(one: Entry, other: Entry, multi_label: bool) -> str | None:
  """How two entries of one video contradict each other."""
  rows = f"{one.row.where} and {other.row.where}: {other.id}"
  if other.row.split != one.row.split:
    return f"{rows} is in {one.row.split} and in {other.row.split}"
  if other.labels != one.labels and not multi_label:
    return f"{rows} has two labels, {one.row.labels[0]!r} and {other.row.labels[0]!r}"
  return None


def _without_repetition(
  entries: Iterable[Entry], multi_label: bool, notes: list[str]
) -> list[Entry]:
  kept: dict[str, Entry] = {}
  repeated = []
  for entry in entries:
    first = kept.setdefault(entry.path, entry)
    if first is entry:
      continue
    if conflict := _conflict(first, entry, multi_label):
      raise AnnotationError(f"{conflict}; leave one out")
    if entry.labels != first.labels:
      labels = tuple(sorted({*first.labels, *entry.labels}))
      kept[entry.path] = dataclasses.replace(first, labels=labels)
      continue
    repeated.append(entry)
  if repeated:
    example = repeated[0].row.where
    notes.append(f"left out, repeating another line: {len(repeated):,}, such as {example}")
  return list(kept.values())


def _distinct_ids(entries: Sequence[Entry]) -> list[str]:
  """Ids; with the suffix of the file where only that tells two videos apart."""
  counts = collections.Counter(entry.id for entry in entries)
  ids = [
    entry.id if counts[entry.id] == 1 else entry.id + os.path.splitext(entry.path)[1]
    for entry in entries
  ]
  name, count = collections.Counter(ids).most_common(1)[0]
  if count > 1:
    one, other = [entry.row for entry, id in zip(entries, ids) if id == name][:2]
    raise AnnotationError(
      f"{one.where} and {other.where}: {one.path} and {other.path} have one id, {name}; leave one "
      "out, or rename it"
    )
  return ids


def _group(tree: FileTree, entry: Entry, pattern: str) -> str:
  group = _named_group(tree, entry, pattern)
  if pattern and not group:
    raise AnnotationError(
      f"{entry.row.where}: group_pattern {pattern!r} finds no group in "
      f"{tree.relative(entry.path)!r}"
    )
  return group or scene(entry.id) or entry.id


def _named_group(tree: FileTree, entry: Entry, pattern: str) -> str | None:
  """The group that a file or the pattern names."""
  if entry.row.group or not pattern:
    return entry.row.group
  match = re.search(pattern, tree.relative(entry.path))
  return match[1] if match else None


def _split_by_group(entries, groups, class_names, share, notes) -> list[str]:
  classes_of = collections.defaultdict(set)
  for entry, group in zip(entries, groups):
    classes_of[group].update(entry.labels)
  chosen, one_sided = validation_groups(classes_of, share)
  notes.append(
    f"no splits given: {len(chosen):,} of {len(classes_of):,} groups of videos are for validation"
  )
  if one_sided:
    names = [class_names[label] if label >= 0 else "no label" for label in one_sided]
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    notes.append(f"too few groups to be in both train and validation: {shown} ({len(names):,})")
  return ["validation" if group in chosen else "train" for group in groups]


def _note_shared_groups(
  tree: FileTree, entries: Sequence[Entry], pattern: str, notes: list[str]
) -> None:
  splits = collections.defaultdict(set)
  for entry in entries:
    if group := _named_group(tree, entry, pattern):
      splits[group].add(entry.row.split)
  shared = sorted(group for group, found in splits.items() if len(found) > 1)
  if shared:
    notes.append(f"groups in more than one split: {len(shared):,}, such as {shared[0]!r}")


def _note_missing(split: str, videos: Sequence[Video], notes: list[str]) -> None:
  missing = [video for video in videos if not video.exists]
  if missing:
    notes.append(
      f"{len(missing):,} of {len(videos):,} videos of {split} not found, such as {missing[0].path}"
    )


def _note_cause(tree: FileTree, entries: Sequence[Entry], notes: list[str]) -> None:
  missing = [entry.row.path for entry in entries if not entry.exists]
  if len(missing) < _FEWEST_TO_EXPLAIN or len(missing) <= len(entries) / 2:
    return
  if cause := likely_cause(tree, missing):
    notes.append(f"most videos were not found: {cause}")


def _note_empty_classes(
  entries: Sequence[Entry], class_names: Sequence[str], notes: list[str]
) -> None:
  present = {label for entry in entries for label in entry.labels}
  empty = [name for index, name in enumerate(class_names) if index not in present]
  if empty:
    notes.append(
      f"{len(empty):,} of {len(class_names):,} classes have no videos, such as {empty[0]!r}"
    )
