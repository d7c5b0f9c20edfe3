"""The GPU kernels, interpreted, against the implementation by XLA: values and all gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.attention import values_and_gradients
from vswin_jax.attention import cudnn, gpu, window_attention
from vswin_jax.attention.relative_position import table_rows
from vswin_jax.attention.windows import from_windows, to_windows, window_layout

# Grids, windows, channels and heads: shifted along all axes; windows that shrank in time and in
# height; a padded grid; more tokens than the bias gradients of which fit the registers at once.
CASES = {
  "shifted": ((8, 4, 4), (4, 2, 2), 64, 2),
  "shrunk in time": ((4, 4, 8), (8, 2, 4), 32, 2),
  "shrunk in height": ((4, 2, 9), (2, 4, 3), 32, 1),
  "padded": ((8, 3, 5), (4, 2, 2), 32, 1),
  "several tiles": ((8, 12, 6), (8, 6, 6), 16, 1),
}
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2}


def inputs_of(case, dtype):
  grid, window, channels, heads = CASES[case]
  layout = window_layout(grid, window, shifted=True).without_padding()
  time, height, width = layout.grid
  random = np.random.default_rng(0)
  qkv = random.normal(size=(2, height, width, time, 3 * channels))
  table = random.normal(size=(table_rows(window), heads))
  return jnp.asarray(qkv, dtype), jnp.asarray(table, jnp.float32), window, layout


def by_windows(qkv, table, window, layout, attend=window_attention, implementation="xla"):
  windows = to_windows(qkv, layout)
  output = attend(windows, table, window, layout, implementation=implementation)
  return from_windows(output, layout)


def assert_equal(case, dtype, attend):
  """Compares with XLA in float32."""
  qkv, table, window, layout = inputs_of(case, dtype)
  actual = values_and_gradients(lambda *x: attend(*x, window, layout), qkv, table)
  exact = qkv.astype(jnp.float32)
  expected = values_and_gradients(lambda *x: by_windows(*x, window, layout), exact, table)
  for one, other in zip(actual, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCES[dtype] * np.abs(other).max())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_xla(case, dtype):
  def kernels(qkv, table, window, layout):
    factors = gpu.qkv_factors(qkv.shape[-1] // 3, table.shape[1])
    scaled = (qkv.astype(jnp.float32) * factors).astype(dtype)
    return gpu.attend(scaled, table, window, layout, interpret=True)

  assert_equal(case, dtype, kernels)


def test_kernels_take_windows():
  def kernels(*arguments):
    return by_windows(*arguments, implementation="pallas_gpu_interpret")

  assert_equal("shifted", "float32", kernels)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", ["shifted", "shrunk in height"])
def test_regions_as_channels_equal_a_mask(case, dtype):
  """What cuDNN gets, computed by XLA."""

  def attend(*arguments):
    return by_windows(*arguments, attend=cudnn.attend)

  assert_equal(case, dtype, attend)


@pytest.mark.parametrize("implementation", ["pallas_gpu", "cudnn"])
def test_without_a_gpu_xla_computes(implementation):
  qkv, table, window, layout = inputs_of("shifted", "bfloat16")
  expected = by_windows(qkv, table, window, layout)
  actual = by_windows(qkv, table, window, layout, implementation=implementation)
  np.testing.assert_array_equal(actual, expected)


def test_cudnn_computes_what_the_kernels_cannot(monkeypatch):
  messages, attend = [], cudnn.attend
  monkeypatch.setattr("vswin_jax.attention.window.log_once", messages.append)
  monkeypatch.setattr(cudnn, "why_not", lambda *_: None)
  # There is no cuDNN on a CPU; JAX computes the same arguments by XLA.
  monkeypatch.setattr(cudnn, "attend", lambda *x: attend(*x, implementation="xla"))
  assert_equal("shifted", "float32", lambda *x: by_windows(*x, implementation="pallas_gpu"))
  assert set(messages) == {"window attention of 64 channels: cudnn, because cpu is no GPU"}


@pytest.mark.parametrize(
  ("window", "channels", "heads", "dtype", "reason"),
  [
    ((8, 7, 7), 128, 4, "float32", "float32"),
    ((8, 7, 7), 96, 4, "bfloat16", "24 channels"),
    ((16, 16, 16), 128, 4, "bfloat16", "4096 tokens"),
  ],
)
def test_reasons_to_leave_an_attention_to_xla(window, channels, heads, dtype, reason, monkeypatch):
  monkeypatch.setattr(gpu, "current_platform", lambda: "gpu")
  layout = window_layout((16, 32, 32), window, shifted=True)
  assert reason in gpu.why_not(layout, channels, heads, dtype)
  layout = window_layout((16, 56, 56), (8, 7, 7), shifted=True)
  assert gpu.why_not(layout, 128, 4, "bfloat16") is None


def test_reasons_to_do_without_cudnn(monkeypatch):
  assert cudnn.why_not_heads(64, "bfloat16") == "cpu is no GPU"
  monkeypatch.setattr(cudnn, "current_platform", lambda: "gpu")
  monkeypatch.setattr(cudnn, "cuda_versions", None)
  assert cudnn.why_not_heads(64, "bfloat16") == "cuDNN is not installed"
  monkeypatch.setattr(cudnn, "cuda_versions", object())
  assert cudnn.why_not_heads(64, "float16") is None
  assert "not float32" in cudnn.why_not_heads(64, "float32")
  assert "at most 128, not 100" in cudnn.why_not_heads(100, "bfloat16")
  layout = window_layout((16, 56, 56), (8, 7, 7), shifted=True)
  assert cudnn.why_not(layout, 480, 4, "bfloat16") is None
  assert "at most 120, not 128" in cudnn.why_not(layout, 512, 4, "bfloat16")
  odd = window_layout((3, 21, 21), (3, 7, 7), shifted=False)
  assert "not 147" in cudnn.why_not(odd, 128, 4, "bfloat16")


def test_kernels_lower_for_a_gpu_that_is_not_there():
  """With jax 0.11 the context has to say for which one."""
  qkv, table, window, layout = inputs_of("shifted", "bfloat16")

  def loss(qkv, table):
    return gpu.attend(qkv, table, window, layout).astype(jnp.float32).sum()

  device = jax.sharding.AbstractDevice("NVIDIA H200", 132, "cuda")
  with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(qkv, table)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  for name in ("forward_kernel", "keys_kernel", "queries_kernel"):
    assert name in text
