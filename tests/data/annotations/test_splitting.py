"""Division into training and validation data: by group, stratified by class, reproducible."""

import collections
import hashlib
import random

import pytest

from tests.data.annotations.trees import labels_of, touch, write
from vswin_jax.data.annotations import AnnotationError, AnnotationOptions, read_annotations
from vswin_jax.data.annotations.splitting import validation_groups


def _split(root, *annotations, **options):
  annotations = read_annotations("video_folder", root, annotations, AnnotationOptions(**options))
  return {split: set(videos) for split, videos in labels_of(annotations).items()}


def _first(names, count):
  """The names whose SHA-256 comes first."""
  return set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:count])


@pytest.mark.parametrize(
  ("count", "share", "expected"),
  [(1, 0.5, 0), (2, 0.1, 1), (2, 0.9, 1), (10, 0.1, 1), (25, 0.1, 3), (24, 0.1, 2), (9, 0.0, 0)],
)
def test_shares(tmp_path, count, share, expected):
  names = [f"a/{index}" for index in range(count)]
  touch(tmp_path, *(f"{name}.mp4" for name in names))
  splits = _split(tmp_path, validation_share=share)
  assert splits.get("validation", set()) == _first(names, expected)
  assert splits["train"] == set(names) - _first(names, expected)


def test_the_choice_is_the_same_everywhere(tmp_path):
  touch(tmp_path, *(f"{name}/{index}.mp4" for name in ("run", "sit") for index in range(10)))
  # By sha256sum of the ids.
  assert _split(tmp_path)["validation"] == {"run/8", "sit/7"}


def test_the_order_of_lines_does_not_matter(tmp_path):
  lines = [f"{index}.mp4,{'abc'[index % 3]},{index // 4}" for index in range(60)]
  results = []
  for seed in range(3):
    random.Random(seed).shuffle(lines)
    path = write(tmp_path / "x.csv", "path,label,group\n" + "\n".join(lines))
    annotations = read_annotations("video_folder", tmp_path, [path])
    results.append({split: list(videos) for split, videos in annotations.splits.items()})
  assert results[0] == results[1] == results[2]
  groups = [
    {int(video.id) // 4 for video in results[0][split]} for split in ("train", "validation")
  ]
  assert not groups[0] & groups[1]
  for videos in results[0].values():
    assert {video.labels for video in videos} == {(0,), (1,), (2,)}


def test_other_classes_do_not_move_videos(tmp_path):
  touch(tmp_path, *(f"m/{index}.mp4" for index in range(30)))
  before = _split(tmp_path)
  touch(tmp_path, *(f"{name}/{index}.mp4" for name in "az" for index in range(17)))
  after = _split(tmp_path)
  for split, videos in before.items():
    assert videos == {name for name in after[split] if name.startswith("m/")}


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("a/v_a_g{group:02d}_c{take:02d}.avi", {}),
    ("a/{take}-person{group}.avi", {"group_pattern": r"person(\d+)"}),
    ("a/day{group}/{take}.avi", {"group_pattern": "^a/(day.)/"}),
  ],
)
def test_groups_stay_together(tmp_path, name, options):
  files = {name.format(group=group, take=take): group for group in range(8) for take in range(4)}
  splits = _split(touch(tmp_path, *files), validation_share=0.25, **options)
  groups = {file.removesuffix(".avi"): group for file, group in files.items()}
  counts = {
    split: collections.Counter(groups[id] for id in ids).values() for split, ids in splits.items()
  }
  assert {split: list(count) for split, count in counts.items()} == {
    "train": [4] * 6,
    "validation": [4] * 2,
  }


def test_a_pattern_that_finds_nothing(tmp_path):
  touch(tmp_path, "a/person1.mp4", "a/other.mp4")
  with pytest.raises(AnnotationError, match=r"finds no group in 'a/other\.mp4'"):
    _split(tmp_path, group_pattern=r"person(\d)")


def test_classes_with_a_single_group_are_noted(tmp_path):
  touch(tmp_path, "a/1.mp4", "b/1.mp4", "b/2.mp4")
  annotations = read_annotations("video_folder", tmp_path)
  assert "a/1" in labels_of(annotations)["train"]
  (note,) = [note for note in annotations.notes if "too few groups" in note]
  assert note.startswith("1 classes") and note.endswith("'a'")


@pytest.mark.parametrize("seed", range(20))
def test_groups_of_several_classes(seed):
  """All classes are in both parts wherever that is possible with moderate overlap."""
  draw = random.Random(seed)
  classes_of = {str(group): set(draw.sample(range(8), draw.randint(1, 3))) for group in range(60)}
  chosen, one_sided = validation_groups(classes_of, 0.2)
  assert one_sided == ()
  assert 0.1 * 60 < len(chosen) < 0.35 * 60
  for label in range(8):
    assert {group in chosen for group in classes_of if label in classes_of[group]} == {True, False}


def test_classes_that_cannot_be_in_both_parts():
  # Each two of three groups share a class: two of them must be in one part.
  classes_of = {"x": {0, 1}, "y": {1, 2}, "z": {0, 2}}
  chosen, one_sided = validation_groups(classes_of, 0.5)
  assert len(one_sided) == 1
  assert 0 < len(chosen) < 3
