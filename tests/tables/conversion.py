"""Agreement of converted files with the reference; `python -m tests.tables.conversion`
prints the table."""

import os

if __name__ == "__main__":
  os.environ["JAX_PLATFORMS"] = "cpu"

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from tests.conversion.checkpoints import (
  fill,
  golden_keys,
  official_tensors,
  save_official,
  save_torch,
  save_vtn,
)
from tests.helpers.golden import golden, golden_video, tensor_for
from vswin_jax import load_model
from vswin_jax.conversion.convert import convert_file
from vswin_jax.conversion.families import ConversionOptions

OFFICIAL = [
  "nano_16x56x56",
  "nano_10x60x72_padding",
  "nano_32x64x64_time_shift",
  "nano_window16_32x56x56",
]
OFFICIAL_LARGE = ["swin_t_k400", "swin_b_k400"]
TORCHVISION = ["torchvision_nano_16x56x56", "torchvision_nano_10x60x72_padding"]
TORCHVISION_LARGE = ["torchvision_swin3d_t"]
INFLATED = ["inflate_w7_to_877", "inflate_w7_to_81212"]
VTN = ["vtn_nano_7f", "vtn_nano_20f", "vtn_nano_50f"]
VTN_LARGE = ["vtn_vit_b_16f"]

# Family as converted -> its golden cases; files of mmaction2 differ from official ones in a name.
CASES = {
  "official": OFFICIAL + OFFICIAL_LARGE,
  "mmaction2": OFFICIAL[:1],
  "torchvision": TORCHVISION + TORCHVISION_LARGE,
  "swin_2d": INFLATED,
  "vtn": VTN + VTN_LARGE,
}


def convert_case(family: str, case: str, folder: pathlib.Path) -> pathlib.Path:
  """Writes the file of a golden case as its users hold it, and converts it."""
  meta, _ = golden(case)
  path, request = folder / f"{case}.pth", ConversionOptions()
  if family == "torchvision":
    keys = golden_keys("torchvision_swin3d_t" if "swin3d" in case else "torchvision_nano_16x56x56")
    save_torch(path, fill(keys))
  elif family == "swin_2d":
    keys = {
      name: (shape, "int64" if name.endswith("relative_position_index") else "float32")
      for name, shape in dict(meta["keys_2d"]).items()
    }
    save_torch(path, {"model": fill(keys)})
    request = ConversionOptions(window=tuple(meta["window_3d"]), num_classes=meta["num_classes"])
  elif family == "vtn":
    is_nano = case in VTN
    save_vtn(path, fill(golden_keys("vtn_nano_7f" if is_nano else case)))
    if is_nano:
      request = ConversionOptions(num_heads=3, backbone_heads=3, attention_window=6)
  else:
    tensors = official_tensors(case)
    if family == "mmaction2":
      tensors = {
        name.replace("backbone.norm.", "backbone.norm3."): tensor
        for name, tensor in tensors.items()
      }
    save_official(path, tensors)
  convert_file(path, folder / "converted", request)
  path.unlink()
  return folder / "converted"


def load_case(family: str, case: str, checkpoint: pathlib.Path, **overrides):
  """The converted model of a golden case."""
  model = load_model(checkpoint, **overrides).network
  if family == "swin_2d":
    # 2D weights bring no head for videos; the golden one is filled by the rule.
    channels, classes = model.head.kernel.shape
    weight = tensor_for("cls_head.fc_cls.weight", (classes, channels))
    model.head.kernel[...] = jnp.asarray(weight.T, jnp.float32)
    model.head.bias[...] = jnp.asarray(tensor_for("cls_head.fc_cls.bias", (classes,)), jnp.float32)
  return model


def logits_error(model, case: str) -> tuple[float, bool]:
  """Largest error relative to the largest logit, and whether all top-1 classes agree."""
  meta, expected = golden(case)
  logits = jax.jit(lambda model, *inputs: model(*inputs))(
    model, golden_video(meta), expected.get("position_ids")
  )
  logits, expected = np.asarray(logits, np.float64), expected["logits"]
  assert logits.shape == expected.shape
  error = np.abs(logits - expected).max() / np.abs(expected).max()
  return float(error), bool((logits.argmax(-1) == expected.argmax(-1)).all())


def main():
  print("| family | case | float32 | bfloat16 | same top-1 |")
  print("|---|---|---|---|---|")
  for family, cases in CASES.items():
    for case in cases:
      with tempfile.TemporaryDirectory() as folder:
        checkpoint = convert_case(family, case, pathlib.Path(folder))
        full, _ = logits_error(load_case(family, case, checkpoint), case)
        half, same = logits_error(load_case(family, case, checkpoint, dtype="bfloat16"), case)
      print(f"| {family} | `{case}` | {full:.1e} | {half:.1e} | {'yes' if same else 'no'} |")


if __name__ == "__main__":
  main()
