"""Cases of the benchmark: what is measured, and what is compared with what."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

SWIN_FRAMES, VTN_FRAMES, SIZE = 32, 16, 224
# Frames of a VTN video in evaluation, and of the temporal encoder's curve.
LONG_VIDEO = 250
TEMPORAL_ENCODER, BLOCK = "temporal_encoder", "video_swin_block"
INFERENCE, TRAINING = "inference", "training"
LIMITS, DECODING, AGREEMENT = "limits", "decoding", "agreement"
OURS, TORCH = "vswin_jax", "torch"
# Models of this library that PyTorch packages have, and these packages.
PEERS = {
  "video_swin_t": ("torchvision",),
  "video_swin_s": ("torchvision",),
  "video_swin_b": ("torchvision",),
  "vtn_vit_b": ("torchvision", "timm", "transformers"),
  TEMPORAL_ENCODER: ("transformers",),
}
# Models of torchvision alone.
CONV_NETS = ("r3d_18", "mvit_v1_b", "s3d")


@dataclasses.dataclass(frozen=True)
class Case:
  """A measurement, repeated in processes of its own.

  Attributes:
    model: a name in the catalog; `TEMPORAL_ENCODER`, that of `vtn_vit_b` over features of frames;
      `BLOCK`, a shifted block of the first stage of `video_swin_t`; or one of `CONV_NETS`.
    library: `OURS` or `TORCH`.
    variant: for `OURS` an implementation of attention, for `TORCH` "eager" or "compiled".
    mode: `INFERENCE` (a forward pass), `TRAINING` (a step with AdamW; of `BLOCK` the gradient),
      `LIMITS` (rates of the machine), `DECODING` (of the views of a video) or `AGREEMENT` (of the
      outputs of both libraries).
    precision: dtype of the computation.
    batch: clips per call.
    frames: frames per clip.
    size: height and width in pixels.
    huge_pages: whether the process uses huge pages of Linux.
  """

  model: str
  library: str
  variant: str
  mode: str = INFERENCE
  precision: str = "float32"
  batch: int = 1
  frames: int = SWIN_FRAMES
  size: int = SIZE
  huge_pages: bool = False

  @property
  def group(self) -> tuple:
    """Values that cases must share to be compared."""
    return self.model, self.mode, self.precision, self.batch, self.frames, self.size

  @property
  def label(self) -> str:
    """Name of the implementation in tables and pictures."""
    if self.library == OURS:
      name = "vswin_jax" if self.model == TEMPORAL_ENCODER else f"vswin_jax {self.variant}"
    else:
      packages = {"vtn_vit_b": "timm + HF", TEMPORAL_ENCODER: "Hugging Face"}
      name = f"{packages.get(self.model, 'torchvision')} {self.variant}"
    return f"{name}, huge pages" if self.huge_pages else name


# Rates of the machine, as each library reaches them; the best counts.
MACHINE = Case("", OURS, "", LIMITS, huge_pages=True)
PEERS_MACHINE = dataclasses.replace(MACHINE, library=TORCH)


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Evaluation and training of a model in its paper.

  Attributes:
    name: name in the table.
    model: as in `Case`.
    frames: frames of a view.
    size: height and width of a view.
    clips: clips along a video.
    crops: crops of a clip: 1 or 3.
    train_frames: frames of a training clip.
    epochs: passes over the training videos.
  """

  name: str
  model: str
  frames: int
  size: int
  clips: int
  crops: int
  train_frames: int
  epochs: int

  @property
  def views(self) -> int:
    return self.clips * self.crops


# Epochs: the recipes in `configs/`; the default of torchvision's training script for `r3d_18`; and
# those of I3D trained from random weights in PySlowFast (I3D_NLN_8x8_R50.yaml).
PROTOCOLS = (
  Protocol("VTN ViT-B", "vtn_vit_b", LONG_VIDEO, 224, 1, 1, VTN_FRAMES, 25),
  Protocol("Video Swin-T", "video_swin_t", 32, 224, 4, 3, 32, 30),
  Protocol("Video Swin-B", "video_swin_b", 32, 224, 4, 3, 32, 30),
  Protocol("3D ResNet-18, as torchvision trains it", "r3d_18", 16, 112, 10, 3, 16, 45),
  Protocol("3D ResNet-18, views of the papers' size", "r3d_18", 32, 224, 10, 3, 32, 196),
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """Measurements to make; the flags of the command.

  Attributes:
    platform: "cpu", "gpu" or "tpu".
    models: names for the main table.
    modes: `INFERENCE` and `TRAINING`.
    precisions: dtypes.
    implementations: of attention, by model; a model without an entry has "auto" only.
    peers: "eager" and "compiled"; none: this library alone.
    huge_pages: whether to use huge pages; both values are compared.
    batch: clips per call.
    protocols: names of models of `PROTOCOLS`.
    frames: of the curve over frames.
    sizes: of the curve over sizes.
    batches: of the curve over batches.
    temporal_frames: of the curve of the temporal encoder.
  """

  platform: str
  models: Sequence[str]
  modes: Sequence[str]
  precisions: Sequence[str]
  implementations: Mapping[str, Sequence[str]]
  peers: Sequence[str]
  huge_pages: Sequence[bool]
  batch: int
  protocols: Sequence[str]
  frames: Sequence[int]
  sizes: Sequence[int]
  batches: Sequence[int]
  temporal_frames: Sequence[int]


def has_window_attention(model: str) -> bool:
  return model.startswith("video_swin")


def default_implementations(platform: str, known: Iterable[str]) -> list[str]:
  """Returns "auto" and those of the known implementations of attention that a platform runs."""
  others = {"cpu": ("tpu", "gpu", "cudnn"), "gpu": ("tpu",), "tpu": ("gpu", "cudnn")}[platform]
  excluded = (*others, "interpret")
  return ["auto", *(name for name in known if not any(word in name for word in excluded))]


def main_table(choice: Choice) -> Iterator[list[Case]]:
  """Yields the groups of the main table."""
  for model in choice.models:
    frames = SWIN_FRAMES if has_window_attention(model) else VTN_FRAMES
    for mode in choice.modes:
      for precision in choice.precisions:
        shared = {"mode": mode, "precision": precision, "batch": choice.batch, "frames": frames}
        implementations = choice.implementations.get(model, ["auto"])
        yield list(_variants(choice, model, implementations, choice.peers, **shared))


def agreement(choice: Choice) -> list[Case]:
  """Returns the cases that compare outputs and parameters of both libraries."""
  models = [model for model in choice.models if model in PEERS and model != TEMPORAL_ENCODER]
  return [Case(model, OURS, "", AGREEMENT) for model in models]


def headlines(choice: Choice) -> Iterator[list[Case]]:
  """Yields the groups of the papers' protocols, at the best settings of each library."""
  precision = choice.precisions[-1]
  for protocol in PROTOCOLS:
    library = TORCH if protocol.model in CONV_NETS else OURS
    if protocol.model not in choice.protocols or (library == TORCH and not choice.peers):
      continue
    peer = "eager" if choice.platform == "cpu" else "compiled"
    shared = {
      "model": protocol.model,
      "library": library,
      "variant": peer if library == TORCH else "auto",
      "precision": precision,
      "size": protocol.size,
      "huge_pages": any(choice.huge_pages),
    }
    # A video of VTN is one clip.
    batch = 1 if protocol.views == 1 else choice.batch
    yield [Case(mode=INFERENCE, frames=protocol.frames, batch=batch, **shared)]
    if TRAINING in choice.modes:
      yield [Case(mode=TRAINING, frames=protocol.train_frames, batch=choice.batch, **shared)]
    decoding = shared | {"variant": "", "library": OURS, "precision": "float32"}
    yield [Case(mode=DECODING, frames=protocol.frames, **decoding)]


def curves(choice: Choice) -> Iterator[list[Case]]:
  """Yields the groups of the curves: the default implementation, and the peers' best one."""
  peers = ["eager" if choice.platform == "cpu" else "compiled"]
  peers = [peer for peer in peers if peer in choice.peers]
  fast = dataclasses.replace(choice, huge_pages=[any(choice.huge_pages)])
  swin = next(filter(has_window_attention, choice.models), "video_swin_t")
  shapes = [
    *((swin, {"frames": frames, "batch": choice.batch}) for frames in choice.frames),
    *((swin, {"size": size, "batch": choice.batch}) for size in choice.sizes),
    *((swin, {"batch": batch}) for batch in choice.batches),
    *((TEMPORAL_ENCODER, {"frames": frames}) for frames in choice.temporal_frames),
  ]
  precision = choice.precisions[-1]
  for model, shape in shapes:
    yield list(_variants(fast, model, ["auto"], peers, precision=precision, **shape))


def _variants(choice: Choice, model: str, implementations, peers, **shared) -> Iterator[Case]:
  if model not in PEERS:
    peers = []
  names = [(OURS, name) for name in implementations] + [(TORCH, name) for name in peers]
  for library, variant in names:
    for huge_pages in choice.huge_pages:
      yield Case(model, library, variant, huge_pages=huge_pages, **shared)
