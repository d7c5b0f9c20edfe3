"""Models of this library as subjects of the benchmark, and the limits of the machine in JAX."""

import contextlib
import dataclasses
import os
import pathlib
import platform
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.models.cases import (
  BLOCK,
  PROTOCOLS,
  TEMPORAL_ENCODER,
  TRAINING,
  Case,
  has_window_attention,
)
from benchmarks.models.cost import model_macs
from benchmarks.models.measure import Subject, timed_calls
from benchmarks.traffic import array_bytes, traffic
from vswin_jax import create_model
from vswin_jax.aot.hlo import read_operations
from vswin_jax.models import model_config
from vswin_jax.models.longformer import TemporalEncoder
from vswin_jax.models.parameters import (
  batch_statistics,
  flatten,
  merge_model,
  split_model,
  unflatten,
)
from vswin_jax.models.video_swin import Block, VideoSwinConfig
from vswin_jax.training.optimizer import OptimizerOptions, make_optimizer
from vswin_jax.training.step import create_state, make_train_step

# Frames of a video that VTN's backbone computes at a time, as in its recipe.
_FRAMES_PER_CHUNK = 16
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def make_module(model: str, variant: str, precision: str, frames: int):
  """Returns the module of a case, whose parameters are shapes only."""

  def make():
    if model == TEMPORAL_ENCODER:
      return TemporalEncoder(model_config("vtn_vit_b", dtype=precision), rngs=nnx.Rngs(0))
    if model == BLOCK:
      config = VideoSwinConfig(dtype=precision, attention=variant)
      return Block(config.embed_dim, config.num_heads[0], 0.0, True, config, rngs=nnx.Rngs(0))
    if has_window_attention(model):
      return create_model(model, dtype=precision, attention=variant)
    chunk = _FRAMES_PER_CHUNK if frames > 4 * _FRAMES_PER_CHUNK else 0
    return create_model(model, dtype=precision, attention=variant, frames_per_chunk=chunk)

  return nnx.eval_shape(make)


def make_inputs(case: Case) -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns the shapes of the arguments of the module of a case."""
  batch, frames, size = case.batch, case.frames, case.size
  if case.model == TEMPORAL_ENCODER:
    width = model_config("vtn_vit_b").width
    shapes = ((batch, frames, width), "float32"), ((batch, frames), "int32")
  elif case.model == BLOCK:
    config = VideoSwinConfig()
    pixels = frames, size, size
    time, height, width = (-(-n // step) for n, step in zip(pixels, config.patch_size))
    shapes = (((batch, height, width, time, config.embed_dim), case.precision),)
  else:
    shapes = (((batch, frames, size, size, 3), "float32"),)
  return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)


def fill(shape: jax.ShapeDtypeStruct, seed: int, scale: float = 1.0) -> jax.Array:
  """Returns normally distributed numbers, or 0, 1, 2, ... along the last axis for integers."""
  if jnp.issubdtype(shape.dtype, jnp.integer):
    return jnp.broadcast_to(jnp.arange(shape.shape[-1], dtype=shape.dtype), shape.shape)
  values = np.random.default_rng(seed).standard_normal(shape.shape, np.float32)
  return jnp.asarray(scale * values, shape.dtype)


def random_parameters(shapes: dict) -> dict:
  """Returns parameters that keep activations in the range of trained ones."""

  def draw(index: int, path: str, shape):
    if path.endswith(("scale", "var", "variance")):
      return jnp.ones(shape.shape, shape.dtype)
    return fill(shape, index, 0.02)

  leaves = flatten(shapes).items()
  return unflatten({path: draw(index, path, leaf) for index, (path, leaf) in enumerate(leaves)})


def forward_macs(case: Case) -> int:
  """Returns the multiply-accumulates of a forward pass, which implementations do not change."""
  case = dataclasses.replace(case, precision="float32")
  return model_macs(make_module(case.model, "xla", "float32", case.frames), *make_inputs(case))


def build(case: Case) -> Subject:
  """Compiles a case; parameters and inputs are random."""
  model = make_module(case.model, case.variant, case.precision, case.frames)
  graph, shapes = split_model(model)
  params = random_parameters(shapes)

  def forward(params, *inputs):
    return merge_model(graph, params)(*inputs)

  def loss(params, *inputs):
    return jnp.sum(forward(params, *inputs).astype(jnp.float32) ** 2)

  if case.mode == TRAINING and case.model != BLOCK:
    program, run = _training_step(case, model, params)
  else:
    function = jax.grad(loss, (0, 1)) if case.mode == TRAINING else forward
    inputs = [fill(shape, index) for index, shape in enumerate(make_inputs(case))]
    program = jax.jit(function).lower(params, *inputs).compile()

    def run():
      return jax.block_until_ready(program(params, *inputs))

  statistics = jax.devices()[0].memory_stats()
  return Subject(
    run,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
    macs=forward_macs(case),
    bytes_moved=sum(map(bytes_moved, read_operations(program.as_text()))),
    device_memory=_peak_device_memory if statistics else None,
  )


def bytes_moved(operation) -> int:
  """Returns `traffic` of an operation, with one slice of arrays that a loop goes through.

  Their first axis is as long as the loop.
  """
  total = traffic(operation)
  if operation.count > 1 and total:
    stacked = re.compile(rf"\w+\[{operation.count},[\d,]*\](?:{{[^}}]*}})?")
    for one in (operation.result, *operation.operands):
      whole = sum(sum(array_bytes(array)) for array in stacked.findall(one))
      total -= whole * (operation.count - 1)
  return total


def _peak_device_memory() -> int:
  return jax.devices()[0].memory_stats()["peak_bytes_in_use"]


def _training_step(case: Case, model: nnx.Module, params: dict):
  """Returns the compiled training step, and a function that runs it on the latest state."""
  graph, shapes = split_model(model)

  def schedule(step):
    return 1e-4 + 0.0 * step

  optimizer = make_optimizer(shapes, schedule, OptimizerOptions(), batch_statistics(model))
  step = make_train_step(graph, optimizer, schedule, seed=0, mean=_MEAN, std=_STD)
  video = np.random.default_rng(0).integers(
    0, 256, (case.batch, case.frames, case.size, case.size, 3), np.uint8
  )
  batch = {
    "video": jnp.asarray(video),
    "position_ids": jnp.broadcast_to(jnp.arange(case.frames), (case.batch, case.frames)),
    "label": jnp.zeros(case.batch, jnp.int32),
    "failed": jnp.full(case.batch, -1, jnp.int32),
  }
  state = create_state(params, optimizer, with_ema=False)
  program = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

  def run():
    nonlocal state
    state, metrics = program(state, batch)
    jax.block_until_ready((state, metrics))

  return program, run


def build_decoding(case: Case) -> Subject:
  """Builds the decoding of a video's views: 10 s, 340 x 256 pixels, 30 frames/s, generated."""
  from benchmarks.input_pipeline import FPS, SECONDS, encode, render
  from vswin_jax.data.clips import ClipSpec, Views, eval_clips

  (protocol,) = (
    one
    for one in PROTOCOLS
    if (one.model, one.frames, one.size) == (case.model, case.frames, case.size)
  )
  is_whole = protocol.views == 1
  spec = ClipSpec(num_frames=case.frames, size=case.size, frame_rate=25.0 if is_whole else 0.0)
  views = Views(
    num_clips=protocol.clips,
    crops="center" if protocol.crops == 1 else "three",
    short_side=case.size,
    whole_frames=case.frames if is_whole else 0,
  )
  record = {"video": encode(render(0)), "num_frames": SECONDS * FPS}
  record |= {"fps_numerator": FPS, "fps_denominator": 1}
  random = np.random.default_rng(0)
  return Subject(lambda: eval_clips(record, spec, views, random), parameters=0)


def measure_limits() -> dict:
  """Returns the rates of matrix products and of memory of one device, and what it is."""
  device = jax.devices()[0]
  size = 3072 if device.platform == "cpu" else 8192
  rates = {}
  for precision in ("float32", "bfloat16"):
    x = jnp.ones((size, size), precision)
    product = jax.jit(jnp.matmul).lower(x, x).compile()

    def multiply(product=product, x=x):
      product(x, x).block_until_ready()

    rates[precision] = 2 * size**3 / min(timed_calls(multiply, 2.0))
  y = jnp.ones(2**26 if device.platform == "cpu" else 2**29, jnp.float32)
  increment = jax.jit(lambda y: y + 1, donate_argnums=0)

  def copy():
    nonlocal y
    y = increment(y).block_until_ready()

  rates["bytes"] = 2 * y.nbytes / min(timed_calls(copy, 2.0))
  return {
    "rates": rates,
    "platform": "gpu" if device.platform in ("cuda", "rocm") else device.platform,
    "device": device.device_kind,
    "processor": _processor(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    "software": f"jax {jax.__version__}",
  }


def _processor() -> str:
  """Returns the name of the processor."""
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
      if line.startswith("model name"):
        return line.partition(":")[2].strip()
  return platform.processor() or platform.machine()
