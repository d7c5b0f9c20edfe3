"""Worker processes: how many, how they end, and results in order whatever happens to them."""

import collections
import concurrent.futures
import itertools
import multiprocessing
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


def usable_cores() -> int:
  """Cores that this process may use; a container often has fewer than its machine."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def end_with_parent() -> None:
  """Ends a worker with its parent, and not before.

  Without its parent it would wait forever; an interrupt from the terminal is for the parent alone.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def map_in_order(
  function: Callable[[Item], Result],
  items: Iterable[Item],
  *,
  num_workers: int,
  if_killed: Callable[[Item], Result],
) -> Iterator[Result]:
  """Results of a function over items, computed in worker processes, in the order of the items.

  Only a few results are in memory at a time, however slow the reader or one of the items is. A
  worker that dies (some files crash their decoder) costs nothing but its item: those in work are
  done again one by one, and the one that kills a worker by itself gets `if_killed(item)`.

  Args:
    function: picklable, so of a module; its exceptions reach the caller.
    num_workers: processes.
  """
  items = iter(items)
  # How many of the next items may have killed a worker; each of them has the pool to itself.
  suspects = 0
  while True:
    pool = _pool(num_workers)
    tasks: collections.deque = collections.deque()
    try:
      while True:
        most = 1 if suspects else _TASKS_PER_WORKER * num_workers
        for item in itertools.islice(items, most - len(tasks)):
          tasks.append([item, None])
          tasks[-1][1] = pool.submit(function, item)
        if not tasks:
          return
        result = tasks[0][1].result()
        tasks.popleft()
        suspects = max(suspects - 1, 0)
        yield result
    except BrokenProcessPool:
      again = [item for item, _ in tasks]
      if suspects:
        suspects -= 1
        yield if_killed(again.pop(0))
      else:
        suspects = len(again)
      items = itertools.chain(again, items)
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def _pool(num_workers: int) -> concurrent.futures.ProcessPoolExecutor:
  # Spawned, not forked: the parent may hold the threads of an accelerator runtime.
  return concurrent.futures.ProcessPoolExecutor(
    num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
  )
