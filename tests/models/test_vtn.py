import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tables.vtn_parity import golden_errors, golden_gradient_errors
from vswin_jax import create_model
from vswin_jax.models.normalization import normalize
from vswin_jax.models.outputs import make_view_step
from vswin_jax.models.parameters import flatten, merge_model, split_model

SMALL = {
  "num_classes": 5,
  "backbone_options": {
    "image_size": 16, "patch_size": 8, "width": 24, "depth": 2, "num_heads": 2
  },
  "width": 24,
  "num_layers": 2,
  "num_heads": 2,
  "attention_window": 4,
  "intermediate_size": 32,
}  # fmt: skip


def small_video(frames=7, batch=2, seed=0):
  random = np.random.default_rng(seed)
  return random.normal(size=(batch, frames, 16, 16, 3)).astype(np.float32)


def run(model, *arrays):
  return jax.jit(lambda arrays: model(*arrays))(arrays)


@pytest.mark.parametrize(
  "case", ["vtn_nano_20f", pytest.param("vtn_vit_b_16f", marks=pytest.mark.slow)]
)
def test_logits_and_frame_features_equal_the_reference(case):
  errors = golden_errors(case)
  assert max(errors.values()) < 1e-5, errors


def test_gradients_equal_the_reference():
  errors = golden_gradient_errors()
  assert errors.pop("loss") < 1e-5
  assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("frames_per_chunk", [1, 3, 7, 100])
def test_chunks_of_frames_change_nothing(frames_per_chunk):
  video = small_video()
  whole = run(create_model("vtn_vit_b", **SMALL), video)
  chunked = create_model("vtn_vit_b", **SMALL, frames_per_chunk=frames_per_chunk)
  np.testing.assert_allclose(run(chunked, video), whole, atol=2e-6)


def test_rematerialized_chunks_give_the_same_gradients_in_less_memory():
  video = small_video(frames=64, batch=1)

  def compiled(**overrides):
    model = create_model("vtn_vit_b", **SMALL, **overrides)
    graph, params = split_model(model)
    gradient = jax.jit(jax.grad(lambda params: merge_model(graph, params)(video).sum()))
    program = gradient.lower(params).compile()
    return program(params), program.memory_analysis().temp_size_in_bytes

  expected, memory = compiled()
  gradient, less_memory = compiled(frames_per_chunk=8, rematerialization="chunk")
  for path, leaf in flatten(expected).items():
    np.testing.assert_allclose(flatten(gradient)[path], leaf, atol=2e-5, err_msg=path)
  assert less_memory < memory / 2


@pytest.mark.slow
def test_training_on_250_frames_of_vit_b_fits_80_gb():
  model = nnx.eval_shape(
    lambda: create_model(
      "vtn_vit_b", frames_per_chunk=10, rematerialization="chunk", dtype="bfloat16"
    )
  )
  graph, shapes = split_model(model)
  video = jax.ShapeDtypeStruct((1, 250, 224, 224, 3), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))

  def loss(params, video, key):
    return merge_model(graph, params)(video, key=key).sum()

  program = jax.jit(jax.grad(loss)).lower(shapes, video, key).compile()
  memory = program.memory_analysis()
  # Beside these: the optimizer's state, the momentum of 0.5 GB.
  used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
  assert used < 80e9 - 2e9


def test_long_features_take_little_memory_forward_and_backward():
  graph, shapes = split_model(
    nnx.eval_shape(lambda: create_model("vtn_vit_b", backbone=lambda images: images))
  )

  def memory(frames, transform):
    features = jax.ShapeDtypeStruct((1, frames, 768), jnp.float32)
    run = transform(lambda params, x: merge_model(graph, params).classify(x).sum())
    analysis = jax.jit(run).lower(shapes, features).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  def forward(run):
    return run

  assert memory(16384, forward) < 1.5e9
  for transform in (forward, jax.grad):
    assert memory(8192, transform) < 2.1 * memory(4096, transform)


def test_default_position_ids_count_from_zero():
  # Embeddings large enough to matter.
  model, video = create_model("vtn_vit_b", **SMALL, init_std=0.5), small_video()
  counted = jnp.broadcast_to(jnp.arange(7), (2, 7))
  # As a constant of the program, like the default.
  given = jax.jit(lambda video: model(video, counted))(video)
  np.testing.assert_array_equal(run(model, video), given)
  assert np.abs(run(model, video) - run(model, video, 3 * counted)).max() > 1e-3


def test_position_ids_wrap_around():
  model, features = create_model("vtn_vit_b", **SMALL), jnp.ones((1, 3, 24))
  first = model.classify(features, jnp.array([[0, 5, 285]]))
  np.testing.assert_array_equal(model.classify(features, jnp.array([[286, 291, 571]])), first)


def test_a_call_equals_its_parts():
  model, video = create_model("vtn_vit_b", **SMALL), small_video()
  features = jax.jit(model.frame_features)(video)
  np.testing.assert_allclose(jax.jit(model.classify)(features), run(model, video), atol=2e-6)
  np.testing.assert_allclose(
    model.head(jax.jit(model.features)(video)), run(model, video), atol=2e-6
  )
  assert jax.eval_shape(model.feature_map, video).shape == (2, 7, 1, 1, 24)


def test_view_step_gives_frame_features_of_every_view():
  graph, params = split_model(create_model("vtn_vit_b", **SMALL))
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 7, 16, 16, 3), dtype=np.uint8)
  position_ids = np.zeros((2, 3, 7), np.int32)
  pixels = {"mean": (110.0, 100.0, 90.0), "std": (60.0, 50.0, 40.0)}
  features = jax.jit(make_view_step(graph, "frame_features", **pixels))(params, video, position_ids)
  assert features.dtype == jnp.float32 and features.shape == (2, 3, 7, 24)
  model = merge_model(graph, params)
  view = jax.jit(model.frame_features)(normalize(video[:, 1], **pixels))
  np.testing.assert_allclose(features[:, 1], view, atol=2e-6)


class Pooled(nnx.Module):
  """A backbone from outside of the library."""

  def __init__(self):
    self.scale = nnx.Param(jnp.arange(1.0, 25.0))

  def __call__(self, images):
    return images.mean((1, 2)).repeat(8, axis=1) * self.scale[...]


def test_a_module_or_a_function_can_be_the_backbone():
  options = {name: value for name, value in SMALL.items() if name != "backbone_options"}
  video = small_video()
  model = create_model("vtn_vit_b", backbone=Pooled(), **options)
  features = np.repeat(video.mean((2, 3)), 8, axis=-1) * np.arange(1.0, 25.0)
  np.testing.assert_allclose(run(model, video), model.classify(jnp.asarray(features)), atol=2e-5)
  assert "backbone.scale" in flatten(split_model(model)[1])
  function = create_model(
    "vtn_vit_b", backbone=lambda images: images.mean((1, 2)).repeat(8, axis=1), **options
  )
  assert not [path for path in flatten(split_model(function)[1]) if path.startswith("backbone")]
  assert run(function, video).shape == (2, 5)


def test_a_backbone_with_a_key_drops_out_in_training_only():
  options = {name: value for name, value in SMALL.items() if name != "backbone_options"}

  def backbone(images, key=None):
    pooled = images.mean((1, 2)).repeat(8, axis=1)
    return pooled if key is None else pooled * jax.random.normal(key, pooled.shape)

  model = create_model("vtn_vit_b", backbone=backbone, **options)
  video = small_video()
  np.testing.assert_array_equal(model.frame_features(video), model.frame_features(video))
  noisy = model.frame_features(video, key=jax.random.key(0))
  assert np.abs(noisy - model.frame_features(video)).max() > 0.1


def test_dropout_is_a_function_of_the_key():
  model, video = create_model("vtn_vit_b", **SMALL), small_video()
  call = jax.jit(lambda key: model(video, key=key))
  first, again, other = (np.asarray(call(jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"backbone": "vit_b16"}, "unknown backbone 'vit_b16': did you mean 'vit_b_16'"),
    ({"backbone_options": {"dept": 3}}, "vit_b_16 has no option 'dept': did you mean 'depth'"),
    ({"backbone": "resnet50"}, "has 2048 features, but width is 768; set width=2048"),
    ({"width": 100}, "the temporal encoder: 100 channels are not divisible by num_heads 12"),
    ({"attention_window": 7}, "attention_window must be even, got 7"),
    ({"backbone": "resnet50", "attention": "flash"}, "unknown attention 'flash'"),
    ({"backbone": len, "attention": "flash"}, "unknown attention 'flash'"),
    ({"num_positions": 2}, "num_positions must be at least 3"),
    ({"rematerialization": "block"}, "unknown rematerialization 'block'"),
    ({"backbone": "custom"}, "has a custom backbone: pass it as backbone="),
    ({"backbone": len, "backbone_options": {"depth": 1}}, "are for named backbones"),
    ({"backbone_options": (1, 2)}, "backbone_options must be a dict, got"),
    ({"backbone": None}, "backbone must be a name, a module or a function, got None"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    create_model("vtn_vit_b", **options)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda model: model(jnp.zeros((1, 4, 16, 16, 3), jnp.uint8)), "video must be float"),
    (lambda model: model(jnp.zeros((1, 4, 24, 24, 3))), r"images must be \[batch, 16, 16, 3\]"),
    (lambda model: model.classify(jnp.zeros((1, 4, 23))), r"features must be \[batch, frames, 24"),
    (
      lambda model: model.classify(jnp.zeros((1, 4, 24)), jnp.zeros((1, 5), int)),
      r"position_ids must be \[batch, frames\] = \[1, 4\], got \[1, 5\]",
    ),
    (
      lambda model: create_model("vtn_vit_b", backbone=lambda images: images[:, 0, 0])(
        jnp.zeros((1, 4, 16, 16, 3))
      ),
      r"the backbone must return features \[4, width = 768\] for 4 images, got \[4, 3\]",
    ),
  ],
)
def test_arrays_that_do_not_fit_are_refused(call, message):
  with pytest.raises(ValueError, match=message):
    call(create_model("vtn_vit_b", **SMALL))
