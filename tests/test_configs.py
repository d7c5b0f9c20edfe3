"""Every shipped config: builds its objects, and the recipes say what they must."""

import jax
import numpy as np
import pytest

from tests.tables import recipes
from tests.tables.recipes import load, small_model_shapes, values_here
from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.conversion.released import find
from vswin_jax.data.clips import ClipSpec, Views, check_views
from vswin_jax.data.pipeline import LoaderOptions
from vswin_jax.experiment.config import set_options
from vswin_jax.models import model_config
from vswin_jax.models.parameters import flatten, parameter_path
from vswin_jax.training.optimizer import OptimizerOptions, group_values, make_optimizer
from vswin_jax.training.schedules import ScheduleOptions, make_schedule

CONFIGS = sorted(path.stem for path in recipes.CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_is_locked_and_builds_its_objects(name):
  config = load(name)
  assert config.is_locked
  clip = ClipSpec(**config.clip)
  for views in (config.validation, config.test):
    check_views(clip, Views(**views))
  LoaderOptions(**config.loader)
  Augmentation(**config.augmentation)
  schedule = make_schedule(ScheduleOptions(**config.schedule), num_steps=100, steps_per_epoch=10.0)
  assert float(schedule(50)) > 0
  if config.model.name is None:
    config.model.name = "video_swin_t"
  make_optimizer(
    small_model_shapes(**set_options(config.model)), schedule, OptimizerOptions(**config.optimizer)
  )


@pytest.mark.parametrize("variant, rate", [("t", 1e-3), ("s", 1e-3), ("b_22k", 3e-4)])
def test_kinetics_recipes_schedule_and_groups(variant, rate):
  config = load(f"k400_swin_{variant}")
  # The staircase of the published runs, from a tenth of the rate in 2.5 epochs.
  schedule = make_schedule(ScheduleOptions(**config.schedule), num_steps=3000, steps_per_epoch=100)
  np.testing.assert_allclose(float(schedule(0)), 0.1 * rate, rtol=1e-6)
  for step in (125, 249, 250):
    regular = rate * 0.5 * (1 + np.cos(np.pi * (step // 100) / 30))
    np.testing.assert_allclose(
      float(schedule(step)), regular * min(0.1 + 0.9 * step / 250, 1), rtol=1e-5
    )
  epoch_4 = rate * 0.5 * (1 + np.cos(np.pi * 4 / 30))
  np.testing.assert_allclose([float(schedule(s)) for s in (400, 499)], epoch_4, rtol=1e-5)

  shapes = small_model_shapes(**set_options(config.model))
  groups = {}
  rates = group_values(shapes, config.optimizer.learning_rate_multipliers, "learning rate")
  decays = group_values(shapes, config.optimizer.weight_decay_multipliers, "weight decay")
  for (path, r), d in zip(jax.tree_util.tree_leaves_with_path(rates), jax.tree.leaves(decays)):
    name = parameter_path(path)
    is_table = name.endswith("bias_table")
    group = "table" if is_table else "head" if name.startswith("head.") else "rest"
    groups.setdefault(group, set()).add((r, d))
  assert groups == {"head": {(1.0, 1.0)}, "table": {(1.0, 0.0)}, "rest": {(0.1, 1.0)}}


@pytest.mark.parametrize(
  "variant", ["vit_b", "vit_b_1layer", "deit_ti", "deit_b", "deit_b_distilled", "r50", "r101"]
)
def test_vtn_recipes_are_that_of_the_released_model(variant):
  config = load(f"k400_vtn_{variant}")
  assert config.init_from is None
  assert config.model.name == f"vtn_{variant}"
  # The paper's batch for ResNets is twice as large.
  assert config.train.batch_size == (32 if variant.startswith("r") else 16)
  np.testing.assert_allclose(np.array(config.data.mean) / 255, 0.45)
  np.testing.assert_allclose(np.array(config.data.std) / 255, 0.225)
  schedule = make_schedule(ScheduleOptions(**config.schedule), num_steps=2500, steps_per_epoch=100)
  steps = {0: 1e-3, 1299: 1e-3, 1300: 1e-4, 2399: 1e-4, 2400: 1e-5, 2499: 1e-5}
  for step, rate in steps.items():
    np.testing.assert_allclose(float(schedule(step)), rate, rtol=1e-5)
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
  decays = flatten(
    group_values(
      small_model_shapes(**set_options(config.model)),
      optimizer.weight_decay_multipliers,
      "weight decay",
    )
  )
  exempt = {path for path, decay in decays.items() if decay == 0.0}
  batch_norm = {
    path for path in decays if ".norm." in path and path.endswith(("scale", "bias"))
  } & {path for path in decays if path.startswith("backbone.")}
  assert exempt == (batch_norm if variant.startswith("r") else set())


@pytest.mark.parametrize("name", recipes.REFERENCES)
def test_recipes_equal_those_of_the_references(name):
  _, reference = recipes.REFERENCES[name]
  here = values_here(load(name))
  assert {key: here[key] for key in reference} == reference


def test_the_table_of_recipes_is_up_to_date():
  assert (recipes.CONFIGS.parent / "docs" / "recipes.md").read_text() == recipes.table()


@pytest.mark.parametrize("name", ["k400_swin_b", "ssv2_swin_b", "k600_swin_l_384"])
def test_recipes_as_they_were_written(name):
  """Every rule that matches a name counts, and the rate falls at every step."""
  executed, written = values_here(load(name)), values_here(load(name, "written"))
  changed = {key: value for key, value in written.items() if executed[key] != value}
  assert changed == {
    "schedule": "cosine by step",
    "bias table rate": "0.1x",
    "decay of norms": "no",
  }
  with pytest.raises(ValueError, match="unknown version 'writen'; choose one of executed, written"):
    load(name, "writen")


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_recipe_starts_from_exists_and_fits(name):
  config = load(name)
  if name.startswith("quickstart"):
    assert config.init_from == "random" and not config.starts_from
    return
  assert config.init_from is None
  source, *options = config.starts_from.split()
  if name.startswith("k400_vtn"):
    # A file that timm publishes; the name of the architecture tells the backbone.
    backbone = model_config(config.model.name).backbone
    assert {"vit_b_16": "vit_base", "resnet50": "resnet50", "resnet101": "resnet101"}.get(
      backbone, backbone.split("_")[0]
    ) in source
    return
  released = find(source)
  if config.model.name is None:
    return
  model = model_config(**set_options(config.model))
  assert released.model == config.model.name
  assert released.window[-2:] == model.window_size[-2:]
  assert options == ([f"--window={','.join(map(str, model.window_size))}"] if "384" in name else [])
