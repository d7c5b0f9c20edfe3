import jax
import pytest

from vswin_jax.aot import compile as aot_compile


@pytest.fixture
def cpu_devices(monkeypatch):
  """Devices of the CPU in place of those of a target."""
  monkeypatch.setattr(aot_compile, "devices_of", lambda target: jax.devices()[: target.num_devices])
