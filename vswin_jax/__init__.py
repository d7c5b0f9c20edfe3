"""Video recognition in JAX: Video Swin Transformer, VTN and what it takes to use them."""

import importlib

__version__ = "0.1.0"

# Public name -> module, imported on first use: processes that only decode video load no models.
_PUBLIC = {
  "create_model": "vswin_jax.models",
  "load_model": "vswin_jax.inference.loading",
  "predict": "vswin_jax.inference.predictor",
  "CATALOG": "vswin_jax.models",
  "Stream": "vswin_jax.inference.streaming",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
