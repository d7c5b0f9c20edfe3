"""Speed of the implementations of window attention inside a block.

Prints milliseconds of the forward pass and of the gradient, the ratio to the first implementation,
and the temporary memory of the compiled program. Times are medians over repetitions that alternate
between the implementations, so that changes of the machine affect all of them.

  python -m benchmarks.block                 # stage 1 of Video Swin-T, one clip of 16 frames
  python -m benchmarks.block --dtype=bfloat16 --batch=8 --frames=32
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
from flax import nnx

from vswin_jax.attention.window import IMPLEMENTATIONS
from vswin_jax.models.parameters import merge_model, split_model
from vswin_jax.models.video_swin import Block, VideoSwinConfig


def block_functions(arguments, attention):
  """Returns the jitted forward pass and gradient of a shifted block, and their arguments."""
  config = VideoSwinConfig(
    embed_dim=96,
    dtype=arguments.dtype,
    attention=attention,
    rematerialization=arguments.rematerialization,
  )
  graph, params = split_model(Block(96, 3, 0.0, True, config, rngs=nnx.Rngs(0)))
  shape = (arguments.batch, arguments.frames // 2, 56, 56, 96)
  x = jax.random.normal(jax.random.key(0), shape, jnp.dtype(arguments.dtype))

  def forward(params, x):
    return merge_model(graph, params)(x)

  def loss(params, x):
    return jnp.sum(forward(params, x).astype(jnp.float32) ** 2)

  return {"forward": jax.jit(forward), "gradient": jax.jit(jax.grad(loss, (0, 1)))}, (params, x)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch", type=int, default=1)
  parser.add_argument("--frames", type=int, default=16)
  parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
  parser.add_argument("--rematerialization", default="none", choices=["none", "attention"])
  parser.add_argument("--repetitions", type=int, default=7)
  arguments = parser.parse_args()

  subjects = {name: block_functions(arguments, name) for name in IMPLEMENTATIONS}
  times = {(name, kind): [] for name in subjects for kind in ("forward", "gradient")}
  for repetition in range(arguments.repetitions + 1):
    for name, (functions, inputs) in subjects.items():
      for kind, function in functions.items():
        start = time.perf_counter()
        jax.block_until_ready(function(*inputs))
        if repetition:
          times[name, kind].append(time.perf_counter() - start)

  print(f"{jax.devices()[0].device_kind}, {jax.__version__}, {vars(arguments)}")
  first = next(iter(subjects))
  for kind in ("forward", "gradient"):
    base = statistics.median(times[first, kind])
    for name, (functions, inputs) in subjects.items():
      memory = functions[kind].lower(*inputs).compile().memory_analysis().temp_size_in_bytes
      seconds = statistics.median(times[name, kind])
      print(
        f"{kind:9} {name:8} {1e3 * seconds:8.1f} ms  ratio {seconds / base:5.2f}  "
        f"temporary memory {memory / 2**20:7.0f} MiB"
      )


if __name__ == "__main__":
  main()
