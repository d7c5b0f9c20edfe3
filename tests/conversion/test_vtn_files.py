"""Conversion of VTN and of image backbones, compared with the packages that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conversion.checkpoints import (
  fill,
  golden_keys,
  official_tensors,
  save_torch,
  save_vtn,
)
from tests.conversion.timm_without_torchvision import import_timm
from tests.tables.vtn_parity import BACKBONES, SMALL_VIT, backbone_error, random_timm
from vswin_jax import create_model
from vswin_jax.checkpoints.manager import checkpoints_of, restore_params
from vswin_jax.checkpoints.selection import read_metadata
from vswin_jax.conversion.convert import convert_file
from vswin_jax.conversion.families import ConversionOptions, convert_tensors
from vswin_jax.conversion.matching import ConversionError
from vswin_jax.conversion.sizes import infer_backbone
from vswin_jax.data.clips import view_frames
from vswin_jax.models.parameters import flatten, merge_model, split_model, with_shardings

torch = pytest.importorskip("torch")

NANO = ConversionOptions(num_heads=3, backbone_heads=3, attention_window=6)


# Few blocks of each kind: deeper models repeat them.
_SMALL = {
  "vit_base_patch16_224": (SMALL_VIT, 32),
  "deit_base_distilled_patch16_224": (SMALL_VIT, 32),
  "resnet50": ({"layers": (2, 1, 1, 1)}, 65),
  "swin_tiny_patch4_window7_224": (
    {"depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32, "img_size": 56},
    56,
  ),
}


@pytest.mark.parametrize("name", _SMALL)
def test_features_equal_those_of_timm(name):
  assert backbone_error(name, *_SMALL[name]) < 1e-5


@pytest.mark.slow
def test_features_of_full_size_equal_those_of_timm():
  # `tests.tables.vtn_parity` compares the others.
  assert backbone_error("vit_base_patch16_224") < 1e-5


@pytest.mark.parametrize("name", [name for name, (_, _, ours) in BACKBONES.items() if ours])
def test_sizes_of_timm_are_recognized(name):
  with torch.device("meta"):
    reference = import_timm().create_model(name)
  tensors = {
    key: np.broadcast_to(np.float32(0), value.shape)
    for key, value in reference.state_dict().items()
  }
  kind = {"d": "vit", "r": "resnet", "s": "swin_2d"}[name[0]]
  _, _, ours = BACKBONES[name]
  assert infer_backbone(kind, tensors, None) == {
    "backbone": ours,
    "width": reference.num_features,
  }


def test_statistics_of_batch_normalization_get_no_gradient():
  small = {"width": 64, "num_heads": 2, "intermediate_size": 8, "num_layers": 1}
  model = create_model(
    "vtn_r50", num_classes=2, backbone_options={"depths": (1,), "width": 16}, **small
  )
  graph, params = split_model(model)
  video = jnp.ones((1, 2, 32, 32, 3))
  gradient = jax.jit(jax.grad(lambda params: merge_model(graph, params)(video)[0, 0]))(params)
  norm = gradient["backbone"]["stem"]["norm"]
  assert np.abs(norm["running_mean"]).max() == np.abs(norm["running_variance"]).max() == 0
  assert np.abs(norm["scale"]).max() > 0


def test_the_names_of_timm_serve_inflation_too():
  reference = random_timm("swin_tiny_patch4_window7_224", num_classes=10, depths=(2, 2, 2, 2))
  tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
  converted = convert_tensors(tensors, ConversionOptions(num_classes=7))
  assert converted.model["name"].startswith("video_swin")
  kernel = converted.params["stages.0.downsample.reduction.kernel"]
  np.testing.assert_array_equal(kernel, tensors["layers.1.downsample.reduction.weight"].T)


def nano_tensors():
  return fill(golden_keys("vtn_nano_7f"))


def test_options_not_in_the_file_are_those_of_the_released_model():
  converted = convert_tensors(fill(golden_keys("vtn_vit_b_16f")), ConversionOptions())
  assert converted.model == {"name": "vtn_vit_b", "num_classes": 400}
  assert converted.dataset == "kinetics400"
  preprocessing = converted.preprocessing
  assert view_frames(preprocessing.clip, preprocessing.views) == 250
  assert preprocessing.clip.size == 224 and preprocessing.views.short_side == 256
  np.testing.assert_allclose(np.array(preprocessing.mean) / 255, 0.45)
  np.testing.assert_allclose(np.array(preprocessing.std) / 255, 0.225)


def test_another_number_of_classes_replaces_only_the_classifier():
  options = ConversionOptions(num_heads=3, backbone_heads=3, num_classes=3, allow_missing=("head",))
  converted = convert_tensors(nano_tensors(), options)
  assert converted.random
  assert converted.params["head.fc2.kernel"].shape == (40, 3)
  np.testing.assert_array_equal(
    converted.params["head.fc1.kernel"], nano_tensors()["mlp_head.1.weight"].T
  )


def test_a_file_without_head_needs_options():
  tensors = {name: value for name, value in nano_tensors().items() if "mlp_head" not in name}
  with pytest.raises(ConversionError, match=r"the file has no head; .* give --num_classes=N"):
    convert_tensors(tensors, NANO)
  options = ConversionOptions(num_heads=3, backbone_heads=3, num_classes=3, allow_missing=("head",))
  assert convert_tensors(tensors, options).params["head.fc1.kernel"].shape == (48, 48)


@pytest.mark.parametrize(
  ("change", "options", "message"),
  [
    (lambda tensors: tensors.pop("cls_token"), NANO, "missing: cls_token"),
    (lambda tensors: tensors.pop("backbone.norm.bias"), NANO, "missing: backbone.norm.bias"),
    (
      lambda tensors: tensors.pop("backbone.pos_embed"),
      NANO,
      "size of the model can't be inferred from the file: 'pos_embed' is missing",
    ),
    (
      lambda tensors: tensors.pop("temporal_encoder.embeddings.position_embeddings.weight"),
      NANO,
      "temporal_encoder.embeddings.position_embeddings.weight' is missing",
    ),
    (
      lambda tensors: tensors.update({"temporal_encoder.pooler.dense.weight": np.ones((2, 2))}),
      NANO,
      "unknown: temporal_encoder.pooler.dense.weight",
    ),
    (
      lambda tensors: tensors.update({"backbone.pos_embed": np.ones((1, 0, 48), np.float32)}),
      NANO,
      "describe a model that can't be built: image_size must be at least 1",
    ),
    (
      lambda tensors: tensors.update({"cls_token": np.float32(1)}),
      NANO,
      "wrong shape: cls_token",
    ),
    (
      lambda tensors: tensors.update({"backbone.patch_embed.proj.weight": np.ones((2, 2))}),
      NANO,
      "unknown backbone of a VTN",
    ),
    (
      lambda tensors: None,
      ConversionOptions(window=(8, 7, 7)),
      "--window does not apply to vtn weights",
    ),
    (lambda tensors: None, ConversionOptions(inflation="center"), "--inflation does not apply"),
    (
      lambda tensors: None,
      ConversionOptions(num_heads=5),
      "48 channels are not divisible by num_heads 5",
    ),
    (
      lambda tensors: None,
      ConversionOptions(attention_window=7),
      "attention_window must be even, got 7",
    ),
    (
      lambda tensors: [tensors.pop(name) for name in list(tensors) if "patch_embed" in name],
      NANO,
      "unknown backbone of a VTN",
    ),
  ],
)
def test_damaged_files_and_impossible_requests_are_refused(change, options, message):
  tensors = nano_tensors()
  change(tensors)
  with pytest.raises(ConversionError, match=message):
    convert_tensors(tensors, options)


def test_random_parts_of_a_conversion_do_not_bind_a_run(tmp_path):
  tensors = {
    name.removeprefix("backbone."): value
    for name, value in nano_tensors().items()
    if name.startswith("backbone.")
  }
  request = ConversionOptions(num_classes=3, backbone_heads=3)
  convert_file(save_torch(tmp_path / "vit.pth", tensors), tmp_path / "vit", request)
  directory = checkpoints_of(tmp_path / "vit")
  metadata = read_metadata(directory)
  assert metadata.random == ("temporal_encoder.", "head.")
  # A run may have another temporal encoder.
  options = metadata.model | {"num_layers": 1, "num_heads": 2}
  _, shapes = split_model(nnx.eval_shape(lambda: create_model(**options)))
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = with_shardings(shapes, place)
  _, params, _ = restore_params(directory, shapes, ignored=metadata.random)
  for path, leaf in flatten(params).items():
    if path.startswith("backbone."):
      assert isinstance(leaf, jax.Array), path
    else:
      assert leaf is flatten(shapes)[path]
  np.testing.assert_array_equal(params["backbone"]["norm"]["bias"], tensors["norm.bias"])


def test_clips_that_the_model_does_not_take_are_refused(tmp_path):
  source = save_vtn(tmp_path / "vtn.pyth", nano_tensors())
  request = ConversionOptions(num_heads=3, backbone_heads=3, clip={"size": 40})
  with pytest.raises(ConversionError, match=r"images must be \[batch, 32, 32, 3\]"):
    convert_file(source, tmp_path / "vtn", request)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (ConversionOptions(to="vtn"), "--to=vtn does not apply to official weights"),
    (ConversionOptions(attention_window=8), "--attention_window does not apply"),
  ],
)
def test_vtn_options_are_refused_for_a_video_swin(options, message):
  with pytest.raises(ConversionError, match=message):
    convert_tensors(official_tensors("nano_16x56x56"), options)
