"""Worker processes that survive crashes of single items and end with their parent."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

# Enough that workers stay busy while one item takes long, few enough to stay in memory.
_TASKS_PER_WORKER = 4
_MAX_BYTES_IN_FLIGHT = 4 << 30


class WorkerError(ValueError):
  """Raised when worker processes can't start, or die of an item."""


def usable_cores() -> int:
  """Returns the number of cores that this process may use, which a container may limit."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def end_with_parent(*events) -> None:
  """Makes this worker process end when its parent does, and not before.

  Interrupts and requests to end, which terminals and schedulers send to all processes of a job, are
  left to the parent.

  Args:
    events: sentinels or connections; the process also ends when one of them is ready.
  """
  for request in (signal.SIGINT, signal.SIGTERM):
    signal.signal(request, signal.SIG_IGN)

  def watch():
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel, *events])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


@dataclasses.dataclass
class _Task:
  """An item, the approximate bytes of its result, and its future once submitted.

  A suspect was unfinished when a worker died.
  """

  item: Any
  num_bytes: int
  future: concurrent.futures.Future | None = None
  is_suspect: bool = False


def map_in_order(
  function: Callable,
  items: Iterable,
  *,
  num_workers: int,
  if_killed: Callable | None = None,
  size: Callable[[Any], int] = lambda item: 0,
) -> Iterator:
  """Yields the results of a function over items, computed in worker processes, in order.

  Only a few results are in memory at a time. When a worker dies, for example because a file crashes
  its decoder, the items in progress are repeated one by one, and one that kills a worker by itself
  gets the result `if_killed(item)`. Closing the generator ends its workers at once.

  Args:
    function: picklable; its exceptions reach the caller.
    if_killed: None raises an error instead.
    size: approximate bytes of an item's result; bounds the sum over items in progress.

  Raises:
    WorkerError: processes can't start, or one dies of an item and there is no `if_killed`.
  """
  items = (_Task(item, size(item)) for item in items)
  tasks: collections.deque[_Task] = collections.deque()
  while True:
    with _pool(num_workers) as pool:
      try:
        while True:
          one_by_one = any(task.is_suspect for task in tasks)
          while (
            not one_by_one
            and len(tasks) < _TASKS_PER_WORKER * num_workers
            and sum(task.num_bytes for task in tasks) < _MAX_BYTES_IN_FLIGHT
            and (task := next(items, None))
          ):
            tasks.append(task)
          if not tasks:
            return
          for task in itertools.islice(tasks, 1 if one_by_one else None):
            task.future = task.future or pool.submit(function, task.item)
          result = tasks[0].future.result()
          tasks.popleft()
          yield result
      except BrokenProcessPool:
        if tasks[0].is_suspect:
          killer = tasks.popleft().item
          if if_killed is None:
            message = f"a worker process died while processing {killer!r}; memory may be short"
            raise WorkerError(message) from None
          yield if_killed(killer)
        for task in tasks:
          if task.future and (not task.future.done() or task.future.exception()):
            task.future, task.is_suspect = None, True


@contextlib.contextmanager
def _pool(num_workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """Yields a pool of processes that end with this one, and at once when the context ends."""
  # Forking is unsafe where the parent holds the threads of an accelerator runtime.
  context = multiprocessing.get_context("spawn")
  reader, writer = context.Pipe(duplex=False)
  pool = concurrent.futures.ProcessPoolExecutor(
    num_workers, mp_context=context, initializer=end_with_parent, initargs=(reader,)
  )
  try:
    try:
      pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
      raise WorkerError(
        "worker processes can't start; memory may be short, or the script that uses them lacks "
        "`if __name__ == '__main__':`"
      ) from error
    yield pool
  finally:
    # Closing the pipe ends the workers.
    writer.close()
    pool.shutdown(wait=False, cancel_futures=True)
    reader.close()
