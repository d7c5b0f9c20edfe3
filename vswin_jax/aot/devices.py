"""Devices of compilation targets, as their compilers describe them."""

import importlib.metadata
import importlib.util

import jax
from jax.experimental import topologies

from vswin_jax.aot.topologies import Target, TargetError
from vswin_jax.common.messages import one_line

# XLA's description of an H100; the compiler needs all fields.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_CUDA_PLUGIN = "jax-cuda13-plugin"
# The compiler's module, and the extra that installs it.
_COMPILERS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda13_plugin", "cuda-compile")}


def devices_of(target: Target) -> list[jax.Device]:
  """Returns the devices of a target, to build a mesh and to compile for; they can't run programs.

  Raises:
    TargetError: the compiler is not installed, or does not know the target.
  """
  try:
    return list(_topology(target).devices)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    chip = target.chip
    module, extra = _COMPILERS[chip.platform]
    if importlib.util.find_spec(module) is None:
      raise TargetError(
        f"the compiler for {chip.name} is not installed; run: pip install -e '.[{extra}]'"
      ) from error
    wanted = jax.__version__
    if chip.platform == "cuda" and (found := importlib.metadata.version(_CUDA_PLUGIN)) != wanted:
      raise TargetError(
        f"{_CUDA_PLUGIN} is {found}, expected {wanted}, the version of jax; run: pip install "
        f"'{_CUDA_PLUGIN}=={wanted}' 'jax-cuda13-pjrt=={wanted}'"
      ) from error
    raise TargetError(f"topology {target.name!r}: {one_line(error)[:300]}") from error


def _topology(target: Target):
  if target.chip.platform == "cuda":
    hosts, gpus = target.grid
    return topologies.get_topology_desc(
      platform="cuda", target_config=_H100, topology=f"{target.slices}x{hosts}x{gpus}"
    )
  # Slices of one host differ from the usual 2 x 2 chips per host.
  hosts = {(1, 1): (1, 1, 1), (1, 1, 1): (1, 1, 1), (2, 4): (2, 4, 1)}
  options = {"chips_per_host_bounds": hosts.get(target.grid, (2, 2, 1))}
  if target.chip.name == "v4":
    options["chip_config_name"] = "megacore"  # two cores work as one device
  if target.slices > 1:
    options["num_slices"] = target.slices
  grid = "x".join(map(str, target.grid))
  return topologies.get_topology_desc(
    platform="tpu", topology_name=f"{target.chip.name}:{grid}", **options
  )
