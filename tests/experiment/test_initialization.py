"""What weights decide about a run: model, preprocessing, which parameters stay random."""

import dataclasses
import logging

import numpy as np
import pytest

from tests.tables.recipes import load
from vswin_jax.checkpoints import manager
from vswin_jax.checkpoints.metadata import CheckpointMetadata
from vswin_jax.common.logging import logger
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.preprocessing import VTN_MEAN, VTN_STD, Preprocessing
from vswin_jax.experiment import results
from vswin_jax.experiment.config import ConfigError, base_config, read_settings
from vswin_jax.experiment.initialization import (
  InitializationError,
  find_source,
  load_initial_weights,
  override_config,
)
from vswin_jax.experiment.workdir import RunFolder
from vswin_jax.models import create_model
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.training.optimizer import OptimizerOptions, make_optimizer
from vswin_jax.training.step import create_state

SWIN = {
  "name": "video_swin_t", "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2),
  "window_size": (2, 4, 4),
}  # fmt: skip
BACKBONE = {"image_size": 32, "patch_size": 16, "width": 24, "depth": 1, "num_heads": 2}
VTN = {
  "name": "vtn_vit_b", "width": 24, "num_layers": 1, "num_heads": 4, "intermediate_size": 16,
  "attention_window": 4, "backbone_options": BACKBONE,
}  # fmt: skip
CLASSES = ("run", "jump", "sit")


def write(folder, options, preprocessing=None, labels=None, num_classes=3, random=()):
  """Weights as a conversion leaves them."""
  model = create_model(**options, num_classes=num_classes, seed=5)
  metadata = CheckpointMetadata(
    {**options, "num_classes": num_classes},
    preprocessing or Preprocessing(),
    labels,
    source={"random": list(random)},
  )
  manager.write_params(folder, split_model(model)[1], metadata)
  return folder


def folder_of(path):
  return RunFolder(path, path)


def clip_of(size, **views):
  views = {"num_clips": 4, "crops": "three", "short_side": size} | views
  return Preprocessing(clip=ClipSpec(size=size, train_short_side=size), views=Views(**views))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_config_without_a_model_takes_all_from_the_weights(tmp_path, mode):
  preprocessing = dataclasses.replace(
    clip_of(32, num_clips=1, crops="center", short_side=40, whole_frames=25),
    mean=VTN_MEAN,
    std=VTN_STD,
  )
  source = write(tmp_path / "vtn", VTN, preprocessing)
  config = override_config(load("finetune_folder"), source, mode=mode, overridden_keys=())
  assert config.is_locked
  model = config.model.to_dict()
  assert model == {**VTN, "backbone_options": BACKBONE}
  assert (config.data.mean, config.data.std) == (VTN_MEAN, VTN_STD)
  assert (config.clip.size, config.test.short_side, config.test.whole_frames) == (32, 40, 25)
  if mode == "train":
    assert (config.clip.train_short_side, config.validation.short_side) == (40, 40)
    assert config.validation.whole_frames == 25
  else:
    assert config.validation.short_side == base_config().validation.short_side


@pytest.mark.parametrize(
  "size, views, overridden_keys, expected",
  [
    # clip size, then short sides of training and validation, and of the test
    (224, {}, {}, (224, 256, 224)),
    (32, {}, {}, (32, 36, 32)),
    (384, {"crops": "five", "short_side": 416}, {}, (384, 416, 416)),
    (288, {}, {"clip.size": 144}, (144, 164, 144)),
    (384, {"crops": "five", "short_side": 416}, {"clip.size": 192}, (192, 208, 208)),
    (32, {}, {"validation.short_side": 50}, (32, 36, 32)),
  ],
)
def test_short_sides_follow_the_size_of_clips(tmp_path, size, views, overridden_keys, expected):
  source = write(tmp_path / "weights", SWIN, clip_of(size, **views))
  config = load("finetune_folder")
  for key, value in overridden_keys.items():
    section, name = key.split(".")
    config[section][name] = value
  config = override_config(config, source, mode="train", overridden_keys=overridden_keys)
  found = (config.clip.size, config.clip.train_short_side, config.test.short_side)
  assert found == expected
  assert config.validation.short_side == overridden_keys.get("validation.short_side", expected[1])


def test_a_run_that_goes_on_keeps_what_it_was_started_with(tmp_path):
  source = write(tmp_path / "weights", SWIN, clip_of(224))
  config = load("finetune_folder")
  config.clip.size = 384
  first = override_config(config, source, mode="train", overridden_keys={"clip.size"})
  assert first.clip.train_short_side == 439
  # The checkpoint of the run says less of how it was trained than its config does.
  run = write(tmp_path / "run", SWIN, clip_of(384))
  results.write_config(run, read_settings(first))
  again = override_config(
    config, run, mode="train", folder=RunFolder(run, run), overridden_keys={"clip.size"}
  )
  assert again.to_json_best_effort() == first.to_json_best_effort()


def test_options_given_hold_against_the_weights(tmp_path):
  source = write(tmp_path / "weights", {**SWIN, "drop_path_rate": 0.3})
  config = load("finetune_folder")
  config.model.drop_path_rate = 0.05
  config.model.dtype = "bfloat16"
  model = override_config(config, source, mode="train", overridden_keys=()).model
  assert (model.drop_path_rate, model.dtype) == (0.05, "bfloat16")
  assert model.embed_dim == 8


def test_training_of_a_named_model_keeps_its_config(tmp_path):
  options = {"name": "video_swin_t", "drop_path_rate": 0.3}
  source = write(tmp_path / "weights", SWIN, clip_of(32))
  config = load("k400_swin_t")
  for name, value in {**SWIN, "drop_path_rate": 0.1}.items():
    config.model[name] = value
  settled = override_config(config, source, mode="train", overridden_keys=())
  assert settled.to_json_best_effort() == config.to_json_best_effort()
  assert options["name"] == settled.model.name


def test_an_evaluation_takes_the_options_of_the_model(tmp_path):
  """Those that fit any parameters would otherwise be the config's, in silence."""
  source = write(tmp_path / "weights", VTN, clip_of(32, num_clips=1, crops="center"))
  config = override_config(load("k400_vtn_vit_b"), source, mode="eval", overridden_keys=())
  assert config.model.attention_window == 4 and config.model.num_heads == 4
  assert config.model.dtype == "bfloat16"
  assert config.model.backbone_options.num_heads == 2


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
  "option, value", [("attention_window", 6), ("num_heads", 6), ("backbone_options.num_heads", 3)]
)
def test_weights_of_another_model_are_refused_though_they_fit(tmp_path, mode, option, value):
  source = write(tmp_path / "weights", VTN, clip_of(32))
  config = base_config("vtn_vit_b")
  for name, given in VTN.items():
    config.model[name] = given
  section, _, name = option.rpartition(".")
  (config.model[section] if section else config.model)[name] = value
  with pytest.raises(manager.CheckpointError, match=f"a model with {option} \\d, the config"):
    override_config(config, source, mode=mode, overridden_keys=())


def test_options_that_make_no_model_are_a_config_error(tmp_path):
  source = write(tmp_path / "weights", SWIN)
  config = load("finetune_folder")
  config.model.dtype = "fp16"
  with pytest.raises(ConfigError, match="unknown dtype 'fp16'"):
    override_config(config, source, mode="train", overridden_keys=())


def test_crops_given_alone_bring_the_short_side_they_need(tmp_path):
  source = write(tmp_path / "weights", SWIN, clip_of(32, crops="center", short_side=36))
  config = load("quickstart")
  config.model.update({**SWIN, "embed_dim": 8})
  config.test.crops = "three"
  for given in (None, source):
    found = override_config(config, given, mode="eval", overridden_keys={"test.crops"})
    assert (found.test.crops, found.test.short_side) == ("three", 32)


def test_weights_of_a_backbone_fit_any_model_around_it(tmp_path):
  random = ("cls_token", "temporal_encoder.", "head.")
  source = write(tmp_path / "weights", VTN, clip_of(32), random=random)
  config = base_config("vtn_vit_b")
  for name, given in VTN.items():
    config.model[name] = given
  config.model.num_layers, config.model.attention_window = 2, 8
  assert override_config(config, source, mode="train", overridden_keys=()).model.num_layers == 2
  config.model.backbone_options.num_heads = 3
  with pytest.raises(manager.CheckpointError, match=r"with backbone_options\.num_heads 2"):
    override_config(config, source, mode="train", overridden_keys=())


def test_weights_of_another_kind_of_model_are_refused(tmp_path):
  source = write(tmp_path / "weights", SWIN)
  with pytest.raises(manager.CheckpointError, match="holds a video_swin_t, the config is"):
    override_config(load("k400_vtn_vit_b"), source, mode="eval", overridden_keys=())


def state_of(options, num_classes=3):
  _, params = split_model(create_model(**options, num_classes=num_classes, seed=9))
  optimizer = make_optimizer(params, lambda step: 0.1, OptimizerOptions())
  return create_state(params, optimizer, with_ema=True)


@pytest.mark.parametrize(
  "options, labels, num_classes, stay",
  [
    (SWIN, CLASSES, 3, ()),
    (SWIN, ("walk", "jump", "sit"), 3, ("head.kernel", "head.bias")),
    (SWIN, None, 4, ("head.kernel", "head.bias")),
    (VTN, CLASSES, 3, ()),
    (VTN, ("walk", "jump", "sit"), 3, ("head.fc2.kernel", "head.fc2.bias")),
    (VTN, CLASSES[:2], 2, ("head.fc2.kernel", "head.fc2.bias")),
  ],
)
def test_only_classifiers_of_other_classes_stay_random(
  tmp_path, options, labels, num_classes, stay
):
  source = write(tmp_path / "weights", options, labels=labels, num_classes=num_classes)
  before = state_of(options)
  after = load_initial_weights(source, before, CLASSES)
  model = create_model(**options, num_classes=num_classes, seed=5)
  theirs = flatten(split_model(model)[1])
  mine, found, ema = map(flatten, (before.params, after.params, after.ema_params))
  for path, value in found.items():
    expected = mine[path] if path in stay else theirs[path]
    np.testing.assert_array_equal(value, expected, err_msg=path)
    np.testing.assert_array_equal(ema[path], expected, err_msg=path)


def test_what_was_random_in_the_weights_stays_so(tmp_path):
  source = write(tmp_path / "weights", VTN, labels=CLASSES, random=("temporal_encoder.", "head."))
  before = state_of(VTN)
  after = flatten(load_initial_weights(source, before, CLASSES).params)
  for path, value in flatten(before.params).items():
    if path.startswith(("temporal_encoder.", "head.")):
      np.testing.assert_array_equal(after[path], value, err_msg=path)
  kernel = next(path for path in after if "backbone" in path and path.endswith("kernel"))
  assert (np.asarray(after[kernel]) != np.asarray(flatten(before.params)[kernel])).any()


def test_a_classifier_of_classes_without_names_is_pointed_out(tmp_path, caplog):
  source = write(tmp_path / "weights", SWIN)
  with caplog.at_level(logging.INFO, logger.name):
    logger.propagate = True
    load_initial_weights(source, state_of(SWIN), CLASSES)
  assert "does not name its classes" in caplog.text


def test_sources(tmp_path):
  config = load("finetune_folder")
  with pytest.raises(InitializationError, match="starts from pretrained weights: `python"):
    find_source(config, folder_of(tmp_path), "train", None)
  with pytest.raises(InitializationError, match=r"no checkpoint in .*; give --checkpoint=DIR"):
    find_source(config, folder_of(tmp_path), "eval", None)
  config.init_from = "random"
  with pytest.raises(InitializationError, match="init_from=random needs a model"):
    find_source(config, folder_of(tmp_path), "train", None)
  config.init_from = str(tmp_path / "weights")
  assert find_source(config, folder_of(tmp_path), "train", None) == tmp_path / "weights"
  assert (
    find_source(config, folder_of(tmp_path), "eval", str(tmp_path / "other")) == tmp_path / "other"
  )
  # A run goes on with its own.
  write(tmp_path / "run", SWIN)
  assert find_source(config, folder_of(tmp_path / "run"), "train", None) == tmp_path / "run"
  named = load("k400_vtn_r50")
  with pytest.raises(
    InitializationError, match=r"model.safetensors of https://huggingface.co/timm/resnet50"
  ):
    find_source(named, folder_of(tmp_path), "train", None)
  named.init_from = "random"
  assert find_source(named, folder_of(tmp_path), "train", None) is None
