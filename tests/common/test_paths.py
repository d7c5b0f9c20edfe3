import pathlib

from vswin_jax.common.paths import cache_folder


def test_the_cache_folder_follows_the_environment(monkeypatch):
  monkeypatch.setenv("VSWIN_JAX_CACHE", "/some/where")
  monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
  assert cache_folder() == pathlib.Path("/some/where")
  monkeypatch.setenv("VSWIN_JAX_CACHE", "")
  assert cache_folder() == pathlib.Path("/caches/vswin_jax")
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert cache_folder() == pathlib.Path.home() / ".cache/vswin_jax"
