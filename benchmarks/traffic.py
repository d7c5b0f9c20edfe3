"""Memory traffic of a training step by part of the model, from the program compiled for a chip.

Nothing runs: the bytes are the operands and results of the program's top-level operations, padded
as the compiler lays them out in the device's memory. Values that it keeps in faster memory do not
count. An operation of a GPU is a kernel that is launched.

  python -m benchmarks.traffic --config=configs/k400_swin_b.py --topology=v5e-16 --clips=1
  python -m benchmarks.traffic --config=configs/k400_swin_b.py --topology=h100:1x1x1 --clips=8
"""

import argparse
import ast
import collections
import contextlib
import importlib.util
import math
import re
import time

from vswin_jax.aot.devices import prepare_environment

# Parts of the table, by the innermost of these named scopes.
PARTS = {
  "relative_position_bias": "relative position bias",
  "window_attention": "logits, softmax, values",
  "banded_attention": "logits, softmax, values",
  "global_attention": "logits, softmax, values",
  "dense_attention": "logits, softmax, values",
  "attention/linear": "qkv, projection",
  "attention": "copies around attention",
  "mlp": "MLP",
  "to_windows": "windows, shifts",
  "from_windows": "windows, shifts",
  "layer_norm": "LayerNorm",
  "forward_kernel": "kernels of attention",
  "backward_kernel": "kernels of attention",
  "dense_kernel": "kernels of attention",
  "dense_gradient_kernel": "kernels of attention",
  "keys_kernel": "kernels of attention",
  "queries_kernel": "kernels of attention",
  "norm_gradient_kernel": "LayerNorm",
  "norm_qkv_kernel": "kernels of blocks",
  "norm_qkv_gradient_kernel": "kernels of blocks",
  "project_mlp_kernel": "kernels of blocks",
  "project_mlp_gradient_kernel": "kernels of blocks",
  "gather_kernel": "windows, shifts",
  "scatter_kernel": "windows, shifts",
  "patch_embed": "patch embedding",
  "patch_merging": "patch merging",
  "block": "residual",
  "head": "head",
  "optimizer": "optimizer",
}
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
# Memory that cuBLAS may use, at the end of its results.
_WORKSPACE = re.compile(r", s8\[\d+\]\S*\)$")
_NO_TRAFFIC = re.compile(
  r"parameter|constant|get-tuple-element|tuple|bitcast|partition-id|after-all|.*-(done|update)"
)


def array_bytes(hlo_type: str) -> list[int]:
  """Returns the bytes of each array of an HLO type in the device's memory, with padding."""
  return [_padded_bytes(*match.groups()) for match in _ARRAY.finditer(hlo_type)]


def _padded_bytes(dtype: str, shape: str, layout: str | None) -> int:
  sizes = [int(size) for size in shape.split(",") if size]
  order, _, rest = (layout or "").partition(":")
  if "S(" in rest:  # another memory space
    return 0
  tile = re.search(r"T\(([\d,]+)\)", rest)
  if tile:
    minor_to_major = map(int, filter(None, order.split(",")))
    for axis, step in zip(minor_to_major, reversed(tile[1].split(","))):
      sizes[axis] = -(-sizes[axis] // int(step)) * int(step)
  bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
  return math.prod(sizes) * bits // 8


def traffic(operation) -> int:
  """Returns the bytes that an operation of `read_operations` reads and writes in one step."""
  if _NO_TRAFFIC.fullmatch(operation.opcode):
    return 0
  if operation.opcode.endswith("-start"):  # its result names the source and the destination
    return operation.count * sum(array_bytes(operation.result)[:2])
  types = (_WORKSPACE.sub(")", operation.result), *operation.operands)
  return operation.count * sum(sum(array_bytes(one)) for one in types)


def part_of(operation) -> tuple[str, str]:
  """Returns the part of the model that an operation belongs to, and its direction."""
  scope = re.sub(r"(block|stage|layer)\d+", r"\1", operation.scope)
  scope = "/" + "/".join(re.findall(r"[\w.]+", scope)) + "/"
  position, part = max((scope.rfind(f"/{key}/"), part) for key, part in PARTS.items())
  if operation.opcode.startswith(("all-", "reduce-scatter", "collective")):
    return "collectives", ""
  if position < 0:
    part = "other"
  if "/temporal_encoder/" in scope:
    part = "temporal encoder: attention" if part.startswith("logits") else "temporal encoder: rest"
  if part == "optimizer":
    return part, ""
  return part, "backward" if "transpose(" in operation.scope else "forward"


def compile_step(config_path: str, topology: str, clips: int, overrides: list[str]):
  """Returns the compiled training step of a config on a topology, and the seconds it took."""
  from vswin_jax.aot.compile import compile_traced, plan_for_target, trace_step
  from vswin_jax.aot.dataset_metadata import dataset_metadata
  from vswin_jax.aot.topologies import parse_target

  spec = importlib.util.spec_from_file_location("config", config_path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  for override in overrides:
    key, _, value = override.partition("=")
    with contextlib.suppress(ValueError, SyntaxError):  # names of options are not quoted
      value = ast.literal_eval(value)
    config.update_from_flattened_dict({key: value})
  dataset, _ = dataset_metadata(config.data.name, config.data.dir, config.data.train_split)
  plan = plan_for_target(config, parse_target(topology), dataset, clips)
  start = time.process_time()
  compiled = compile_traced(trace_step(plan), plan.mesh, "quick")
  return compiled, time.process_time() - start


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", required=True)
  parser.add_argument("--topology", default="v5e-16")
  parser.add_argument("--clips", type=int, default=1, help="per device")
  parser.add_argument("--set", nargs="*", default=[], help="config values, KEY=VALUE")
  parser.add_argument("--largest", type=int, default=0, help="operations to list")
  arguments = parser.parse_args()
  prepare_environment()
  from vswin_jax.aot.hlo import read_operations

  compiled, seconds = compile_step(
    arguments.config, arguments.topology, arguments.clips, arguments.set
  )
  operations = read_operations(compiled.as_text())
  sizes = collections.Counter()
  for operation in operations:
    part, direction = part_of(operation)
    sizes[part, direction] += traffic(operation)
  total = sum(sizes.values())
  peak = compiled.memory_analysis().peak_memory_in_bytes
  print(
    f"{arguments.config}, {arguments.topology}, {arguments.clips} clips per device: "
    f"{total / 1e9:.1f} GB, peak {peak / 2**30:.2f} GiB, "
    f"{sum(traffic(operation) > 0 for operation in operations)} operations, "
    f"compiled in {seconds:.0f} CPU seconds\n"
  )
  print("| part | forward, GB | backward, GB |\n|---|---|---|")
  parts = sorted({part for part, _ in sizes}, key=lambda part: -sum(_row(sizes, part)))
  for part in parts:
    print(f"| {part} | " + " | ".join(f"{size / 1e9:.1f}" for size in _row(sizes, part)) + " |")
  for operation in sorted(operations, key=traffic, reverse=True)[: arguments.largest]:
    print(
      f"{traffic(operation) / 1e6:9.1f} MB {operation.name[:40]:40} {operation.scope[-90:]} "
      f"{operation.result[:100]}"
    )


def _row(sizes: collections.Counter, part: str) -> tuple[int, int]:
  """Returns the bytes of a part in the forward and backward pass."""
  return sizes[part, "forward"] + sizes[part, ""], sizes[part, "backward"]


if __name__ == "__main__":
  main()
