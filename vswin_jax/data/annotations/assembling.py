"""Annotations from rows: finds the files, resolves labels, duplicates and splits."""

import collections
import dataclasses
import os
import re
import textwrap
from collections.abc import Mapping, Sequence

from vswin_jax.common import checks
from vswin_jax.data.annotations.common import (
  SPLITS,
  AnnotationError,
  AnnotationOptions,
  Annotations,
  Video,
)
from vswin_jax.data.annotations.file_tree import FileTree, without_suffix
from vswin_jax.data.annotations.rows import Listing, Row
from vswin_jax.data.annotations.splitting import digest, scene, validation_groups


def assemble(tree: FileTree, listing: Listing, options: AnnotationOptions) -> Annotations:
  """Returns the annotations of a data set whose annotation files have the rows of a listing.

  Raises:
    AnnotationError: a label is unknown, or the rows contradict each other.
  """
  notes = list(listing.notes)
  pairs, problems = _merge(tree, listing, notes)
  groups = [_group(tree, row, video, options.group_pattern) for row, video in pairs]
  if listing.has_scenes or not pairs[0][0].split:
    groups = [group or scene(video.id) for group, (_, video) in zip(groups, pairs)]
  splits = [row.split for row, _ in pairs]
  if not splits[0]:
    splits = _split(pairs, groups, listing.class_names, options.validation_share, notes)
  num_splits = collections.Counter(group for group, _ in set(zip(groups, splits)) if group)
  if shared := sorted(group for group, count in num_splits.items() if count > 1):
    note = f"groups of videos in more than one split: {len(shared):,}, such as {shared[0]!r}"
    if listing.has_scenes:
      raise AnnotationError(f"{note}; use the files of one official split")
    notes.append(note)
  present = {label for _, video in pairs for label in video.labels}
  if empty := [name for index, name in enumerate(listing.class_names) if index not in present]:
    notes.append(f"classes without videos: {len(empty):,}, such as {empty[0]!r}")
  counts = collections.Counter(video.id for _, video in pairs)
  videos = {split: [] for split in SPLITS}
  for split, (_, video) in zip(splits, pairs):
    if counts[video.id] > 1:
      video = dataclasses.replace(video, id=video.id + os.path.splitext(video.path)[1])
    videos[split].append(video)
  for split, found in videos.items():
    found.sort(key=lambda video: digest(video.id))
    if missing := [video.path for video in found if not video.exists]:
      notes.append(
        f"{len(missing):,} of {len(found):,} videos of {split} not found, such as {missing[0]}"
      )
  paths = {video.path for _, video in pairs}
  return Annotations(
    class_names=tuple(listing.class_names),
    splits={split: tuple(found) for split, found in videos.items() if found},
    multi_label=listing.multi_label,
    problems=tuple(one for one in (*tree.problems, *problems) if one[0] not in paths),
    other_files=tuple(listing.other_files),
    notes=tuple(notes),
  )


def _merge(
  tree: FileTree, listing: Listing, notes: list[str]
) -> tuple[list[tuple[Row, Video]], list[tuple[str, str]]]:
  """Returns a row of each video, and as problems the videos with contradictory rows."""
  indices = {name: index for index, name in enumerate(listing.class_names)}
  kept: dict[str, tuple[Row, Video]] = {}
  conflicts: dict[str, str] = {}
  for row in listing.rows:
    if len(set(row.labels)) != 1 and not listing.multi_label:
      raise AnnotationError(
        f"{row.where}: expected one label of {row.path!r}, got {len(row.labels)}; several need "
        "--dataset=video_folder --multi_label"
      )
    labels = {_label_index(label, indices, row.where) for label in row.labels}
    video = _locate(tree, row, tuple(sorted(labels)))
    key = video.id if row.in_any_folder else video.path
    first_row, first = kept.setdefault(key, (row, video))
    if row.split != first_row.split or (video.labels != first.labels and not listing.multi_label):
      conflicts.setdefault(
        key, f"{first_row.where} and {row.where}: different labels or splits of {video.id}"
      )
    elif video.labels != first.labels:
      labels = tuple(sorted({*first.labels, *video.labels}))
      kept[key] = first_row, dataclasses.replace(first, labels=labels)
  problems = [(kept.pop(key)[1].path, conflict) for key, conflict in conflicts.items()]
  if problems:
    example = problems[0][1]
    notes.append(f"{len(problems):,} videos with contradictory rows are skipped: {example}")
    if not kept:
      raise AnnotationError(f"{example}; no video is without contradictory rows")
  return list(kept.values()), problems


def _label_index(label: str | int, indices: Mapping[str, int], where: str) -> int:
  if isinstance(label, str):
    if label not in indices:
      hint = textwrap.shorten(checks.closest(label, indices), 300, placeholder=" ...")
      raise AnnotationError(f"{where}: unknown label {label!r}; {hint}")
    return indices[label]
  if not 0 <= label < len(indices):
    last = len(indices) - 1
    raise AnnotationError(f"{where}: label '{label}'; expected a number from 0 to {last}")
  return label


def _locate(tree: FileTree, row: Row, labels: tuple[int, ...]) -> Video:
  """Returns the video of a row, with the path and the id of the file that was found."""
  if row.in_any_folder:
    found = tree.find(row.path, row.split, in_any_folder=True)
    path = tree.absolute(found or row.path)
    return Video(path, without_suffix(row.path), labels, found is not None)
  path = os.path.normpath(tree.absolute(row.path))
  if found := tree.find(tree.relative(path), row.split):
    return Video(tree.absolute(found), without_suffix(found), labels, True)
  # The tree lacks hidden files, second names of folders, and files outside of the root.
  name = tree.relative(path)
  id = without_suffix(os.path.normpath(row.path) if name == path else name)
  return Video(path, id, labels, os.path.isfile(path))


def _group(tree: FileTree, row: Row, video: Video, pattern: str) -> str:
  """Returns the group of a video as the row or the pattern gives it; empty: none."""
  if row.group or not pattern:
    return row.group
  path = tree.relative(video.path)
  match = re.search(pattern, path)
  if not match or not match[1]:
    raise AnnotationError(f"{row.where}: group_pattern {pattern!r} finds no group in {path!r}")
  return match[1]


def _split(
  pairs: Sequence[tuple[Row, Video]],
  groups: Sequence[str],
  class_names: Sequence[str],
  share: float,
  notes: list[str],
) -> list[str]:
  """Returns the split of each video; those of a group are in the same one."""
  groups = [group or video.id for group, (_, video) in zip(groups, pairs)]
  classes_of = collections.defaultdict(set)
  for group, (_, video) in zip(groups, pairs):
    classes_of[group].update(video.labels)
  chosen, one_sided = validation_groups(classes_of, share)
  notes.append(
    f"no splits given: {len(chosen):,} of {len(classes_of):,} groups of videos are for validation"
  )
  if one_sided:
    # Videos without labels have the index -1.
    notes.append(
      f"{len(one_sided):,} classes are not in both train and validation, having too few groups, "
      f"such as {(*class_names, 'no label')[one_sided[0]]!r}"
    )
  return ["validation" if group in chosen else "train" for group in groups]
