"""Self-check of attention kernels, with other implementations in place of an accelerator's."""

import logging

import jax
import pytest

from vswin_jax.attention import operations, window
from vswin_jax.inference import self_check
from vswin_jax.models.agreement import Agreement

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


def wrong_gradient(qkv, bias_table, *rest):
  """Is right forward; its gradient of the queries, keys and values is a tenth too large."""
  forward = jax.lax.stop_gradient(qkv)
  qkv = qkv + 0.1 * (qkv - forward)
  return window.IMPLEMENTATIONS["xla"](qkv, bias_table, *rest)


def refused(*_):
  raise NotImplementedError("no such instruction")


@pytest.fixture
def kernels(monkeypatch, tmp_path):
  """Sets the kernels of the CPU."""
  monkeypatch.setenv("VSWIN_JAX_CACHE", str(tmp_path))
  for function in (wrong_mask, wrong_gradient, refused):
    monkeypatch.setitem(window.IMPLEMENTATIONS, function.__name__, function)
  return lambda *names: monkeypatch.setitem(operations.KERNELS, "cpu", names)


def test_agreeing_kernels_are_trusted_and_remembered(kernels, monkeypatch, tmp_path):
  kernels("pallas_tpu_interpret")
  trusted = self_check.choose_attention(OPTIONS, 16, 32)
  assert sorted(trusted) == ["chunked", "pallas_tpu_interpret"]
  monkeypatch.setattr(self_check, "compare", lambda *_: pytest.fail("compared again"))
  assert self_check.choose_attention(OPTIONS, 16, 32) == trusted
  (file,) = tmp_path.rglob("*.json")
  file.write_text("[{")
  with pytest.raises(pytest.fail.Exception):
    self_check.choose_attention(OPTIONS, 16, 32)


@pytest.mark.parametrize("name", ["wrong_mask", "wrong_gradient", "refused"])
def test_other_kernels_are_not_trusted(kernels, caplog, name):
  kernels(name)
  with caplog.at_level(logging.WARNING, "vswin_jax.process"):
    assert self_check.choose_attention(OPTIONS, 16, 32) == ["chunked"]
  assert name in caplog.text and "selfcheck" in caplog.text


def test_gradients_that_are_zero_agree(kernels):
  kernels("xla")
  # One token a window: its position bias has no gradient.
  assert "xla" in self_check.choose_attention(OPTIONS, 2, 4)


def test_the_fastest_kernel_that_agrees_is_the_first(kernels, monkeypatch):
  times = {"pallas_gpu": 3.0, "cudnn": 2.0, "pallas_tpu": 1.0}

  def compare(parts, names, dtype):
    return [
      Agreement(
        part.name,
        name,
        dtype,
        milliseconds=times[name],
        expected_milliseconds=5.0,
        agrees=name != "pallas_tpu",
      )
      for part in parts
      for name in names
    ]

  monkeypatch.setattr(self_check, "compare", compare)
  kernels(*times)
  assert self_check.choose_attention(OPTIONS, 16, 32) == ["cudnn", "pallas_gpu", "chunked"]


def test_the_attention_of_a_vtn_is_that_of_its_backbone(kernels):
  kernels("pallas_tpu_interpret")
  options = {"name": "vtn_vit_b", "backbone_options": {"dtype": "float32", "attention": "xla"}}
  assert self_check.choose_attention(options | {"dtype": "bfloat16"}, 16, 224) is None
  chosen = self_check.with_attention(options, "cudnn")
  assert chosen["attention"] == "cudnn"
  assert chosen["backbone_options"] == {"dtype": "float32", "attention": "cudnn"}
  assert self_check.check_all({"name": "vtn_r50"}, 16, 224) == []


def test_nothing_to_check(kernels):
  assert self_check.choose_attention(OPTIONS, 16, 32) is None
  kernels("pallas_tpu_interpret")
  assert self_check.choose_attention(OPTIONS | {"attention": "xla"}, 16, 32) is None


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
