"""Agreement of attention implementations: parts of a model computed with one and with another.

A part is small enough for seconds on an accelerator: two blocks of a stage, for two clips. Its
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

# An error may be this many times that of XLA, plus half a unit in the last place.
_ERROR_RATIO = 3.0
# Sums of many terms are less exact than their dtype.
_SMALLEST_ERROR = 3e-5
# Smaller arrays, relative to the largest, are zero but for rounding.
_ZERO = 1e-5
# The second block shifts its windows.
_BLOCKS, _DROP_PATH_RATE = 2, 0.3
_CLIPS, _IMAGES = 2, 8
_REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Part:
  """Part of a model.

  Attributes:
    name: such as "stage 1: 16x28x28 tokens, 256 channels".
    build: (implementation of attention, dtype) -> a module of the part with random parameters.
    shape: of its input.
    known: implementations of its attention.
    reference: the one of them to compare with.
    count: blocks of the model that the part stands for, over those of the part.
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
    part: name of the part.
    implementation: of attention.
    dtype: of the computation.
    output: error of the output.
    expected_output: error of XLA in `dtype`.
    gradient: error of the gradient, of the input or a parameter, that agrees least.
    expected_gradient: error of XLA in `dtype` for that gradient.
    gradient_name: name of that gradient.
    milliseconds: time of a forward and backward pass.
    expected_milliseconds: the same of XLA.
    agrees: whether the errors of all arrays are those of rounding.
    failure: why the part can't be computed; empty if it can.
  """

  part: str
  implementation: str
  dtype: str
  output: float = math.nan
  expected_output: float = math.nan
  gradient: float = math.nan
  expected_gradient: float = math.nan
  gradient_name: str = ""
  milliseconds: float = math.nan
  expected_milliseconds: float = math.nan
  agrees: bool = False
  failure: str = ""


def attention_config(config) -> VideoSwinConfig | ViTConfig | None:
  """Returns the configuration that has the attention of a model; None: it has no choice of one.

  Args:
    config: configuration of the model, from `model_config`.
  """
  if isinstance(config, VTNConfig):
    if not isinstance(config.backbone, str) or config.backbone == CUSTOM_BACKBONE:
      return None
    config = config.named_backbone()
  return config if isinstance(config, VideoSwinConfig | ViTConfig) else None


def parts_of(config: VideoSwinConfig | ViTConfig, frames: int, size: int) -> list[Part]:
  """Returns the parts of a model, see `attention_config`.

  Args:
    frames: frames of a clip; 1 for the backbone of a VTN.
    size: height and width of a clip in pixels.
  """
  if isinstance(config, ViTConfig):
    return [_vit(config)]
  return _stages(config, (frames, size, size))


def _vit(config: ViTConfig) -> Part:
  def build(attention, dtype):
    changed = dataclasses.replace(
      config,
      depth=_BLOCKS,
      attention=attention,
      dtype=dtype,
      dropout_rate=0.0,
      drop_path_rate=_DROP_PATH_RATE,
    )
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
    channels, rates = config.embed_dim * 2**index, [_DROP_PATH_RATE] * min(depth, _BLOCKS)

    def build(attention, dtype, index=index, rates=rates):
      changed = dataclasses.replace(
        config, attention=attention, dtype=dtype, dropout_rate=0.0, attention_dropout_rate=0.0
      )
      return Stage(index, rates, changed, rngs=nnx.Rngs(0))

    name = f"stage {index}: {time}x{height}x{width} tokens, {channels} channels"
    # "xla" would need much more memory.
    shape = (_CLIPS, height, width, time, channels)
    parts.append(Part(name, build, shape, window.IMPLEMENTATIONS, "chunked", depth / len(rates)))
    height, width = -(-height // 2), -(-width // 2)
  return parts


def compare(parts: Sequence[Part], implementations: Sequence[str], dtype: str) -> list[Agreement]:
  """Compares implementations of attention with XLA on the default device.

  Each draws the same stochastic depth. Dropout is off, since implementations draw it differently.

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
  # Compilation has ended, since it would disturb the times.
  agreements = []
  for part, exact, expected, others in compiled:
    try:
      reference = _run(exact.result())[0], *_run(expected.result())
    except Exception as error:  # Compilers and devices raise errors of many kinds.
      reference = error
    for name, found in others:
      agreements.append(_compare(Agreement(part.name, name, dtype), reference, found))
  return agreements


def _compare(agreement: Agreement, reference, found: concurrent.futures.Future) -> Agreement:
  """Returns a completed agreement.

  Args:
    reference: results of XLA in float32 and in the dtype of the model, and the seconds of the
      latter; or the error that prevented them.
    found: function from `_compile` of the implementation.
  """
  if isinstance(reference, Exception):
    return dataclasses.replace(agreement, failure=f"XLA: {describe_error(reference)}")
  exact, expected, expected_seconds = reference
  try:
    found, seconds = _run(found.result())
  except Exception as error:
    return dataclasses.replace(agreement, failure=describe_error(error))
  errors, expected_errors = _errors(found, exact), _errors(expected, exact)
  rounding = max(_SMALLEST_ERROR, float(jnp.finfo(agreement.dtype).eps) / 2)
  # An error that is not a number is the largest.
  excess = {
    name: np.nan_to_num(error / (_ERROR_RATIO * expected_errors[name] + rounding), nan=np.inf)
    for name, error in errors.items()
  }
  worst = max((name for name in errors if name), key=excess.get)
  return dataclasses.replace(
    agreement,
    output=errors[""],
    expected_output=expected_errors[""],
    gradient=errors[worst],
    expected_gradient=expected_errors[worst],
    gradient_name=worst,
    milliseconds=1e3 * seconds,
    expected_milliseconds=1e3 * expected_seconds,
    agrees=bool(max(excess.values()) <= 1),
  )


def _compile(part: Part, implementation: str, dtype: str, precision: str | None = None):
  """Returns a compiled function, without arguments, of the output and the gradients of a part."""
  graph, params = split_model(part.build(implementation, dtype))
  generator = np.random.default_rng(0)

  def normal(shape):
    return jnp.asarray(generator.standard_normal(shape), jnp.float32)

  # Biases and scales begin as constants, which would hide errors.
  params = jax.tree.map(
    lambda x: (x + 0.3 * normal(x.shape)).astype(x.dtype) if x.ndim == 1 else x, params
  )
  x = normal(part.shape)

  def run(params, x):
    def forward(params, x):
      output = merge_model(graph, params)(x.astype(dtype), key=jax.random.key(0))
      return output.astype(jnp.float32)

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
  """Returns the error of each array; of those that should be zero, relative to the largest."""

  def size(x):
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))

  sizes = {name: size(value) for name, value in exact.items()}
  largest = max(sizes.values())
  return {
    name: size(results[name].astype(np.float32) - value.astype(np.float32))
    / (sizes[name] if sizes[name] > _ZERO * largest else largest)
    for name, value in exact.items()
  }
