"""Learning rate schedules: functions of the optimizer step, which is 0 for the first update."""

import jax.numpy as jnp
import optax


def make_schedule(
  name: str,
  *,
  learning_rate: float,
  num_steps: int,
  steps_per_epoch: float,
  warmup_epochs: float = 0.0,
  warmup_start: float = 0.0,
  decay_epochs: tuple[float, ...] = (),
  decay_factor: float = 0.1,
) -> optax.Schedule:
  """Builds a schedule by name.

  Args:
    name: "cosine" (changes at every step), "cosine_epochs" (changes at every epoch, as in the
      reference) or "steps" (multiplied by `decay_factor` at each of `decay_epochs`).
    learning_rate: the peak learning rate.
    num_steps: number of steps of the run.
    steps_per_epoch: may be a fraction.
    warmup_epochs: length of the linear warm-up, which multiplies the schedule.
    warmup_start: multiplier at step 0.

  Raises:
    ValueError: unknown name.
  """
  warmup_steps = warmup_epochs * steps_per_epoch
  if name == "cosine":
    regular = _cosine(learning_rate, num_steps, warmup_steps)
  elif name == "cosine_epochs":
    regular = _cosine_epochs(learning_rate, num_steps, steps_per_epoch)
  elif name == "steps":
    regular = _steps(learning_rate, steps_per_epoch, decay_epochs, decay_factor)
  else:
    raise ValueError(f"unknown schedule {name!r}; choose one of cosine, cosine_epochs, steps")
  if warmup_steps <= 0:
    return regular

  def warmed_up(step):
    ramp = warmup_start + (1.0 - warmup_start) * step / warmup_steps
    return regular(step) * jnp.minimum(ramp, 1.0)

  return warmed_up


def _cosine(learning_rate, num_steps, warmup_steps):
  """Half a cosine from the end of the warm-up to 0 at the end of the run."""

  def schedule(step):
    done = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
    return learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(done, 0.0, 1.0)))

  return schedule


def _cosine_epochs(learning_rate, num_steps, steps_per_epoch):
  """Half a cosine over the epochs, constant within an epoch and above 0 in the last one."""
  epochs = max(round(num_steps / steps_per_epoch), 1)

  def schedule(step):
    epoch = jnp.minimum(jnp.floor(step / steps_per_epoch), epochs - 1)
    return learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * epoch / epochs))

  return schedule


def _steps(learning_rate, steps_per_epoch, decay_epochs, decay_factor):
  boundaries = jnp.asarray([epoch * steps_per_epoch for epoch in decay_epochs])

  def schedule(step):
    return learning_rate * decay_factor ** jnp.sum(step >= boundaries)

  return schedule
