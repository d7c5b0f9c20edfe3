"""Settings of the whole test run."""

import os

# Several virtual devices, so that sharding is tested without accelerators. Before JAX is loaded.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

from absl import flags  # noqa: E402

# grain reads its flags in worker processes; tests are not started through absl.
flags.FLAGS.mark_as_parsed()
