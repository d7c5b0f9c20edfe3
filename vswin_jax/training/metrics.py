"""Metrics of a run on disk: `metrics.jsonl` and TensorBoard events."""

import json
import os
import pathlib

from vswin_jax.common.paths import file_path, replacing


class MetricsWriter:
  """Writes one JSON line per logged step, and the same scalars as TensorBoard events.

  Lines of later steps than `step` are dropped, so that the file of a resumed run equals that of an
  uninterrupted run.
  """

  def __init__(self, directory: str | os.PathLike, step: int):
    # Imported late: it imports PyTorch if that is installed, which takes seconds.
    from tensorboardX import SummaryWriter

    directory = pathlib.Path(directory)
    self.path = directory / "metrics.jsonl"

    kept = [line for line in read_metrics(self.path) if line["step"] <= step]
    with replacing(self.path) as path:
      path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    self._file = self.path.open("a", buffering=1)
    self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes scalars by name; names with a common prefix "PREFIX/" share a group of charts."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    for name, value in values.items():
      self._events.add_scalar(name, value, step)
    # A kill must not lose events of steps that are not run again.
    self._events.flush()

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """Returns the lines of a `metrics.jsonl`, without a last line that a kill cut off."""
  path = file_path(path)
  if not path.exists():
    return []
  lines = []
  for line in path.read_text().splitlines():
    try:
      lines.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return lines
