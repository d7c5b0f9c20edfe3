"""The temporal encoder against HuggingFace's Longformer and against a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tables.vtn_parity import encode, encoder, huggingface_error, video_features
from vswin_jax.models.longformer import TemporalEncoder
from vswin_jax.models.parameters import flatten, split_model


def dense_encoding(model: TemporalEncoder, features, positions):
  """The encoding of one video, with every score in one matrix and a mask over it."""
  config, params = model.config, flatten(split_model(model)[1])
  frames = len(features)
  heads, scale = config.num_heads, (config.width // config.num_heads) ** -0.5
  near = np.abs(np.arange(frames)[:, None] - np.arange(frames)) <= config.attention_window // 2
  seen = np.ones((1 + frames, 1 + frames), bool)
  seen[1:, 1:] = near

  def linear(x, path):
    return x @ np.asarray(params[f"{path}.kernel"], np.float64) + params[f"{path}.bias"]

  def norm(x, path):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * params[f"{path}.scale"] + params[f"{path}.bias"]

  def split(x):
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

  def attention(x, path):
    rows = []
    for suffix in ("_global", ""):
      query, key, value = (
        split(linear(x, f"{path}.{name}{suffix}")) for name in ("query", "key", "value")
      )
      logits = np.where(seen, query @ key.transpose(0, 2, 1) * scale, -np.inf)
      weights = np.exp(logits - logits.max(-1, keepdims=True))
      weights /= weights.sum(-1, keepdims=True)
      rows.append((weights @ value).transpose(1, 0, 2).reshape(len(x), -1))
    return linear(np.concatenate([rows[0][:1], rows[1][1:]]), f"{path}.proj")

  positions = np.asarray(positions) % (config.num_positions - 2)
  table, types = np.asarray(params["position_embeddings"]), np.asarray(params["type_embeddings"])
  class_token = np.asarray(params["class_token"]) + table[-2] + types[1]
  x = np.concatenate([class_token[None], features + table[positions] + types[0]])
  x = norm(np.asarray(x, np.float64), "norm")
  for layer in range(config.num_layers):
    path = f"layers.{layer}"
    x = norm(x + attention(x, f"{path}.attention"), f"{path}.norm1")
    hidden = np.asarray(jax.nn.gelu(linear(x, f"{path}.fc1"), approximate=False))
    x = norm(x + linear(hidden, f"{path}.fc2"), f"{path}.norm2")
  return x[0]


# Around the reach of the window, and around the blocks in which the program cuts the frames.
@pytest.mark.parametrize(
  ("window", "frames"),
  [*((6, frames) for frames in (1, 2, 3, 4, 7, 31, 32, 33, 65)), (2, 1), (2, 2), (2, 40)],
)
def test_encoding_equals_a_dense_mask(frames, window):
  model = encoder(attention_window=window)
  features, positions, _ = video_features([frames], seed=frames)
  expected = dense_encoding(model, features[0], positions[0])
  np.testing.assert_allclose(encode(model, features, positions)[0], expected, atol=5e-6)


def test_padding_changes_nothing():
  model = encoder(num_layers=3)
  lengths = [40, 1, 3, 17, 33]
  features, positions, valid = video_features(lengths)
  garbage = np.where(valid[..., None], features, 1e3)
  together = encode(model, garbage, np.where(valid, positions, 7), valid)
  for row, length in enumerate(lengths):
    alone = dense_encoding(model, features[row, :length], positions[row, :length])
    np.testing.assert_allclose(together[row], alone, atol=5e-6)


def test_padding_gets_no_gradient():
  model = encoder()
  features, positions, valid = video_features([40, 5])

  def loss(features):
    return (model(features, positions, jnp.asarray(valid)) ** 3).sum()

  gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(features)))
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[1, 5:], 0.0)
  assert (np.abs(gradient[1, :5]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("frames", [5, 24, 71])
def test_encoding_equals_huggingface(frames):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  assert huggingface_error(frames) < 1e-5
