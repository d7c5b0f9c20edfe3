"""Devices of compilation targets, as their compilers describe them."""

import os

import jax
from jax.experimental import topologies

from vswin_jax.aot.topologies import Target, TargetError
from vswin_jax.common.messages import one_line

# libtpu asks no metadata server and takes no lock.
_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}
# Without a GPU, XLA can't autotune Triton's matrix products, and fails to compile them.
_XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false"

# Arguments of `pip install` for the compilers; the one for GPUs must have the version of JAX.
_COMPILERS = {
  "tpu": "-e '.[tpu]'",
  "cuda": f"'jax-cuda13-plugin=={jax.__version__}' 'jax-cuda13-pjrt=={jax.__version__}'",
}

# XLA's descriptions of GPUs, of which the compiler needs all fields.
_GPU = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  %s
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
device_description_str:
"""
_GPUS = {
  "h100": _GPU
  % """core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 cuda_compute_capability { major: 9 }
  shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472 l2_cache_size: 52428800
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072"""
  + '"NVIDIA H100 80GB HBM3"',
  "a100": _GPU
  % """core_count: 108 fpus_per_core: 64 clock_rate_ghz: 1.41 cuda_compute_capability { major: 8 }
  shared_memory_per_block_optin: 166912 shared_memory_per_core: 167936 l2_cache_size: 41943040
  memory_bandwidth: 2039040000000 device_memory_size: 85100068864"""
  + '"NVIDIA A100-SXM4-80GB"',
}


def prepare_environment() -> None:
  """Makes JAX compute on the CPU, and sets the variables that compilers read at their start."""
  jax.config.update("jax_platforms", "cpu")
  os.environ.update(_ENVIRONMENT)
  flags = os.environ.get("XLA_FLAGS", "")
  if _XLA_FLAGS not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {_XLA_FLAGS}".strip()


def devices_of(target: Target) -> list[jax.Device]:
  """Returns the devices of a target, to build a mesh and to compile for; they can't run programs.

  Raises:
    TargetError: the compiler is not installed, or does not know the target.
  """
  platform = target.chip.platform
  grid = "x".join(map(str, target.grid))
  if platform == "cuda":
    if target.chip.name not in _GPUS:
      raise TargetError(
        f"can't compile for {target.name!r}; GPUs to compile for: {', '.join(_GPUS)}"
      )
    options = {"target_config": _GPUS[target.chip.name], "topology": f"{target.slices}x{grid}"}
  else:
    # Slices of one host differ from the usual 2 x 2 chips per host.
    hosts = {(1, 1): (1, 1, 1), (1, 1, 1): (1, 1, 1), (2, 4): (2, 4, 1)}
    options = {
      "topology_name": f"{target.chip.name}:{grid}",
      "chips_per_host_bounds": hosts.get(target.grid, (2, 2, 1)),
    }
    if target.chip.name == "v4":
      options["chip_config_name"] = "megacore"  # two cores work as one device
    if target.slices > 1:
      options["num_slices"] = target.slices
  try:
    return list(topologies.get_topology_desc(platform=platform, **options).devices)
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise TargetError(
      f"can't compile for {target.name!r}: {one_line(error)[:300]}; if the compiler is not "
      f"installed or belongs to another version of JAX, run: pip install {_COMPILERS[platform]}"
    ) from error
