"""The loop around the step: what it writes, and when it refuses to go on."""

import contextlib
import os
import signal
import tempfile
import types

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vswin_jax.data.pipeline import LoaderOptions, LostWorkerError, iterate
from vswin_jax.training import sharding
from vswin_jax.training.loop import Intervals, TrainingError, train
from vswin_jax.training.metrics import MetricsWriter, read_metrics
from vswin_jax.training.profile import Profile, parse_steps
from vswin_jax.training.progress import Progress
from vswin_jax.training.stopping import StopRequest


class Batches:
  """Endless batches; counts how many were fetched."""

  def __init__(self, failed=()):
    self.fetched, self.failed = 0, set(failed)

  def __next__(self):
    self.fetched += 1
    return {"failed": np.array([4 if self.fetched in self.failed else -1, -1], np.int32)}


@flax.struct.dataclass
class State:
  step: jax.Array


def step_with(loss):
  """A step that counts, and takes its loss from a function of the count."""

  def step(state, batch):
    step = state.step + 1
    failed = jnp.sum(batch["failed"] >= 0)
    value = loss(step).astype(jnp.float32)
    return State(step), {
      "loss": value,
      "mean_loss": value,
      "mean_top1": value,
      "mean_grad_norm": value,
      "learning_rate": value,
      "clips_failed": failed,
    }

  return jax.jit(step)


class Recorder:
  """Hooks that record evaluations and saves in order, and write metrics."""

  def __init__(self, writer, max_failed_share=0.5):
    self.calls, self.write_metrics = [], writer.write
    self._max_failed_share = max_failed_share

  def evaluate(self, state):
    self.calls.append(("evaluate", int(state.step)))
    return {"validation/top1": 0.5}

  def save(self, state):
    self.calls.append(("save", int(state.step)))

  def describe_saved(self):
    return "step 3 is kept"

  def record_id(self, record):
    return f"video {record}"

  def max_failed_clips(self, step):
    return self._max_failed_share * 2 * step


def run(
  tmp_path, *, loss=lambda step: 1.0 / step, start=0, batches=None, stop=None, evaluate=None,
  evaluate_first=False, max_failed_share=0.5, profile=None, **intervals,
):  # fmt: skip
  """Returns the step reached, and the evaluations and saves on the way."""
  intervals = {"num_steps": 10, "log_every": 2, "eval_every": 4, "save_every": 3} | intervals
  with contextlib.closing(MetricsWriter(tmp_path, start)) as writer, stop or StopRequest() as stop:
    hooks = Recorder(writer, max_failed_share)
    if evaluate is not None:
      hooks.evaluate = evaluate
    try:
      state = train(
        State(jnp.asarray(start)),
        step_with(loss),
        batches or Batches(),
        intervals=Intervals(**intervals),
        batch_size=2,
        sharding=sharding.batch_sharding(sharding.make_mesh(1, jax.devices()[:1])),
        hooks=hooks,
        stop=stop,
        evaluate_first=evaluate_first,
        step_flops=3e12,
        profile=profile,
      )
    except TrainingError as error:
      error.calls = hooks.calls
      raise
  return int(state.step), hooks.calls


def test_order_of_evaluation_saving_and_writing(tmp_path):
  batches = Batches()
  state, calls = run(tmp_path, batches=batches)
  assert state == 10 and batches.fetched == 10
  assert calls == [
    ("save", 3), ("evaluate", 4), ("save", 6), ("evaluate", 8), ("save", 9),
    ("evaluate", 10), ("save", 10),
  ]  # fmt: skip
  lines = read_metrics(tmp_path / "metrics.jsonl")
  assert [line["step"] for line in lines] == [2, 4, 4, 6, 8, 8, 10, 10]
  for line in lines:
    if "train/loss" in line:
      assert line["train/loss"] == pytest.approx(1 / line["step"])
      clips_per_second = line["speed/clips_per_second"]
      assert clips_per_second > 0 and 0 <= line["speed/data_wait_share"] <= 1
      # Two clips, three TFLOP a step.
      assert line["speed/model_tflops"] == pytest.approx(1.5 * clips_per_second)
      assert "speed/mfu" not in line and ("speed/compile_seconds" in line) == (line["step"] == 2)
    else:
      assert line["validation/top1"] == 0.5


def test_starting_later_fetches_only_the_rest(tmp_path):
  batches = Batches()
  state, calls = run(tmp_path, start=7, batches=batches)
  assert state == 10 and batches.fetched == 3
  assert calls[0] == ("evaluate", 8)


def test_no_speed_is_logged_before_a_step_was_measured(tmp_path):
  """The first step after a start includes compilation."""
  run(tmp_path, start=7, num_steps=10, log_every=1, eval_every=100)
  lines = read_metrics(tmp_path / "metrics.jsonl")
  measured = {
    line["step"]: "speed/clips_per_second" in line for line in lines if "train/loss" in line
  }
  assert measured == {8: False, 9: True, 10: True}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("at", [4, 6, 10])
def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path, at, bad):
  with pytest.raises(TrainingError, match=rf"not finite at step {at} .*; step 3 is kept") as error:
    run(tmp_path, loss=lambda step: jnp.where(step >= at, bad, 1.0), save_every=2)
  saved = [step for name, step in error.value.calls if name == "save"]
  assert saved == list(range(2, at, 2))
  assert all(line["step"] < at for line in read_metrics(tmp_path / "metrics.jsonl"))


def test_failed_clips_are_named_and_too_many_stop_the_run(tmp_path, monkeypatch):
  named = []
  monkeypatch.setattr(
    "vswin_jax.training.loop.own_logger.warning", lambda *message: named.append(message)
  )
  with pytest.raises(
    TrainingError, match=r"1 clips could not be decoded by step 5, more than the 0"
  ):
    run(tmp_path, batches=Batches(failed=[5]), max_failed_share=0.01)
  assert [message[0] % message[1:] for message in named] == [
    "replaced a clip of video 4: can't decode it"
  ]


def item_or_death(index: int) -> dict:
  if index == 9:
    os.kill(os.getpid(), signal.SIGKILL)
  return {"failed": np.int32(-1)}


def item_or_error(index: int) -> dict:
  if index == 9:
    raise ValueError("odd item")
  return {"failed": np.int32(-1)}


@pytest.mark.parametrize(
  "load, workers, error, message",
  [
    (item_or_death, 1, LostWorkerError, "a data worker died.*num_workers"),
    (item_or_error, 0, ValueError, "odd item"),
    (item_or_error, 2, ValueError, "odd item"),
  ],
)
def test_what_goes_wrong_in_workers_ends_the_training(tmp_path, load, workers, error, message):
  clips = grain.MapDataset.range(100).map(load).batch(2, drop_remainder=True)
  with contextlib.closing(iterate(clips, LoaderOptions(workers))) as batches:
    with pytest.raises(error, match=message):
      run(tmp_path, batches=batches)


def test_a_request_to_stop_saves_and_ends(tmp_path):
  class Interrupted(Batches):
    def __next__(self):
      if self.fetched == 4:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().__next__()

  before = signal.getsignal(signal.SIGTERM)
  state, calls = run(tmp_path, batches=Interrupted())
  assert state == 5 and calls[-1] == ("save", 5)
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_request_to_stop_is_heard_during_an_evaluation(tmp_path):
  stop = StopRequest()

  def evaluate(state):
    os.kill(os.getpid(), signal.SIGTERM)
    stop.check()

  assert run(tmp_path, evaluate=evaluate, stop=stop, save_every=20) == (4, [("save", 4)])
  assert all("validation/top1" not in line for line in read_metrics(tmp_path / "metrics.jsonl"))


def test_a_skipped_evaluation_runs_first(tmp_path):
  state, calls = run(tmp_path, start=4, num_steps=5, evaluate_first=True)
  assert state == 5 and calls == [("evaluate", 4), ("evaluate", 5), ("save", 5)]
  steps = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
  assert steps == [4, 5]
  assert run(tmp_path, start=5, num_steps=5, evaluate_first=True) == (5, [("evaluate", 5)])


def test_evaluated_states_are_saved_if_asked(tmp_path):
  _, calls = run(tmp_path, save_evaluated=True)
  assert [step for name, step in calls if name == "save"] == [3, 4, 6, 8, 9, 10]
  # The evaluation comes first, so that a checkpoint is saved with its score.
  assert calls.index(("evaluate", 4)) < calls.index(("save", 4))


def traced_steps(folder) -> list[int]:
  (file,) = folder.rglob("*.xplane.pb")
  planes = jax.profiler.ProfileData.from_file(str(file)).planes
  events = [event for plane in planes for line in plane.lines for event in line.events]
  return [dict(event.stats)["step_num"] for event in events if event.name == "train"]


@pytest.mark.parametrize(
  ("start", "steps", "expected"),
  [(0, (3, 5), [3, 4, 5]), (4, (3, 6), [5, 6]), (4, (2, 4), None), (0, (9, 10), [9, 10])],
)
def test_steps_are_traced(tmp_path, start, steps, expected):
  traced = []
  profile = Profile(steps, lambda folder: traced.append(traced_steps(folder)))
  state, _ = run(tmp_path, start=start, profile=profile)
  assert state == 10 and traced == ([expected] if expected else [])


def test_a_training_that_ends_while_it_is_traced_leaves_the_trace(tmp_path):
  traced = []
  profile = Profile((3, 9), lambda folder: traced.append(traced_steps(folder)))
  with pytest.raises(TrainingError):
    run(tmp_path, loss=lambda step: jnp.where(step >= 4, jnp.nan, 1.0), profile=profile)
  assert traced == [[3, 4]] or traced == [[3, 4, 5]]


def test_a_trace_that_can_not_be_stored_does_not_end_the_training(tmp_path, caplog):
  def store(folder):
    raise OSError("No space left on device")

  assert run(tmp_path, profile=Profile((3, 3), store))[0] == 10
  assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
    "can't write the profile: OSError: No space left on device"
  ]


def test_a_trace_that_can_not_start_or_end_is_not_stored(tmp_path, caplog, monkeypatch):
  def stop_trace():
    stop()
    raise RuntimeError("incomplete")

  stored, stop = [], jax.profiler.stop_trace
  monkeypatch.setattr(jax.profiler, "stop_trace", stop_trace)
  assert run(tmp_path, profile=Profile((3, 3), stored.append))[0] == 10
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
  assert run(tmp_path, profile=Profile((3, 3), stored.append))[0] == 10
  first, second = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
  assert first == "can't write the profile: RuntimeError: incomplete"
  assert second.startswith("can't write the profile: FileNotFoundError") and not stored


@pytest.mark.parametrize(
  "text", ["", "3", "3:", "3-5", "3:5:7", "-1:2", "0:2", "5:3", "3:101", "3 :5", "a:b"]
)
def test_steps_that_can_not_be_traced_are_refused(text):
  with pytest.raises(ValueError, match=f"--profile={text} must be FIRST:LAST"):
    parse_steps(text, num_steps=100)
  assert parse_steps("3:100", num_steps=100) == (3, 100)


def test_utilization_and_memory_of_known_chips_are_measured():
  stats = {"peak_bytes_in_use": 3 * 2**30, "bytes_limit": 16 * 2**30}
  device = types.SimpleNamespace(
    device_kind="TPU v5 lite", process_index=0, memory_stats=lambda: stats
  )
  with Progress(0, 10, batch_size=4, step_flops=8e12, devices=[device, device]) as progress:
    metrics, text = progress.measure(2)
  # 2 TFLOP a clip, 2 x 197 TFLOP/s.
  assert metrics["speed/model_tflops"] == pytest.approx(2 * metrics["speed/clips_per_second"])
  assert metrics["speed/mfu"] == pytest.approx(metrics["speed/model_tflops"] / 394)
  assert metrics["speed/peak_memory_gib"] == 3
  assert f"MFU {metrics['speed/mfu']:.1%}  memory 3.0 of 16.0 GiB" in text
