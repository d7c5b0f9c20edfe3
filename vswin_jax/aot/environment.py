"""Process environment for compilers of other machines."""

import os
import sys

# libtpu asks no metadata server and takes no lock; JAX computes on the CPU only.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}
# Without a GPU, XLA can't autotune Triton's matrix products, and fails to compile them.
_XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false"


def prepare_environment() -> None:
  """Sets the variables that JAX and the compilers read at their start."""
  os.environ.update(_ENVIRONMENT)
  if _XLA_FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
  jax = sys.modules.get("jax")
  if jax is not None:  # configs import it, and it has read its variables then
    jax.config.update("jax_platforms", "cpu")
