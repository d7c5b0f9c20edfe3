"""One checkpoint: what it says about itself, its arrays, and whether they are what was saved.

Every checkpoint carries fingerprints, exact sums over the bits of its arrays, so that files that
can be read but are not what was written are noticed. All processes of a run come to one result.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import logging
import os
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vswin_jax.common.cli import TRANSIENT, is_transient
from vswin_jax.models.parameters import flatten, parameter_path

# The file in which Orbax keeps custom metadata, and the key of this library's own part of it.
_METADATA_FILE, _OWN = "_CHECKPOINT_METADATA", "checkpoint"

# Errors that say nothing about the files: the same may be read a minute later, by somebody else, or
# with more memory.
_OTHER_ERRORS = (
  MemoryError, PermissionError, TimeoutError, ConnectionError, jax.errors.JaxRuntimeError,
)  # fmt: skip
_OTHER_NUMBERS = (
  errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENETDOWN,
  errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
)  # fmt: skip
_OTHER_MODULES = ("aiohttp", "gcsfs", "google", "requests")
_OTHER_CODES = re.compile(
  r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"
  r"|CANCELLED)\b"
)

_ORBAX_FILES = os.path.join("orbax", "checkpoint", "")

# Room for a reason that a process tells the others, in bytes.
_REASON_SIZE = 1000


class CheckpointError(ValueError):
  """A checkpoint that is missing or does not fit; the message says what to do."""


class StorageError(CheckpointError):
  """A checkpoint that can't be read or written now; the same may succeed later."""

  exit_status = TRANSIENT


class DamagedError(Exception):
  """A checkpoint whose files are not what was written; the message says in what way."""


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a checkpoint says about itself.

  Attributes:
    arrays: descriptions with `shape` and `dtype`, by dotted path.
    metadata: what was saved with the arrays.
    fingerprints: of the arrays, by dotted path; None: it was written without.
  """

  arrays: dict
  metadata: dict
  fingerprints: dict[str, int] | None


def metadata_to_write(state, metadata: dict, score: float | None) -> dict:
  """The metadata, and with them what tells later whether the checkpoint is whole, and its score."""
  arrays = arrays_of(state)
  marks = fingerprints(arrays)
  own = {
    "arrays": "".join(f"{marks[path]:08x}" for path in sorted(marks)),
    "shapes": _checksum(_shapes(arrays)),
    "metadata": _checksum(metadata),
    "score": score,
  }
  return {**metadata, _OWN: own}


def read_metadata(path) -> tuple[dict, dict]:
  """The metadata of a checkpoint, and what this library added to them (empty if it was written
  without).

  Raises:
    DamagedError: they are missing or were changed.
    CheckpointError: they can't be read now.
  """
  with _reading(path):
    metadata = json.loads((path / _METADATA_FILE).read_text())["custom_metadata"]
    own = metadata.pop(_OWN, {})
    if own and own["metadata"] != _checksum(metadata):
      raise DamagedError("what it says about itself is not what was written")
  return metadata, own


def read_contents(path) -> Contents:
  """All that a checkpoint says about itself.

  Raises:
    as `read_metadata`.
  """
  metadata, own = read_metadata(path)
  with _reading(path), _alone():
    arrays = arrays_of(ocp.metadata(path).metadata)
    if not own:
      return Contents(arrays, metadata, None)
    if own["shapes"] != _checksum(_shapes(arrays)):
      raise DamagedError("the list of its arrays is not what was written, or can't be read")
    text = own["arrays"]
    marks = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
  return Contents(arrays, metadata, dict(zip(sorted(arrays), marks)))


def load_arrays(path, contents: Contents, shapes):
  """Loads the part of the arrays that lies in this process, without a word to the others.

  Args:
    shapes: a tree of `jax.ShapeDtypeStruct`s with shardings, of all arrays or some.

  Returns:
    A tree like `shapes`, of the dtypes that were saved.

  Raises:
    as `read_metadata`.
  """

  def as_saved(key_path, leaf):
    dtype = contents.arrays[parameter_path(key_path)].dtype
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

  with _reading(path), _alone():
    return ocp.load(path, jax.tree_util.tree_map_with_path(as_saved, shapes))


def check_arrays(contents: Contents, loaded) -> None:
  """Compares loaded arrays with the fingerprints of what was saved; all processes together.

  Raises:
    DamagedError: in all of them, if some are not the same.
  """
  if contents.fingerprints is None:
    return
  found = fingerprints(arrays_of(loaded))
  changed = [path for path in sorted(found) if found[path] != contents.fingerprints[path]]
  if changed:
    raise DamagedError(
      f"{len(changed)} of {len(found)} arrays are not what was written: {', '.join(changed[:3])}"
    )


def fingerprints(arrays: dict) -> dict[str, int]:
  """A number below 2**32 for each array; the same however an array is laid over devices.

  The words of an array are summed modulo 2**32, each times an odd number that its place decides:
  no change of one word goes unnoticed, nor does one of places except by a rare chance.
  """
  # Each process works on what it holds: no program waits for another process while it does.
  parts = jax.device_get([_of_own_parts(array) for array in arrays.values()])
  numbers = np.array([sum(map(int, found)) % 2**32 for found in parts], np.uint32)
  if jax.process_count() > 1:
    numbers = multihost_utils.process_allgather(numbers).sum(0, dtype=np.uint32)
  return {path: int(number) for path, number in zip(arrays, numbers)}


def _of_own_parts(array: jax.Array) -> list[jax.Array]:
  """What each part of an array that lies here, and counts once in a run, adds to its number."""
  array, found = jnp.asarray(array), []
  for part in array.addressable_shards:
    if part.replica_id == 0:
      starts = [along.indices(size)[0] for along, size in zip(part.index, array.shape)]
      found.append(_fingerprint(part.data, np.array(starts, np.uint32), array.shape))
  return found


@functools.partial(jax.jit, static_argnums=2)
def _fingerprint(part: jax.Array, starts: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Of a part of an array of some shape that begins at some places along its axes."""
  if part.dtype == jnp.bool_:
    part = part.astype(jnp.uint8)
  # Of 8 bytes two words are made, along an axis of their own.
  word = {1: jnp.uint8, 2: jnp.uint16}.get(part.dtype.itemsize, jnp.uint32)
  words = jax.lax.bitcast_convert_type(part, word).astype(jnp.uint32)
  sizes = (*shape, *words.shape[len(shape) :])
  place, stride = jnp.zeros((), jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    start = starts[axis] if axis < len(shape) else 0
    along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) + start
    place += along * np.uint32(stride % 2**32)
    stride *= sizes[axis]
  # Neighbors get unlike numbers, otherwise those of swapped words would often make up for each
  # other.
  place *= np.uint32(0x9E3779B1)
  place = (place ^ (place >> 15)) * np.uint32(0x85EBCA6B)
  return jnp.sum(words * (place | 1), dtype=jnp.uint32)


def arrays_of(tree) -> dict:
  """Arrays, or descriptions of arrays, by dotted path."""
  return {path: leaf for path, leaf in flatten(tree).items() if hasattr(leaf, "shape")}


def _shapes(arrays: dict) -> dict:
  return {path: list(leaf.shape) for path, leaf in arrays.items()}


def _checksum(metadata: dict) -> int:
  return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


# How a process tells the others of an error, those that count more first.
_KINDS = {CheckpointError: b"C", StorageError: b"S", DamagedError: b"D"}


def together(action: Callable):
  """Runs an action in every process of the run; all get its result, or all the same error.

  Raises:
    CheckpointError: as one of the processes did; else
    StorageError: likewise; else
    DamagedError: likewise.
  """
  error = None
  try:
    result = action()
  except (CheckpointError, DamagedError) as caught:
    error = caught
  if jax.process_count() > 1:
    error = _first_error(error)
  if error is not None:
    raise error
  return result


def _first_error(error: Exception | None) -> Exception | None:
  """The error of the first of all processes that had one."""
  note = np.zeros(_REASON_SIZE, np.uint8)
  if error is not None:
    text = (_KINDS[type(error)] + str(error).encode())[:_REASON_SIZE]
    note[: len(text)] = np.frombuffer(text, np.uint8)
  notes = [bytes(row).rstrip(b"\0") for row in multihost_utils.process_allgather(note)]
  for kind, mark in _KINDS.items():
    for text in notes:
      if text.startswith(mark):
        return kind(text[1:].decode(errors="replace"))
  return None


def failure(text: str, cause: BaseException) -> CheckpointError:
  """The error of what files, disks or networks raised."""
  return (StorageError if is_transient(cause) else CheckpointError)(text)


def in_words(error: BaseException) -> str:
  """The reason of an error that Orbax raised, as a line."""
  while error.__cause__ is not None:
    error = error.__cause__
  # TensorStore says all that it knows of a file in brackets behind the reason.
  text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
  text = f"{type(error).__name__}: {text}"
  # What happened comes first, and why it did last.
  return text if len(text) <= 400 else f"{text[:150]} ... {text[-250:]}"


@contextlib.contextmanager
def quiet() -> Iterator[list[BaseException]]:
  """Keeps back what Orbax and its event loop print about errors that are raised as well.

  Yields:
    A list that the errors come to as they happen, also in the background; of contexts within each
    other that of the inner one.
  """
  errors: list[BaseException] = []

  def collect(record: logging.LogRecord) -> bool:
    """A filter that keeps what Orbax says from all handlers."""
    if _ORBAX_FILES not in record.pathname:
      return record.name != "asyncio"
    if record.levelno >= logging.ERROR and record.exc_info and record.exc_info[1]:
      errors.append(record.exc_info[1])
    return False

  def is_left_over(error: BaseException | None) -> bool:
    text = str(error)
    return text == "Event loop is closed" or text.startswith(
      "Encountered error while reading array"
    )

  def print_uncaught(kind, error, trace) -> None:
    if not is_left_over(error):
      uncaught(kind, error, trace)

  def print_unraisable(unraisable) -> None:
    if not is_left_over(unraisable.exc_value):
      unraisable_hook(unraisable)

  uncaught, unraisable_hook = sys.excepthook, sys.unraisablehook
  loggers = [logging.getLogger(name) for name in (None, "absl", "asyncio")]
  for each in loggers:
    each.filters.insert(0, collect)
  sys.excepthook, sys.unraisablehook = print_uncaught, print_unraisable
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
      yield errors
  finally:
    sys.excepthook, sys.unraisablehook = uncaught, unraisable_hook
    for each in loggers:
      each.removeFilter(collect)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
  """Orbax reads in this process without waiting for others: one that fails would hold them up."""
  context, process = ocp.Context(), jax.process_index()
  context.multiprocessing.primary_host = process
  context.multiprocessing.active_processes = {process}
  context.pytree.loading.partial_load = True
  with context:
    yield


@contextlib.contextmanager
def _reading(path) -> Iterator[None]:
  """Turns whatever reading raises into damage, or into an error that says it is none."""
  try:
    yield
  except (CheckpointError, DamagedError):
    raise
  except Exception as error:
    if _says_nothing_of_files(error):
      raise failure(
        f"can't read {path}: {in_words(error)}. Nothing says that it is damaged; mend the cause "
        "and try again",
        error,
      ) from error
    raise DamagedError(in_words(error)) from error


def _says_nothing_of_files(error: BaseException | None) -> bool:
  while error is not None:
    if isinstance(error, _OTHER_ERRORS) or type(error).__module__.startswith(_OTHER_MODULES):
      return True
    # A disk or network that fails; what is missing or of another kind may be damage.
    if isinstance(error, OSError) and error.errno in _OTHER_NUMBERS:
      return True
    if _OTHER_CODES.search(str(error)[:500]):
      return True
    error = error.__cause__
  return False
