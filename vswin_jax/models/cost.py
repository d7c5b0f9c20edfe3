"""Number of multiply-accumulates of a computation, counted in its jaxpr."""

import math
from collections.abc import Callable

import jax


def count_macs(function: Callable, *arguments) -> int:
  """Returns the multiply-accumulates of all matrix products and convolutions that a result needs.

  Loops count with their length, and convolutions as if padding were computed. Nothing is computed;
  arguments may be `jax.ShapeDtypeStruct`s. Models are counted as XLA computes them on any platform:
  on CPUs they compute some sums as products.

  Raises:
    ValueError: a loop whose length depends on values.
  """
  device = jax.sharding.AbstractDevice("any", 1, "any")
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
    return count_program_macs(jax.make_jaxpr(function)(*arguments))


def count_program_macs(program) -> int:
  """Returns `count_macs` of a jaxpr, from `jax.make_jaxpr` or `jax.jit(...).trace(...)`.

  The body of a `jax.shard_map` counts once per device.

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
    # Gradients of strided convolutions dilate their input: the zeros in between do not count.
    spread = outputs * math.prod(params["lhs_dilation"])
    return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // spread
  if kind == "pallas_call":
    # The body is that of one step, on tiles with padding; the estimate is for the whole call.
    estimate = params["cost_estimate"]
    return int(estimate.flops) // 2 if estimate else 0
  inner = sum(count_program_macs(part) for part in _programs(params))
  if kind == "while" and inner:
    raise ValueError("can't count a loop whose length depends on values")
  if kind == "cond":
    return max(count_program_macs(branch) for branch in params["branches"])
  if kind == "shard_map":
    return inner * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  return inner * (params["length"] if kind == "scan" else 1)


def _programs(params: dict):
  """Yields the jaxprs among the parameters of an operation."""
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if hasattr(part, "eqns"):
        yield part
