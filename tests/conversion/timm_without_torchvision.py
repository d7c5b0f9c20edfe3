"""timm, imported where torchvision is not installed: its models only need the names to exist."""

import importlib
import importlib.util
import sys
import types

import pytest

_MODULES = (
  "torchvision",
  "torchvision.datasets",
  "torchvision.models",
  "torchvision.models.feature_extraction",
  "torchvision.ops",
  "torchvision.ops.misc",
  "torchvision.transforms",
  "torchvision.transforms.functional",
)


class _Anything(type):
  def __getattr__(cls, name: str):
    if name.startswith("__"):
      raise AttributeError(name)
    # A class of its own for every name: some are keys of dicts.
    return type(cls)(name, (cls,), {})


class _Placeholder(metaclass=_Anything):
  def __init__(self, *args, **kwargs):
    raise NotImplementedError("torchvision is not installed")


def import_timm():
  """The module; skips the test where timm is not installed."""
  if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed: pip install --no-deps timm")
  if "timm" in sys.modules or importlib.util.find_spec("torchvision") is not None:
    return importlib.import_module("timm")
  for name in _MODULES:
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    module.__getattr__ = lambda attribute: getattr(_Placeholder, attribute)
    parent, _, child = name.rpartition(".")
    if parent:
      setattr(sys.modules[parent], child, module)
  try:
    return importlib.import_module("timm")
  finally:
    # Others that look for torchvision shall not find this.
    for name in _MODULES:
      del sys.modules[name]
