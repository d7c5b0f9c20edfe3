"""Texts and tables of results against numbers worked out by hand."""

import dataclasses
import math

from tests.aot.small_step import fake_result
from vswin_jax.aot.hlo import Collective
from vswin_jax.aot.results import describe, describe_search, table

SENT = (Collective("all-reduce", False, 4, 1, 10**7, 15e6),)


def cells(result):
  """Returns the cells of a table row by column."""
  head, _, row = (
    [cell.strip() for cell in line.split("|")] for line in table([result]).split("\n")
  )
  return dict(zip(head[1:-1], row[1:-1], strict=True))


def properties(text):
  """Returns the values of `describe` by name."""
  lines = [line.strip().partition("  ") for line in text.splitlines()[1:]]
  return {name: value.strip() for name, _, value in lines}


def test_numbers_by_hand():
  """10 ms of computing, 20 of memory; a thousand steps."""
  result = fake_result(bytes_accessed=819e7 * 2)
  assert cells(result) == {
    "config": "video_swin_t",
    "target": "v5e:2x2",
    "clips per step (per chip)": "16 (4)",
    "memory GiB": "1.00 of 15.75",
    "GFLOP": "1,970",
    "GB accessed": "16.4",
    "MB communicated": "0",
    "compute ms, lower bound": "10",
    "step ms, estimate": "20",
    "scaling efficiency, estimate": "100.0% - 100.0%",
    "scaling efficiency, compute only": "100.0% - 100.0%",
    "epochs: lower bound, estimate": "30: 10 s, 20 s",
  }
  found = properties(describe(result))
  assert found["state and batch GiB"] == "0.25"
  assert found["memory ms, estimate"] == "20"
  assert found["links ms, estimate"] == "0"


def test_rounded_batch_size():
  result = fake_result(batch_size=256, wanted_batch_size=64, topology="v5e-256")
  assert cells(result)["clips per step (per chip)"] == "256* (1)"
  assert properties(describe(result))["clips per step (per chip)"] == "256* (1)"


def test_loops_leave_times_of_products_and_collectives():
  """20 ms of products; 15 MB over half of a corner's 100 GB/s, 0.15 ms. A thousand steps."""
  result = fake_result(loops=2, collectives=SENT, product_flops=394e10)
  known = cells(result)
  assert known["GFLOP"] == "3,940+"
  assert known["GB accessed"] == "8.19+"
  assert known["MB communicated"] == "15"
  assert known["compute ms, lower bound"] == "20"
  assert known["step ms, estimate"] == known["scaling efficiency, estimate"] == "-"
  assert known["scaling efficiency, compute only"] == "99.3% - 100.0%"
  assert known["epochs: lower bound, estimate"] == "30: 20 s, -"
  assert properties(describe(result))["links ms, estimate"] == "0.15"


def test_unknown_loops_leave_no_time_of_collectives():
  result = fake_result(loops=2, unknown_loops=1, collectives=SENT, product_flops=394e10)
  known = cells(result)
  assert known["MB communicated"] == "15+"
  assert known["compute ms, lower bound"] == "20"
  assert known["scaling efficiency, compute only"] == "-"
  assert "links ms, estimate" not in properties(describe(result))


def test_loops_without_products_leave_no_times():
  known = cells(fake_result(loops=2, collectives=SENT))
  assert known["GFLOP"] == "1,970+"
  assert known["compute ms, lower bound"] == "-"
  assert known["epochs: lower bound, estimate"] == "30: -, -"


def test_compilers_that_count_nothing():
  """Ten times the products of a second at the peak of an H100, in a thousand steps."""
  result = fake_result(topology="h100:1x1x8", flops=None, bytes_accessed=None)
  assert math.isnan(result.estimate.compute)
  assert cells(result)["GFLOP"] == "-"
  known = cells(dataclasses.replace(result, product_flops=989e10))
  assert known["GFLOP"] == "9,890+"
  assert known["GB accessed"] == known["step ms, estimate"] == "-"
  assert known["compute ms, lower bound"] == "10"
  assert known["scaling efficiency, compute only"] == "100.0% - 100.0%"


def test_complete_counts_are_the_compilers():
  result = fake_result(product_flops=100e10)
  assert describe(result) == describe(fake_result())
  assert result.estimate == fake_result().estimate


def test_steps_that_do_not_fit_or_compile():
  large = fake_result(memory=28 * 2**30, largest=0, is_largest=True, advice=("--a=1", "--b=2"))
  assert cells(large)["memory GiB"] == "**28.00 > 15.75**"
  assert cells(large)["GFLOP"] == "-"
  text = describe_search(large)
  assert "fits with --a=1\n  fits with --b=2" in text
  assert "fits with" not in describe(large)
  assert "nothing that was tried" in describe_search(dataclasses.replace(large, advice=()))
  assert "**more > 15.75**" in table([dataclasses.replace(large, memory=None)])
  failed = fake_result(memory=None, error="INTERNAL: of the compiler")
  assert cells(failed)["memory GiB"] == "**not compiled**"
  assert "error: INTERNAL: of the compiler" in describe(failed)


def test_maximum_batch_size():
  searched = fake_result(largest=7, is_largest=True)
  assert "max clips per chip" not in cells(fake_result())
  assert cells(searched)["max clips per chip"] == "7"
  assert cells(dataclasses.replace(searched, is_largest=False))["max clips per chip"] == "7+"
  assert table([fake_result(), searched]).splitlines()[-1].split(" | ")[4] == "7"
  assert "quick effort" not in describe_search(searched)
  assert "full effort" in describe_search(dataclasses.replace(searched, effort="full"))
