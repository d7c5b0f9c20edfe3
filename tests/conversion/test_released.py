"""The catalog of released checkpoints, and the class names of their data sets."""

import collections
import functools
import math
import pathlib
import re

import jax
import pytest
from flax import nnx

from vswin_jax.attention.relative_position import table_rows
from vswin_jax.conversion.released import (
  RELEASED,
  Released,
  find,
  table,
)
from vswin_jax.data.label_names import NAMED_DATASETS, label_names
from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.parameters import split_model

NUM_CLASSES = {name: len(label_names(name)) for name in NAMED_DATASETS} | {
  "imagenet_1k": 1000,
  "imagenet_22k": 21841,
}


def test_names_files_and_families():
  for field in ("name", "file", "url"):
    values = [getattr(released, field) for released in RELEASED]
    assert len(set(values)) == len(values), field
  assert collections.Counter(released.family for released in RELEASED) == {
    "official": 7,
    "mmaction2": 6,
    "torchvision": 4,
    "swin_2d": 16,
    "vtn": 1,
  }
  assert not {released.name for released in RELEASED} & {released.file for released in RELEASED}


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released.name)
def test_metadata_fit_together(released):
  assert re.fullmatch(r"[a-z0-9_]+", released.name)
  assert released.url.startswith("https://") and released.url.endswith("/" + released.file)
  assert released.dataset in NUM_CLASSES
  assert (released.top1 is None) == (released.top5 is None)
  assert released.top1 is None or 50 < released.top1 < released.top5 < 100
  assert released.sha256 is None or re.fullmatch(r"[0-9a-f]{8,64}", released.sha256)
  if released.sha256 is not None and released.family != "vtn":
    assert re.search(rf"-{released.sha256}\.pth$", released.file)
  if released.config is not None:
    assert (pathlib.Path(__file__).parents[2] / released.config).is_file()
  # float32 weights, index buffers on top.
  assert released.size is None or released.size > 4 * released.parameters


@functools.cache
def _count(model: str) -> int:
  """Parameters with one class, from the shapes of a model that is never allocated."""
  _, shapes = split_model(nnx.eval_shape(lambda: create_model(model, num_classes=1)))
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _count_as_released(released: Released) -> int:
  config = CATALOG[released.model]
  if released.family == "vtn":
    return _count(released.model) + (NUM_CLASSES[released.dataset] - 1) * (config.width + 1)
  channels = config.embed_dim * 2 ** (len(config.depths) - 1)
  head = (NUM_CLASSES[released.dataset] - 1) * (channels + 1)
  is_flat = released.family == "swin_2d"
  window = (1, *released.window) if is_flat else released.window
  rows = table_rows(window) - table_rows(config.window_size)
  tables = rows * sum(depth * heads for depth, heads in zip(config.depths, config.num_heads))
  # The 2D network embeds patches of one frame.
  time, *patch = config.patch_size
  patches = -(time - 1) * 3 * math.prod(patch) * config.embed_dim if is_flat else 0
  return _count(released.model) + head + tables + patches


@pytest.mark.parametrize("released", RELEASED, ids=lambda released: released.name)
def test_parameters_are_those_of_the_model(released):
  assert _count_as_released(released) == released.parameters


def test_find_takes_names_and_files():
  for released in RELEASED:
    assert find(released.name) is released
    assert find(released.file) is released


@pytest.mark.parametrize(
  ("wrong", "nearest"),
  [("swin_t_k400_oficial", "swin_t_k400_official"), ("swin3d_t.pth", "swin3d_t-7615ae03.pth")],
)
def test_find_names_the_nearest(wrong, nearest):
  with pytest.raises(ValueError, match=re.escape(f"did you mean '{nearest}'?")) as raised:
    find(wrong)
  assert "\n" not in str(raised.value)


def test_table_is_aligned_text():
  lines = table().splitlines()
  assert len(lines) == 1 + len(RELEASED)
  assert [line.split()[0] for line in lines[1:]] == [released.name for released in RELEASED]
  assert [line.split()[-1] for line in lines[1:]] == [released.url for released in RELEASED]
  starts = {line.index(released.dataset) for line, released in zip(lines[1:], RELEASED)}
  assert len(starts) == 1


@pytest.mark.parametrize(
  ("dataset", "count"),
  [
    ("kinetics400", 400),
    ("kinetics600", 600),
    ("kinetics700", 700),
    ("kinetics710", 710),
    ("something_something_v2", 174),
  ],
)
def test_label_names_are_one_a_class(dataset, count):
  names = label_names(dataset)
  assert len(names) == len(set(names)) == count
  assert all(name == name.strip() and name for name in names)
  # Kinetics-710 starts with the classes of Kinetics-400, newer ones follow.
  if dataset != "kinetics710":
    assert list(names) == sorted(names)


def test_label_names_by_index():
  assert label_names("kinetics400")[0] == "abseiling"
  assert label_names("kinetics400")[5] == "archery"
  assert label_names("kinetics600")[1] == "acting in play"
  assert label_names("kinetics700")[699] == "zumba"
  assert label_names("kinetics710")[709] == "bull fighting"
  assert label_names("something_something_v2")[0] == "Approaching something with your camera"
  assert label_names("something_something_v2")[173] == "Wiping something off of something"


def test_kinetics710_names_the_classes_of_the_others():
  merged = set(label_names("kinetics710"))
  assert merged <= {name for number in (400, 600, 700) for name in label_names(f"kinetics{number}")}
  kept = zip(label_names("kinetics400"), label_names("kinetics710"))
  assert sum(old == new for old, new in kept) == 387


def test_labels_of_other_data_sets_are_unknown():
  assert label_names("imagenet_1k") is None
  assert label_names("../labels/kinetics400") is None
