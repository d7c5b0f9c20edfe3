"""Attention functions, with one or more implementations each."""

from vswin_jax.attention.window import window_attention

__all__ = ["window_attention"]
