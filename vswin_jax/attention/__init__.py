"""Attention: one function per kind of attention, several implementations behind it."""

from vswin_jax.attention.window import window_attention

__all__ = ["window_attention"]
