"""Learning rate schedules: functions of the optimizer step, which is 0 for the first update."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from vswin_jax.common.checks import check_choices


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
  """Options of the learning rate.

  Attributes:
    name: "cosine" (changes at every step), "cosine_epochs" (changes at every epoch, as in the
      reference) or "steps" (multiplied by `decay_factor` at each of `decay_epochs`).
    learning_rate: the peak learning rate.
    warmup_epochs: length of the linear warm-up, which multiplies the schedule.
    warmup_start: multiplier at step 0.
    decay_epochs: for "steps".
    decay_factor: for "steps".

  Raises:
    ValueError: unknown name.
  """

  name: str = "cosine_epochs"
  learning_rate: float = 1e-3
  warmup_epochs: float = 2.5
  warmup_start: float = 0.1
  decay_epochs: tuple[float, ...] = ()
  decay_factor: float = 0.1

  def __post_init__(self):
    check_choices(("cosine", "cosine_epochs", "steps"), schedule=self.name)


def make_schedule(
  options: ScheduleOptions, *, num_steps: int, steps_per_epoch: float
) -> optax.Schedule:
  """Builds the schedule of a run of `num_steps`; `steps_per_epoch` may be a fraction."""
  learning_rate = options.learning_rate
  warmup_steps = options.warmup_epochs * steps_per_epoch
  # The last epoch has a learning rate above 0.
  epochs = max(round(num_steps / steps_per_epoch), 1)
  decay_epochs = options.decay_epochs if options.name == "steps" else ()
  boundaries = np.asarray(decay_epochs, np.float64) * steps_per_epoch

  def regular(step):
    if options.name == "steps":
      return learning_rate * options.decay_factor ** jnp.sum(step >= boundaries)
    if options.name == "cosine_epochs":
      angle = jnp.pi * jnp.minimum(jnp.floor(step / steps_per_epoch), epochs - 1) / epochs
    else:
      share = (step - warmup_steps) / max(num_steps - warmup_steps, 1)
      angle = jnp.pi * jnp.clip(share, 0.0, 1.0)
    return learning_rate * 0.5 * (1.0 + jnp.cos(angle))

  if warmup_steps <= 0:
    return regular

  def warmed_up(step):
    ramp = options.warmup_start + (1.0 - options.warmup_start) * step / warmup_steps
    return regular(step) * jnp.minimum(ramp, 1.0)

  return warmed_up
