"""Video Swin against outputs of the reference implementation, and its interface."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.reference_weights import golden, golden_video, reference_model, reference_name
from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.parameters import merge_model, parameter_path, split_model

NANO = [
  "nano_16x56x56",
  "nano_10x60x72_padding",
  "nano_32x64x64_time_shift",
  "nano_window16_32x56x56",
]
LARGE = [pytest.param(name, marks=pytest.mark.slow) for name in ("swin_t_k400", "swin_b_k400")]


def relative_error(actual, expected) -> float:
  """Largest difference, relative to the largest expected value."""
  actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
  assert actual.shape == expected.shape
  return float(np.abs(actual - expected).max() / np.abs(expected).max())


def logits_and_stages(model, video):
  """Logits of a model and the output of each stage."""
  x = model.patch_embed(video)
  stages = []
  for stage in model.stages:
    x = stage(x)
    stages.append(x)
  return model(video), stages


@pytest.mark.parametrize("case", NANO + LARGE)
def test_logits_and_stage_features_equal_the_reference(case):
  meta, expected = golden(case)
  logits, stages = jax.jit(logits_and_stages)(reference_model(meta), golden_video(meta))
  assert relative_error(logits, expected["logits"]) < 1e-5
  assert len(stages) == 4
  for index, features in enumerate(stages):
    assert features.shape == tuple(expected[f"stage{index}_shape"])
    assert (
      relative_error(features.mean((1, 2, 3)), expected[f"stage{index}_mean_over_tokens"]) < 1e-5
    )
    assert relative_error(features[0, 0, 0, 0], expected[f"stage{index}_corner"]) < 1e-5
    assert relative_error(features[-1, -1, -1, -1], expected[f"stage{index}_last"]) < 1e-5


@pytest.mark.parametrize("rematerialisation", ["none", "block", "attention"])
@pytest.mark.parametrize("attention", ["xla", "chunked"])
@pytest.mark.parametrize("case", NANO[:3])
def test_gradients_equal_the_reference(case, attention, rematerialisation):
  meta, expected = golden(case)
  if case != NANO[2] and (attention, rematerialisation) != ("xla", "none"):
    pytest.skip("variants of the computation are compared on one case")
  video = golden_video(meta)
  label = jnp.arange(len(video)) % meta["num_classes"]
  model = reference_model(meta, attention=attention, rematerialisation=rematerialisation)
  graph, params = split_model(model)

  def loss(params):
    logits = merge_model(graph, params)(video)
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  assert relative_error(value, expected["loss"]) < 1e-5
  whole = {name.removeprefix("grad/") for name in expected if name.startswith("grad/")}
  assert len(whole) == 2
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
    name = reference_name(parameter_path(path))
    norm = expected[f"gradnorm/{name}"]
    assert abs(np.linalg.norm(np.asarray(leaf, np.float64)) - norm) < 1e-4 * norm, name
    if name in whole:
      reference = expected[f"grad/{name}"]
      if name.endswith("patch_embed.proj.weight"):
        reference = reference.transpose(2, 3, 4, 1, 0).reshape(leaf.shape)
      assert relative_error(leaf, reference) < 1e-4
      whole.remove(name)
  assert not whole


# Parameters at 400 classes, as published (and counted from the reference's shapes).
PARAMETERS = {
  "video_swin_t": 28_158_070,
  "video_swin_s": 49_816_678,
  "video_swin_b": 88_048_984,
  "video_swin_l": 196_953_916,
}


def test_every_catalog_name_is_counted():
  assert set(PARAMETERS) == set(CATALOG)


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_named_variants_have_the_published_size_and_run(name):
  model = nnx.eval_shape(lambda: create_model(name))
  _, params = split_model(model)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
  channels = 8 * CATALOG[name].embed_dim
  video = jax.ShapeDtypeStruct((1, 32, 224, 224, 3), jnp.float32)
  assert jax.eval_shape(model, video).shape == (1, 400)
  assert jax.eval_shape(model.features, video).shape == (1, channels)
  assert jax.eval_shape(model.feature_map, video).shape == (1, 16, 7, 7, channels)


@pytest.mark.parametrize(
  ("window", "parameters"), [((16, 7, 7), 88_834_038), ((8, 12, 12), 90_079_384 - 226 * 1025)]
)
def test_released_windows(window, parameters):
  model = nnx.eval_shape(lambda: create_model("video_swin_b", num_classes=174, window_size=window))
  _, params = split_model(model)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize(
  ("patch", "shape", "feature_shape"),
  [
    ((2, 4, 4), (1, 7, 33, 50, 3), (4, 2, 2)),
    ((4, 4, 4), (2, 8, 32, 32, 3), (2, 1, 1)),
    ((1, 2, 8), (1, 3, 40, 64, 3), (3, 3, 1)),
    ((2, 4, 4), (1, 1, 4, 4, 3), (1, 1, 1)),
  ],
)
def test_any_patch_and_video_size_runs(patch, shape, feature_shape):
  model = create_model(
    "video_swin_t",
    num_classes=5,
    embed_dim=8,
    depths=(2, 1, 1, 2),
    num_heads=(1, 1, 2, 2),
    patch_size=patch,
    window_size=(4, 3, 3),
  )
  video = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  assert model.feature_map(video).shape == (shape[0], *feature_shape, 64)
  logits = model(video)
  assert logits.shape == (shape[0], 5)
  assert np.isfinite(logits).all()


def small_model(**options):
  return create_model(
    "video_swin_t",
    **{"num_classes": 5, "embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)} | options,
    window_size=(4, 4, 4),
  )


def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
  model = small_model(dtype="bfloat16")
  video = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 32, 32, 3)), jnp.float32)
  _, params = split_model(model)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert model.feature_map(video).dtype == jnp.bfloat16
  assert model(video).dtype == jnp.float32
  assert relative_error(model(video), small_model()(video)) < 0.05


def test_dropout_needs_a_key_and_follows_it():
  model = small_model(drop_path_rate=0.5, dropout_rate=0.1, attention_dropout_rate=0.1)
  video = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 16, 16, 3)), jnp.float32)
  still = model(video)
  np.testing.assert_array_equal(still, model(video))
  first, second = (model(video, key=jax.random.key(seed)) for seed in (0, 1))
  np.testing.assert_array_equal(first, model(video, key=jax.random.key(0)))
  assert np.abs(first - second).max() > 1e-4
  assert np.abs(first - still).max() > 1e-4


def test_drop_path_keeps_the_expected_value_and_drops_whole_clips():
  from vswin_jax.models.video_swin import _drop_path

  x = jnp.ones((4096, 2, 3, 3, 2))
  dropped = np.asarray(_drop_path(x, 0.25, jax.random.key(0))).reshape(4096, -1)
  assert (dropped == dropped[:, :1]).all()
  assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
  assert abs((dropped[:, 0] == 0).mean() - 0.25) < 0.03


def test_drop_path_rates_grow_linearly_over_all_blocks():
  model = nnx.eval_shape(lambda: create_model("video_swin_t", drop_path_rate=0.1))
  rates = [block.drop_path_rate for stage in model.stages for block in stage.blocks]
  np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12))


def test_initialisation_follows_the_reference():
  _, params = split_model(create_model("video_swin_t", num_classes=400))
  block = params["stages"]["2"]["blocks"]["3"]
  for leaf in (
    block["attention"]["qkv"]["kernel"],
    block["mlp"]["fc2"]["kernel"],
    block["attention"]["relative_position_bias_table"],
  ):
    assert abs(float(leaf.std()) - 0.02) < 5e-4
    assert abs(float(leaf.mean())) < 5e-4
  assert abs(float(params["head"]["kernel"].std()) - 0.01) < 2e-4
  patch = params["patch_embed"]["proj"]["kernel"]
  assert abs(float(jnp.abs(patch).max()) - 96**-0.5) < 1e-3
  for name, value in (("bias", 0.0), ("scale", 1.0)):
    assert (np.asarray(block["norm1"][name]) == value).all()
  assert (np.asarray(block["mlp"]["fc1"]["bias"]) == 0).all()


def test_wrong_input_and_options_get_one_clear_line():
  model = small_model()
  with pytest.raises(ValueError, match=r"video must be float \[batch, time"):
    model(jnp.zeros((8, 16, 16, 3)))
  with pytest.raises(ValueError, match="uint8"):
    model(jnp.zeros((1, 8, 16, 16, 3), jnp.uint8))
  with pytest.raises(ValueError, match="did you mean 'video_swin_t'"):
    create_model("video_swin_ti")
  with pytest.raises(ValueError, match="did you mean 'window_size'"):
    create_model("video_swin_t", window_sizes=(8, 7, 7))
  with pytest.raises(ValueError, match="not divisible by its 3 heads"):
    create_model("video_swin_t", embed_dim=32)
  with pytest.raises(ValueError, match="unknown rematerialisation 'blocks'"):
    create_model("video_swin_t", rematerialisation="blocks")
