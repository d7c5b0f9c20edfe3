"""Workarounds for bugs in Orbax 0.12.8.

Two more bugs are why `ocp.training.Checkpointer` is not used in place of `ocp.save_async`. Each
save reports its step to the counter by which JAX decides when all processes stop after SIGTERM.
After a failed save, a process waits up to 20 minutes for the others before it raises the error.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

import jax
from orbax.checkpoint import v1 as ocp

_ORBAX_FILES = os.path.join("orbax", "checkpoint", "")


def saving_context(*, copy_host_arrays: bool) -> ocp.Context:
  """Returns options for saving.

  Args:
    copy_host_arrays: copy numpy arrays, so that they may be changed while they are written.
  """
  context = ocp.Context()
  context.memory.deepcopy_host_arrays = copy_host_arrays
  # Bug: if a folder can't be made in the background, writers wait for it for minutes.
  context.asynchronous.create_directories_asynchronously = False
  return context


@contextlib.contextmanager
def reading_in_one_process() -> Iterator[None]:
  """Makes Orbax read without barriers, at which others would wait for a process that failed."""
  context, process = ocp.Context(), jax.process_index()
  context.multiprocessing.primary_host = process
  context.multiprocessing.active_processes = {process}
  context.pytree.loading.partial_load = True
  with context:
    yield


@contextlib.contextmanager
def without_orbax_logs() -> Iterator[None]:
  """Hides log messages of Orbax.

  Bug: it logs an error with its traceback in every thread that the error passes through, besides
  raising it.
  """

  def is_of_others(record: logging.LogRecord) -> bool:
    return _ORBAX_FILES not in record.pathname

  absl_logger = logging.getLogger("absl")
  absl_logger.addFilter(is_of_others)
  try:
    yield
  finally:
    absl_logger.removeFilter(is_of_others)
