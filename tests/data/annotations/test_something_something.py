"""Something-Something V2: small releases in the published layouts."""

import json

import pytest

from tests.data.annotations.trees import files_of, labels_of, touch, write
from vswin_jax.data.annotations import AnnotationError, read_annotations
from vswin_jax.data.label_names import label_names

DATASET = "something_something_v2"
NAMES = label_names(DATASET)
LABELS = json.dumps({name: str(index) for index, name in enumerate(NAMES)})
TRAIN = [
  {
    "id": "78687",
    "label": "holding potato next to vicks vaporub bottle",
    "template": "Holding [something] next to [something]",
    "placeholders": ["potato", "vicks vaporub bottle"],
  },
  {"id": "42326", "label": "x", "template": "Approaching [something] with your camera"},
]
VALIDATION = [
  {"id": "7", "template": "Pretending or failing to wipe [something] off of [something]"}
]


def _release(folder, prefix):
  write(folder / f"{prefix}labels.json", LABELS)
  write(folder / f"{prefix}train.json", json.dumps(TRAIN))
  write(folder / f"{prefix}validation.json", json.dumps(VALIDATION))
  write(folder / f"{prefix}test.json", json.dumps([{"id": "3"}]))


def _check(annotations):
  assert annotations.class_names == NAMES
  assert labels_of(annotations) == {
    "train": {
      "78687": (NAMES.index("Holding something next to something"),),
      "42326": (0,),
    },
    "validation": {"7": (NAMES.index("Pretending or failing to wipe something off of something"),)},
  }


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
@pytest.mark.parametrize("folder", ["", "labels", "annotations", "videos"])
def test_both_releases(tmp_path, prefix, folder):
  videos = touch(tmp_path / "videos", "78687.webm", "deeper/42326.mp4")
  _release(tmp_path / folder, prefix)
  annotations = read_annotations(DATASET, videos)
  _check(annotations)
  assert files_of(annotations, videos) == {
    "78687": "78687.webm",
    "42326": "deeper/42326.mp4",
    "7": None,
  }
  assert annotations.splits["validation"][0].path == f"{videos}/7.webm"
  assert any(
    note.endswith(f"{prefix}test.json: 1 videos without labels are skipped")
    for note in annotations.notes
  )


def test_without_a_file_of_labels_the_classes_are_known(tmp_path):
  train = write(tmp_path / "a/train.json", json.dumps(TRAIN))
  validation = write(tmp_path / "a/b.json", json.dumps(VALIDATION))
  _check(read_annotations(DATASET, tmp_path, [train, f"val={validation}"]))


def test_a_file_of_labels_gives_the_indices(tmp_path):
  labels = {"Holding [something] next to [something]": "1"}
  labels["Approaching [something] with your camera"] = "0"
  write(tmp_path / "labels.json", json.dumps(labels))
  write(tmp_path / "train.json", json.dumps(TRAIN))
  annotations = read_annotations(DATASET, tmp_path)
  assert annotations.class_names == (NAMES[0], "Holding something next to something")
  assert labels_of(annotations) == {"train": {"78687": (1,), "42326": (0,)}}


def test_lists_of_paths_and_numbers(tmp_path):
  videos = touch(tmp_path / "videos", "12.webm", "13.mp4")
  write(tmp_path / "sthv2_train_list_videos.txt", "12.mp4 0\n13.mp4 173\n")
  write(tmp_path / "sthv2_val_list_videos.txt", "14.webm 5\n")
  annotations = read_annotations(DATASET, videos)
  assert annotations.class_names == NAMES
  assert labels_of(annotations) == {
    "train": {"12": (0,), "13": (173,)},
    "validation": {"14": (5,)},
  }
  assert files_of(annotations, videos) == {"12": "12.webm", "13": "13.mp4", "14": None}


def test_an_id_with_two_templates_is_left_out(tmp_path):
  videos = touch(tmp_path / "videos", "78687.webm")
  other = {"id": "78687", "template": "Approaching [something] with your camera"}
  path = write(tmp_path / "train.json", json.dumps([*TRAIN, other]))
  annotations = read_annotations(DATASET, videos)
  assert labels_of(annotations) == {"train": {"42326": (0,)}}
  ((video, reason),) = annotations.problems
  assert video == f"{videos}/78687.webm"
  assert reason.startswith(
    f"{path}, entry 1 and {path}, entry 3: different labels or splits of 78687"
  )


@pytest.mark.parametrize(
  ("files", "error"),
  [
    ({"labels.json": LABELS}, "none of the annotation files lists videos"),
    ({"train.json": "[{]"}, r"train.json: not valid JSON: .*line 1"),
    ({"train.json": "{}"}, "expected a list of objects"),
    ({"train.json": "[]"}, "it lists no videos"),
    ({"train.json": "[[" * 100_000}, "not valid JSON: maximum recursion depth"),
    ({"train.json": '[{"id": "1", "template": "x"}, 3]'}, "entry 2: expected an object, got 3"),
    ({"train.json": '[{"id": "1"}]'}, "entry 1: no label of '1.webm'"),
    ({"train.json": '[{"id": "1", "template": 2}]'}, "entry 1: expected text as id and template"),
    (
      {"train.json": '[{"id": "1", "template": "Holding [something] next of [something]"}]'},
      "entry 1: unknown label .*did you mean 'Holding something next to something'",
    ),
    ({"train.json": json.dumps(TRAIN), "labels.json": '{"a": "1"}'}, "indices from 0 on"),
    ({"train.json": json.dumps(TRAIN), "labels.json": '{"a": "0", "b": "0"}'}, "each once"),
    ({"train.json": json.dumps(TRAIN), "labels.json": '["a"]'}, "indices from 0 on"),
    (
      {"train.json": json.dumps(TRAIN), "labels.json": '{"a": 0, "a": 1}'},
      "key occurs twice .* keys a",
    ),
    (
      {"train.json": json.dumps(TRAIN), "labels.json": "{}", "v2-labels.json": "{}"},
      "expected one labels file, got .*v2-labels.json",
    ),
    ({"train_list.txt": "1.webm 174"}, "line 1: label '174'; expected a number from 0 to 173"),
  ],
)
def test_errors(tmp_path, files, error):
  for name, text in files.items():
    write(tmp_path / name, text)
  with pytest.raises(AnnotationError, match=error) as caught:
    read_annotations(DATASET, tmp_path)
  assert "\n" not in str(caught.value)
