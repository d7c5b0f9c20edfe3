"""Multiply-accumulates of a computation, counted in its program."""

import math
from collections.abc import Callable

import jax


def count_macs(function: Callable, *arguments) -> int:
  """Multiply-accumulates of all matrix products and convolutions that the result of a call needs,
  loops included. Of convolutions every place of the kernel counts, in the padding as well.

  Nothing is computed: arguments may be `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: a loop whose length depends on values.
  """
  return count_program_macs(jax.make_jaxpr(function)(*arguments))


def count_program_macs(program) -> int:
  """The same of a traced program, as `jax.make_jaxpr` or `jax.jit(...).trace(...)` gives it.

  What each device of a mesh does by itself (`jax.shard_map`) counts for all of them.

  Raises:
    ValueError: as `count_macs`.
  """
  # By identity: constants among the operands can't be hashed.
  needed, macs = set(map(id, program.outvars)), 0
  for equation in reversed(program.eqns):
    if needed.intersection(map(id, equation.outvars)):
      needed.update(map(id, equation.invars))
      macs += _count_equation(equation)
  return macs


def _count_equation(equation) -> int:
  kind, params = equation.primitive.name, equation.params
  if kind == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
  if kind == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    # The gradient of a strided convolution: most of what the kernel meets are zeros put between.
    spread = outputs * math.prod(params["lhs_dilation"])
    return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // spread
  inner = sum(count_program_macs(part) for part in _programs(params))
  if kind == "while" and inner:
    raise ValueError("a loop whose length depends on values can't be counted")
  if kind == "cond":
    return max(count_program_macs(branch) for branch in params["branches"])
  if kind == "shard_map":
    return inner * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  return inner * (params["length"] if kind == "scan" else 1)


def _programs(params: dict):
  """The programs among the parameters of an operation."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if hasattr(part, "eqns"):
        yield part
