"""Multiply-accumulates of a computation, counted in its program."""

import math
from collections.abc import Callable

import jax


def count_macs(function: Callable, *arguments) -> int:
  """Multiply-accumulates of all matrix products and convolutions of a call, loops included.

  Nothing is computed: arguments may be `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: a loop whose length depends on values.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
  return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
  kind, params = equation.primitive.name, equation.params
  if kind == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
  if kind == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
  inner = sum(_count(getattr(part, "jaxpr", part)) for part in _programs(params))
  if kind == "while" and inner:
    raise ValueError("a loop whose length depends on values can't be counted")
  if kind == "cond":
    return max(_count(branch.jaxpr) for branch in params["branches"])
  return inner * (params["length"] if kind == "scan" else 1)


def _programs(params: dict):
  """The programs among the parameters of an operation."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
        yield part
