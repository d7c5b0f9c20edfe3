"""Networks: arrays in, arrays out; they know no files, flags or configs."""

from vswin_jax.models.catalog import CATALOG, check_clips, create_model, model_config

__all__ = ["CATALOG", "check_clips", "create_model", "model_config"]
