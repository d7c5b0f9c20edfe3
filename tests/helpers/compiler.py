"""Compiler flags for tests.

Most programs take longer to compile than to run, and threads of several test processes would wait
for each other.
"""

import importlib.metadata

FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"
# Newer versions have a single emitter and refuse the flag.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  FAST_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
