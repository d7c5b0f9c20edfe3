"""Video Swin against outputs of the reference implementation, and its interface."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tables.golden import (
  LARGE,
  NANO,
  forward_errors,
  gradient_errors,
  has_gradients,
  relative_error,
)
from vswin_jax.models import CATALOG, create_model
from vswin_jax.models.layers import drop_path
from vswin_jax.models.parameters import merge_model, split_model

NAMES = sorted(name for name in CATALOG if name.startswith("video_swin"))


@pytest.mark.parametrize(
  "case", NANO + [pytest.param(name, marks=pytest.mark.slow) for name in LARGE]
)
def test_logits_and_stage_features_equal_the_reference(case):
  errors = forward_errors(case)
  assert max(errors.values()) < 1e-5, errors


def test_which_cases_have_golden_gradients():
  assert [case for case in NANO + LARGE if has_gradients(case)] == NANO[:3]


@pytest.mark.parametrize(
  ("case", "options"),
  [(case, {}) for case in NANO[:3]]
  + [
    (NANO[2], {"attention": attention, "rematerialization": rematerialization})
    for attention, rematerialization in (
      ("chunked", "none"),
      ("xla", "block"),
      ("chunked", "block"),
      ("xla", "attention"),
    )
  ],
)
def test_gradients_equal_the_reference(case, options):
  errors = gradient_errors(case, **options)
  assert errors["loss"] < 1e-5
  assert max(errors.values()) < 1e-4, errors


# Parameters at 400 classes, as published (and counted from the reference's shapes).
PARAMETERS = {
  "video_swin_t": 28_158_070,
  "video_swin_s": 49_816_678,
  "video_swin_b": 88_048_984,
  "video_swin_l": 196_953_916,
}


def test_every_catalog_name_has_a_published_size():
  assert set(PARAMETERS) == set(NAMES)


def abstract(*arguments, **options):
  """Graph and parameter shapes of a model that is not computed."""
  return split_model(nnx.eval_shape(lambda: create_model(*arguments, **options)))


def count_parameters(params) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", NAMES)
def test_named_variants_have_the_published_size_and_run(name):
  graph, params = abstract(name)
  assert count_parameters(params) == PARAMETERS[name]
  channels = 8 * CATALOG[name].embed_dim
  video = jax.ShapeDtypeStruct((1, 32, 224, 224, 3), jnp.float32)
  for method, shape in (
    ("__call__", (1, 400)),
    ("features", (1, channels)),
    ("feature_map", (1, 16, 7, 7, channels)),
  ):

    def run(params, video, method=method):
      return getattr(merge_model(graph, params), method)(video)

    assert jax.eval_shape(run, params, video).shape == shape


# Published counts: Something-Something (174 classes) and 384 pixels (400 classes).
@pytest.mark.parametrize(
  ("window", "num_classes", "parameters"),
  [((16, 7, 7), 174, 88_834_038), ((8, 12, 12), 400, 90_079_384)],
)
def test_released_windows(window, num_classes, parameters):
  _, params = abstract("video_swin_b", num_classes=num_classes, window_size=window)
  assert count_parameters(params) == parameters


@jax.jit
def call(model, video, key=None):
  return model(video, key=key)


@jax.jit
def feature_map(model, video):
  return model.feature_map(video)


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
  assert feature_map(model, video).shape == (shape[0], *feature_shape, 64)
  logits = call(model, video)
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
  assert feature_map(model, video).dtype == jnp.bfloat16
  logits = call(model, video)
  assert logits.dtype == jnp.float32
  assert relative_error(logits, call(small_model(), video)) < 0.05


def test_logits_are_float32_in_a_bfloat16_model():
  model = small_model(dtype="bfloat16", num_classes=400)
  video = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 16, 16, 3)), jnp.float32)
  logits = np.asarray(call(model, video))
  assert (logits != logits.astype(jnp.bfloat16).astype(np.float32)).mean() > 0.9


def test_parameters_can_be_bfloat16():
  _, params = split_model(small_model(param_dtype="bfloat16", dtype="bfloat16"))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


RATES = ("drop_path_rate", "dropout_rate", "attention_dropout_rate", "head_dropout_rate")


@pytest.mark.parametrize("rate", RATES)
def test_every_kind_of_dropout_needs_a_key_and_follows_it(rate):
  none = dict.fromkeys(RATES, 0.0)
  model, off = small_model(**none | {rate: 0.5}), small_model(**none)
  video = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 16, 16, 3)), jnp.float32)
  still = call(model, video)
  np.testing.assert_array_equal(still, call(model, video))
  first, second = (call(model, video, jax.random.key(seed)) for seed in (0, 1))
  np.testing.assert_array_equal(first, call(model, video, jax.random.key(0)))
  for a, b in itertools.combinations((still, first, second), 2):
    assert np.abs(a - b).max() > 1e-5
  assert relative_error(call(off, video, jax.random.key(0)), still) < 1e-6


def test_drop_path_keeps_the_expected_value_and_drops_whole_clips():
  x = jnp.ones((4096, 2, 3, 3, 2))
  dropped = np.asarray(drop_path(x, 0.25, jax.random.key(0))).reshape(4096, -1)
  assert (dropped == dropped[:, :1]).all()
  assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
  assert abs((dropped[:, 0] == 0).mean() - 0.25) < 0.03


@pytest.mark.parametrize(
  ("options", "recomputes"),
  [
    ({}, False),
    ({"rematerialization": "block"}, True),
    ({"rematerialization": "attention"}, True),
    ({"attention": "chunked"}, True),
  ],
)
def test_rematerialization_computes_the_softmax_again(options, recomputes):
  graph, params = split_model(small_model(**{"attention": "xla"} | options))
  video = jnp.zeros((1, 8, 32, 32, 3))

  def loss(params):
    return merge_model(graph, params)(video).sum()

  forward = jax.jit(loss).lower(params).as_text().count("stablehlo.exponential")
  gradient = jax.jit(jax.grad(loss)).lower(params).as_text().count("stablehlo.exponential")
  assert forward > 0
  # GELU's gradient takes an exponential of its own: once for each of the four blocks.
  assert (gradient - 4 > forward) == recomputes


def test_drop_path_rates_grow_linearly_over_all_blocks():
  model = nnx.eval_shape(lambda: create_model("video_swin_t", drop_path_rate=0.1))
  rates = [block.drop_path_rate for stage in model.stages for block in stage.blocks]
  np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12))


def test_initialization_follows_the_reference():
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
  with pytest.raises(ValueError, match=r"got float32 \[1, 0, 16, 16, 3\]"):
    model(jnp.zeros((1, 0, 16, 16, 3)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"embed_dim": 32}, "stage 0: 32 channels are not divisible by num_heads 3"),
    ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
    ({"num_heads": (0, 1, 2, 4)}, "num_heads must be positive integers"),
    ({"depths": ()}, "depths must be positive integers"),
    ({"depths": (2, 2)}, "must name the same stages"),
    ({"window_size": 7}, "window_size must be positive integers, got 7"),
    ({"patch_size": (4, 4)}, r"patch_size must be \(time, height, width\)"),
    ({"drop_path_rate": 1.0}, "drop_path_rate must be at least 0 and below 1"),
    ({"dtype": "bfloat"}, "unknown dtype 'bfloat'; choose one of bfloat16, float16, float32"),
    ({"rematerialization": "blocks"}, "unknown rematerialization 'blocks'"),
    ({"attention": "chunkd"}, "unknown attention 'chunkd'; choose one of auto, chunked,"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    create_model("video_swin_t", **options)
