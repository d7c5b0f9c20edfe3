"""A ViT of TPU kernels, interpreted, against the ViT by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vswin_jax.attention import operations
from vswin_jax.attention.tpu_core import dropout_factors
from vswin_jax.models import create_model, model_config, tpu_vit
from vswin_jax.models.backbones import backbone_config, create_backbone
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.vit import LAYER_NORM_EPSILON, Block
from vswin_jax.training.sharding import batch_sharding, in_context, make_mesh

# 26 tokens, or 27 with a distillation token.
SMALL = {
  "image_size": 20, "patch_size": 4, "width": 32, "depth": 2, "num_heads": 2, "init_std": 0.2
}  # fmt: skip


def values_and_gradients(images, mesh=None, **options):
  model = create_backbone(backbone_config("vit_b_16", **SMALL | options), rngs=nnx.Rngs(0))
  graph, params = split_model(model)
  # Biases and scales that matter.
  keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
  params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)

  def loss(params, images):
    features = merge_model(graph, params)(images, key=jax.random.key(2))
    return (features * jnp.sin(jnp.arange(features.size).reshape(features.shape))).sum(), features

  step = jax.value_and_grad(loss, (0, 1), has_aux=True)
  if mesh is not None:
    images, step = jax.device_put(images, batch_sharding(mesh)), in_context(mesh, step)
  return jax.tree.leaves(jax.jit(step)(params, images))


def check(images, tolerance, mesh=None, **options):
  actual = values_and_gradients(images, mesh, attention="pallas_tpu_interpret", **options)
  expected = values_and_gradients(images, attention="xla", **options | {"dtype": "float32"})
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-2))


def random_images(count=4):
  return jax.random.normal(jax.random.key(0), (count, 20, 20, 3), jnp.float32)


@pytest.mark.parametrize(
  ("options", "tolerance"),
  [
    ({"drop_path_rate": 0.5, "distilled": True, "rematerialization": "block"}, 1e-5),
    ({"dtype": "bfloat16"}, 5e-2),
  ],
)
def test_kernels_equal_xla(options, tolerance):
  check(random_images(), tolerance, **options)


def test_attention_alone_as_a_kernel_equals_xla(monkeypatch):
  monkeypatch.setattr(tpu_vit, "why_not", lambda *_: "this test refuses")
  check(random_images(2), 1e-5)


def reference_block(block, x, factors, seeds, tokens, heads, rate):
  """The block by XLA, with given factors of dropout."""

  def dropped(y, layer: int):
    draws = [
      dropout_factors(seed, (0, 0), y.shape[1:], y.shape[2], rate) for seed in seeds[:, layer]
    ]
    return y * jnp.stack(draws)

  attention_factor, mlp_factor = factors.T[..., None, None]
  qkv = block.attention.qkv(block.norm1(x)).reshape(*x.shape[:2], 3, heads, -1)
  query, key, value = (qkv[:, :, part] for part in range(3))
  attended = jax.nn.dot_product_attention(query, key[:, :tokens], value[:, :tokens])
  x += attention_factor * dropped(block.attention.proj(attended.reshape(x.shape)), 0)
  hidden = jax.nn.gelu(block.mlp.fc1(block.norm2(x)), approximate=False)
  return x + mlp_factor * dropped(block.mlp.fc2(dropped(hidden, 1)), 2)


def test_dropout_of_each_layer_equals_xla():
  config = backbone_config("vit_b_16", **SMALL)
  graph, params = split_model(Block(0.0, config, rngs=nnx.Rngs(0)))
  x = jax.random.normal(jax.random.key(1), (2, 32, 32))
  factors = jnp.array([[1.25, 0.5], [0.5, 1.25]])
  seeds = jax.random.bits(jax.random.key(2), (2, tpu_vit.DROPOUTS)).astype(jnp.int32)

  def kernels(x, params):
    return tpu_vit.run_block(
      x, factors, params, 2, 26, 32, LAYER_NORM_EPSILON, seeds=seeds, dropout_rate=0.5,
      interpret=True,
    )  # fmt: skip

  def xla(x, params):
    return reference_block(merge_model(graph, params), x, factors, seeds, 26, 2, 0.5)

  def values_and_gradients(function):
    loss = lambda *inputs: jnp.square(function(*inputs)[:, :26]).sum()  # noqa: E731
    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, params))

  for one, other in zip(values_and_gradients(kernels), values_and_gradients(xla), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))


def test_dropout_is_drawn_per_image():
  config = backbone_config(
    "vit_b_16", **SMALL, attention="pallas_tpu_interpret", dropout_rate=0.5, drop_path_rate=0.0
  )
  block = Block(0.0, config, rngs=nnx.Rngs(0))
  x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 32, 32)), (2, 32, 32))

  @jax.jit
  def run(key):
    return block(x, 32, 26, "pallas_tpu_interpret", key=key)

  one, other = run(jax.random.key(0))
  assert np.isfinite(one).all()
  assert np.mean(np.abs(one - other) > 1e-4) > 0.5
  same, _ = run(jax.random.key(0))
  np.testing.assert_array_equal(one, same)


def test_kernels_equal_xla_on_two_devices():
  check(random_images(), 1e-5, make_mesh(1, jax.devices()[:2]))


def test_a_vtn_passes_the_option_to_its_backbone(monkeypatch):
  options = {
    "backbone_options": SMALL | {"depth": 1}, "width": 32, "num_heads": 2, "num_layers": 1,
    "num_positions": 9, "intermediate_size": 32, "num_classes": 3, "frames_per_chunk": 2,
    "rematerialization": "chunk",
  }  # fmt: skip
  video = jax.random.normal(jax.random.key(0), (1, 4, 20, 20, 3), jnp.float32)

  def run(attention):
    graph, params = split_model(create_model("vtn_vit_b", **options, attention=attention))

    def loss(params):
      return merge_model(graph, params)(video, key=jax.random.key(1)).sum()

    return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(params))

  for one, other in zip(run("pallas_tpu_interpret"), run("xla"), strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-2))
  messages = []
  monkeypatch.setattr(operations, "log_once", messages.append)
  jax.eval_shape(create_model("vtn_vit_b", **options), video)
  assert messages == ["attention: xla, for float32 on cpu"]
  with pytest.raises(ValueError, match="attention"):
    create_model("vtn_vit_b", attention="flash")
  assert not hasattr(model_config("vtn_r50", attention="xla").named_backbone(), "attention")
