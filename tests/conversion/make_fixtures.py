"""Writes the committed files of `fixtures/`: python -m tests.conversion.make_fixtures

Needs PyTorch and safetensors; the files in the repository were written with 2.13.0 and 0.8.0.
"""

import argparse
import collections
import pathlib

import ml_dtypes
import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
CLASSES = ("run", "jump")
CONFIG = "model = dict(type='Recognizer3D')\n"

_FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_OTHERS = ("int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128")


def known_tensors() -> dict[str, np.ndarray]:
  """One tensor of every dtype, by dtype: the powers of two from 1 to 32, which all of them hold."""
  powers = 2 ** np.arange(6).reshape(2, 3)
  tensors = {name: powers.astype(getattr(ml_dtypes, name, name)) for name in _FLOATS + _OTHERS}
  return tensors | {"bool": powers % 3 == 1}


def known_base() -> np.ndarray:
  """What the tensors "base", "again", "transposed" and "inner" are views of."""
  return np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 8


def main() -> None:
  import torch
  from safetensors.torch import save_file

  def as_torch(name: str, values: np.ndarray):
    exact = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    return torch.from_numpy(exact).to(getattr(torch, name))

  tensors = {name: as_torch(name, values) for name, values in known_tensors().items()}
  base = torch.from_numpy(known_base())
  weights = collections.OrderedDict(tensors)
  weights["base"] = weights["again"] = torch.nn.Parameter(base)
  weights["transposed"] = base.permute(2, 1, 0)
  weights["inner"] = base[1, 1:, ::2]
  weights["expanded"] = base[0, 0, :2].expand(3, 2)
  weights["scalar"] = torch.tensor(7)
  weights["empty"] = torch.zeros(0, 3)
  weights._metadata = collections.OrderedDict(version=1)
  arguments = argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("data"))
  content = {
    "meta": {"epoch": 3, "config": CONFIG, "CLASSES": CLASSES, "args": arguments},
    "state_dict": weights,
    "optimizer": {"state": {0: {"step": 12, "exp_avg": base}}, "param_groups": [{"lr": 0.25}]},
  }
  FIXTURES.mkdir(exist_ok=True)
  torch.save(content, FIXTURES / "zip.pth")
  torch.save(content, FIXTURES / "legacy.pth", _use_new_zipfile_serialization=False)
  # The format has no complex128.
  del tensors["complex128"]
  tensors |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3)}
  save_file(tensors, FIXTURES / "known.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
  main()
