"""Worker processes: how many, how they end, and results in order whatever happens to them."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Enough in hand that no worker waits for the one whose turn it is, few enough to stay in memory.
_TASKS_PER_WORKER = 4
_MOST_BYTES_IN_HAND = 4 << 30
_END = object()


class WorkerError(ValueError):
  """Worker processes that can't do their work; one line."""


def usable_cores() -> int:
  """Cores that this process may use; a container often has fewer than its machine."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def end_with_parent() -> None:
  """Ends a worker with its parent, and not before.

  Without its parent it would wait forever; interrupts and requests to end, which terminals and
  schedulers send to all processes of a job, are for the parent alone.
  """
  _end_when_ready(multiprocessing.parent_process().sentinel)


def _end_when_ready(*signs) -> None:
  for request in (signal.SIGINT, signal.SIGTERM):
    signal.signal(request, signal.SIG_IGN)

  def watch():
    multiprocessing.connection.wait(signs)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def map_in_order(
  function: Callable[[Item], Result],
  items: Iterable[Item],
  *,
  num_workers: int,
  if_killed: Callable[[Item], Result] | None = None,
  size: Callable[[Item], int] = lambda item: 0,
) -> Iterator[Result]:
  """Results of a function over items, computed in worker processes, in the order of the items.

  Only a few results are in memory at a time, however slow the reader or one of the items is. A
  worker that dies (some files crash their decoder) costs nothing but its item: those in work are
  done again one by one, and the one that kills a worker by itself gets `if_killed(item)`. Ended
  early, the generator ends its workers at once.

  Args:
    function: picklable, so of a module; its exceptions reach the caller.
    num_workers: processes.
    if_killed: None: no item may kill a worker.
    size: bytes that an item's result takes, about; together those in hand stay below a bound.

  Raises:
    WorkerError: processes can't be started, or die of an item and there is no `if_killed`.
  """
  items = iter(items)
  # [item, its future or None, its size], in order.
  tasks: collections.deque = collections.deque()
  # How many of the tasks without a result may have killed a worker; each has the pool to itself.
  suspects = 0
  while True:
    with _pool(num_workers) as pool:
      alone = False
      try:
        while True:
          if not suspects:
            _take(items, tasks, _TASKS_PER_WORKER * num_workers, size)
          if not tasks:
            return
          alone = suspects > 0 and tasks[0][1] is None
          for task in itertools.islice(tasks, 1 if suspects else None):
            task[1] = task[1] or pool.submit(function, task[0])
          result = tasks[0][1].result()
          suspects -= alone
          tasks.popleft()
          yield result
      except BrokenProcessPool:
        if alone and if_killed is None:
          raise WorkerError(
            f"a worker process died of {tasks[0][0]!r}; memory may be short"
          ) from None
        if alone:
          yield if_killed(tasks.popleft()[0])
        for task in tasks:
          if task[1] and (not task[1].done() or task[1].exception()):
            task[1] = None
        suspects = sum(task[1] is None for task in tasks)


def _take(
  items: Iterator[Item], tasks: collections.deque, most: int, size: Callable[[Item], int]
) -> None:
  """Moves items to the tasks while there is room."""
  held = sum(task[2] for task in tasks)
  while len(tasks) < most and held < _MOST_BYTES_IN_HAND:
    item = next(items, _END)
    if item is _END:
      return
    tasks.append([item, None, size(item)])
    held += tasks[-1][2]


@contextlib.contextmanager
def _pool(num_workers: int) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
  """A pool of processes that end with this one, and at once when the context ends."""
  # Spawned, not forked: the parent may hold the threads of an accelerator runtime.
  context = multiprocessing.get_context("spawn")
  reader, writer = context.Pipe(duplex=False)
  pool = concurrent.futures.ProcessPoolExecutor(
    num_workers, mp_context=context, initializer=_watch, initargs=(reader,)
  )
  try:
    try:
      pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
      raise WorkerError(
        "worker processes can't start; there may be too little memory, or a script that uses them "
        "has no `if __name__ == '__main__':`"
      ) from error
    yield pool
  finally:
    # The end of the pipe, for which the workers wait.
    writer.close()
    pool.shutdown(wait=False, cancel_futures=True)
    reader.close()


def _watch(reader) -> None:
  _end_when_ready(multiprocessing.parent_process().sentinel, reader)
