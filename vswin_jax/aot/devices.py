"""Devices of machines that are not at hand, from their compilers."""

import importlib.metadata
import importlib.util

import jax
from jax.experimental import topologies

from vswin_jax.aot.topologies import Target, TargetError, chips_per_host

# An H100 as XLA describes it; the compiler needs all of this.
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
# Module of the compiler and the extra that installs it.
_COMPILERS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda13_plugin", "cuda-compile")}


def devices_of(target: Target) -> list[jax.Device]:
  """Devices to lay a mesh over, and to compile for; nothing runs on them.

  Raises:
    TargetError: there is no compiler for them here, or it knows no such machine.
  """
  try:
    return list(_topology(target).devices)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    text = " ".join(str(error).split())
    module, extra = _COMPILERS[target.chip.platform]
    if importlib.util.find_spec(module) is None:
      raise TargetError(
        f"there is no compiler for {target.chip.name} here: pip install -e '.[{extra}]'"
      ) from error
    if target.chip.platform == "cuda" and (found := _version(_CUDA_PLUGIN)) != jax.__version__:
      raise TargetError(
        f"the compiler for {target.chip.name} must be of the same version as jax, which is "
        f"{jax.__version__}; {_CUDA_PLUGIN} is {found}: pip install "
        f"'{_CUDA_PLUGIN}=={jax.__version__}' 'jax-cuda13-pjrt=={jax.__version__}'"
      ) from error
    raise TargetError(f"topology {target.name!r}: {text[:300]}") from error


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _topology(target: Target):
  if target.chip.platform == "cuda":
    hosts, gpus = target.grid
    return topologies.get_topology_desc(
      platform="cuda", target_config=_H100, topology=f"{target.slices}x{hosts}x{gpus}"
    )
  options = {"chips_per_host_bounds": chips_per_host(target)}
  if target.chip.name == "v4":
    options["chip_config_name"] = "megacore"  # two cores work as one device
  if target.slices > 1:
    options["num_slices"] = target.slices
  grid = "x".join(map(str, target.grid))
  return topologies.get_topology_desc(
    platform="tpu", topology_name=f"{target.chip.name}:{grid}", **options
  )
