"""Speed of the implementations of window attention inside a shifted block of Video Swin.

First compares each implementation with XLA in float32: largest differences of the output and of the
gradients, relative to the largest value. Then prints milliseconds of the forward pass and of the
gradient, the ratio to the first implementation, and the temporary memory of the compiled program.
Times are medians over repetitions that alternate between the implementations, so that changes of
the machine affect all of them.

  python -m benchmarks.block                 # stage 0 of Video Swin-T, one clip of 16 frames
  python -m benchmarks.block --embed_dim=128 --dtype=bfloat16 --batch=8 --frames=32 --stage=2 \\
    --implementations xla pallas_gpu cudnn   # on a GPU
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vswin_jax.attention.window import IMPLEMENTATIONS
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import Block, VideoSwinConfig

_HEAD_DIM = 32


def block_functions(arguments, attention, dtype):
  """Returns the jitted forward pass and gradient of a block, and their arguments."""
  channels, side = arguments.embed_dim * 2**arguments.stage, 56 // 2**arguments.stage
  config = VideoSwinConfig(
    embed_dim=arguments.embed_dim,
    num_heads=[arguments.embed_dim // _HEAD_DIM * 2**stage for stage in range(4)],
    dtype=dtype,
    attention=attention,
    rematerialization=arguments.rematerialization,
    init_std=0.05,
  )
  block = Block(channels, channels // _HEAD_DIM, 0.0, True, config, rngs=nnx.Rngs(0))
  graph, params = split_model(block)
  shape = (arguments.batch, side, side, arguments.frames // 2, channels)
  x = jax.random.normal(jax.random.key(0), shape, jnp.dtype(dtype))

  def forward(params, x):
    return merge_model(graph, params)(x)

  def loss(params, x):
    return jnp.sum(forward(params, x).astype(jnp.float32) ** 2)

  return {"forward": jax.jit(forward), "gradient": jax.jit(jax.grad(loss, (0, 1)))}, (params, x)


def largest_difference(actual, expected) -> float:
  """Returns the largest difference of two trees, relative to the largest value of each array."""
  pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  pairs = [(np.asarray(one, np.float32), np.asarray(other, np.float32)) for one, other in pairs]
  scale = max(np.abs(other).max() for _, other in pairs)
  # Some gradients are zero but for rounding.
  return max(
    np.abs(one - other).max() / max(np.abs(other).max(), 1e-3 * scale) for one, other in pairs
  )


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--batch", type=int, default=1)
  add("--frames", type=int, default=16)
  add("--embed_dim", type=int, default=96, help="channels of stage 0; 128: Swin-B")
  add("--stage", type=int, default=0, choices=range(4))
  add("--dtype", default="float32", choices=["float32", "bfloat16"])
  add("--rematerialization", default="none", choices=["none", "attention"])
  add("--repetitions", type=int, default=7)
  add("--implementations", nargs="+", default=["xla", "chunked"], choices=IMPLEMENTATIONS)
  arguments = parser.parse_args()

  print(f"{jax.devices()[0].device_kind}, {jax.__version__}, {vars(arguments)}")
  subjects = {
    name: block_functions(arguments, name, arguments.dtype) for name in arguments.implementations
  }
  with jax.default_matmul_precision("highest"):
    functions, inputs = block_functions(arguments, "chunked", "float32")
    expected = {kind: function(*inputs) for kind, function in functions.items()}
  times = {(name, kind): [] for name in subjects for kind in expected}
  for name, (functions, inputs) in subjects.items():
    differences = [
      f"{kind} {largest_difference(function(*inputs), expected[kind]):.1e}"
      for kind, function in functions.items()
    ]
    print(f"{name:10} differs from XLA in float32 by: {', '.join(differences)}", flush=True)
  for _ in range(arguments.repetitions):
    for name, (functions, inputs) in subjects.items():
      for kind, function in functions.items():
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        times[name, kind].append(time.perf_counter() - start)

  first = next(iter(subjects))
  for kind in expected:
    base = statistics.median(times[first, kind])
    for name, (functions, inputs) in subjects.items():
      memory = functions[kind].lower(*inputs).compile().memory_analysis().temp_size_in_bytes
      seconds = statistics.median(times[name, kind])
      print(
        f"{kind:9} {name:10} {1e3 * seconds:8.1f} ms  ratio {seconds / base:5.2f}  "
        f"temporary memory {memory / 2**20:7.0f} MiB"
      )


if __name__ == "__main__":
  main()
