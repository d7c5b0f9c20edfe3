"""Optimizers from optax, with multipliers per parameter group."""

import dataclasses
import re
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import optax

from vswin_jax.models.parameters import flatten, unflatten

Rules = Sequence[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
  """Options of the optimizer.

  Attributes:
    name: "adamw" (weight decay does not enter the moments) or "sgd" with Nesterov momentum (weight
      decay is added to the gradient).
    weight_decay: weight decay; in both cases multiplied by the learning rate.
    beta1, beta2, epsilon: of "adamw".
    momentum: of "sgd".
    clip_norm: maximum norm of the gradient over all parameters; 0: no clipping.
    learning_rate_multipliers: rules (regular expression, factor); the first one that matches the
      whole path of a parameter applies.
    weight_decay_multipliers: rules, as for the learning rate.
  """

  name: str = "adamw"
  weight_decay: float = 0.05
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  momentum: float = 0.9
  clip_norm: float = 0.0
  learning_rate_multipliers: Rules = ((r".*", 1.0),)
  weight_decay_multipliers: Rules = ((r".*", 1.0),)


def group_values(params, rules: Rules, what: str) -> dict:
  """Returns the value of each parameter: that of the first rule that matches its whole path.

  Args:
    params: nested dicts of parameters.
    rules: (regular expression, value), such as `(r".*norm.*", 0.0)`.
    what: name of the value, for messages.

  Returns:
    Nested dicts of floats, like `params`.

  Raises:
    ValueError: a parameter without a rule, or a rule that matches nothing.
  """
  paths = list(flatten(params))
  try:
    rules = [(re.compile(expression), value) for expression, value in rules]
  except re.error as error:
    raise ValueError(
      f"the {what} rule {error.pattern!r} is not a regular expression: {error}"
    ) from error
  for expression, _ in rules:
    if not any(map(expression.fullmatch, paths)):
      raise ValueError(
        f"the {what} rule {expression.pattern!r} matches no parameter; parameters are named like "
        f"{paths[0]!r}"
      )
  values = {}
  for path in paths:
    matching = [value for expression, value in rules if expression.fullmatch(path)]
    if not matching:
      raise ValueError(
        f"no {what} rule matches the parameter {path!r}; end the rules with ('.*', 1.0)"
      )
    values[path] = float(matching[0])
  return unflatten(values)


def make_optimizer(
  params,
  schedule: Callable[[jax.Array], jax.Array],
  options: OptimizerOptions,
  frozen: Collection[str] = (),
) -> optax.GradientTransformation:
  """Builds an optimizer with the same updates as PyTorch.

  Args:
    params: the parameters, or their shapes; only names are used.
    schedule: learning rate by step.
    frozen: dotted paths of parameters that are not updated, such as `batch_statistics` of a model.

  Raises:
    ValueError: unknown name, or rules that do not fit the parameters.
  """
  multipliers = group_values(params, options.learning_rate_multipliers, "learning rate")
  multipliers = unflatten(flatten(multipliers) | dict.fromkeys(frozen, 0.0))
  decays = group_values(params, options.weight_decay_multipliers, "weight decay")

  def decay(updates, params):
    weight_decay = options.weight_decay
    return jax.tree.map(lambda u, p, m: u + weight_decay * m * p, updates, params, decays)

  def multiply(updates, _):
    return jax.tree.map(lambda u, m: u * m, updates, multipliers)

  if options.name == "adamw":
    adam = optax.scale_by_adam(options.beta1, options.beta2, options.epsilon)
    rule = [adam, optax.stateless(decay)]
  elif options.name == "sgd":
    rule = [optax.stateless(decay), optax.trace(options.momentum, nesterov=True)]
  else:
    raise ValueError(f"unknown optimizer {options.name!r}; choose adamw or sgd")
  clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
  return optax.chain(
    *clip, *rule, optax.stateless(multiply), optax.scale_by_learning_rate(schedule)
  )


def global_norm(tree) -> jax.Array:
  """Returns the Euclidean norm of all arrays of a tree together: float32."""
  return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))


def update_ema(ema_params, params, decay: float, step: jax.Array):
  """Returns the exponential moving average of parameters after update number `step` (from 1).

  The decay starts small, so that the random initial parameters fade at once.
  """
  decay = jnp.minimum(decay, step / (step + 10.0))
  return jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), ema_params, params)
