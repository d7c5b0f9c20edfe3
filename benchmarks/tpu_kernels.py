"""TPU kernels that compute the blocks of Video Swin on each chip, and the memory they need.

Compiles the gradient of a shifted block of each stage, in bfloat16; nothing runs.

  python -m benchmarks.tpu_kernels --chips v4 v5e v5p v6e v7x --models video_swin_b
  python -m benchmarks.tpu_kernels --chips v5e --window 16 7 7 --models video_swin_b
"""

import argparse
import re
import time

from vswin_jax.aot.devices import prepare_environment


def devices_of_chip(name: str) -> list:
  """Returns the devices of the smallest topology of a chip that its compiler knows."""
  from jax.experimental import topologies

  from vswin_jax.aot.devices import devices_of
  from vswin_jax.aot.topologies import parse_target

  if name == "v7x":  # no target of the library yet
    options = {"topology_name": "tpu7x:1x1x1", "chips_per_host_bounds": (1, 1, 1)}
    return list(topologies.get_topology_desc(platform="tpu", **options).devices)
  return devices_of(parse_target(f"{name}:2x2x1" if name in ("v4", "v5p") else f"{name}:1x1"))


def lower_block(mesh, config, channels: int, heads: int, grid):
  """Returns the gradient of a shifted block on one clip for each device, lowered."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from vswin_jax.models.parameters import merge_model, split_model
  from vswin_jax.models.video_swin import Block
  from vswin_jax.training.sharding import batch_sharding, in_context, replicated

  graph, params = split_model(
    nnx.eval_shape(lambda: Block(channels, heads, 0.1, True, config, rngs=nnx.Rngs(0)))
  )

  def loss(params, x):
    output = merge_model(graph, params)(x, key=jax.random.key(0))
    return (output.astype(jnp.float32) ** 2).sum()

  shape = (mesh.size, *grid[1:], grid[0], channels)
  x = jax.ShapeDtypeStruct(shape, config.dtype, sharding=batch_sharding(mesh))
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), params
  )
  return jax.jit(in_context(mesh, jax.grad(loss, (0, 1)))).lower(params, x)


def kernel_memory(text: str) -> list[int]:
  """Returns the bytes of a core's memory that the kernels of a compiled program use."""
  used = r'"tpu_custom_call".*?used_scoped_memory_configs":\[\{[^}]*"size":"(\d+)"'
  return [int(size) for size in re.findall(used, text)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--chips", nargs="+", default=["v5e"])
  parser.add_argument("--models", nargs="+", default=["video_swin_b"])
  parser.add_argument("--stages", nargs="+", type=int, default=[1, 2, 3, 4])
  parser.add_argument("--window", nargs=3, type=int, default=[8, 7, 7])
  parser.add_argument("--frames", type=int, default=32)
  parser.add_argument("--size", type=int, default=224)
  arguments = parser.parse_args()
  prepare_environment()
  import jax

  from vswin_jax.attention import tpu
  from vswin_jax.attention.tpu_core import memory_limit
  from vswin_jax.attention.windows import window_layout
  from vswin_jax.models import tpu_block, tpu_layers
  from vswin_jax.models.catalog import model_config
  from vswin_jax.training.sharding import make_mesh

  window = tuple(arguments.window)
  print(
    "| chip | stage | rows at a time, parts | kernels' memory, of MiB | CPU seconds | instead |"
  )
  print("|---|---|---|---|---|---|", flush=True)
  for chip in arguments.chips:
    mesh = make_mesh(1, devices_of_chip(chip))
    for name in arguments.models:
      base = model_config(name, window_size=window, dtype="bfloat16", attention="pallas_tpu")
      for stage in arguments.stages:
        heads, scale = base.num_heads[stage - 1], 2 ** (stage - 1)
        channels, size = base.embed_dim * scale, -(-arguments.size // (4 * scale))
        grid = (arguments.frames // 2, size, size)
        layout = window_layout(grid, window, shifted=True)
        shape = (layout, window, channels, heads)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
          limit, why = memory_limit(), tpu_block.why_not(*shape, 4 * channels, "bfloat16")
          instead = why and f"attention as a kernel, because {why}"
          if why_not_attention := tpu.why_not(*shape, "bfloat16"):
            instead = f"XLA, because {why_not_attention}"
          rows = layout.windows * layout.tokens
          step = "-" if why else tpu_layers.project_mlp_step(rows, channels, 4 * channels, 2)
        start = time.process_time()
        try:
          compiled = lower_block(mesh, base, channels, heads, grid).compile(
            {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}
          )
          used = max(kernel_memory(compiled.as_text()), default=0) / 2**20
          result = f"{used:.1f} of {limit / 2**20:.0f}"
        except jax.errors.JaxRuntimeError as error:
          result = f"does not compile: {str(error)[:300]}"
        seconds = time.process_time() - start
        stage_name = f"{name} {stage}: {channels} channels"
        print(
          f"| {chip} | {stage_name} | {step} | {result} | {seconds:.0f} | {instead or ''} |",
          flush=True,
        )
        jax.clear_caches()


if __name__ == "__main__":
  main()
