"""Collectives and loops of compiled programs, and of HLO text written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vswin_jax.aot.hlo import (
  Collective,
  group_members,
  read_collectives,
  read_loops,
  type_bytes,
  wire_bytes,
)


@pytest.fixture
def mesh():
  return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def compiled_text(function, mesh, shape):
  """Returns the program of a function that is mapped over the shards of an array."""
  spec = P(("a", "b"))
  argument = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
  mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False)
  return jax.jit(mapped).lower(argument).compile().as_text()


def test_every_kind_of_collective(mesh):
  def work(x):
    x = jax.lax.psum(x, "b")
    gathered = jax.lax.all_gather(x, "a")
    ones = jnp.ones((8, 4)) * x[0, 0]
    scattered = jax.lax.psum_scatter(ones, "b", scatter_dimension=0, tiled=True)
    moved = jax.lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)])
    exchanged = jax.lax.all_to_all(jnp.ones((4, 16)) * x[0, 1], "b", 0, 0)
    return sum(part.sum() for part in (gathered, scattered, moved, exchanged))

  found = read_collectives(compiled_text(work, mesh, (8, 16)), slice_size=4)
  row = 16 * 4  # a row of x, in bytes
  assert found == [
    # Along "a" from devices 0-3 to devices 4-7: from slice to slice.
    Collective("all-gather", True, 2, 1, row, row * 1.0),
    Collective("all-reduce", False, 4, 1, row, row * 1.5),
    Collective("all-to-all", False, 4, 1, 4 * row, 4 * row * 0.75),
    Collective("collective-permute", False, 2, 1, row, row * 1.0),
    Collective("reduce-scatter", False, 4, 1, 8 * 4 * 4, 8 * 4 * 4 * 0.75),
  ]


def test_collectives_in_loops_count_per_iteration(mesh):
  def work(x):
    def body(carry, _):
      return jax.lax.psum(carry * 0.1, "a"), None

    return jax.lax.scan(body, x, None, length=7)[0].sum()

  text = compiled_text(work, mesh, (8, 16))
  (found,) = read_collectives(text)
  assert (found.kind, found.group, found.count) == ("all-reduce", 2, 7)
  assert read_loops(text) == [7]
  assert found.operand_bytes == 7 * 16 * 4


def test_gradients_of_replicated_parameters_are_summed_once(mesh):
  """A data-parallel gradient sums as many bytes as there are parameters."""
  everywhere, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P(("a", "b")))
  weights = {
    "kernel": jax.ShapeDtypeStruct((32, 48), jnp.float32, sharding=everywhere),
    "bias": jax.ShapeDtypeStruct((48,), jnp.float32, sharding=everywhere),
  }
  x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=parts)
  gradient = jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w["kernel"] + w["bias"]) ** 2))
  text = jax.jit(gradient, out_shardings=everywhere).lower(weights, x).compile().as_text()
  found = read_collectives(text)
  assert {one.kind for one in found} == {"all-reduce"}
  assert sum(one.operand_bytes for one in found) == (32 * 48 + 48) * 4


# In the form of the TPU compiler.
TPU_PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%all-reduce-scatter.1 (input: bf16[1024,1024]) -> bf16[256,1024] {
  %input = bf16[1024,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.2 = bf16[1024,1024]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=4, \
replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=%add.clone
  %constant.1 = u32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.3 = bf16[256,1024]{1,0} dynamic-slice(%all-reduce.2, %constant.1, \
%constant.1), dynamic_slice_sizes={256,1024}
}

ENTRY %main.0_spmd (param.1: bf16[256,1024], param: f32[8,128]) -> bf16[256,1024] {
  %param.1 = bf16[256,1024]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[4,1]<=[4]}
  %param = f32[8,128]{1,0:T(8,128)} parameter(1)
  %after-all = token[] after-all()
  %all-gather.6 = bf16[1024,1024]{1,0:T(8,128)(2,1)S(1)} all-gather(%param.1), channel_id=2, \
replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={0}, use_global_device_ids=true
  %all-reduce.9 = (f32[8,128]{1,0:T(8,128)}, /*index=1*/f32[8,128]{1,0}) all-reduce(%param, \
%param), channel_id=5, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, to_apply=%add
  %fusion = bf16[256,1024]{1,0} fusion(%all-gather.6), kind=kCustom, calls=%all-reduce-scatter.1
  %send = (bf16[256,1024]{1,0:T(8,128)(2,1)}, u32[], token[]) send(%fusion, %after-all), \
channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %all-reduce-start.1 = f32[8,128]{1,0} all-reduce-start(%param), channel_id=7, \
replica_groups=[2,2]<=[4], to_apply=%add
  %all-reduce-done.1 = f32[8,128]{1,0} all-reduce-done(%all-reduce-start.1)
  ROOT %copy.3 = bf16[256,1024]{1,0} copy(%fusion)
}
"""


def test_tpu_program():
  assert read_loops(TPU_PROGRAM) == []
  found = read_collectives(TPU_PROGRAM, slices=2, slice_size=4)
  whole, part, small = 1024 * 1024 * 2, 256 * 1024 * 2, 8 * 128 * 4
  assert found == [
    Collective("all-gather", False, 4, 1, part, 3.0 * part),
    # What starts and is waited for counts once.
    Collective("all-reduce", False, 2, 1, small, 1.0 * small),
    Collective("all-reduce", False, 4, 1, 2 * small, 1.5 * 2 * small),
    # Over two slices, by way of the host.
    Collective("all-reduce", True, 2, 1, part, 1.0 * part),
    Collective("reduce-scatter", False, 4, 1, whole, 0.75 * whole),
  ]


# A product sharded over a ring of devices; the compiler does not write the iterations.
TPU_LOOPS = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%body (param.1: (f32[8,128], u32[], u32[])) -> (f32[8,128], u32[], u32[]) {
  %constant.2 = u32[]{:T(128)} constant(2)
  %param.1 = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %part.1 = f32[8,128]{1,0:T(8,128)} get-tuple-element(%param.1), index=0
  %counter.1 = u32[]{:T(128)} get-tuple-element(%param.1), index=1
  %other.1 = u32[]{:T(128)} get-tuple-element(%param.1), index=2
  %collective-permute-start = (f32[8,128]{1,0}, f32[8,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%part.1), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %collective-permute-done = f32[8,128]{1,0} collective-permute-done(%collective-permute-start)
  %add.1 = u32[]{:T(128)} add(%counter.1, %constant.2), control-predecessors={%part.1}
  ROOT %tuple.1 = (f32[8,128]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}) \
tuple(%collective-permute-done, %add.1, %other.1)
}

%condition (param: (f32[8,128], u32[], u32[])) -> pred[] {
  %constant.3 = u32[]{:T(128)} constant(7)
  %param = (f32[8,128]{1,0:T(8,128)}, u32[]{:T(128)}, u32[]{:T(128)}) parameter(0)
  %counter = u32[]{:T(128)} get-tuple-element(%param), index=1
  ROOT %compare.1 = pred[]{:T(512)} compare(%counter, %constant.3), direction=LT
}

ENTRY %main.0_spmd (param.2: f32[8,128]) -> f32[8,128] {
  %param.2 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %constant.4 = u32[]{:T(128)} constant(1)
  %copy.1 = u32[]{:T(128)} copy(%constant.4)
  %tuple.2 = (f32[8,128]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}) tuple(%param.2, %copy.1, %constant.4)
  %while.1 = (f32[8,128]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}) while(%tuple.2), \
condition=%condition, body=%body
  ROOT %get = f32[8,128]{1,0} get-tuple-element(%while.1), index=0
}
"""


def test_tpu_loops():
  """The counter is 1, 3 and 5."""
  size = 8 * 128 * 4
  assert read_loops(TPU_LOOPS) == [3]
  assert read_collectives(TPU_LOOPS) == [
    Collective("collective-permute", False, 2, 3, 3 * size, 3.0 * size)
  ]


@pytest.mark.parametrize("terms", ["%constant.2, %counter.1", "%copy.2, %constant.2"])
def test_tpu_loops_with_other_additions(terms):
  copy = "  %copy.2 = u32[]{:T(128)} copy(%counter.1)\n  %add.1"
  text = TPU_LOOPS.replace("%counter.1, %constant.2", terms).replace("  %add.1", copy)
  assert read_loops(text) == [3]


@pytest.mark.parametrize(
  "words, instead",
  [
    ("direction=LT", "direction=NE"),
    ("constant(7)", "parameter(1)"),
    ("copy(%constant.4)", "copy(%elsewhere)"),
    ("add(%counter.1, %constant.2)", "add(%counter.1, %other.1)"),
    ("add(%counter.1, %constant.2)", "add(%other.1, %constant.2)"),
    ("constant(2)", "constant(0)"),
  ],
)
def test_unknown_loops_count_once(words, instead):
  assert words in TPU_LOOPS
  text = TPU_LOOPS.replace(words, instead)
  assert read_loops(text) == [None]
  assert read_collectives(text)[0].count == 1


def test_loops_of_one_iteration_are_left_out():
  assert read_loops(TPU_LOOPS.replace("constant(7)", "constant(3)")) == []


def test_nested_loops():
  inner = TPU_LOOPS.replace("%condition", "%outer_condition").replace("%body", "%outer_body")
  outer_condition = inner[inner.index("%outer_condition (") : inner.index("ENTRY")]
  outer_body = inner[inner.index("%outer_body (") : inner.index("%outer_condition (")]
  outer_body = outer_body.replace(
    "  %collective-permute-done",
    """\
  %constant.5 = u32[]{:T(128)} constant(0)
  %tuple.3 = (f32[8,128]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}) tuple(%part.1, %constant.5, %other.1)
  %while.2 = (f32[8,128]{1,0}, u32[]{:T(128)}, u32[]{:T(128)}) while(%tuple.3), \
condition=%condition, body=%body
  %collective-permute-done""",
  )
  start = TPU_LOOPS.index("ENTRY")
  entry = TPU_LOOPS[start:].replace(
    "=%condition, body=%body", "=%outer_condition, body=%outer_body"
  )
  text = TPU_LOOPS[:start] + outer_body + outer_condition + entry
  assert sorted(read_loops(text)) == [3, 4]
  # One of the outer body, four of the inner one, three times.
  assert read_collectives(text)[0].count == 3 * (1 + 4)


@pytest.mark.parametrize(
  "pairs, across",
  [("{{0,1},{1,0},{2,3},{3,2}}", False), ("{{0,1},{1,2},{2,3},{3,0}}", True), ("{{0,2}}", True)],
)
def test_permutations_across_slices(pairs, across):
  text = TPU_LOOPS.replace("{{0,1},{1,2},{2,3},{3,0}}", pairs)
  assert read_collectives(text, slice_size=2)[0].across_slices == across


@pytest.mark.parametrize(
  "groups, members",
  [
    ("{{0,2},{1,3}}", [0, 2]),
    ("{}", [0, 1, 2, 3, 4, 5, 6, 7]),
    ("[2,4]<=[8]", [0, 1, 2, 3]),
    # Counted along the second axis of two rows of four: 0 4 1 5 2 6 3 7.
    ("[4,2]<=[2,4]T(1,0)", [0, 4]),
    ("[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
    ("mesh['a'=2,'b'=4] {'a','b'}", [0, 1, 2, 3, 4, 5, 6, 7]),
    # Halves of an axis of four: the first steps by two, the second by one.
    ("mesh['a'=2,'b'=4] {'b':(1)2}", [0, 2]),
    ("mesh['a'=2,'b'=4] {'b':(2)2}", [0, 1]),
    ("mesh['a'=2,'b'=4], device_ids=([2,4]<=[4,2]T(1,0)) {'a'}", [0, 1]),
    ("mesh['a'=4,'b'=2,'c'=1], device_ids=([2,4]T(1,0)) {'b'}", [0, 4]),
    ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", [0, 2]),
  ],
)
def test_group_members(groups, members):
  assert group_members(groups, partitions=8) == members


@pytest.mark.parametrize(
  "kind", ["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"]
)
@pytest.mark.parametrize("devices", [2, 3, 8])
def test_wire_bytes_are_those_of_a_ring(kind, devices):
  """In each round of a ring every device sends one part to its neighbor."""
  part = 60
  rounds = {"all-reduce": 2 * (devices - 1)}.get(kind, devices - 1)
  # An all-to-all over links of its own sends each part once.
  operand = part if kind == "all-gather" else part * devices
  np.testing.assert_allclose(wire_bytes(kind, operand, devices), rounds * part, rtol=1e-12)


def test_one_device_sends_nothing():
  assert wire_bytes("all-reduce", 100, 1) == 0
  assert wire_bytes("collective-permute", 100, 2) == 100


@pytest.mark.parametrize(
  "text, size",
  [
    ("f32[8,128]{1,0:T(8,128)}", 4096),
    ("(bf16[3], /*index=1*/pred[5], u32[], token[])", 6 + 5 + 4),
    ("f8e4m3fn[7]", 7),
    ("s4[9,2]", 9),
    ("c64[2]", 16),
  ],
)
def test_type_bytes(text, size):
  assert type_bytes(text) == size


def test_other_texts():
  with pytest.raises(ValueError, match="ENTRY"):
    read_collectives("module @jit_step {}")
