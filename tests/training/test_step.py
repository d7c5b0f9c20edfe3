"""The training step: the same on any number of devices, in parts, and traced once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers.steps import BATCH, CLASSES, PIXELS, batches, run, tiny_model
from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.models import create_model
from vswin_jax.models.normalization import normalize
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.training import sharding
from vswin_jax.training.evaluation import make_eval_step
from vswin_jax.training.inputs import model_inputs
from vswin_jax.training.optimizer import OptimizerOptions, make_optimizer
from vswin_jax.training.step import create_state, make_train_step, top1_accuracy

PLAIN = {"drop_path_rate": 0.0, "head_dropout_rate": 0.0}


@pytest.fixture(scope="module")
def single():
  return run()


@pytest.fixture(scope="module")
def several_labels():
  """Metrics of steps with any number of labels on one device."""
  return run(model_options=PLAIN, multi_label=True)[0]


@pytest.mark.parametrize("devices, fsdp", [(8, 1), (4, 2), (8, 8)])
def test_devices_and_layouts_change_losses_only_by_rounding(single, devices, fsdp):
  history, state, _ = run(devices, fsdp)
  for actual, expected in zip(history, single[0]):
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(actual["mean_grad_norm"], expected["mean_grad_norm"], rtol=2e-5)
  sharded = [leaf for leaf in jax.tree.leaves(state) if not leaf.sharding.is_fully_replicated]
  if fsdp == 1:
    assert not sharded
  else:
    # Parameters and both moments of the same large kernels.
    assert len(sharded) % 3 == 0 and sharded
    for leaf in sharded:
      assert leaf.addressable_shards[0].data.size * fsdp == leaf.size


def test_one_trace_serves_all_steps(single):
  assert single[2]._cache_size() == 1


def test_state_is_donated(single):
  _, state, step = single
  mesh = sharding.make_mesh(1, jax.devices()[:1])
  batch = sharding.put_batch(next(batches(1)), sharding.batch_sharding(mesh))
  state = jax.tree.map(jnp.copy, state)
  step(state, batch)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_accumulated_gradients_equal_those_of_the_whole_batch():
  whole, whole_state, _ = run(4, model_options=PLAIN)
  parts, parts_state, _ = run(4, model_options=PLAIN, grad_accum_steps=2)
  for actual, expected in zip(parts, whole):
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(actual["mean_top1"], expected["mean_top1"], rtol=1e-6)
    np.testing.assert_allclose(actual["mean_grad_norm"], expected["mean_grad_norm"], rtol=2e-5)
  # Adam divides by the gradient's size: where it is near zero, rounding decides its sign.
  for actual, expected in zip(
    jax.tree.leaves(parts_state.optimizer[1].mu), jax.tree.leaves(whole_state.optimizer[1].mu)
  ):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()))


def test_gradient_and_loss_equal_a_plain_computation():
  model = tiny_model(**PLAIN)
  graph, params = split_model(model)
  batch = next(batches(1))
  video = (batch["video"].astype(np.float32) - PIXELS["mean"]) / PIXELS["std"]
  target = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.1 / CLASSES

  def loss(params):
    logits = merge_model(graph, params)(jnp.asarray(video, jnp.float32))
    return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  history, _, _ = run(steps=1, model_options=PLAIN, label_smoothing=0.1)
  np.testing.assert_allclose(history[0]["loss"], value, rtol=1e-5)
  np.testing.assert_allclose(history[0]["mean_grad_norm"], optax.tree.norm(gradient), rtol=1e-4)


def test_multi_label_loss_is_the_binary_cross_entropy(several_labels):
  """The mean over classes of -log p for labels and -log (1 - p) for others."""
  graph, params = split_model(tiny_model(**PLAIN))
  batch = next(batches(1, multi_label=True))
  video = (batch["video"].astype(np.float32) - PIXELS["mean"]) / PIXELS["std"]

  def loss(params):
    logits = merge_model(graph, params)(jnp.asarray(video, jnp.float32))
    p = 1 / (1 + jnp.exp(-logits))
    return -jnp.where(batch["label"], jnp.log(p), jnp.log(1 - p)).mean(), logits

  (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  first = several_labels[0]
  np.testing.assert_allclose(first["loss"], value, rtol=1e-5)
  np.testing.assert_allclose(first["mean_grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
  hits = batch["label"][np.arange(BATCH), logits.argmax(-1)]
  np.testing.assert_allclose(first["mean_top1"], hits.mean(), rtol=1e-6)


def test_several_labels_on_several_devices_and_in_parts(several_labels):
  parts, _, _ = run(4, 2, model_options=PLAIN, multi_label=True, grad_accum_steps=2)
  for actual, expected in zip(parts, several_labels):
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=2e-6)
    np.testing.assert_allclose(actual["mean_top1"], expected["mean_top1"], rtol=1e-6)


def test_targets():

  def make_targets(label, num_classes, **options):
    batch = {"video": jnp.zeros((len(label), 1, 1, 1, 3), jnp.uint8), "label": label}
    inputs = (batch, jax.random.key(0), Augmentation())
    return model_inputs(*inputs, num_classes=num_classes, **PIXELS, **options)[1]

  smooth = make_targets(jnp.array([2, 0]), 5, label_smoothing=0.1)
  np.testing.assert_allclose(
    smooth, [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]], rtol=1e-6
  )
  several = make_targets(jnp.array([[1, 0, 1], [0, 0, 0]], jnp.uint8), 3, multi_label=True)
  assert several.dtype == jnp.float32
  np.testing.assert_array_equal(several, [[1, 0, 1], [0, 0, 0]])


def test_top1_of_one_several_and_mixed_labels():
  logits = jnp.array([[3.0, 1, 0], [0, 2, 1], [1, 0, 5], [0, 1, 0], [0, 1, 0], [1, 0, 0]])
  targets = jnp.array([[1, 0, 0], [1, 0, 1], [0, 0, 0], [0.3, 0.7, 0], [0.7, 0.3, 0], [1, 0, 1]])
  # Right; neither of two; none to be right about; the larger share; the smaller; one of two.
  expected = [1, 0, 0, 1, 0, 1]
  for row, want in enumerate(expected):
    assert float(top1_accuracy(logits[row : row + 1], targets[row : row + 1])) == want
  assert float(top1_accuracy(logits, targets)) == pytest.approx(0.5)


def test_logged_means_are_reset_after_each_logged_step(single):
  history = single[0]
  losses = [metrics["loss"] for metrics in history]
  means = [losses[0], np.mean(losses[:2]), np.mean(losses[:3]), losses[3]]
  np.testing.assert_allclose([metrics["mean_loss"] for metrics in history], means, rtol=1e-6)


def test_ema_differs_from_the_parameters_and_does_not_change_them(single):
  _, state, _ = run(ema_decay=0.9)
  _, other, _ = run(ema_decay=0.5)
  chex.assert_trees_all_equal(state.params, other.params)
  chex.assert_trees_all_close(state.params, single[1].params, rtol=0, atol=1e-6)
  distance = optax.tree.norm(jax.tree.map(jnp.subtract, state.ema_params, state.params))
  assert float(distance) > 1e-4


def test_normalization_is_in_float32():
  video = jnp.asarray(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1).repeat(3, -1))
  expected = (np.arange(256).reshape(1, 1, 16, 16, 1) - np.array(PIXELS["mean"])) / PIXELS["std"]
  result = normalize(video, PIXELS["mean"], PIXELS["std"])
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("devices, multi_label", [(4, False), (4, True)])
def test_views_are_averaged_as_probabilities(devices, multi_label):
  graph, params = split_model(tiny_model())
  mesh = sharding.make_mesh(1, jax.devices()[:devices])
  video = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 32, 32, 3), dtype=np.uint8)
  step = make_eval_step(graph, **PIXELS, multi_label=multi_label)
  step = jax.jit(step, out_shardings=sharding.replicated(mesh))
  position_ids = np.tile(np.arange(8, dtype=np.int32), (4, 3, 1))
  batch = {"video": video, "position_ids": position_ids, "label": np.arange(4, dtype=np.int32)}
  result = step(params, sharding.put_batch(batch, sharding.batch_sharding(mesh)))
  assert result["label"].sharding.is_fully_replicated
  activation = jax.nn.sigmoid if multi_label else jax.nn.softmax
  model = merge_model(graph, params)
  probabilities = jax.jit(lambda video: activation(model(normalize(video, **PIXELS))))
  views = [probabilities(video[:, view]) for view in range(3)]
  np.testing.assert_allclose(result["probabilities"], np.mean(views, axis=0), atol=1e-6)


def vtn_and_batch():
  """A VTN that depends on positions, and clips with different positions."""
  model = create_model(
    "vtn_vit_b",
    num_classes=CLASSES,
    backbone=lambda images: images.mean((1, 2)).repeat(8, axis=1),
    width=24,
    num_heads=2,
    intermediate_size=16,
    dropout_rate=0.0,
    attention_dropout_rate=0.0,
    head_dropout_rate=0.0,
    init_std=0.3,
    embedding_std=1.0,
  )
  batch = next(batches(1))
  batch["position_ids"] = np.random.default_rng(1).integers(0, 99, (BATCH, 8), dtype=np.int32)
  return model, batch


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_position_ids_reach_the_model_in_training(grad_accum_steps):
  model, batch = vtn_and_batch()
  graph, params = split_model(model)
  optimizer = make_optimizer(params, lambda step: 1e-3, OptimizerOptions())
  step = make_train_step(
    graph, optimizer, lambda step: 1e-3, seed=0, grad_accum_steps=grad_accum_steps, **PIXELS
  )
  state = create_state(params, optimizer, with_ema=False)
  _, metrics = jax.jit(step)(state, batch)

  @jax.jit
  def loss(position_ids):
    logits = model(normalize(batch["video"], **PIXELS), position_ids)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

  np.testing.assert_allclose(metrics["loss"], loss(batch["position_ids"]), rtol=1e-5)
  assert abs(float(metrics["loss"] - loss(None))) > 1e-3


def test_position_ids_reach_the_model_in_evaluation():
  model, batch = vtn_and_batch()
  graph, params = split_model(model)
  views = {name: batch[name].reshape(4, 2, *batch[name].shape[1:]) for name in batch}
  step = jax.jit(make_eval_step(graph, **PIXELS))
  result = step(params, views)["probabilities"]
  logits = jax.jit(model)(normalize(batch["video"], **PIXELS), batch["position_ids"])
  expected = jax.nn.softmax(logits).reshape(4, 2, -1).mean(1)
  np.testing.assert_allclose(result, expected, atol=1e-6)
