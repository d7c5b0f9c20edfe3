"""Recognition of the family of PyTorch weights, and their conversion to a model of this library."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from vswin_jax.attention.windows import Size3D
from vswin_jax.conversion import inflation, video_swin, vtn
from vswin_jax.conversion.matching import NOTHING, ConversionError, match, nearest
from vswin_jax.conversion.released import NUM_CLASSES, Released
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.preprocessing import VTN_MEAN, VTN_STD, Preprocessing
from vswin_jax.models import CATALOG, create_model, model_config
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vtn import VTNConfig

# What 2D Swin weights can become.
ARCHITECTURES = ("video_swin", "vtn")


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
  """Options of a conversion: what a file does not tell, or what shall differ from it.

  Attributes:
    num_classes: classes of the head; None: as many as in the file.
    allow_missing: parts that may be absent from the file and then start at random: "head". With
      `num_classes`, the head is always a new one.
    window: attention window of the result, in tokens; None: that of the file, for 2D weights
      (8, side, side).
    source_window: attention window of the file, if its bias tables fit several.
    inflation: a name in `inflation.INFLATIONS`, for 2D weights; None: "mean".
    to: for 2D Swin weights, one of `ARCHITECTURES`: a Video Swin, or the backbone of a VTN.
    num_heads: heads of a VTN's temporal encoder, which no file tells; None: those of the model of
      its width in the catalog, or 64 channels each.
    backbone_heads: heads of a ViT, which no file tells; None: 64 channels each.
    attention_window: frames that a frame of a VTN attends to, which no file tells; None: that of
      the released model.
    labels: text file of class names, one a line; None: those of the file or the data set.
    clip: fields of `ClipSpec` that differ from those of the released model.
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
  labels: pathlib.Path | None = None
  clip: Mapping = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Converted:
  """Converted weights and their metadata.

  Attributes:
    family: the PyTorch code that the weights come from, such as "official" or "vit".
    model: arguments of `create_model`: the name in the catalog, and the fields that differ.
    params: float32 arrays by dotted path; may be views of the file.
    preprocessing: that of the published evaluation of such models.
    random: prefixes of the paths of parameters that are not from the file.
    dataset: data set of the classifier, assumed from its size; None: unknown, or a new head.
    notes: remarks for the user.
    labels: class names; None: unknown.
    released: the released checkpoint that the file is; None: another file.
  """

  family: str
  model: dict
  params: dict[str, np.ndarray]
  preprocessing: Preprocessing
  random: tuple[str, ...]
  dataset: str | None
  notes: tuple[str, ...]
  labels: tuple[str, ...] | None = None
  released: Released | None = None

  @property
  def has_new_head(self) -> bool:
    return bool(self.random)


def convert_tensors(tensors: Mapping[str, np.ndarray], options: ConversionOptions) -> Converted:
  """Converts weights of any known family.

  Args:
    tensors: arrays by name, see `matching.find_tensors`.

  Raises:
    ConversionError: unknown or incomplete weights, or options that do not fit them.
  """
  family = (
    video_swin.recognize(tensors) or vtn.recognize(tensors) or vtn.recognize_backbone(tensors)
  )
  if family is None:
    names = sorted(tensors)
    raise ConversionError(
      f"the file holds {len(names)} tensors ({', '.join(names[:3])}, ...) of no model of this "
      f"library; known families: {', '.join(_CONVERTERS)}"
    )
  _check_options(family, options)
  return _CONVERTERS[family](family, tensors, options)


# Option -> architecture that it is an option of, and families whose weights it applies to.
_APPLIES = {
  "window": ("video_swin", (*video_swin.FAMILIES, "swin_2d")),
  "source_window": ("video_swin", video_swin.FAMILIES),
  "inflation": ("video_swin", ("swin_2d",)),
  "num_heads": ("vtn", (*vtn.FAMILIES, "swin_2d")),
  "attention_window": ("vtn", (*vtn.FAMILIES, "swin_2d")),
  "backbone_heads": ("vtn", ("vtn", "vit")),
}


def _check_options(family: str, options: ConversionOptions) -> None:
  """Raises ConversionError for options that would have no effect."""
  if options.to == "vtn" and family in video_swin.FAMILIES:
    raise ConversionError(f"--to=vtn does not apply to {family} weights, which have no 2D backbone")
  becomes = "vtn" if family in vtn.FAMILIES else options.to
  for name, (architecture, families) in _APPLIES.items():
    applies = architecture == becomes and family in families
    if getattr(options, name) is not None and not applies:
      raise ConversionError(
        f"--{name} does not apply to {family} weights that become a {becomes}; it is for a "
        f"{architecture} from weights of {', '.join(families)}"
      )


def _convert_video_swin(family: str, tensors: Mapping, options: ConversionOptions) -> Converted:
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
  model = _name_model(config, VideoSwinConfig)
  params = _match_model(model, tensors, name_of, from_source, video_swin.BUFFERS, random)
  dataset, notes = _describe_head(config["num_classes"], random)
  if config["window_size"] != source_window:
    notes += (f"bias tables resized from window {source_window} to {config['window_size']}",)
  preprocessing = _video_swin_preprocessing(family, model_config(**model), dataset)
  return Converted(family, model, params, preprocessing, random, dataset, notes)


def _choose_head(config: dict, options: ConversionOptions, is_complete: bool) -> bool:
  """Sets `config["num_classes"]`; returns whether the head is a new one.

  Args:
    is_complete: whether all parameters of the head are in the file.
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
    found = "no head" if in_file is None else f"a head of {in_file} classes"
    raise ConversionError(
      f"the file has {found}; for a new, random one of {config['num_classes']} classes add "
      "--allow_missing=head"
    )
  return False


def _describe_head(num_classes: int, random: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
  """Returns the data set of the classifier (None: unknown or new), and notes for the user."""
  if random:
    parts = "the temporal encoder and the head are" if len(random) > 1 else "the head is"
    return None, (f"{parts} new and random: train before use",)
  dataset = _DATASETS.get(num_classes)
  notes = (f"data set assumed from the number of classes: {dataset}",) if dataset else ()
  return dataset, notes


def _original_names(tensors: Mapping) -> Mapping:
  """Renames timm's 2D Swin weights to their authors' names; returns others unchanged.

  timm counts patch merging to the stage after it.
  """
  merging = re.compile(r"^((?:backbone\.)?layers)\.(\d+)\.downsample\.")
  if any((found := merging.match(name)) and found[2] == "0" for name in tensors):
    return tensors
  return {
    merging.sub(lambda match: f"{match[1]}.{int(match[2]) - 1}.downsample.", name): tensor
    for name, tensor in tensors.items()
  }


def _convert_swin_2d(family: str, tensors: Mapping, options: ConversionOptions) -> Converted:
  """Inflates the weights to a Video Swin, or takes them as the backbone of a VTN."""
  if options.to == "vtn":
    return _convert_backbone(family, tensors, options)
  tensors = _original_names(tensors)
  table = tensors.get(f"layers.0.blocks.0.{video_swin.BIAS_TABLE}")
  side = None if table is None else inflation.table_side(table)
  if side is None:
    raise ConversionError(
      "the first bias table of this 2D Swin is missing or not that of a square window"
    )
  window = options.window or (8, side, side)
  default = CATALOG["video_swin_t"]
  backbone = {
    name: tensor for name, tensor in tensors.items() if not re.fullmatch(vtn.CLASSIFIERS, name)
  }
  how = options.inflation or "mean"
  inflated = inflation.inflate(backbone, window, default.patch_size[0], how)
  options = dataclasses.replace(
    options,
    num_classes=options.num_classes or default.num_classes,
    allow_missing=("head",),
    source_window=window,
  )
  converted = _convert_video_swin("official", inflated, options)
  note = f"2D weights of window {side} x {side} inflated ({how}) to {window}"
  return dataclasses.replace(converted, family=family, notes=(note, *converted.notes))


def _convert_vtn(family: str, tensors: Mapping, options: ConversionOptions) -> Converted:
  """Converts a complete VTN."""
  tensors = _original_names(tensors)
  backbone = vtn.backbone_tensors(tensors)
  kind = vtn.recognize_backbone(backbone)
  if kind is None:
    raise ConversionError("unknown backbone of a VTN; expected a ViT, DeiT, ResNet or 2D Swin")
  config = vtn.infer_backbone(kind, backbone, options.backbone_heads)
  config |= vtn.infer_temporal(tensors, options.num_heads)
  is_complete = all(f"mlp_head.4.{leaf}" in tensors for leaf in ("weight", "bias"))
  has_new_head = _choose_head(config, options, is_complete)
  # An incomplete head is replaced as a whole, otherwise only the classifier.
  new_head = "head.fc2." if is_complete else "head."
  random = (new_head,) if has_new_head else ()
  return _finish_vtn(family, config, tensors, vtn.name_in(kind, whole=True), options, random)


def _convert_backbone(family: str, tensors: Mapping, options: ConversionOptions) -> Converted:
  """Converts an image backbone to a VTN whose other parts are random."""
  tensors = _original_names(tensors)
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
  options: ConversionOptions,
  random: tuple[str, ...],
) -> Converted:
  """Builds a VTN of this configuration; parameters under `random` are initialized anew."""
  if options.attention_window:
    config["attention_window"] = options.attention_window
  model = _name_model(config, VTNConfig)
  ignored = rf"{vtn.BUFFERS}|{vtn.CLASSIFIERS}"
  params = _match_model(model, tensors, name_of, vtn.from_source, ignored, random)
  dataset, notes = _describe_head(config["num_classes"], random)
  preprocessing = _vtn_preprocessing(model_config(**model).named_backbone())
  return Converted(family, model, params, preprocessing, random, dataset, notes)


def _name_model(config: dict, kind: type) -> dict:
  """Returns the arguments of `create_model` for a configuration."""
  known = {name: model for name, model in CATALOG.items() if isinstance(model, kind)}
  name, differing = nearest(known, config)
  return {"name": name, "num_classes": config["num_classes"], **differing}


def _match_model(
  model: dict,
  tensors: Mapping,
  name_of: Callable,
  from_source: Callable,
  ignored: str,
  random: tuple[str, ...],
) -> dict[str, np.ndarray]:
  """Returns all parameters of a model by path; those whose paths start with `random` are new."""
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

  def initialize() -> dict[str, jax.Array]:
    initial = flatten(split_model(create_model(**model))[1])
    return {path: initial[path] for path in missing}

  # Under jit, only the parameters that are returned are computed.
  params |= jax.device_get(jax.jit(initialize)()) if missing else {}
  return {path: params[path] for path in shapes}


# Number of classes -> data set, of the released video models.
_DATASETS = {
  classes: name for name, classes in NUM_CLASSES.items() if not name.startswith("imagenet")
}


def _image_size(config) -> int:
  """Returns the height and width in pixels of the inputs that a model was made for."""
  if isinstance(config, VideoSwinConfig):
    # In all released models, the grid of the last stage is one window.
    return config.patch_size[1] * 2 ** (len(config.depths) - 1) * config.window_size[1]
  return getattr(config, "image_size", 224)


def _video_swin_preprocessing(
  family: str, config: VideoSwinConfig, dataset: str | None
) -> Preprocessing:
  """Returns the preprocessing of the published evaluation."""
  size = _image_size(config)
  if family == "torchvision":
    clip = ClipSpec(frame_interval=1, frame_rate=15.0, sampling="dense_to_ends", size=size)
    return Preprocessing(clip=clip, views=Views(12, "center", round(size * 256 / 224)))
  if dataset == "something_something_v2":
    clip = ClipSpec(sampling="uniform", size=size)
    return Preprocessing(clip=clip, views=Views(1, "three", size))
  sampling = "dense_to_ends" if family == "mmaction2" else "dense"
  return Preprocessing(clip=ClipSpec(sampling=sampling, size=size), views=Views(4, "three", size))


def _vtn_preprocessing(backbone) -> Preprocessing:
  """Returns the preprocessing of the published evaluation."""
  size = _image_size(backbone)
  clip = ClipSpec(
    num_frames=16,
    frame_interval=8,
    frame_rate=25.0,
    sampling="time",
    size=size,
    rounding="pyslowfast",
  )
  views = Views(1, "center", round(size * 256 / 224), whole_frames=250)
  return Preprocessing(VTN_MEAN, VTN_STD, clip, views)


_CONVERTERS: dict[str, Callable[[str, Mapping, ConversionOptions], Converted]] = {
  **dict.fromkeys(video_swin.FAMILIES, _convert_video_swin),
  "swin_2d": _convert_swin_2d,
  "vtn": _convert_vtn,
  "vit": _convert_backbone,
  "resnet": _convert_backbone,
}
