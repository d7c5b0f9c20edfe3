"""The temporal encoder against HuggingFace's Longformer and against a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.conversion import vtn as vtn_files
from vswin_jax.models import model_config
from vswin_jax.models.longformer import TemporalEncoder
from vswin_jax.models.parameters import flatten, merge_model, split_model, unflatten

WIDTH, HEADS, WINDOW, POSITIONS = 48, 3, 6, 34


def encoder(seed=0, **overrides) -> TemporalEncoder:
  """A small encoder whose attention is far from uniform and whose biases are not zero."""
  config = model_config(
    "vtn_vit_b",
    **{
      "width": WIDTH,
      "num_heads": HEADS,
      "attention_window": WINDOW,
      "intermediate_size": 64,
      "num_positions": POSITIONS,
      "num_layers": 2,
    }
    | overrides,
  )
  graph, shapes = split_model(nnx.eval_shape(lambda: TemporalEncoder(config, rngs=nnx.Rngs(0))))
  random = np.random.default_rng(seed)

  def draw(path, leaf):
    values = random.normal(size=leaf.shape).astype(np.float32)
    if path.endswith(".scale"):
      return jnp.asarray(1 + 0.2 * values)
    return jnp.asarray(values * (1.5 / np.sqrt(WIDTH) if path.endswith(".kernel") else 0.3))

  return merge_model(
    graph, unflatten({path: draw(path, leaf) for path, leaf in flatten(shapes).items()})
  )


def encode(model: TemporalEncoder, *arrays) -> np.ndarray:
  return np.asarray(jax.jit(lambda arrays: model(*arrays))(arrays))


def video_features(lengths, seed=1):
  """Features and positions of videos, padded to the longest, and which frames are real."""
  random = np.random.default_rng(seed)
  frames = max(lengths)
  features = random.normal(size=(len(lengths), frames, WIDTH)).astype(np.float32)
  positions = np.sort(random.integers(0, 3 * POSITIONS, (len(lengths), frames)))
  return features, positions, np.arange(frames) < np.array(lengths)[:, None]


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


def test_gradients_do_not_see_padding():
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
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  model = encoder(num_layers=3)
  config = transformers.LongformerConfig(
    hidden_size=WIDTH,
    num_attention_heads=HEADS,
    num_hidden_layers=3,
    intermediate_size=64,
    attention_window=[WINDOW] * 3,
    max_position_embeddings=POSITIONS,
    type_vocab_size=2,
    vocab_size=1,
    pad_token_id=0,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
  )
  reference = transformers.LongformerModel(config, add_pooling_layer=False).eval()
  name_of = vtn_files.name_in("vit", whole=True)
  weights = {}
  for path, parameter in flatten(split_model(model)[1]).items():
    name = name_of(f"temporal_encoder.{path}").removeprefix("temporal_encoder.")
    weights[name] = torch.tensor(
      np.asarray(parameter).T if path.endswith(".kernel") else np.asarray(parameter)
    )
  class_token = weights.pop("cls_token")
  missing, unexpected = reference.load_state_dict(weights, strict=False)
  assert not unexpected
  assert set(missing) <= {"embeddings.word_embeddings.weight", "embeddings.position_ids"}

  features, positions, _ = video_features([frames, frames], seed=frames)
  # To a multiple of the window, as the reference pads.
  padding = -(1 + frames) % WINDOW
  embedded = torch.cat([class_token.expand(2, 1, WIDTH), torch.tensor(features)], dim=1)
  embedded = torch.nn.functional.pad(embedded, (0, 0, 0, padding), value=-1.0)
  mask = torch.ones(2, 1 + frames + padding)
  mask[:, 0], mask[:, 1 + frames :] = 2, 0
  types = torch.zeros(mask.shape, dtype=torch.long)
  types[:, 0] = 1
  ids = torch.full(mask.shape, POSITIONS - 1)
  ids[:, 0] = POSITIONS - 2
  ids[:, 1 : 1 + frames] = torch.tensor(positions % (POSITIONS - 2))
  with torch.no_grad():
    output = reference(
      inputs_embeds=embedded, attention_mask=mask, token_type_ids=types, position_ids=ids
    ).last_hidden_state
  np.testing.assert_allclose(encode(model, features, positions), output[:, 0].numpy(), atol=5e-6)
