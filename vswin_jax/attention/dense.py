"""Attention among all tokens of an image, as in Vision Transformers."""

from functools import partial

import jax
import jax.numpy as jnp

from vswin_jax.attention import tpu_dense
from vswin_jax.attention.operations import current_platform, on_each_device
from vswin_jax.common.logging import log_once
from vswin_jax.common.messages import one_line


@jax.named_scope("dense_attention")
def dense_attention(
  query: jax.Array, key: jax.Array, value: jax.Array, *, implementation: str = "auto"
) -> jax.Array:
  """Computes multi-head attention from all queries to all keys of each image.

  Args:
    query: `[images, queries, heads, head_dim]`, not scaled.
    key: `[images, tokens, heads, head_dim]`.
    value: as `key`.
    implementation: "auto", see `choose_implementation`, or a key of `IMPLEMENTATIONS`. "xla" keeps
      the probabilities for the backward pass; "cudnn" (GPUs) and "pallas_tpu" (`tpu_dense`) compute
      them again, and compute as "xla" what they can't; "pallas_tpu_interpret" runs the kernels of
      "pallas_tpu" anywhere, slowly.

  Returns:
    `[images, queries, heads, head_dim]`, the dtype of `query`. Logits and softmax are float32.

  Raises:
    ValueError: unknown implementation.
  """
  implementation = resolve_implementation(implementation, query.dtype)
  return IMPLEMENTATIONS[implementation](query, key, value)


def _xla(query, key, value):
  return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def _cudnn(query, key, value):
  try:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
  except (NotImplementedError, RuntimeError, ValueError) as error:
    # JAX checks dtype, head_dim, cuDNN and the GPU while it traces.
    reason = one_line(error)
  log_once(f"attention of images: xla, because cuDNN can't compute it: {reason}")
  return _xla(query, key, value)


def _pallas_tpu(query, key, value, interpret: bool = False):
  tokens, heads = key.shape[1:3]
  channels = heads * key.shape[3]
  reason = tpu_dense.why_not(tokens, channels)
  if reason:
    log_once(f"attention of images of {tokens} tokens: xla, because {reason}")
    return _xla(query, key, value)

  def rows(x):
    padding = tpu_dense.padded(x.shape[1]) - x.shape[1]
    return jnp.pad(x.reshape(*x.shape[:2], channels), [(0, 0), (0, padding), (0, 0)])

  def attend(query, key, value, _):
    return tpu_dense.attend(query, key, value, heads, tokens, interpret=interpret)

  output = on_each_device(attend, rows(query), rows(key), rows(value), whole=())
  return output[:, : query.shape[1]].reshape(query.shape)


IMPLEMENTATIONS = {
  "xla": _xla,
  "cudnn": _cudnn,
  "pallas_tpu": _pallas_tpu,
  "pallas_tpu_interpret": partial(_pallas_tpu, interpret=True),
}


def resolve_implementation(implementation: str, dtype) -> str:
  """Returns an implementation by name, that for the platform if the name is "auto".

  Raises:
    ValueError: unknown implementation.
  """
  if implementation == "auto":
    platform = current_platform()
    implementation = choose_implementation(platform, dtype)
    log_once(f"attention of images: {implementation}, on {platform} in {jnp.dtype(dtype).name}")
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"unknown attention implementation {implementation!r}; choose one of "
      f"{', '.join(sorted(IMPLEMENTATIONS))}"
    )
  return implementation


def choose_implementation(platform: str, dtype) -> str:
  """Returns the implementation for a platform, such as "gpu" or "tpu", and a dtype."""
  if platform in ("gpu", "cuda") and jnp.dtype(dtype).itemsize == 2:
    return "cudnn"
  # Kernels have to be asked for until they have run on the hardware.
  return "xla"
