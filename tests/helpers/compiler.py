"""Compiler flags for tests: most programs take longer to compile than to run."""

import importlib.metadata

FAST_COMPILATION = "--xla_backend_optimization_level=0"
# Newer versions have a single emitter and refuse the flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
