"""Self-check of attention kernels, with interpreted kernels in place of an accelerator's."""

import logging

import pytest

from vswin_jax.attention import operations, window
from vswin_jax.inference import self_check

OPTIONS = {
  "name": "video_swin_t",
  "embed_dim": 16,
  "depths": (2,),
  "num_heads": (2,),
  "window_size": (4, 2, 2),
  "dtype": "bfloat16",
}


def wrong_mask(qkv, bias_table, configured, layout, *dropout):
  layout = window.WindowLayout(layout.grid, layout.window, (0, 0, 0))
  return window.IMPLEMENTATIONS["xla"](qkv, bias_table, configured, layout, *dropout)


def refused(*_):
  raise NotImplementedError("no such instruction")


@pytest.fixture
def kernels(monkeypatch, tmp_path):
  """Sets the kernels of the CPU."""
  monkeypatch.setenv("VSWIN_JAX_CACHE", str(tmp_path))
  monkeypatch.setitem(window.IMPLEMENTATIONS, "wrong_mask", wrong_mask)
  monkeypatch.setitem(window.IMPLEMENTATIONS, "refused", refused)
  return lambda *names: monkeypatch.setitem(operations.KERNELS, "cpu", names)


def test_agreeing_kernels_are_trusted_and_remembered(kernels, monkeypatch, tmp_path):
  kernels("pallas_tpu_interpret")
  assert self_check.trusted_kernels(OPTIONS, 16, 32) == ["pallas_tpu_interpret"]
  calls = []
  monkeypatch.setattr(self_check, "compare", lambda *_: calls.append(1) or [])
  assert self_check.trusted_kernels(OPTIONS, 16, 32) == ["pallas_tpu_interpret"]
  assert not calls
  # A damaged file is as good as none.
  (file,) = tmp_path.rglob("*.json")
  file.write_text("[{")
  self_check.trusted_kernels(OPTIONS, 16, 32)
  assert calls


@pytest.mark.parametrize("name", ["wrong_mask", "refused"])
def test_other_kernels_are_not_trusted(kernels, caplog, name):
  kernels(name)
  with caplog.at_level(logging.WARNING, "vswin_jax.process"):
    assert self_check.trusted_kernels(OPTIONS, 16, 32) == []
  assert name in caplog.text and "selfcheck" in caplog.text


def test_nothing_to_check(kernels):
  assert self_check.trusted_kernels(OPTIONS, 16, 32) is None
  kernels("pallas_tpu_interpret")
  assert self_check.trusted_kernels(OPTIONS | {"attention": "xla"}, 16, 32) is None


@pytest.mark.parametrize(
  ("platform", "dtype", "expected"),
  [
    ("gpu", "bfloat16", "cudnn"),
    ("gpu", "float16", "cudnn"),
    ("gpu", "float32", "xla"),
    ("tpu", "bfloat16", "pallas_tpu"),
    ("tpu", "float32", "xla"),
    ("cpu", "bfloat16", "xla"),
  ],
)
def test_auto_depends_on_platform_and_dtype(platform, dtype, expected, monkeypatch):
  monkeypatch.setattr(operations, "current_platform", lambda: platform)
  known = ("xla", "cudnn", "pallas_tpu")
  assert operations.resolve_implementation("auto", known, dtype) == expected
