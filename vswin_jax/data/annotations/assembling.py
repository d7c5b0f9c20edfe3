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
  """Returns the annotations of a data set.

  Args:
    tree: files below the folder of videos.
    listing: rows of the annotation files.
    options: for rows without splits.

  Raises:
    AnnotationError: a label is unknown, or the rows contradict each other.
  """
  class_names = tuple(listing.class_names)
  indices = {name: index for index, name in enumerate(class_names)}
  notes = list(listing.notes)
  pairs = [
    (row, _locate(tree, row, _label_indices(row, indices, listing.multi_label)))
    for row in listing.rows
  ]
  pairs, problems = _merge(pairs, listing.multi_label, notes)
  groups = [_group(tree, row, video, options.group_pattern) for row, video in pairs]
  if pairs[0][0].split:
    splits = [row.split for row, _ in pairs]
    _check_groups(pairs, groups, notes)
  else:
    splits = _split_by_group(pairs, groups, class_names, options.validation_share, notes)
  counts = collections.Counter(video.id for _, video in pairs)
  videos = {split: [] for split in SPLITS}
  for split, (_, video) in zip(splits, pairs):
    if counts[video.id] > 1:
      video = dataclasses.replace(video, id=video.id + os.path.splitext(video.path)[1])
    videos[split].append(video)
  for split, found in videos.items():
    found.sort(key=lambda video: digest(video.id))
    if missing := [video for video in found if not video.exists]:
      notes.append(
        f"{len(missing):,} of {len(found):,} videos of {split} not found, such as {missing[0].path}"
      )
  present = {label for _, video in pairs for label in video.labels}
  if empty := [name for name in class_names if indices[name] not in present]:
    notes.append(
      f"{len(empty):,} of {len(class_names):,} classes have no videos, such as {empty[0]!r}"
    )
  paths = {video.path for _, video in pairs}
  return Annotations(
    class_names=class_names,
    splits={split: tuple(found) for split, found in videos.items() if found},
    multi_label=listing.multi_label,
    problems=tuple(one for one in (*tree.problems, *problems) if one[0] not in paths),
    other_files=tuple(listing.other_files),
    notes=tuple(notes),
  )


def _label_indices(row: Row, indices: Mapping[str, int], multi_label: bool) -> tuple[int, ...]:
  if len(set(row.labels)) != 1 and not multi_label:
    raise AnnotationError(
      f"{row.where}: expected one label of {row.path!r}, got {len(row.labels)}; several need "
      "--dataset=video_folder --multi_label"
    )
  for label in row.labels:
    if label not in indices:
      hint = textwrap.shorten(checks.closest(label, indices), 300, placeholder=" ...")
      raise AnnotationError(f"{row.where}: unknown label {label!r}; {hint}")
  return tuple(sorted({indices[label] for label in row.labels}))


def _locate(tree: FileTree, row: Row, labels: tuple[int, ...]) -> Video:
  """Returns the video of a row, with the path and the id of the file that was found."""
  if row.id:
    found = tree.with_id(row.id, row.split)
    return Video(tree.absolute(found or row.path), row.id, labels, found is not None)
  path = os.path.normpath(tree.absolute(row.path))
  found = tree.with_path(tree.relative(path), row.split)
  if found:
    return Video(tree.absolute(found), without_suffix(found), labels, True)
  name = os.path.relpath(path, tree.root)
  if name.startswith("../") and os.path.isabs(row.path):
    name = path
  # The tree lacks hidden files, second names of folders, and files outside of the root.
  return Video(path, without_suffix(name), labels, os.path.isfile(path))


def _merge(
  pairs: Sequence[tuple[Row, Video]], multi_label: bool, notes: list[str]
) -> tuple[list[tuple[Row, Video]], list[tuple[str, str]]]:
  """Returns one pair per video, and as problems the videos with contradictory rows."""
  kept: dict[str, tuple[Row, Video]] = {}
  conflicts: dict[str, str] = {}
  num_repeated = 0
  for row, video in pairs:
    key = row.id or video.path
    first_row, first = kept.setdefault(key, (row, video))
    if row.split != first_row.split or (video.labels != first.labels and not multi_label):
      conflict = f"{first_row.where} and {row.where}: different labels or splits of {video.id}"
      conflicts.setdefault(key, conflict)
    elif first is not video:
      num_repeated += 1
      labels = tuple(sorted({*first.labels, *video.labels}))
      kept[key] = first_row, dataclasses.replace(first, labels=labels)
  if num_repeated:
    notes.append(f"{num_repeated:,} duplicate rows of a video")
  problems = [(kept.pop(key)[1].path, conflict) for key, conflict in conflicts.items()]
  if problems:
    example = problems[0][1]
    notes.append(f"{len(problems):,} videos with contradictory rows are skipped: {example}")
    if not kept:
      raise AnnotationError(f"{example}; no video is without contradictory rows")
  return list(kept.values()), problems


def _group(tree: FileTree, row: Row, video: Video, pattern: str) -> str:
  """Returns the group of a video as the row or the pattern gives it, or an empty string."""
  if row.group or not pattern:
    return row.group
  path = tree.relative(video.path)
  match = re.search(pattern, path)
  if not match or not match[1]:
    raise AnnotationError(f"{row.where}: group_pattern {pattern!r} finds no group in {path!r}")
  return match[1]


def _check_groups(
  pairs: Sequence[tuple[Row, Video]], groups: Sequence[str], notes: list[str]
) -> None:
  """Notes groups in several splits; raises AnnotationError if the splits are official ones."""
  splits_of = collections.defaultdict(set)
  for (row, _), group in zip(pairs, groups):
    splits_of[group].add(row.split)
  if shared := sorted(group for group, splits in splits_of.items() if group and len(splits) > 1):
    note = f"{len(shared):,} groups of videos are in more than one split, such as {shared[0]!r}"
    if pairs[0][0].id:
      raise AnnotationError(f"{note}; use the files of one official split")
    notes.append(note)


def _split_by_group(
  pairs: Sequence[tuple[Row, Video]],
  groups: Sequence[str],
  class_names: Sequence[str],
  share: float,
  notes: list[str],
) -> list[str]:
  groups = [group or scene(video.id) or video.id for group, (_, video) in zip(groups, pairs)]
  classes_of = collections.defaultdict(set)
  for group, (_, video) in zip(groups, pairs):
    classes_of[group].update(video.labels)
  chosen, one_sided = validation_groups(classes_of, share)
  notes.append(
    f"no splits given: {len(chosen):,} of {len(classes_of):,} groups of videos are for validation"
  )
  if one_sided:
    example = class_names[one_sided[0]] if one_sided[0] >= 0 else "no label"
    notes.append(
      f"{len(one_sided):,} classes are not in both train and validation, having too few groups, "
      f"such as {example!r}"
    )
  return ["validation" if group in chosen else "train" for group in groups]
