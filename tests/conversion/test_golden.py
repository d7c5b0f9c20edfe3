import functools
import json

import numpy as np
import pytest

from tests.conversion.checkpoints import golden_keys, official_keys
from tests.helpers.golden import golden
from tests.tables.conversion import (
  CASES,
  convert_case,
  load_case,
  logits_error,
)

pytest.importorskip("torch")

# Compiling takes long, and tests/models compares the networks for these and more shapes of clips:
# of each family one case, and of each network one in bfloat16; the others are slow.
_QUICK = ["nano_16x56x56", "torchvision_nano_10x60x72_padding", "inflate_w7_to_877", "vtn_nano_20f"]
_QUICK_IN_BFLOAT16 = ["nano_16x56x56", "vtn_nano_20f"]


def _cases():
  for family, cases in CASES.items():
    for case in cases:
      # What is in them beyond smaller ones, tests/models compares; files of mmaction2 differ in a
      # name, which test_convert.py compares. `tests.tables.conversion` has them all, and bfloat16.
      if case in ("swin_b_k400", "vtn_vit_b_16f") or family == "mmaction2":
        continue
      slow = [] if case in _QUICK else [pytest.mark.slow]
      yield pytest.param(family, case, "float32", 1e-5, marks=slow)
      if case in _QUICK_IN_BFLOAT16:
        yield pytest.param(family, case, "bfloat16", 3e-2)


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
  """Maps (family, case) to its checkpoint, which is converted once."""
  return functools.cache(
    lambda family, case: convert_case(family, case, tmp_path_factory.mktemp(case))
  )


@pytest.mark.parametrize("case", ["nano_16x56x56", "swin_t_k400"])
def test_files_are_built_with_every_entry_of_the_reference(case):
  expected = golden_keys(case)
  built = official_keys(golden(case)[0])
  assert {name: (list(shape), dtype) for name, (shape, dtype) in built.items()} == {
    name: (list(shape), dtype) for name, (shape, dtype) in expected.items()
  }


@pytest.mark.parametrize(("family", "case", "dtype", "limit"), list(_cases()))
def test_converted_files_give_the_logits_of_the_reference(
  family, case, dtype, limit, checkpoint_of
):
  model = load_case(family, case, checkpoint_of(family, case), dtype=dtype)
  error, same_top1 = logits_error(model, case)
  assert error < limit
  assert same_top1


@pytest.mark.parametrize("case", CASES["swin_2d"])
def test_inflation_equals_the_reference_before_the_model_runs(case, checkpoint_of):
  _, expected = golden(case)
  model = load_case("swin_2d", case, checkpoint_of("swin_2d", case))
  patch = expected["patch_embed.proj.weight"]
  np.testing.assert_allclose(
    model.patch_embed.proj.kernel[...],
    patch.transpose(2, 3, 4, 1, 0).reshape(-1, patch.shape[0]),
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    model.stages[1].blocks[0].attention.relative_position_bias_table[...],
    expected["bias_table/layers.1.blocks.0"],
    atol=1e-6,
  )


def test_metadata_of_the_file_are_read_off_its_tensors(tmp_path):
  from vswin_jax.checkpoints.manager import checkpoints_of
  from vswin_jax.checkpoints.selection import read_metadata

  metadata = read_metadata(
    checkpoints_of(convert_case("official", "nano_window16_32x56x56", tmp_path))
  )
  meta, _ = golden("nano_window16_32x56x56")
  assert metadata.model == {
    "name": "video_swin_t",
    "num_classes": meta["num_classes"],
    "window_size": meta["window"],
    **meta["arch"],
  }
  assert json.dumps(metadata.to_json())
