"""Video recognition in JAX with Video Swin Transformer and VTN."""

import importlib

__version__ = "0.1.0"

# Public name -> module, imported on first use: decoding processes load no models.
_PUBLIC = {
  "create_model": "vswin_jax.models",
  "load_model": "vswin_jax.inference.loading",
  "CATALOG": "vswin_jax.models",
  "Stream": "vswin_jax.inference.streaming",
  "VideoModel": "vswin_jax.inference.video_model",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
  if name in _PUBLIC:
    return getattr(importlib.import_module(_PUBLIC[name]), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
