"""The recipes of the references beside those of the config files.

`python -m tests.tables.recipes > docs/recipes.md` writes the table. The values of the references
are those of their published config files as their code executes them.
"""

import importlib.util
import pathlib
import re

import jax

from vswin_jax.data.clips import ClipSpec, Views, describe_views
from vswin_jax.experiment.config import set_options
from vswin_jax.models import create_model, model_config
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vit import ViTConfig
from vswin_jax.training.optimizer import group_values

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

_OFFICIAL = {
  "optimizer": "adamw", "betas": "0.9, 0.999", "schedule": "cosine by epoch",
  "warm-up epochs": "2.5 from 0.1x", "batch": 64, "frames": "32 x 2", "sampling": "dense",
  "size": 224, "train crop": "short side 256, resized box", "flip": 0.5, "label smoothing": 0.0,
  "RandAugment": "none", "random erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "head dropout": 0.5,
  "backbone rate": "0.1x", "bias table rate": "1x", "decay of norms": "yes",
  "decay of bias tables": "no", "normalization": "123.675, 116.28, 103.53 / 58.395, 57.12, 57.375",
  "gradient clipping": "none",
}  # fmt: skip
_KINETICS = {**_OFFICIAL, "epochs": 30.0, "views": "4x3", "validation": "1x1, short side 256"}
_IN22K = {**_KINETICS, "learning rate": 3e-4, "weight decay": 0.05, "drop path": 0.2}
_STRONG = {"RandAugment": "imgaug, 4 operations, magnitude 7", "random erasing": 0.25,
           "label smoothing": 0.1}  # fmt: skip
_384 = {
  **_IN22K, **_STRONG, "size": 384, "train crop": "short side 416, resized box", "epochs": 60.0,
  "views": "10x5", "validation": "1x1, short side 416", "window": "8, 12, 12",
  "starts from": "swin_l_w12_in22k_2d --window=8,12,12",
}  # fmt: skip
_VTN = {
  "optimizer": "sgd, Nesterov 0.9", "learning rate": 1e-3, "weight decay": 1e-4,
  "schedule": "x 0.1 after epochs 13, 24", "warm-up epochs": "none", "epochs": 25.0, "batch": 16,
  "frames": "16 x 8 at 25 frames/s", "sampling": "time", "size": 224,
  "train crop": "short side 256 to 320, box", "flip": 0.5, "label smoothing": 0.0,
  "RandAugment": "none", "random erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, "head dropout": 0.5,
  "temporal dropout": 0.1, "backbone rate": "1x", "decay of norms": "yes", "views": "1x1",
  "validation": "1x1, short side 256", "evaluation frames": 250,
  "normalization": "114.75, 114.75, 114.75 / 57.375, 57.375, 57.375", "gradient clipping": "none",
}  # fmt: skip
_VIT = "vit_base_patch16_224.orig_in21k_ft_in1k.safetensors"

# Config -> where its values come from, and the values.
REFERENCES = {
  "k400_swin_t": ("swin_tiny_patch244_window877_kinetics400_1k", {
    **_KINETICS, "learning rate": 1e-3, "weight decay": 0.02, "drop path": 0.1,
    "window": "8, 7, 7", "starts from": "swin_t_in1k_2d"}),
  "k400_swin_s": ("swin_small_patch244_window877_kinetics400_1k", {
    **_KINETICS, "learning rate": 1e-3, "weight decay": 0.02, "drop path": 0.1,
    "window": "8, 7, 7", "starts from": "swin_s_in1k_2d"}),
  "k400_swin_b": ("swin_base_patch244_window877_kinetics400_1k", {
    **_KINETICS, "learning rate": 1e-3, "weight decay": 0.05, "drop path": 0.3,
    "window": "8, 7, 7", "starts from": "swin_b_in1k_2d"}),
  "k400_swin_b_22k": ("swin_base_patch244_window877_kinetics400_22k", {
    **_IN22K, "window": "8, 7, 7", "starts from": "swin_b_in22k_2d"}),
  "k400_swin_l": ("swin_large_patch244_window877_kinetics400_22k (Expedit)", {
    **_IN22K, "window": "8, 7, 7", "starts from": "swin_l_in22k_2d"}),
  "k400_swin_l_384": ("swin_large_384_patch244_window81212_kinetics400_22k (Expedit)", {
    **_384, "drop path": 0.5}),
  "k600_swin_b": ("swin_base_patch244_window877_kinetics600_22k", {
    **_IN22K, "window": "8, 7, 7", "starts from": "swin_b_in22k_2d"}),
  "k600_swin_l_384": ("swin_large_384_patch244_window81212_kinetics600_22k (Expedit)", {
    **_384, "drop path": 0.4}),
  "k700_swin_l": ("swin-large-p244-w877_in22k-pre_16xb8-amp-32x2x1-30e_kinetics700 (mmaction2)", {
    **_KINETICS, "learning rate": 2e-3, "weight decay": 0.05, "drop path": 0.4, "batch": 128,
    "sampling": "dense_to_ends", "bias table rate": "0.1x", "decay of norms": "no",
    "window": "8, 7, 7", "starts from": "swin_l_in22k_2d"}),
  "ssv2_swin_b": ("swin_base_patch244_window1677_sthv2", {
    **_OFFICIAL, **_STRONG, "learning rate": 3e-4, "weight decay": 0.05, "drop path": 0.4,
    "epochs": 60.0, "sampling": "uniform", "flip": 0.0, "views": "1x3", "window": "16, 7, 7",
    "validation": "1x1, short side 256", "starts from": "swin_b_w16_in22k_k400_official"}),
  "k400_vtn_vit_b": ("VIT_B_VTN", {**_VTN, "starts from": _VIT}),
}  # fmt: skip


def load(name: str, *version: str):
  """The config of `configs/NAME.py`."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*version)


def values_here(config) -> dict:
  """What a config says, in the words of the table."""
  clip, train, augmentation = config.clip, config.train, config.augmentation
  options = set_options(config.model)
  model = model_config(**options)
  spec, test, validation = ClipSpec(**clip), Views(**config.test), Views(**config.validation)
  values = {
    "starts from": config.starts_from,
    "optimizer": config.optimizer.name,
    "learning rate": config.schedule.learning_rate,
    "weight decay": config.optimizer.weight_decay,
    "schedule": {
      "cosine_epochs": "cosine by epoch",
      "cosine": "cosine by step",
      "steps": f"x {config.schedule.decay_factor:g} after epochs "
      + ", ".join(f"{epoch:g}" for epoch in config.schedule.decay_epochs),
    }[config.schedule.name],
    "warm-up epochs": "none",
    "epochs": train.epochs,
    "batch": train.batch_size,
    "frames": f"{clip.num_frames} x {clip.frame_interval}"
    + (f" at {clip.frame_rate:g} frames/s" if clip.frame_rate else ""),
    "sampling": clip.sampling,
    "size": clip.size,
    "train crop": f"short side {clip.train_short_side}, resized box"
    if clip.train_crop == "resized"
    else f"short side {clip.short_side_range[0]} to {clip.short_side_range[1]}, box",
    "flip": clip.flip_probability,
    "label smoothing": train.label_smoothing,
    "RandAugment": "none",
    "random erasing": augmentation.erasing_probability,
    "mixup": augmentation.mixup_alpha,
    "cutmix": augmentation.cutmix_alpha,
    "head dropout": model.head_dropout_rate,
    "views": describe_views(spec, test),
    "validation": f"{describe_views(spec, validation)}, short side {validation.short_side}",
    "normalization": " / ".join(
      ", ".join(f"{value:g}" for value in values) for values in (config.data.mean, config.data.std)
    ),
    "gradient clipping": config.optimizer.clip_norm or "none",
  }
  if config.schedule.warmup_epochs:
    start = config.schedule.warmup_start
    values["warm-up epochs"] = f"{config.schedule.warmup_epochs:g} from {start:g}x"
  if augmentation.rand_augment != "none":
    values["RandAugment"] = (
      f"{augmentation.rand_augment}, {augmentation.num_operations} operations, "
      f"magnitude {augmentation.magnitude:g}"
    )
  if config.optimizer.name == "adamw":
    values["betas"] = f"{config.optimizer.beta1:g}, {config.optimizer.beta2:g}"
    values["drop path"] = model.drop_path_rate
    values["window"] = ", ".join(map(str, model.window_size))
  else:
    values["optimizer"] += f", Nesterov {config.optimizer.momentum:g}"
    values["temporal dropout"] = model.dropout_rate
    values["evaluation frames"] = test.whole_frames
  return values | _groups(config, options)


def small_model_shapes(**options) -> dict:
  """Parameters of a model with a few of its layers; the others have the same names."""
  model = model_config(**options)
  if isinstance(model, VideoSwinConfig):
    options["depths"] = (1,) * len(model.depths)
  elif isinstance(model.named_backbone(), ViTConfig):
    options["backbone_options"] = {**options.get("backbone_options", {}), "depth": 1}
  return jax.eval_shape(lambda: split_model(create_model(**options))[1])


def _groups(config, options: dict) -> dict:
  """Rates and decays of the parameter groups, beside those of the head."""
  shapes = small_model_shapes(**options)
  rates, decays = (
    flatten(group_values(shapes, config.optimizer[f"{name}_multipliers"], name))
    for name in ("learning_rate", "weight_decay")
  )

  def the_one(values: dict, expression: str):
    found = {value for path, value in values.items() if re.fullmatch(expression, path)}
    assert len(found) == 1, (expression, found)
    return found.pop()

  norms = r"(?!head).*norm\d?\.(scale|bias)"
  kernels = r".*kernel" if "vtn" in options["name"] else r"stages.*kernel"
  groups = {
    "backbone rate": f"{the_one(rates, kernels):g}x",
    "decay of norms": "yes" if the_one(decays, norms) else "no",
  }
  if any("bias_table" in path for path in rates):
    groups["bias table rate"] = f"{the_one(rates, r'.*bias_table'):g}x"
    groups["decay of bias tables"] = "yes" if the_one(decays, r".*bias_table") else "no"
  return groups


def table() -> str:
  """All recipes, in Markdown."""
  lines = [
    "# Recipes: the references and the config files",
    "",
    "For every recipe that is published: the value that the reference's code executes, and the one",
    "of the config here (`python -m tests.tables.recipes`; `tests/test_configs.py` checks them).",
    "`configs/NAME.py:written` gives the parameter groups and the schedule that the text of the",
    "official configs means instead. The recipes of the other VTN configs are not published.",
    "",
    "Not in the tables: all compute in bfloat16 (the official code: float16 where apex chose it;",
    "VTN: float32); an epoch goes on where the one before ended, and drops nothing that does not",
    "fill a batch; VTN's frames are resized as bytes, before they are normalized (reference:",
    "after). The weights that the 384-pixel models start from are known by their name only.",
  ]
  for name, (source, reference) in REFERENCES.items():
    here = values_here(load(name))
    lines += ["", f"## `configs/{name}.py`", "", f"Reference: `{source}`", ""]
    lines += ["| | reference | here |", "|---|---|---|"]
    lines += [f"| {key} | {value} | {here[key]} |" for key, value in reference.items()]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  print(table(), end="")
