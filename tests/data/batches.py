"""Small batches of training clips."""

import contextlib

import numpy as np

from vswin_jax.data.clips import ClipSpec, Views
from vswin_jax.data.pipeline import LoaderOptions, train_batches

SPEC = ClipSpec(num_frames=8, frame_interval=2, size=24, train_short_side=32, flip_probability=0.5)
CENTER = Views(num_clips=1, crops="center", short_side=28)


def collect(batches) -> dict[str, np.ndarray]:
  with contextlib.closing(batches):
    parts = [{name: np.array(value) for name, value in batch.items()} for batch in batches]
  return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def rows_of(host: int, hosts: int, batch_size: int) -> range:
  """Returns the rows of a batch that a host loads: equal parts in order of the hosts."""
  size = batch_size // hosts
  return range(host * size, (host + 1) * size)


def training(
  records, *, workers=0, start=0, steps=9, host=0, hosts=1, rows=None, seed=0, spec=SPEC, **options
):
  return collect(
    train_batches(
      records,
      spec,
      batch_size=8,
      seed=seed,
      start_step=start,
      num_steps=steps,
      options=LoaderOptions(num_workers=workers, num_threads=2),
      rows=rows_of(host, hosts, 8) if rows is None else rows,
      **options,
    )
  )


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name in expected:
    np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
