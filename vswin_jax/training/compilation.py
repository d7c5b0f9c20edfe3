"""Time that the compilation of a function takes."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax

# Events of `jax.monitoring`.
_COMPILED = "/jax/core/compile/backend_compile_duration"
_READ = "/jax/compilation_cache/cache_hits"


@dataclasses.dataclass
class Compilation:
  """Times of the first call of a jitted function.

  Attributes:
    seconds: of the call: tracing, and compilation or reading the program.
    compile_seconds: those after tracing.
    from_cache: whether the program was read from the persistent compilation cache.
  """

  seconds: float = 0.0
  compile_seconds: float = 0.0
  from_cache: bool = False

  def describe(self, what: str) -> str:
    """Returns the times as text."""
    source = "read {} from the compilation cache" if self.from_cache else "compiled {}"
    tracing = max(self.seconds - self.compile_seconds, 0.0)
    return f"{source.format(what)} in {self.seconds:.1f} s (tracing: {tracing:.1f} s)"


@contextlib.contextmanager
def measure_compilation() -> Iterator[Compilation]:
  """Measures the call in its context, whose result is complete at the end of the context."""
  found, start = Compilation(), time.perf_counter()

  def add_duration(event: str, seconds: float, **_) -> None:
    if event == _COMPILED:
      found.compile_seconds += seconds

  def note_event(event: str, **_) -> None:
    found.from_cache |= event == _READ

  jax.monitoring.register_event_duration_secs_listener(add_duration)
  jax.monitoring.register_event_listener(note_event)
  try:
    yield found
  finally:
    found.seconds = time.perf_counter() - start
    jax.monitoring.unregister_event_duration_listener(add_duration)
    jax.monitoring.unregister_event_listener(note_event)
