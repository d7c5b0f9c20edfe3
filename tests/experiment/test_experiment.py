"""Plan of a run with the implementation of attention that it chooses."""

from configs import quickstart
from vswin_jax.attention import operations, window
from vswin_jax.experiment.config import read_settings
from vswin_jax.experiment.experiment import open_experiment
from vswin_jax.experiment.workdir import open_run_folder
from vswin_jax.models.parameters import merge_model


def test_kernels_that_disagree_are_replaced_but_not_in_checkpoints(
  tiny_data_dir, tmp_path, monkeypatch
):
  def wrong(qkv, *_):
    return qkv[..., : qkv.shape[-1] // 3]

  monkeypatch.setenv("VSWIN_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setitem(window.IMPLEMENTATIONS, "wrong", wrong)
  monkeypatch.setitem(operations.KERNELS, "cpu", ("wrong",))
  config = quickstart.get_config()
  config.update_from_flattened_dict(
    {
      "data.name": "tiny_motion",
      "data.dir": str(tiny_data_dir),
      "model.dtype": "bfloat16",
      "model.embed_dim": 8,
      "model.depths": (1,),
      "model.num_heads": (1,),
    }
  )
  settings = read_settings(config)
  with open_run_folder(str(tmp_path / "run")) as folder:
    experiment = open_experiment(settings, folder, "train")
  model = merge_model(experiment.plan.graph, experiment.plan.param_shapes)
  assert model.config.attention == "chunked"
  assert "attention" not in experiment.metadata.model
