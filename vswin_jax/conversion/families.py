"""Recognizes the weights of a file and turns them into a model of this library."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from vswin_jax.conversion import inflation, video_swin, vtn
from vswin_jax.conversion.matching import NOTHING, ConversionError, match
from vswin_jax.conversion.released import NUM_CLASSES
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.preprocessing import VTN_MEAN, VTN_STD, Preprocessing
from vswin_jax.models import CATALOG, create_model, model_config
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vtn import VTNConfig
from vswin_jax.models.windows import Size3D

FAMILIES = (*video_swin.FAMILIES, "swin_2d", *vtn.FAMILIES)
# What 2D Swin weights can become.
TARGETS = ("video_swin", "vtn")
_NEW_HEAD_NOTE = "the head is new and random: fine-tune before use"


@dataclasses.dataclass(frozen=True)
class Options:
  """What a file can't tell, or what shall become different.

  Attributes:
    num_classes: of the head; None: as many as in the file.
    allow_missing: parts that may be absent from the file and then start at random: "head". With
      `num_classes`, the head is a new one even if the file has one of so many.
    window: of the result, in tokens; None: that of the file, for 2D weights (8, side, side).
    source_window: of the file, if its bias tables leave that open.
    inflation: a name in `inflation.INFLATIONS`, for 2D weights; None: "mean".
    to: of `TARGETS`, for 2D Swin weights: a Video Swin, or the backbone of a VTN.
    num_heads: of a VTN's temporal encoder, which no file tells; None: as many as models of that
      width in the catalog have, or 64 channels each.
    backbone_heads: of a ViT, likewise; None: 64 channels each.
    attention_window: of a VTN's temporal encoder, likewise; None: that of the released model.
  """

  num_classes: int | None = None
  allow_missing: tuple[str, ...] = ()
  window: Size3D | None = None
  source_window: Size3D | None = None
  inflation: str | None = None
  to: str = "video_swin"
  num_heads: int | None = None
  backbone_heads: int | None = None
  attention_window: int | None = None


@dataclasses.dataclass(frozen=True)
class Converted:
  """Weights as a model of this library.

  Attributes:
    family: where they come from.
    model: name in the catalog, and the fields of its configuration that differ.
    params: float32 arrays by dotted path; may be views of the file.
    preprocessing: how the released models of this kind were evaluated.
    random: beginnings of the paths of parameters that are not from the file.
    dataset: whose classes the head has, assumed from their number; None: unknown, or a new head.
    notes: what a user should know.
  """

  family: str
  model: dict
  params: dict[str, np.ndarray]
  preprocessing: Preprocessing
  random: tuple[str, ...]
  dataset: str | None
  notes: tuple[str, ...]

  @property
  def has_new_head(self) -> bool:
    return bool(self.random)


def convert_tensors(tensors: Mapping[str, np.ndarray], options: Options) -> Converted:
  """Converts weights of any known family.

  Args:
    tensors: by name, see `matching.find_tensors`.

  Raises:
    ConversionError: unknown or incomplete weights, or options that do not fit them.
  """
  for recognize, convert_family in _FAMILIES:
    family = recognize(tensors)
    if family is not None:
      _check_options(family, options)
      return convert_family(family, tensors, options)
  names = sorted(tensors)
  raise ConversionError(
    f"the file holds {len(names)} tensors ({', '.join(names[:3])}, ...) of no model of this "
    f"library; known families: {', '.join(FAMILIES)}"
  )


# Option -> families to whose weights it applies, by what they become.
_APPLIES = {
  "video_swin": {
    "window": (*video_swin.FAMILIES, "swin_2d"),
    "source_window": video_swin.FAMILIES,
    "inflation": ("swin_2d",),
  },
  "vtn": {
    "num_heads": (*vtn.FAMILIES, "swin_2d"),
    "attention_window": (*vtn.FAMILIES, "swin_2d"),
    "backbone_heads": ("vtn", "vit"),
  },
}


def _check_options(family: str, options: Options) -> None:
  """Refuses what would have no effect."""
  if options.to == "vtn" and family in video_swin.FAMILIES:
    raise ConversionError(f"--to=vtn does not apply to {family} weights, which have no 2D backbone")
  target = "vtn" if family in vtn.FAMILIES else options.to
  for name in (name for table in _APPLIES.values() for name in table):
    if getattr(options, name) is not None and family not in _APPLIES[target].get(name, ()):
      becomes = {"vtn": "a VTN", "video_swin": "a Video Swin"}[target]
      raise ConversionError(f"--{name} does not apply to {family} weights, which become {becomes}")


def _convert_video_swin(family: str, tensors: Mapping, options: Options) -> Converted:
  name_of = video_swin.name_in(family, bare=video_swin.is_bare(tensors))
  config = video_swin.infer_options(tensors, name_of, options.source_window)
  source_window = config["window_size"]
  config["window_size"] = options.window or source_window
  is_complete = all(name_of(path) in tensors for path in ("head.kernel", "head.bias"))
  has_new_head = _choose_head(config, options, is_complete)
  if family == "torchvision":
    config["head_dropout_rate"] = 0.0

  def from_source(path: str, tensor: np.ndarray) -> np.ndarray:
    parameter = video_swin.from_source(path, tensor)
    if path.endswith("relative_position_bias_table"):
      parameter = inflation.resize_table(parameter, source_window, config["window_size"])
    return parameter

  random = ("head.",) if has_new_head else ()
  model = _name_video_swin(config)
  params = _match_model(model, tensors, name_of, from_source, video_swin.BUFFERS, random)
  dataset = None if has_new_head else _DATASETS.get(config["num_classes"])
  notes = []
  if dataset is not None:
    notes.append(f"taken for {dataset} by the number of its classes")
  if config["window_size"] != source_window:
    notes.append(f"bias tables resized from window {source_window} to {config['window_size']}")
  if has_new_head:
    notes.append(_NEW_HEAD_NOTE)
  return Converted(
    family=family,
    model=model,
    params=params,
    preprocessing=_preprocessing(family, config, dataset),
    random=random,
    dataset=dataset,
    notes=tuple(notes),
  )


def _choose_head(config: dict, options: Options, is_complete: bool) -> bool:
  """Settles `num_classes`; returns whether the head is new.

  Args:
    is_complete: whether all of a head is in the file.
  """
  in_file = config.get("num_classes")
  config["num_classes"] = options.num_classes or in_file
  if config["num_classes"] is None:
    raise ConversionError(
      "the file has no head; give --num_classes=N and --allow_missing=head for a new, random one"
    )
  if "head" in options.allow_missing:
    return options.num_classes is not None or not is_complete
  if in_file != config["num_classes"]:
    there = "no head" if in_file is None else f"a head of {in_file} classes"
    raise ConversionError(
      f"the file has {there}; for a new, random one of {config['num_classes']} classes add "
      "--allow_missing=head"
    )
  return False


def _recognise_swin_2d(tensors: Mapping) -> str | None:
  return "swin_2d" if vtn.recognise_backbone(tensors) == "swin_2d" else None


def _original_names(tensors: Mapping) -> Mapping:
  """2D Swin weights under their authors' names: timm counts patch merging to the stage after it.

  Others stay as they are.
  """
  merging = re.compile(r"^((?:backbone\.)?layers)\.(\d+)\.downsample\.")
  if any((found := merging.match(name)) and found[2] == "0" for name in tensors):
    return tensors
  return {
    merging.sub(lambda match: f"{match[1]}.{int(match[2]) - 1}.downsample.", name): tensor
    for name, tensor in tensors.items()
  }


def _convert_swin_2d(family: str, tensors: Mapping, options: Options) -> Converted:
  tensors = _original_names(tensors)
  if options.to == "vtn":
    return _convert_backbone(family, tensors, options)
  table = tensors.get(f"layers.0.blocks.0.{video_swin.BIAS_TABLE}")
  side = None if table is None else inflation.table_side(table)
  if side is None:
    raise ConversionError("the first bias table of this 2D Swin is missing or of no square window")
  window = options.window or (8, side, side)
  patch_time = CATALOG["video_swin_t"].patch_size[0]
  backbone = {
    name: tensor for name, tensor in tensors.items() if not re.fullmatch(vtn.CLASSIFIERS, name)
  }
  how = options.inflation or "mean"
  inflated = inflation.inflate(backbone, window, patch_time, how)
  options = dataclasses.replace(
    options,
    num_classes=options.num_classes or CATALOG["video_swin_t"].num_classes,
    allow_missing=("head",),
    source_window=window,
  )
  converted = _convert_video_swin("official", inflated, options)
  note = f"2D weights of window {side} x {side} inflated ({how}) to {window}"
  return dataclasses.replace(converted, family=family, notes=(note, *converted.notes))


def _convert_vtn(family: str, tensors: Mapping, options: Options) -> Converted:
  """Weights of a whole VTN, or of a ViT or ResNet that becomes the backbone of one."""
  if family != "vtn":
    return _convert_backbone(family, tensors, options)
  tensors = _original_names(tensors)
  backbone = vtn.backbone_tensors(tensors)
  kind = vtn.recognise_backbone(backbone)
  if kind is None:
    raise ConversionError(
      "the backbone of this VTN is none that is known; known: ViT, DeiT, ResNet, 2D Swin"
    )
  config = vtn.infer_backbone(kind, backbone, options.backbone_heads)
  config |= vtn.infer_temporal(tensors, options.num_heads)
  is_complete = all(f"mlp_head.4.{leaf}" in tensors for leaf in ("weight", "bias"))
  has_new_head = _choose_head(config, options, is_complete)
  name_of = vtn.name_in(kind, whole=True)
  # Without all of a head, none of it is taken.
  new_head = "head.fc2." if is_complete else "head."
  random = (new_head,) if has_new_head else ()
  return _finish_vtn(family, config, tensors, name_of, options, random)


def _convert_backbone(family: str, tensors: Mapping, options: Options) -> Converted:
  """Weights of an image backbone, which becomes that of a VTN whose other parts are random."""
  config = vtn.infer_backbone(family, tensors, options.backbone_heads)
  config |= vtn.default_temporal(config["width"], options.num_heads)
  config["num_classes"] = options.num_classes or CATALOG["vtn_vit_b"].num_classes
  name_of = vtn.name_in(family, whole=False)
  return _finish_vtn(family, config, tensors, name_of, options, vtn.BEYOND_BACKBONE)


def _finish_vtn(
  family: str,
  config: dict,
  tensors: Mapping,
  name_of: Callable,
  options: Options,
  random: tuple[str, ...],
) -> Converted:
  """A VTN of this configuration, with parameters from a file but for those `random`."""
  if options.attention_window:
    config["attention_window"] = options.attention_window
  model = _name_vtn(config)
  ignored = rf"{vtn.BUFFERS}|{vtn.CLASSIFIERS}"
  params = _match_model(model, tensors, name_of, vtn.from_source, ignored, random)
  dataset = None if random else _DATASETS.get(config["num_classes"])
  notes = [f"taken for {dataset} by the number of its classes"] if dataset else []
  if random == vtn.BEYOND_BACKBONE:
    notes.append("the temporal encoder and the head are new and random: train before use")
  elif random:
    notes.append(_NEW_HEAD_NOTE)
  size = _image_size(model_config(**model).named_backbone())
  clip = ClipSpec(
    num_frames=16,
    frame_interval=8,
    frame_rate=25.0,
    sampling="time",
    size=size,
    rounding="pyslowfast",
  )
  views = Views(1, "center", round(size * 256 / 224), whole_frames=250)
  return Converted(
    family=family,
    model=model,
    params=params,
    preprocessing=Preprocessing(VTN_MEAN, VTN_STD, clip, views),
    random=random,
    dataset=dataset,
    notes=tuple(notes),
  )


def _image_size(backbone) -> int:
  """Pixels on a side of the images that a backbone was made for."""
  if isinstance(backbone, VideoSwinConfig):
    return _clip_size(dataclasses.asdict(backbone))
  return getattr(backbone, "image_size", 224)


def _clip_size(config: dict) -> int:
  """Pixels on a side of the clips of a Swin: grids of the last stage are one window, in all
  released models."""
  return config["patch_size"][1] * 2 ** (len(config["depths"]) - 1) * config["window_size"][1]


def _name_vtn(config: dict) -> dict:
  """The name in the catalog that has most in common with a configuration, and what differs."""

  def differing(name: str) -> dict:
    known = CATALOG[name]
    return {
      field: value
      for field, value in config.items()
      if (dict(known.backbone_options) if field == "backbone_options" else getattr(known, field))
      != value
    }

  names = [name for name, known in CATALOG.items() if isinstance(known, VTNConfig)]
  name = min(names, key=lambda name: len(differing(name)))
  return {"name": name, "num_classes": config["num_classes"], **differing(name)}


def _match_model(
  model: dict,
  tensors,
  name_of: Callable,
  from_source: Callable,
  ignored: str,
  random: tuple[str, ...],
) -> dict[str, np.ndarray]:
  """The parameters of a model by path, from tensors but for those whose paths begin so."""
  try:
    _, shapes = split_model(nnx.eval_shape(lambda: create_model(**model)))
  except ValueError as error:
    raise ConversionError(
      f"the weights and the options describe a model that can't be built: {error}"
    ) from error
  shapes = {path: leaf.shape for path, leaf in flatten(shapes).items()}
  replaced = "|".join(re.escape(start) + ".*" for start in random) or NOTHING
  params = match(shapes, tensors, name_of, from_source, ignored=ignored, replaced=replaced)
  missing = [path for path in shapes if path not in params]
  if missing:
    # Compiled, only what is asked for is drawn.
    params |= jax.device_get(jax.jit(lambda: _random_params(model, missing))())
  return {path: params[path] for path in shapes}


def _random_params(model: dict, paths: list[str]) -> dict[str, jax.Array]:
  params = flatten(split_model(create_model(**model))[1])
  return {path: params[path] for path in paths}


def _name_video_swin(config: dict) -> dict:
  """The name in the catalog that is nearest to a configuration, and the fields that differ."""

  def size(fields: dict) -> tuple:
    return fields["embed_dim"], tuple(fields["depths"]), tuple(fields["num_heads"])

  named = {
    name: dataclasses.asdict(known)
    for name, known in CATALOG.items()
    if isinstance(known, VideoSwinConfig)
  }
  name = next((name for name in named if size(named[name]) == size(config)), "video_swin_t")
  differing = {field: value for field, value in config.items() if value != named[name][field]}
  return {"name": name, "num_classes": config["num_classes"], **differing}


# Classes of a head -> the data set whose released models have so many.
_DATASETS = {
  classes: name for name, classes in NUM_CLASSES.items() if not name.startswith("imagenet")
}


def _preprocessing(family: str, config: dict, dataset: str | None) -> Preprocessing:
  """The published evaluation of the model."""
  size = _clip_size(config)
  if family == "torchvision":
    clip = ClipSpec(frame_interval=1, frame_rate=15.0, sampling="dense_to_ends", size=size)
    return Preprocessing(clip=clip, views=Views(12, "center", round(size * 256 / 224)))
  if dataset == "something_something_v2":
    clip = ClipSpec(sampling="uniform", size=size)
    return Preprocessing(clip=clip, views=Views(1, "three", size))
  sampling = "dense_to_ends" if family == "mmaction2" else "dense"
  return Preprocessing(clip=ClipSpec(sampling=sampling, size=size), views=Views(4, "three", size))


# (recognize(tensors) -> family or None, convert(family, tensors, options)), asked in order.
_FAMILIES: tuple[tuple[Callable, Callable], ...] = (
  (video_swin.recognize, _convert_video_swin),
  (_recognise_swin_2d, _convert_swin_2d),
  (vtn.recognize, _convert_vtn),
)
