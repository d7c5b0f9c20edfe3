import jax
import pytest

from configs import quickstart
from vswin_jax.aot.compile import trace_step
from vswin_jax.experiment.config import read_settings
from vswin_jax.experiment.plan import make_mesh, make_plan
from vswin_jax.models.cost import count_program_macs


def make(**model):
  config = quickstart.get_config()
  with config.unlocked():
    config.model.update({"depths": (1, 1), "num_heads": (1, 2), "embed_dim": 16} | model)
    config.train.batch_size = 4
  settings = read_settings(config)
  mesh = make_mesh(settings, devices=jax.devices()[:1])
  return make_plan(settings, mesh, num_classes=6, num_videos=48, multi_label=False)


def test_model_flops_are_those_of_the_step_without_recomputation():
  plan = make(attention="xla")
  products = 2 * count_program_macs(trace_step(plan).jaxpr)
  # The pixels have no gradient.
  assert products < plan.step_flops() == pytest.approx(products, rel=0.05)


def test_model_flops_do_not_depend_on_how_the_model_is_computed():
  plans = make(attention="xla"), make(attention="chunked", rematerialization="block")
  assert plans[0].step_flops() == plans[1].step_flops()
