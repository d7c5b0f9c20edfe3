"""The same models from PyTorch packages, and 3D ConvNets, as subjects of the benchmark.

VTN is built as its official code does: timm's ViT, then the Longformer of Hugging Face.
"""

import contextlib
import importlib.metadata
import itertools
import sys
import types

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models.cases import CONV_NETS, PEERS, TEMPORAL_ENCODER, TRAINING, Case
from benchmarks.models.measure import Subject, timed_calls

_SWIN = {f"video_swin_{size}": f"swin3d_{size}" for size in "tsb"}
WIDTH, WINDOW, POSITIONS = 768, 18, 288


def import_torchvision():
  """Returns torchvision, also where its compiled operators do not fit the installed PyTorch.

  No model here needs these operators; registering their shapes is what fails.
  """
  try:
    import torchvision
  except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
      del sys.modules[name]
    stub = "torchvision._meta_registrations"
    sys.modules[stub] = types.ModuleType(stub)
    import torchvision
  return torchvision


class TemporalEncoder(nn.Module):
  """Longformer over features of frames, with a class token (VTN, section 3.2)."""

  def __init__(self):
    super().__init__()
    with contextlib.suppress(ImportError):
      import_torchvision()  # before transformers and timm do
    from transformers import LongformerConfig, LongformerModel

    config = LongformerConfig(
      hidden_size=WIDTH,
      num_hidden_layers=3,
      num_attention_heads=12,
      intermediate_size=4 * WIDTH,
      attention_window=[WINDOW] * 3,
      max_position_embeddings=POSITIONS,
      type_vocab_size=2,
      vocab_size=1,
      pad_token_id=0,
      layer_norm_eps=1e-12,
    )
    self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
    self.temporal_encoder = LongformerModel(config, add_pooling_layer=False)
    self.temporal_encoder.embeddings.word_embeddings = None

  def forward(self, features):
    """Returns the class token of features `[batch, frames, width]`."""
    batch, frames, _ = features.shape
    padding = -(1 + frames) % WINDOW
    tokens = torch.cat([self.cls_token.to(features).expand(batch, -1, -1), features], dim=1)
    tokens = nn.functional.pad(tokens, (0, 0, 0, padding))
    shape = tokens.shape[:2]
    mask = torch.ones(shape, device=features.device)
    mask[:, 0], mask[:, 1 + frames :] = 2, 0
    types = torch.zeros(shape, dtype=torch.long, device=features.device)
    types[:, 0] = 1
    positions = torch.full(shape, POSITIONS - 1, device=features.device)
    positions[:, 0] = POSITIONS - 2
    positions[:, 1 : 1 + frames] = torch.arange(frames, device=features.device) % (POSITIONS - 2)
    output = self.temporal_encoder(
      inputs_embeds=tokens, attention_mask=mask, token_type_ids=types, position_ids=positions
    )
    return output.last_hidden_state[:, 0]


class VTN(TemporalEncoder):
  """VTN with ViT-B, whose parameters have the names of the official checkpoint."""

  def __init__(self):
    super().__init__()
    import timm

    self.backbone = timm.create_model("vit_base_patch16_224", num_classes=0)
    layers = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.5)
    self.mlp_head = nn.Sequential(*layers, nn.Linear(WIDTH, 400))

  def forward(self, video):
    """Returns logits of a video `[batch, 3, frames, height, width]`."""
    batch, _, frames = video.shape[:3]
    images = video.transpose(1, 2).flatten(0, 1)
    features = self.backbone(images).unflatten(0, (batch, frames))
    return self.mlp_head(super().forward(features))


def create_module(model: str) -> nn.Module:
  """Returns a module with random weights and 400 classes."""
  torch.manual_seed(0)
  if model == TEMPORAL_ENCODER:
    return TemporalEncoder()
  if model == "vtn_vit_b":
    return VTN()
  import_torchvision()
  from torchvision.models import video

  return getattr(video, _SWIN.get(model, model))(weights=None)


def _input_shape(case: Case) -> tuple[int, ...]:
  if case.model == TEMPORAL_ENCODER:
    return case.batch, case.frames, WIDTH
  return case.batch, 3, case.frames, case.size, case.size


def _count_macs(case: Case) -> int:
  """Returns the multiply-accumulates of a forward pass by PyTorch's count."""
  with torch.device("meta"):
    model, inputs = create_module(case.model).eval(), torch.empty(_input_shape(case))
  with FlopCounterMode(display=False) as counter, torch.no_grad():
    model(inputs)
  return counter.get_total_flops() // 2


def build(case: Case) -> Subject:
  """Builds a case, and compiles it if asked to; parameters and inputs are random.

  Training in bfloat16 is automatic mixed precision; for inference the weights are converted.
  float32 products are TF32 where the GPU has it, as in JAX.
  """
  torch.set_float32_matmul_precision("high")
  torch.backends.cudnn.benchmark = True
  device = "cuda" if torch.cuda.is_available() else "cpu"
  is_training, is_half = case.mode == TRAINING, case.precision == "bfloat16"
  model = create_module(case.model).to(device).train(is_training)
  inputs = torch.randn(_input_shape(case), device=device)
  parameters = sum(parameter.numel() for parameter in model.parameters())
  if is_half and not is_training:
    model, inputs = model.bfloat16(), inputs.bfloat16()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
  labels = torch.zeros(case.batch, dtype=torch.long, device=device)
  forward = torch.compile(model) if case.variant == "compiled" else model

  def train():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16) if is_half else contextlib.nullcontext():
      loss = nn.functional.cross_entropy(forward(inputs), labels)
    loss.backward()
    optimizer.step()

  def infer():
    with torch.inference_mode():
      forward(inputs)

  def run():
    train() if is_training else infer()
    if device == "cuda":
      torch.cuda.synchronize()

  if case.variant == "compiled":
    run()
  if device == "cuda":
    torch.cuda.reset_peak_memory_stats()
  return Subject(
    run,
    parameters,
    macs=_count_macs(case) if case.model in CONV_NETS else None,
    device_memory=torch.cuda.max_memory_allocated if device == "cuda" else None,
  )


def measure_limits() -> dict:
  """Returns the rates of matrix products of the device that PyTorch computes on."""
  torch.set_float32_matmul_precision("high")
  device = "cuda" if torch.cuda.is_available() else "cpu"
  size = 3072 if device == "cpu" else 8192
  rates = {}
  for precision in ("float32", "bfloat16"):
    x = torch.ones(size, size, dtype=getattr(torch, precision), device=device)

    def run(x=x):
      x @ x
      if device == "cuda":
        torch.cuda.synchronize()

    rates[precision] = 2 * size**3 / min(timed_calls(run, 2.0))
  packages = sorted({"torch", *itertools.chain(*PEERS.values())})
  software = []
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      software.append(f"{package} {importlib.metadata.version(package)}")
  platform = "gpu" if device == "cuda" else device
  return {"rates": rates, "platform": platform, "software": ", ".join(software)}
