"""Numbers of a run on disk: `metrics.jsonl` and TensorBoard events."""

import json
import os
import pathlib

from vswin_jax.common.paths import file_path, replacing


class MetricsWriter:
  """Writes one JSON line per logged step and the same scalars as TensorBoard events.

  Opened at a step, it first drops the lines of later steps, which an earlier process wrote, so that
  the file of a run that was killed and resumed equals that of an uninterrupted run.
  """

  def __init__(self, directory: str | os.PathLike, step: int):
    # Where PyTorch is installed this loads it too, which takes seconds.
    from tensorboardX import SummaryWriter

    directory = pathlib.Path(directory)
    self.path = directory / "metrics.jsonl"

    kept = [line for line in read_metrics(self.path) if line["step"] <= step]
    with replacing(self.path) as path:
      path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    self._file = self.path.open("a", buffering=1)
    self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Writes finite or infinite scalars by name; a name may hold a "/" to group charts."""
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    for name, value in values.items():
      self._events.add_scalar(name, value, step)
    # Otherwise a kill would lose events of steps that are not run again.
    self._events.flush()

  def close(self) -> None:
    self._file.close()
    self._events.close()


def read_scores(directory: str | os.PathLike) -> dict[int, dict[str, float]]:
  """The metrics of the evaluations of a run, by step."""
  lines = read_metrics(pathlib.Path(directory) / "metrics.jsonl")
  return {line["step"]: line for line in lines if _is_of_an_evaluation(line)}


def _is_of_an_evaluation(line: dict) -> bool:
  return any(name.startswith("validation") for name in line)


def read_metrics(path: str | os.PathLike) -> list[dict]:
  """Lines of a `metrics.jsonl`; a last line that was cut off by a kill is left out."""
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
