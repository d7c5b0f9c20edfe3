"""Memory traffic of a compiled program."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.traffic import array_bytes, part_of, traffic
from vswin_jax.aot.hlo import Operation, read_operations


@pytest.mark.parametrize(
  ("hlo_type", "sizes"),
  [
    ("f32[8,128]{1,0}", [4096]),
    ("bf16[5]", [10]),
    ("pred[3,2]{1,0}", [6]),
    # Padded to tiles, the last axis of the layout first.
    ("f32[9,7]{1,0:T(8,128)}", [16 * 128 * 4]),
    ("f32[9,7]{0,1:T(8,128)}", [8 * 128 * 4]),
    ("bf16[2,56,56,16,128]{4,3,2,1,0:T(8,128)(2,1)}", [2 * 56 * 56 * 16 * 128 * 2]),
    # In the memory of a core.
    ("f32[8,128]{1,0:T(8,128)S(1)}", [0]),
    ("(f32[2]{0}, s32[3]{0:T(128)})", [8, 512]),
  ],
)
def test_bytes_of_types(hlo_type, sizes):
  assert array_bytes(hlo_type) == sizes


def test_operations_of_loops_count_once_an_iteration():
  def program(x):
    with jax.named_scope("mlp"):
      y = jax.lax.fori_loop(0, 7, lambda _, y: jnp.tanh(y @ x), x)
    return y

  x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
  operations = read_operations(jax.jit(program).lower(x).compile().as_text())
  products = [one for one in operations if one.opcode in ("dot", "custom-call", "fusion")]
  products = [one for one in products if "dot_general" in one.scope]
  assert [one.count for one in products] == [7]
  assert traffic(products[0]) == 7 * 3 * 32 * 32 * 4
  assert part_of(products[0]) == ("MLP", "forward")


def test_workspaces_are_no_traffic():
  operation = Operation(
    "cublas-lt-matmul.1", "custom-call", "", "(bf16[4,8]{1,0}, s8[4194304]{0})", ("f32[2]{0}",), 1
  )
  assert traffic(operation) == 64 + 8


@pytest.mark.parametrize(
  ("scope", "part"),
  [
    ("jit(step)/jvp(stage0)/block1/mlp/linear/dot_general", ("MLP", "forward")),
    (
      "jit(step)/transpose(jvp(stage2))/block11/attention/linear/x",
      ("qkv, projection", "backward"),
    ),
    ("jit(step)/jvp(stage0)/block0/add", ("residual", "forward")),
    (
      "jit(step)/transpose(jvp(stage0))/block1/shard_map/norm_qkv_gradient_kernel/pallas_call",
      ("kernels of blocks", "backward"),
    ),
    (
      "jit(step)/transpose(jvp(stage0))/block1/attention/window_attention/keys_kernel/pallas_call",
      ("kernels of attention", "backward"),
    ),
    (
      "jit(step)/transpose(jvp(stage0))/block1/layer_norm/norm_gradient_kernel/pallas_call",
      ("LayerNorm", "backward"),
    ),
    ("jit(step)/optimizer/mul", ("optimizer", "")),
    ("jit(step)/broadcast", ("other", "forward")),
  ],
)
def test_parts_follow_the_innermost_scope(scope, part):
  assert part_of(Operation("fusion.1", "fusion", scope, "f32[1]", (), 1)) == part
