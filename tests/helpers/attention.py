"""Attention functions to compare: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def values_and_gradients(attend, qkv, table):
  """Returns outputs and gradients of queries, keys, values and the bias table, in float32.

  Args:
    attend: (qkv, table) -> outputs.
    qkv: `[..., 3 * channels]`.
    table: `[rows, heads]`.
  """

  def loss(qkv, table):
    output = attend(qkv, table)
    weight = jnp.sin(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
    return (output.astype(jnp.float32) * weight).sum(), output

  (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(qkv, table)
  return [
    np.asarray(x, np.float32) for x in (output, *jnp.split(gradients[0], 3, -1), gradients[1])
  ]
