"""Recognition of the family of PyTorch weights, and their conversion to a model of this library."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx

from vswin_jax.attention.windows import Size3D
from vswin_jax.conversion import inflation
from vswin_jax.conversion.layouts import (
  VIDEO_SWIN_FAMILIES,
  VTN_FAMILIES,
  from_source,
  ignored_names,
  original_names,
  video_swin_names,
  vtn_names,
)
from vswin_jax.conversion.matching import ConversionError, match
from vswin_jax.conversion.sizes import (
  infer_backbone,
  infer_temporal,
  infer_video_swin,
  nearest,
)
from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.label_names import NAMED_DATASETS, label_names
from vswin_jax.data.preprocessing import VTN_MEAN, VTN_STD, Preprocessing
from vswin_jax.models import CATALOG, create_model, model_config
from vswin_jax.models.parameters import flatten, split_model
from vswin_jax.models.video_swin import VideoSwinConfig
from vswin_jax.models.vtn import VTNConfig

# What 2D Swin weights can become.
ARCHITECTURES = ("video_swin", "vtn")
# Classes of a model whose file has no head for videos.
_DEFAULT_CLASSES = 400


@dataclasses.dataclass(frozen=True)
class ConversionOptions:
  """Options of a conversion: what a file does not tell, or what shall differ from it.

  The flags of `vswin_jax.convert` describe them and their defaults, which None stands for here.

  Attributes:
    allow_missing: parts that may be absent from the file and then start at random: "head". With
      `num_classes`, the head is always a new one.
    window: attention window of the result, in tokens (time, height, width).
    to: for 2D Swin weights, one of `ARCHITECTURES`: a Video Swin, or the backbone of a VTN.
    clip: fields of `ClipSpec` that differ from those of the released model.
  """

  num_classes: int | None = None
  allow_missing: tuple[str, ...] = ()
  window: Size3D | None = None
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
  """

  family: str
  model: dict
  params: dict[str, np.ndarray]
  preprocessing: Preprocessing
  random: tuple[str, ...]
  dataset: str | None
  notes: tuple[str, ...]
  labels: tuple[str, ...] | None = None


def convert_tensors(tensors: Mapping[str, np.ndarray], options: ConversionOptions) -> Converted:
  """Converts weights of any known family.

  Args:
    tensors: arrays by name, see `matching.find_tensors`.

  Raises:
    ConversionError: unknown or incomplete weights, or options that do not fit them.
  """
  family = _recognize(tensors)
  if family is None:
    names = sorted(tensors)
    raise ConversionError(
      f"the file holds {len(names)} tensors ({', '.join(names[:3])}, ...) of no model of this "
      f"library; known families: {', '.join((*VIDEO_SWIN_FAMILIES, 'swin_2d', *VTN_FAMILIES))}"
    )
  if family == "swin_v2":
    raise ConversionError(
      "these are weights of a Swin Transformer V2, which has no model here; take those of V1"
    )
  becomes = "vtn" if family in VTN_FAMILIES else options.to
  _check_options(family, becomes, options)
  convert = _convert_vtn if becomes == "vtn" else _convert_video_swin
  return convert(family, tensors, options)


_BIAS_TABLE = "attn.relative_position_bias_table"
# Family -> axes of its patch embedding (None: any), and names of tensors that tell it; the first
# that fits.
_MARKS = {
  "vtn": (None, {"temporal_encoder.encoder.layer.0.attention.self.query_global.weight"}),
  "torchvision": (5, {f"features.0.0.{_BIAS_TABLE}"}),
  "mmaction2": (5, {"norm3.weight", "layers.0.blocks.0.norm1.weight"}),
  "official": (5, {"layers.0.blocks.0.norm1.weight"}),
  "vit": (4, {"cls_token", "blocks.0.attn.qkv.weight"}),
  "swin_v2": (4, {"layers.0.blocks.0.attn.logit_scale"}),
  "swin_2d": (4, {f"layers.0.blocks.0.{_BIAS_TABLE}"}),
  "resnet": (None, {"conv1.weight", "layer1.0.conv3.weight"}),
}


def _recognize(tensors: Mapping[str, np.ndarray]) -> str | None:
  """Returns the family of weights, also of the backbone of a VTN; None if it is unknown."""
  patch = tensors.get("backbone.patch_embed.proj.weight", tensors.get("patch_embed.proj.weight"))
  axes = None if patch is None else patch.ndim
  # Video Swins come with and without the prefix.
  names = {name.removeprefix("backbone.") for name in tensors} if axes == 5 else tensors.keys()
  for family, (expected, marks) in _MARKS.items():
    if expected in (None, axes) and marks <= names:
      return family
  return None


# Option -> architecture that it is an option of, and families whose weights it applies to.
_APPLIES = {
  "window": ("video_swin", (*VIDEO_SWIN_FAMILIES, "swin_2d")),
  "inflation": ("video_swin", ("swin_2d",)),
  "num_heads": ("vtn", (*VTN_FAMILIES, "swin_2d")),
  "attention_window": ("vtn", (*VTN_FAMILIES, "swin_2d")),
  "backbone_heads": ("vtn", ("vtn", "vit")),
}


def _check_options(family: str, becomes: str, options: ConversionOptions) -> None:
  """Raises ConversionError for options that would have no effect."""
  if becomes == "vtn" and family in VIDEO_SWIN_FAMILIES:
    raise ConversionError(f"--to=vtn does not apply to {family} weights, which have no 2D backbone")
  for name, (architecture, families) in _APPLIES.items():
    applies = architecture == becomes and family in families
    if getattr(options, name) is not None and not applies:
      raise ConversionError(
        f"--{name} does not apply to {family} weights that become a {becomes}; it is for a "
        f"{architecture} from weights of {', '.join(families)}"
      )


def _convert_video_swin(family: str, tensors: Mapping, options: ConversionOptions) -> Converted:
  """Converts a Video Swin, or inflates a 2D Swin to one with a new head."""
  is_2d, window, notes = family == "swin_2d", options.window, []
  if is_2d:
    how = options.inflation or "mean"
    tensors, window = inflation.inflate(original_names(tensors), window, how)
    notes.append(f"2D weights inflated ({how}) to window {window}")
  is_bare = "backbone.patch_embed.proj.weight" not in tensors
  name_of = video_swin_names("official" if is_2d else family, bare=is_bare)
  config = infer_video_swin(tensors, name_of, window)
  if is_2d:
    config["num_classes"] = options.num_classes or _DEFAULT_CLASSES
  is_complete = all(name_of(path) in tensors for path in ("head.kernel", "head.bias"))
  random = ("head.",) if is_2d or _is_head_new(config, options, is_complete) else ()
  if family == "torchvision":
    config["head_dropout_rate"] = 0.0
  source_window = config["window_size"]
  window = config["window_size"] = window or source_window
  if window != source_window:
    notes.append(f"bias tables resized from window {source_window} to {window}")

  def convert(path: str, tensor: np.ndarray) -> np.ndarray:
    if path.endswith("relative_position_bias_table"):
      return inflation.resize_table(tensor, source_window, window)
    return from_source(path, tensor)

  return _convert(family, VideoSwinConfig, config, tensors, name_of, convert, random, notes)


def _convert_vtn(family: str, tensors: Mapping, options: ConversionOptions) -> Converted:
  """Converts a complete VTN, or an image backbone to a VTN whose other parts are random."""
  tensors = original_names(tensors)
  kind, backbone, is_whole = family, tensors, family == "vtn"
  if is_whole:
    backbone = {
      name.removeprefix("backbone."): tensor
      for name, tensor in tensors.items()
      if name.startswith("backbone.")
    }
    kind = _recognize(backbone)
    if kind not in ("vit", "resnet", "swin_2d"):
      raise ConversionError("unknown backbone of a VTN; expected a ViT, DeiT, ResNet or 2D Swin")
  config = infer_backbone(kind, backbone, options.backbone_heads)
  config |= infer_temporal(tensors, config["width"], options.num_heads)
  if is_whole:
    is_complete = {"mlp_head.4.weight", "mlp_head.4.bias"} <= tensors.keys()
    # An incomplete head is replaced as a whole, otherwise only the classifier.
    new_head = ("head.fc2." if is_complete else "head.",)
    random = new_head if _is_head_new(config, options, is_complete) else ()
  else:
    random = ("temporal_encoder.", "head.")
    config["num_classes"] = options.num_classes or _DEFAULT_CLASSES
  if options.attention_window:
    config["attention_window"] = options.attention_window
  name_of = vtn_names(kind, whole=is_whole)
  return _convert(family, VTNConfig, config, tensors, name_of, from_source, random, [])


def _is_head_new(config: dict, options: ConversionOptions, is_complete: bool) -> bool:
  """Sets `config["num_classes"]`; returns whether the head starts at random.

  Args:
    is_complete: whether all parameters of the head are in the file.
  """
  in_file = config.get("num_classes")
  num_classes = config["num_classes"] = options.num_classes or in_file
  if num_classes and "head" in options.allow_missing:
    return options.num_classes is not None or not is_complete
  if num_classes is None or num_classes != in_file:
    found = "no head" if in_file is None else f"a head of {in_file} classes"
    raise ConversionError(
      f"the file has {found}; for a new, random one give --num_classes={num_classes or 'N'} and "
      "--allow_missing=head"
    )
  return False


def _convert(
  family: str,
  kind: type,
  config: dict,
  tensors: Mapping,
  name_of: Callable,
  convert: Callable,
  random: tuple[str, ...],
  notes: list[str],
) -> Converted:
  """Returns a model of this kind and configuration; parameters under `random` are new."""
  name, differing = nearest(CATALOG, kind, config)
  model = {"name": name, "num_classes": config["num_classes"], **differing}
  try:
    _, shapes = split_model(nnx.eval_shape(lambda: create_model(**model)))
  except ValueError as error:
    raise ConversionError(
      f"the weights and the options describe a model that can't be built: {error}"
    ) from error
  shapes = {path: leaf.shape for path, leaf in flatten(shapes).items()}
  params = match(shapes, tensors, name_of, convert, ignored_names(family), random)

  def initialize() -> dict[str, jax.Array]:
    initial = flatten(split_model(create_model(**model))[1])
    return {path: initial[path] for path in shapes.keys() - params.keys()}

  dataset = None
  if random:
    # Under jit, only the parameters that are returned are computed.
    params |= jax.device_get(jax.jit(initialize)())
    parts = "the temporal encoder and the head are" if len(random) > 1 else "the head is"
    notes.append(f"{parts} new and random: train before use")
  else:
    sizes = {len(label_names(name)): name for name in NAMED_DATASETS}
    dataset = sizes.get(config["num_classes"])
  if dataset is not None:
    notes.append(f"data set assumed from the number of classes: {dataset}")
  preprocessing = _preprocessing(family, model_config(**model), dataset)
  return Converted(family, model, params, preprocessing, random, dataset, tuple(notes))


def _preprocessing(
  family: str, config: VideoSwinConfig | VTNConfig, dataset: str | None
) -> Preprocessing:
  """Returns the preprocessing of the published evaluation of such models."""
  is_vtn = isinstance(config, VTNConfig)
  network = config.named_backbone() if is_vtn else config
  size = getattr(network, "image_size", 224)
  if isinstance(network, VideoSwinConfig):
    # In all released models, the grid of the last stage is one window.
    size = network.patch_size[1] * 2 ** (len(network.depths) - 1) * network.window_size[1]
  wider = round(size * 256 / 224)
  if is_vtn:
    clip = ClipSpec(
      num_frames=16,
      frame_interval=8,
      frame_rate=25.0,
      sampling="time",
      size=size,
      rounding="pyslowfast",
    )
    return Preprocessing(VTN_MEAN, VTN_STD, clip, Views(1, "center", wider, whole_frames=250))
  if family == "torchvision":
    clip = ClipSpec(frame_interval=1, frame_rate=15.0, sampling="dense_to_ends", size=size)
    return Preprocessing(clip=clip, views=Views(12, "center", wider))
  if dataset == "something_something_v2":
    clip = ClipSpec(sampling="uniform", size=size)
    return Preprocessing(clip=clip, views=Views(1, "three", size))
  sampling = "dense_to_ends" if family == "mmaction2" else "dense"
  return Preprocessing(clip=ClipSpec(sampling=sampling, size=size), views=Views(4, "three", size))
