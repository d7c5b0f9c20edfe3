"""Optimizers from optax, with multipliers per parameter group."""

import re
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import optax

from vswin_jax.models.parameters import parameter_path

Rules = Sequence[tuple[str, float]]


def group_values(params, rules: Rules, what: str):
  """Returns the value of each parameter: that of the first rule that matches its whole path.

  Args:
    params: nested dicts of parameters.
    rules: (regular expression, value), such as `(r".*norm.*", 0.0)`.
    what: name of the value, for messages.

  Returns:
    A tree of floats with the structure of `params`.

  Raises:
    ValueError: a parameter without a rule, or a rule that matches nothing.
  """
  paths = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for expression, _ in rules:
    try:
      re.compile(expression)
    except re.error as error:
      raise ValueError(
        f"the {what} rule {expression!r} is not a regular expression: {error}"
      ) from error
    if not any(re.fullmatch(expression, path) for path in paths):
      raise ValueError(
        f"the {what} rule {expression!r} matches no parameter; parameters are named like "
        f"{paths[0]!r}"
      )

  def value_of(path, _):
    name = parameter_path(path)
    for expression, value in rules:
      if re.fullmatch(expression, name):
        return float(value)
    raise ValueError(
      f"no {what} rule matches the parameter {name!r}; end the rules with ('.*', 1.0)"
    )

  return jax.tree_util.tree_map_with_path(value_of, params)


def make_optimizer(
  params,
  schedule: Callable[[jax.Array], jax.Array],
  *,
  frozen: Collection[str] = (),
  name: str = "adamw",
  weight_decay: float = 0.05,
  beta1: float = 0.9,
  beta2: float = 0.999,
  epsilon: float = 1e-8,
  momentum: float = 0.9,
  clip_norm: float = 0.0,
  learning_rate_multipliers: Rules = ((".*", 1.0),),
  weight_decay_multipliers: Rules = ((".*", 1.0),),
) -> optax.GradientTransformation:
  """Builds AdamW or SGD with Nesterov momentum, with the same updates as PyTorch.

  Args:
    params: the parameters, or their shapes; only names are used.
    schedule: learning rate by step.
    frozen: dotted paths of parameters that are not updated, such as `batch_statistics` of a model.
    name: "adamw" (weight decay does not enter the moments) or "sgd" (it is added to the gradient).
    weight_decay: weight decay; in both cases multiplied by the learning rate.
    clip_norm: maximum norm of the gradient over all parameters; 0: no clipping.
    learning_rate_multipliers: see `group_values`.
    weight_decay_multipliers: see `group_values`.

  Raises:
    ValueError: unknown name, or rules that do not fit the parameters.
  """
  multipliers = jax.tree_util.tree_map_with_path(
    lambda path, multiplier: 0.0 if parameter_path(path) in frozen else multiplier,
    group_values(params, learning_rate_multipliers, "learning rate"),
  )
  decays = group_values(params, weight_decay_multipliers, "weight decay")

  def decay(updates, params):
    return jax.tree.map(lambda u, p, m: u + weight_decay * m * p, updates, params, decays)

  def multiply(updates, _):
    return jax.tree.map(lambda u, m: u * m, updates, multipliers)

  if name == "adamw":
    rule = [optax.scale_by_adam(beta1, beta2, epsilon), optax.stateless(decay)]
  elif name == "sgd":
    rule = [optax.stateless(decay), optax.trace(momentum, nesterov=True)]
  else:
    raise ValueError(f"unknown optimizer {name!r}; choose adamw or sgd")
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  return optax.chain(
    *clip, *rule, optax.stateless(multiply), optax.scale_by_learning_rate(schedule)
  )


def update_ema(ema_params, params, decay: float, step: jax.Array):
  """Returns the exponential moving average of parameters after update number `step` (from 1).

  The decay starts small, so that the random initial parameters fade at once.
  """
  decay = jnp.minimum(decay, step / (step + 10.0))
  return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), ema_params, params)
