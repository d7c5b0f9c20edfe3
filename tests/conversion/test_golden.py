import json

import numpy as np
import pytest

from tests.conversion.checkpoints import golden_keys, official_keys
from tests.helpers.golden import golden
from tests.tables.conversion import (
  CASES,
  OFFICIAL_LARGE,
  TORCHVISION_LARGE,
  VTN_LARGE,
  convert_case,
  load_case,
  logits_error,
)

pytest.importorskip("torch")

_LARGE = OFFICIAL_LARGE + TORCHVISION_LARGE + VTN_LARGE
# Compiling takes most of the time; what padding, shifting and size do is the same in every dtype.
_IN_BFLOAT16 = [
  "swin_t_k400",
  "nano_16x56x56",
  "torchvision_nano_16x56x56",
  *CASES["swin_2d"],
  "vtn_nano_20f",
]


@pytest.mark.parametrize("case", ["nano_16x56x56", "swin_t_k400"])
def test_files_are_built_with_every_entry_of_the_reference(case):
  expected = golden_keys(case)
  built = official_keys(golden(case)[0])
  assert {name: (list(shape), dtype) for name, (shape, dtype) in built.items()} == {
    name: (list(shape), dtype) for name, (shape, dtype) in expected.items()
  }


@pytest.mark.parametrize(
  ("family", "case"),
  [
    pytest.param(family, case, marks=[pytest.mark.slow] if case in _LARGE else [])
    for family, cases in CASES.items()
    for case in cases
    # What is in them beyond smaller ones, tests/models compares; the table has them.
    if case not in ("swin_b_k400", "vtn_vit_b_16f")
  ],
)
def test_converted_files_give_the_logits_of_the_reference(family, case, tmp_path):
  checkpoint = convert_case(family, case, tmp_path)
  error, same_top1 = logits_error(load_case(family, case, checkpoint), case)
  assert error < 1e-5
  assert same_top1
  if case not in _IN_BFLOAT16:
    return
  error, same_top1 = logits_error(load_case(family, case, checkpoint, dtype="bfloat16"), case)
  assert error < 3e-2
  assert same_top1


@pytest.mark.parametrize("case", CASES["swin_2d"])
def test_inflation_equals_the_reference_before_the_model_runs(case, tmp_path):
  _, expected = golden(case)
  model = load_case("swin_2d", case, convert_case("swin_2d", case, tmp_path))
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
