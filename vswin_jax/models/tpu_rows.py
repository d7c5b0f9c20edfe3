"""Common parts of the TPU kernels over rows of tokens: steps, calls, LayerNorm."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vswin_jax.attention.tpu_core import LANES, SUBLANES, cores, memory_limit
from vswin_jax.attention.windows import WindowLayout

_MOST_ROWS = 512
_MOST_COLUMNS = 512
# Bytes of biases, scales and their gradients.
_SMALL_ARRAYS = 2**19


@dataclasses.dataclass(frozen=True)
class Options:
  """Static options of the kernels.

  Attributes:
    epsilon: of LayerNorm.
    layout: partition into windows, whose padding is 0 after the first LayerNorm.
    step: rows that a kernel visits at a time.
    parts: calls that the hidden channels are divided among.
    dropout_rate: after linear layers.
    interpret: whether to interpret the kernels, for tests on a CPU.
  """

  epsilon: float
  layout: WindowLayout
  step: int
  parts: int = 1
  dropout_rate: float = 0.0
  interpret: bool = False

  @property
  def rows(self) -> int:
    """Rows of an example."""
    return self.layout.windows * self.layout.tokens


def largest_step(rows: int, fixed: int, per_row: int) -> int | None:
  """Returns the largest divisor of a number of rows that fits; None: none of a useful size does.

  Args:
    rows: rows of an example.
    fixed: bytes of memory that a kernel needs for parameters and their gradients.
    per_row: bytes that it needs for each row of a step.
  """
  most = min(_MOST_ROWS, (memory_limit() - fixed - _SMALL_ARRAYS) // per_row)
  step = max((size for size in range(SUBLANES, most + 1, SUBLANES) if rows % size == 0), default=0)
  # The matrix unit would wait for weights if there were far fewer rows than it has.
  return step if step >= min(rows, 3 * LANES // 4) else None


def chunk(outputs: int, inputs: int) -> int:
  """Returns how many output channels of a linear layer are computed at a time."""
  most = _MOST_COLUMNS if inputs <= _MOST_COLUMNS else _MOST_COLUMNS // 2
  sizes = [size for size in range(LANES, most + 1, LANES) if outputs % size == 0]
  return max(sizes, default=outputs)


def call_kernel(
  kernel,
  options: Options,
  rows,
  parameters,
  outputs,
  *,
  sums=(),
  scalars=(),
  flops: int,
) -> list[jax.Array]:
  """Calls a kernel for all rows, a few at a time.

  The kernel gets the options, lists of references (`scalars`, `rows`, `parameters`, `outputs`,
  `sums`), and scratch memory for float32 rows.

  Args:
    rows: arrays `[rows, channels]` or `[3, rows, channels]`.
    parameters: float32 arrays that every call sees whole, kernels in the dtype of the rows.
    outputs: shapes of the results per row.
    sums: arrays of the shapes of float32 results that are summed over all rows.
    scalars: arrays in scalar memory.
  """
  total, channels = rows[0].shape
  # Cores of a chip share the steps, and sum by themselves.
  splits = cores() if total // options.step % cores() == 0 else 1
  steps = total // options.step // splits
  parameters = [x if len(x) == 1 else x.astype(rows[0].dtype) for x in parameters]
  counts = [len(scalars), len(rows), len(parameters), len(outputs), len(sums)]

  def body(*refs):
    refs = list(refs)
    groups = [[refs.pop(0) for _ in range(count)] for count in counts]

    @pl.when(pl.program_id(1) == 0)
    def _():
      for ref in groups[-1]:
        ref[...] = jnp.zeros_like(ref)

    kernel(options, *groups, *refs)

  def tile(x):
    leading = x.shape[:-2]

    def index(core, step, *_):
      return (*[0] * len(leading), core * steps + step, 0)

    return pl.BlockSpec((*leading, options.step, channels), index)

  # What stays the same needs one buffer.
  once = pl.Buffered(1)

  def whole(x):
    return pl.BlockSpec(x.shape, lambda *_: (0, 0), pipeline_mode=once)

  def summed(x):
    return pl.BlockSpec((None, *x.shape), lambda core, *_: (core, 0, 0), pipeline_mode=once)

  shapes = [
    *outputs, *[jax.ShapeDtypeStruct((splits, *x.shape), jnp.float32) for x in sums]
  ]  # fmt: skip
  arrays = [*rows, *parameters]
  results = pl.pallas_call(
    body,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(splits, steps),
      in_specs=[*map(tile, rows), *map(whole, parameters)],
      out_specs=[*map(tile, outputs), *map(summed, sums)],
      scratch_shapes=[pltpu.VMEM((options.step, channels), jnp.float32)],
    ),
    out_shape=shapes,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=memory_limit()
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=0,
      bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *shapes)),
    ),
    interpret=options.interpret,
    name=getattr(kernel, "func", kernel).__name__.strip("_"),
  )(*scalars, *arrays)
  return [*results[: len(outputs)], *[x.sum(0) for x in results[len(outputs) :]]]


def for_chunks(parts: int, outputs: int, inputs: int):
  """Decorates a function of some output channels of a linear layer, which is called for all.

  The channels are in several parts. The function takes the number of the part, the channels in it,
  and their place among those of all parts. The calls are a loop, which compiles faster.
  """
  size = chunk(outputs, inputs)
  chunks = outputs // size

  def decorate(function):
    def call(index):
      part, index_in_part = jax.lax.div(index, chunks), jax.lax.rem(index, chunks)
      first, first_of_all = (pl.multiple_of(x * size, size) for x in (index_in_part, index))
      function(part, pl.ds(first, size), pl.ds(first_of_all, size))

    if size % LANES:  # channels that begin inside a tile must be known to the compiler
      for part in range(parts):
        function(part, pl.ds(0, size), pl.ds(part * size, size))
    else:
      pl.loop(0, parts * chunks)(call)

  return decorate


def first_row(options: Options):
  """Returns the example that the rows of a step belong to, and the number of the first in it."""
  step = pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)
  steps = jnp.int32(options.rows // options.step)
  return jax.lax.div(step, steps), jax.lax.rem(step, steps) * options.step


def normalize(x, epsilon: float):
  """Returns rows of mean 0 and variance 1, and the inverse standard deviations."""
  x = x.astype(jnp.float32)
  x -= jnp.mean(x, axis=1, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + epsilon)
  return x * inverse, inverse


def normalize_gradient(gradient, normal, inverse):
  along = jnp.mean(gradient * normal, axis=1, keepdims=True)
  return inverse * (gradient - jnp.mean(gradient, axis=1, keepdims=True) - normal * along)


def column_sums(x):
  return jnp.sum(x.astype(jnp.float32), axis=0, keepdims=True)
