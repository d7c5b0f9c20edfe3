"""Agreement of attention implementations: parts of a model computed with one and with another.

A part is small enough for seconds on an accelerator: two blocks of a stage, for one clip. Its
output and all gradients are compared with those of XLA in float32. In the dtype of the model, XLA
differs from them by rounding. An implementation agrees if it does not differ much more.
"""

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vswin_jax.attention import dense, window
from vswin_jax.common.messages import describe_error
from vswin_jax.models.parameters import flatten, merge_model, split_model
from vswin_jax.models.video_swin import Stage, VideoSwinConfig
from vswin_jax.models.vit import ViT, ViTConfig
from vswin_jax.models.vtn import CUSTOM_BACKBONE, VTNConfig

# An error may be this many times that of XLA, plus a float32 rounding error.
_ERROR_RATIO, _ROUNDING_ERROR = 3.0, 3e-5
# The second block shifts its windows.
_BLOCKS = 2
_REPEATS = 3
_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Part:
  """Part of a model.

  Attributes:
    name: such as "stage 1: 16x28x28 tokens, 256 channels".
    build: (implementation of attention, dtype) -> a module of the part with random parameters.
    shape: of its input.
    known: implementations of its attention.
    reference: the one of them to compare with.
    count: how many of this part have as many blocks as the model at this place.
  """

  name: str
  build: Callable[[str, str], nnx.Module]
  shape: tuple[int, ...]
  known: Collection[str]
  reference: str
  count: float


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Errors of an implementation for a part, relative to XLA in float32.

  An error is the Euclidean norm of the difference over that of the exact array.

  Attributes:
    part: what is computed.
    dtype: of the computation.
    implementation: of attention.
    output: error of the output.
    gradient: largest error among the gradients of the input and all parameters.
    gradient_name: name of that gradient.
    expected_output: error of XLA in `dtype`.
    expected_gradient: as `gradient`, of XLA in `dtype`.
    milliseconds: time of a forward and backward pass.
    expected_milliseconds: the same of XLA.
    failure: why the part can't be computed; empty if it can.
  """

  part: str
  dtype: str
  implementation: str
  output: float = math.nan
  gradient: float = math.nan
  gradient_name: str = ""
  expected_output: float = math.nan
  expected_gradient: float = math.nan
  milliseconds: float = math.nan
  expected_milliseconds: float = math.nan
  failure: str = ""

  @property
  def agrees(self) -> bool:
    """Whether the errors are those of rounding; False if one is not a number."""
    pairs = (self.output, self.expected_output), (self.gradient, self.expected_gradient)
    return all(error <= _ERROR_RATIO * expected + _ROUNDING_ERROR for error, expected in pairs)


def parts_of(config, frames: int, size: int) -> list[Part]:
  """Returns the parts of a model whose attention has several implementations.

  Args:
    config: configuration of the model, from `model_config`.
    frames: frames of a clip.
    size: height and width of a clip in pixels.
  """
  if isinstance(config, VTNConfig):
    if config.backbone == CUSTOM_BACKBONE or not isinstance(config.backbone, str):
      return []
    config, frames = config.named_backbone(), 1
  if isinstance(config, ViTConfig):
    return [_vit(config)]
  return _stages(config, (frames, size, size)) if isinstance(config, VideoSwinConfig) else []


def _vit(config: ViTConfig) -> Part:
  def build(attention, dtype):
    changed = dataclasses.replace(config, depth=_BLOCKS, attention=attention, dtype=dtype)
    return ViT(changed, rngs=nnx.Rngs(0))

  size = config.image_size
  name = f"ViT: {size}x{size} pixels, {config.width} channels"
  return Part(
    name, build, (_IMAGES, size, size, 3), dense.IMPLEMENTATIONS, "xla", config.depth / _BLOCKS
  )


def _stages(config: VideoSwinConfig, pixels: Sequence[int]) -> list[Part]:
  time, height, width = (-(-size // patch) for size, patch in zip(pixels, config.patch_size))
  parts = []
  for index, depth in enumerate(config.depths):
    channels, rates = config.embed_dim * 2**index, [0.0] * min(depth, _BLOCKS)

    def build(attention, dtype, index=index, rates=rates):
      changed = dataclasses.replace(config, attention=attention, dtype=dtype)
      return Stage(index, rates, changed, rngs=nnx.Rngs(0))

    name = f"stage {index}: {time}x{height}x{width} tokens, {channels} channels"
    # "xla" would need much more memory.
    shape = (1, height, width, time, channels)
    parts.append(Part(name, build, shape, window.IMPLEMENTATIONS, "chunked", depth / len(rates)))
    height, width = -(-height // 2), -(-width // 2)
  return parts


def compare(parts: Sequence[Part], implementations: Sequence[str], dtype: str) -> list[Agreement]:
  """Compares implementations of attention with XLA on the default device.

  Returns:
    An agreement per part and implementation. Its `failure` is set if an implementation can't
    compute a part, for example because the compiler refuses a kernel.
  """
  with concurrent.futures.ThreadPoolExecutor() as pool:
    compiled = [
      (
        part,
        pool.submit(_compile, part, part.reference, "float32", "highest"),
        pool.submit(_compile, part, part.reference, dtype),
        [(name, pool.submit(_compile, part, name, dtype)) for name in implementations],
      )
      for part in parts
    ]
    agreements = []
    for part, exact, expected, others in compiled:
      try:
        exact, expected = _run(exact.result())[0], _run(expected.result())
      except Exception as error:  # Compilers and devices raise errors of many kinds.
        failure = f"XLA: {describe_error(error)}"
        agreements += [Agreement(part.name, dtype, name, failure=failure) for name, _ in others]
        continue
      agreements += [_compare(part, dtype, name, exact, expected, run) for name, run in others]
  return agreements


def _compare(part, dtype, implementation, exact, expected, compiled) -> Agreement:
  try:
    found, seconds = _run(compiled.result())
  except Exception as error:
    return Agreement(part.name, dtype, implementation, failure=describe_error(error))
  errors, expected_errors = _errors(found, exact), _errors(expected[0], exact)
  output, expected_output = errors.pop(""), expected_errors.pop("")
  # Errors that are not numbers are the largest.
  worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
  return Agreement(
    part.name,
    dtype,
    implementation,
    output,
    errors[worst],
    worst,
    expected_output,
    max(expected_errors.values()),
    1e3 * seconds,
    1e3 * expected[1],
  )


def _compile(part: Part, implementation: str, dtype: str, precision: str | None = None):
  """Returns a compiled function, without arguments, of the output and the gradients of a part."""
  graph, params = split_model(part.build(implementation, dtype))
  generator = np.random.default_rng(0)

  def normal(shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  # Biases and scales begin as constants, which would hide errors.
  params = jax.tree.map(lambda x: x + 0.3 * normal(x.shape) if x.ndim == 1 else x, params)
  x = normal(part.shape)

  def run(params, x):
    def forward(params, x):
      return merge_model(graph, params)(x.astype(dtype)).astype(jnp.float32)

    output, pull_back = jax.vjp(forward, params, x)
    cotangent = jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
    params_gradient, x_gradient = pull_back(cotangent)
    return {"": output, "input": x_gradient} | flatten(params_gradient)

  with jax.default_matmul_precision(precision):
    compiled = jax.jit(run).lower(params, x).compile()
  return lambda: compiled(params, x)


def _run(function: Callable[[], dict]) -> tuple[dict[str, np.ndarray], float]:
  """Returns the results of a function, and the seconds of its fastest call."""
  times = []
  for _ in range(1 + _REPEATS):
    start = time.perf_counter()
    results = jax.block_until_ready(function())
    times.append(time.perf_counter() - start)
  return jax.device_get(results), min(times)


def _errors(results: dict, exact: dict) -> dict[str, float]:
  def norm(x):
    return float(np.linalg.norm(x.ravel()))

  return {name: norm(results[name] - value) / norm(value) for name, value in exact.items()}
