"""Speed of training."""

import time

from vswin_jax.common.progress import Progress


def test_the_speed_of_a_step_before_a_pause_is_its_own():
  progress = Progress(3, 10, batch_size=8, is_shown=False)
  time.sleep(0.05)
  progress.pause(4)
  speed = progress.interval(4)
  assert 0 < speed["clips_per_second"] < 8 / 0.05
  assert speed["seconds_left"] > 6 * 0.05
