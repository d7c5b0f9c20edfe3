"""Video models as Flax NNX modules, and the catalog of their names."""

from vswin_jax.models.catalog import CATALOG, check_clips, create_model, model_config

__all__ = ["CATALOG", "check_clips", "create_model", "model_config"]
