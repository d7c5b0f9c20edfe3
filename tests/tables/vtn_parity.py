"""VTN against golden outputs, and its parts against the PyTorch packages that define them;
`python -m tests.tables.vtn_parity` prints the table."""

import os

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.conversion.checkpoints import fill, golden_keys
from tests.conversion.timm_without_torchvision import import_timm
from tests.helpers.golden import golden, golden_video
from tests.tables.golden import relative_error
from vswin_jax import create_model
from vswin_jax.conversion.families import ConversionOptions, convert_tensors
from vswin_jax.conversion.layouts import vtn_names
from vswin_jax.models import model_config
from vswin_jax.models.longformer import TemporalEncoder
from vswin_jax.models.parameters import flatten, merge_model, split_model, unflatten

SMALL_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}
# Name in timm -> options, pixels on a side, our name (None: of no size that has a name).
BACKBONES = {
  "vit_base_patch16_224": (SMALL_VIT, 32, None),
  "deit_tiny_patch16_224": ({}, 224, "deit_ti_16"),
  "deit_base_distilled_patch16_224": (SMALL_VIT, 32, None),
  "resnet50": ({}, 65, "resnet50"),
  "resnet101": ({}, 64, "resnet101"),
  "swin_tiny_patch4_window7_224": ({}, 224, "swin_t"),
  "swin_base_patch4_window7_224": ({"depths": (2, 2, 4, 2)}, 224, None),
}
# Deeper ones of the same code, for the table alone.
LARGER = ("resnet101", "swin_base_patch4_window7_224")
WIDTH, HEADS, WINDOW, POSITIONS = 48, 3, 6, 34


def encoder(seed=0, **overrides) -> TemporalEncoder:
  """A small encoder whose attention is far from uniform and whose biases are not zero."""
  config = model_config(
    "vtn_vit_b",
    **{
      "width": WIDTH,
      "num_heads": HEADS,
      "attention_window": WINDOW,
      "intermediate_size": 64,
      "num_positions": POSITIONS,
      "num_layers": 2,
    }
    | overrides,
  )
  graph, shapes = split_model(nnx.eval_shape(lambda: TemporalEncoder(config, rngs=nnx.Rngs(0))))
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    values = random.normal(size=leaf.shape).astype(np.float32)
    if path.endswith(".scale"):
      return jnp.asarray(1 + 0.2 * values)
    return jnp.asarray(values * (1.5 / np.sqrt(WIDTH) if path.endswith(".kernel") else 0.3))

  return merge_model(
    graph, unflatten({path: draw(path, leaf) for path, leaf in flatten(shapes).items()})
  )


def encode(model: TemporalEncoder, *arrays) -> np.ndarray:
  return np.asarray(jax.jit(lambda arrays: model(*arrays))(arrays))


def video_features(lengths, seed=1):
  """Features and positions of videos, padded to the longest, and which frames are real."""
  random = np.random.default_rng(seed)
  frames = max(lengths)
  features = random.normal(size=(len(lengths), frames, WIDTH)).astype(np.float32)
  positions = np.sort(random.integers(0, 3 * POSITIONS, (len(lengths), frames)))
  return features, positions, np.arange(frames) < np.array(lengths)[:, None]


def random_timm(name: str, **options):
  """A model of timm with every parameter and statistic far from its default."""
  import torch

  torch.manual_seed(0)
  model = import_timm().create_model(name, **options).eval()
  with torch.no_grad():
    for entry in model.state_dict().values():
      if entry.is_floating_point() and entry.ndim == 1:
        entry.mul_(1 + 0.2 * torch.rand_like(entry)).add_(0.1 * torch.rand_like(entry))
  return model


def converted_model(converted, **overrides):
  options = converted.model | overrides
  graph, _ = split_model(nnx.eval_shape(lambda: create_model(**options)))
  return merge_model(graph, jax.tree.map(jnp.asarray, unflatten(converted.params)))


def features_of(backbone, images):
  return jax.jit(lambda images: backbone(images))(images)


def backbone_error(name: str, smaller: dict | None = None, size: int | None = None) -> float:
  """Relative error of the features of a backbone of timm that was taken through the converter.

  Args:
    smaller: options in place of those of `BACKBONES`, with the size of an image.
  """
  import torch

  if smaller is None:
    options, size, ours = BACKBONES[name]
  else:
    options, ours = smaller, None
  # Files come with a classifier.
  reference = random_timm(name, num_classes=10, **options)
  tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
  heads = options.get("num_heads") if "vit" in name or "deit" in name else None
  converted = convert_tensors(
    tensors, ConversionOptions(num_classes=7, backbone_heads=heads, to="vtn")
  )
  assert converted.random and converted.dataset is None
  model = converted_model(converted)
  assert model.config.num_classes == 7
  assert ours in (None, model.config.backbone)
  images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
  with torch.no_grad():
    reference.reset_classifier(0)
    expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
  return relative_error(features_of(model.backbone, images), expected)


def huggingface_error(frames: int) -> float:
  """Relative error of the temporal encoder over features of so many frames."""
  import torch
  import transformers

  model = encoder(num_layers=3)
  config = transformers.LongformerConfig(
    hidden_size=WIDTH,
    num_attention_heads=HEADS,
    num_hidden_layers=3,
    intermediate_size=64,
    attention_window=[WINDOW] * 3,
    max_position_embeddings=POSITIONS,
    type_vocab_size=2,
    vocab_size=1,
    pad_token_id=0,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
  )
  reference = transformers.LongformerModel(config, add_pooling_layer=False).eval()
  name_of = vtn_names("vit")
  weights = {}
  for path, parameter in flatten(split_model(model)[1]).items():
    name = name_of(f"temporal_encoder.{path}").removeprefix("temporal_encoder.")
    weights[name] = torch.tensor(
      np.asarray(parameter).T if path.endswith(".kernel") else np.asarray(parameter)
    )
  class_token = weights.pop("cls_token")
  missing, unexpected = reference.load_state_dict(weights, strict=False)
  assert not unexpected
  assert set(missing) <= {"embeddings.word_embeddings.weight", "embeddings.position_ids"}

  features, positions, _ = video_features([frames, frames], seed=frames)
  # To a multiple of the window, as the reference pads.
  padding = -(1 + frames) % WINDOW
  embedded = torch.cat([class_token.expand(2, 1, WIDTH), torch.tensor(features)], dim=1)
  embedded = torch.nn.functional.pad(embedded, (0, 0, 0, padding), value=-1.0)
  mask = torch.ones(2, 1 + frames + padding)
  mask[:, 0], mask[:, 1 + frames :] = 2, 0
  types = torch.zeros(mask.shape, dtype=torch.long)
  types[:, 0] = 1
  ids = torch.full(mask.shape, POSITIONS - 1)
  ids[:, 0] = POSITIONS - 2
  ids[:, 1 : 1 + frames] = torch.tensor(positions % (POSITIONS - 2))
  with torch.no_grad():
    output = reference(
      inputs_embeds=embedded, attention_mask=mask, token_type_ids=types, position_ids=ids
    ).last_hidden_state
  return relative_error(encode(model, features, positions), output[:, 0].numpy())


def reference_vtn(case: str, **overrides):
  """The model of a golden file, its weights taken through the converter."""
  is_nano = "nano" in case
  keys = golden_keys("vtn_nano_7f" if is_nano else case)
  options = (
    ConversionOptions(num_heads=3, backbone_heads=3, attention_window=6)
    if is_nano
    else ConversionOptions()
  )
  return converted_model(convert_tensors(fill(keys), options), **overrides)


def golden_errors(case: str) -> dict[str, float]:
  """Relative errors of the logits and of the frame features of a golden file."""
  meta, expected = golden(case)
  model = reference_vtn(case)
  features = jax.jit(model.frame_features)(golden_video(meta))
  logits = jax.jit(model.classify)(features, expected["position_ids"])
  return {
    "logits": relative_error(logits, expected["logits"]),
    "frame features": relative_error(features[:, :4], expected["frame_features"]),
  }


def golden_gradient_errors() -> dict[str, float]:
  """Relative errors of the loss and of every parameter's gradient norm."""
  meta, expected = golden("vtn_nano_20f")
  graph, params = split_model(reference_vtn("vtn_nano_20f"))
  video, label = golden_video(meta), np.arange(2) % meta["num_classes"]

  def loss(params):
    logits = merge_model(graph, params)(video, expected["position_ids"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  name_of = vtn_names("vit")
  norms = {
    f"gradnorm/{name_of(path)}": np.linalg.norm(np.asarray(leaf, np.float64))
    for path, leaf in flatten(gradient).items()
  }
  assert norms.keys() == {name for name in expected if name.startswith("gradnorm/")}
  reference = {name: float(expected[name]) for name in norms}
  largest = max(reference.values())
  errors = {}
  for name, norm in norms.items():
    # Some are zero but for rounding, because softmax does not feel a bias of the keys.
    is_zero = reference[name] < 1e-6 * largest
    errors[name] = abs(norm - reference[name]) / (1e-3 * largest if is_zero else reference[name])
  return {"loss": relative_error(value, expected["loss"])} | errors


def main():
  print("| part | package | case | error |")
  print("|---|---|---|---|")
  for case in ("vtn_nano_7f", "vtn_nano_20f", "vtn_nano_50f", "vtn_vit_b_16f"):
    for what, error in golden_errors(case).items():
      print(f"| {what} | official VTN | `{case}` | {error:.1e} |", flush=True)
  gradients = golden_gradient_errors()
  print(f"| loss | official VTN | `vtn_nano_20f` | {gradients.pop('loss'):.1e} |")
  print(f"| worst gradient norm | official VTN | `vtn_nano_20f` | {max(gradients.values()):.1e} |")
  for name in BACKBONES:
    print(f"| backbone | timm | `{name}` | {backbone_error(name):.1e} |", flush=True)
  for frames in (5, 24, 71, 250):
    error = huggingface_error(frames)
    print(f"| temporal encoder | transformers | {frames} frames | {error:.1e} |", flush=True)


if __name__ == "__main__":
  main()
