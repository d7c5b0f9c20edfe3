"""Settings of the process that compilers for other machines need."""

import os
import sys

# No machine is asked what it is, no lock is taken, and nothing is computed here but on the CPU.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}
# Without a GPU there is nothing to choose the best of Triton's products by, and none compiles.
_XLA_FLAGS = "--xla_gpu_enable_triton_gemm=false"


def prepare_environment() -> None:
  """Sets what JAX and the compilers read when they start, before anything is computed."""
  os.environ.update(_ENVIRONMENT)
  if _XLA_FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_FLAGS}".strip()
  jax = sys.modules.get("jax")
  if jax is not None:  # configs load it, and it has read its part then
    jax.config.update("jax_platforms", "cpu")
