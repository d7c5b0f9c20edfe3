"""The training step of a plan, compiled for devices that are not at hand."""

import dataclasses
import re
import time

import jax
import jax.numpy as jnp

from vswin_jax.common.checks import check_choices
from vswin_jax.experiment.plan import Plan
from vswin_jax.models.cost import count_program_macs
from vswin_jax.training import sharding

# Of the TPU's compiler: several times faster, with slightly more memory and other traffic.
_QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
EFFORTS = ("quick", "full")


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What a compiler says of a step; all of one device.

  Attributes:
    effort: one of `EFFORTS`.
    seconds: that lowering and compiling took.
    memory: bytes at the peak; None: more than a device has, or there is an error.
    needed: bytes where that is more than a device has, if the compiler says so.
    arguments: bytes of the state and the batch, part of `memory`.
    flops: operations; None if the compiler counts none.
    bytes_accessed: read and written in the device's memory; None likewise.
    product_flops: see `product_flops`.
    text: the compiled program in HLO.
    error: why the step did not compile, if not for want of memory.
  """

  effort: str
  seconds: float
  memory: int | None = None
  needed: int | None = None
  arguments: int | None = None
  flops: float | None = None
  bytes_accessed: float | None = None
  product_flops: float | None = None
  text: str = ""
  error: str = ""


def batch_shapes(plan: Plan) -> dict[str, jax.ShapeDtypeStruct]:
  """A training batch as `training.step` takes it: shapes, dtypes and shardings."""
  settings = plan.settings
  size, clip = settings.train.batch_size, settings.clip
  labels = (size, plan.model_options["num_classes"]) if plan.multi_label else (size,)
  shapes = {
    "video": ((size, clip.num_frames, clip.size, clip.size, 3), jnp.uint8),
    "position_ids": ((size, clip.num_frames), jnp.int32),
    "label": (labels, jnp.int32),
    "failed": ((size,), jnp.int32),
  }
  place = sharding.batch_sharding(plan.mesh)
  return {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    for name, (shape, dtype) in shapes.items()
  }


def trace_step(plan: Plan) -> jax.stages.Traced:
  """The training step before compilation, the very one that training runs."""
  return plan.jitted_train_step().trace(plan.state_shapes(), batch_shapes(plan))


def product_flops(traced: jax.stages.Traced, num_devices: int) -> float | None:
  """Operations of one device for the matrix products and convolutions of a step whose batch the
  devices share, loops and what is computed twice to save memory included; None: a loop's length
  depends on values."""
  try:
    return 2 * count_program_macs(traced.jaxpr) / num_devices
  except ValueError:
    return None


def compile_step(plan: Plan, effort: str = "quick") -> Compiled:
  """Compiles the training step for the devices of the plan's mesh.

  Args:
    effort: one of `EFFORTS`; only the compiler of TPUs tells them apart.
  """
  check_choices(EFFORTS, effort=effort)
  start = time.monotonic()
  traced, mesh = trace_step(plan), plan.mesh
  flops = product_flops(traced, mesh.size)
  on_tpu = mesh.devices.flat[0].platform == "tpu"
  try:
    compiled = traced.lower().compile(_QUICK if effort == "quick" and on_tpu else None)
  except jax.errors.JaxRuntimeError as error:
    seconds, message = time.monotonic() - start, str(error)
    why = "" if lacks_memory(message) else " ".join(message.split())[:200]
    needed = None if why else needed_memory(message)
    return Compiled(effort, seconds, needed=needed, product_flops=flops, error=why)
  costs = compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  return Compiled(
    effort,
    time.monotonic() - start,
    memory=_peak(memory),
    arguments=memory.argument_size_in_bytes,
    flops=costs.get("flops"),
    bytes_accessed=costs.get("bytes accessed"),
    product_flops=flops,
    text=compiled.as_text(),
  )


def lacks_memory(message: str) -> bool:
  """Whether a compiler fails because a device has too little memory. The small memories of its
  cores can be too small as well, for a program of any number of clips."""
  if "RESOURCE_EXHAUSTED" not in message:
    return False
  space = re.search(r"in memory space (\w+)", message)
  if space:
    return space[1].lower() == "hbm"
  return bool(re.search(r"memory on HBM|available HBM|out of memory", message, re.IGNORECASE))


def needed_memory(message: str) -> int | None:
  """The bytes of which a compiler says that there are not as many; None if it does not say."""
  needed = re.search(r"used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message, re.IGNORECASE)
  needed = needed or re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
  units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return int(float(needed[1]) * units[needed[2]]) if needed else None


def _peak(memory) -> int:
  own = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )
  # Some versions do not say what the peak is.
  return getattr(memory, "peak_memory_in_bytes", 0) or own
