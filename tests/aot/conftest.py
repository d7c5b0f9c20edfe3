import jax
import pytest

from vswin_jax.aot import compile


@pytest.fixture
def cpu_devices(monkeypatch):
  """Devices of the CPU stand in for the chips of a machine."""
  monkeypatch.setattr(compile, "devices_of", lambda target: jax.devices()[: target.num_devices])
