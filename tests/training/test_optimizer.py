"""Schedules and optimizers against their definitions, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vswin_jax.models.parameters import batch_statistics, split_model
from vswin_jax.models.resnet import FrozenBatchNorm, ResNetConfig
from vswin_jax.training.optimizer import (
  OptimizerOptions,
  global_norm,
  group_values,
  make_optimizer,
  update_ema,
)
from vswin_jax.training.schedules import ScheduleOptions, make_schedule


def test_cosine_falls_smoothly_to_zero_after_a_linear_warm_up():
  options = ScheduleOptions("cosine", learning_rate=2.0, warmup_epochs=1, warmup_start=0.0)
  schedule = make_schedule(options, num_steps=110, steps_per_epoch=10)
  rates = [float(schedule(step)) for step in range(111)]
  assert rates[0] == 0.0
  np.testing.assert_allclose(rates[5], 1.0, rtol=1e-6)
  np.testing.assert_allclose(rates[10], 2.0, rtol=1e-6)
  np.testing.assert_allclose(rates[60], 1.0, rtol=1e-6)
  np.testing.assert_allclose(rates[110], 0.0, atol=1e-6)


def test_epoch_cosine_is_the_staircase_of_the_reference():
  epochs, per_epoch, warmup = 30, 8, 2.5
  options = ScheduleOptions(
    "cosine_epochs", learning_rate=1e-3, warmup_epochs=warmup, warmup_start=0.1
  )
  schedule = make_schedule(options, num_steps=epochs * per_epoch, steps_per_epoch=per_epoch)
  for step in range(epochs * per_epoch):
    regular = 1e-3 * 0.5 * (1 + np.cos(np.pi * (step // per_epoch) / epochs))
    ramp = min(0.1 + 0.9 * step / (warmup * per_epoch), 1.0)
    np.testing.assert_allclose(float(schedule(step)), regular * ramp, rtol=1e-5)
  np.testing.assert_allclose(float(schedule(epochs * per_epoch - 1)), 0.00274e-3, rtol=2e-3)


def test_steps_decay_at_their_epochs():
  options = ScheduleOptions("steps", learning_rate=1.0, warmup_epochs=0, decay_epochs=(3, 6))
  schedule = make_schedule(options, num_steps=100, steps_per_epoch=10)
  np.testing.assert_allclose(
    [float(schedule(step)) for step in (0, 29, 30, 59, 60, 99)],
    [1, 1, 0.1, 0.1, 0.01, 0.01],
    rtol=1e-6,
  )


def test_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match="unknown schedule 'cos'"):
    ScheduleOptions("cos")


PARAMS = {
  "norm": {"scale": np.linspace(0.5, 1.5, 4), "bias": np.linspace(-1, 1, 4)},
  "head": {"kernel": np.linspace(-2, 2, 6).reshape(2, 3)},
}
RATES = ((r"head\..*", 1.0), (r".*", 0.1))
DECAYS = ((r".*\.bias", 0.0), (r".*", 1.0))


def gradients(count):
  random = np.random.default_rng(0)
  return [jax.tree.map(lambda p: random.normal(size=p.shape), PARAMS) for _ in range(count)]


def run(name, count=12, **options):
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  options = OptimizerOptions(
    name,
    weight_decay=0.2,
    learning_rate_multipliers=RATES,
    weight_decay_multipliers=DECAYS,
    **options,
  )
  optimizer = make_optimizer(params, lambda step: 0.1 / (1.0 + step), options)
  state = optimizer.init(params)
  for gradient in gradients(count):
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


def groups(path):
  return (1.0 if path.startswith("head") else 0.1), (0.0 if path.endswith("bias") else 1.0)


@pytest.mark.parametrize("path", ["norm.scale", "norm.bias", "head.kernel"])
def test_adamw_equals_its_definition(path):
  outer, inner = path.split(".")
  p, m, v = PARAMS[outer][inner], 0.0, 0.0
  rate_multiplier, decay_multiplier = groups(path)
  for t, gradient in enumerate(gradients(12), start=1):
    g, rate = gradient[outer][inner], 0.1 / t * rate_multiplier
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    p = p - rate * 0.2 * decay_multiplier * p
    p = p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
  np.testing.assert_allclose(run("adamw", beta2=0.99)[outer][inner], p, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["norm.scale", "norm.bias", "head.kernel"])
def test_sgd_with_nesterov_equals_its_definition(path):
  outer, inner = path.split(".")
  p, buffer = PARAMS[outer][inner], 0.0
  rate_multiplier, decay_multiplier = groups(path)
  for t, gradient in enumerate(gradients(12), start=1):
    g = gradient[outer][inner] + 0.2 * decay_multiplier * p
    buffer = 0.9 * buffer + g
    p = p - 0.1 / t * rate_multiplier * (g + 0.9 * buffer)
  np.testing.assert_allclose(run("sgd")[outer][inner], p, rtol=2e-5, atol=1e-6)


def test_clipping_bounds_the_whole_gradient():
  params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
  options = OptimizerOptions("sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.5)
  optimizer = make_optimizer(params, lambda step: 1.0, options)
  gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
  updates, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.3, 0.0], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [-0.4], rtol=1e-6)


def test_first_matching_rule_counts_and_every_parameter_needs_one():
  assert group_values(PARAMS, RATES, "learning rate") == {
    "norm": {"scale": 0.1, "bias": 0.1},
    "head": {"kernel": 1.0},
  }
  with pytest.raises(ValueError, match=r"no learning rate rule matches the parameter 'norm.bias'"):
    group_values(PARAMS, [(r"head\..*", 1.0)], "learning rate")
  with pytest.raises(ValueError, match=r"weight decay rule 'heads.*' matches no parameter"):
    group_values(PARAMS, [(r"heads.*", 1.0), (".*", 0.0)], "weight decay")
  with pytest.raises(ValueError, match="unknown optimizer 'adam'"):
    make_optimizer(PARAMS, lambda step: 1.0, OptimizerOptions("adam"))


def test_ema_forgets_its_start_and_then_decays_evenly():
  ema_params, params = {"a": jnp.array(5.0)}, {"a": jnp.array(1.0)}
  early = update_ema(ema_params, params, 0.99, jnp.array(1))
  np.testing.assert_allclose(early["a"], 5 * (1 / 11) + 1 * (10 / 11), rtol=1e-6)
  late = update_ema(ema_params, params, 0.99, jnp.array(10_000))
  np.testing.assert_allclose(late["a"], 5 * 0.99 + 1 * 0.01, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_statistics_of_batch_normalization_are_not_updated(name):
  model = FrozenBatchNorm(3, ResNetConfig())
  frozen = batch_statistics(model)
  assert frozen == {"running_mean", "running_variance"}
  _, params = split_model(model)
  assert params.keys() == {"scale", "bias"} | frozen
  options = OptimizerOptions(name, weight_decay=0.5)
  optimizer = make_optimizer(params, lambda step: 0.1, options, frozen)
  gradients = jax.tree.map(jnp.ones_like, params)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  for path in frozen:
    np.testing.assert_array_equal(updates[path], 0.0)
  assert (updates["scale"] < -0.05).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_global_norm(dtype):
  random = np.random.default_rng(0)
  tree = {"a": random.normal(size=(3, 4, 5)), "b": {"c": random.normal(size=7), "d": 300.0}}
  tree = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
  values = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
  norm = jax.jit(global_norm)(tree)
  assert norm.dtype == jnp.float32
  np.testing.assert_allclose(norm, np.linalg.norm(values.astype(np.float64)), rtol=1e-6)
