"""Training state, and the training step that is jitted over it."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from vswin_jax.augmentation.augmentation import Augmentation
from vswin_jax.models.parameters import merge_model
from vswin_jax.training.inputs import augment_batch, model_inputs
from vswin_jax.training.optimizer import global_norm, update_ema

_NO_AUGMENTATION = Augmentation()


@flax.struct.dataclass
class TrainState:
  """State of a run: all that is needed to resume it, as plain trees of arrays.

  Attributes:
    step: int32, number of optimizer updates.
    params: parameters of the model.
    ema_params: exponential moving average of `params`; an empty dict if there is none.
    optimizer: state of the optimizer.
    totals: float32 sums since the last logged step, from which logged means are computed.
    clips_failed: int32, number of training clips substituted because they could not be decoded.
  """

  step: jax.Array
  params: dict
  ema_params: dict
  optimizer: optax.OptState
  totals: dict
  clips_failed: jax.Array


def create_state(
  params: dict, optimizer: optax.GradientTransformation, *, with_ema: bool
) -> TrainState:
  """Returns the state before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params) if with_ema else {},
    optimizer=optimizer.init(params),
    totals={name: jnp.zeros((), jnp.float32) for name in ("steps", "loss", "top1", "grad_norm")},
    clips_failed=jnp.zeros((), jnp.int32),
  )


def top1_accuracy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns the share of clips whose most probable class is a label, or a largest soft target.

  A clip without a label counts as wrong.
  """
  best = logits.argmax(-1, keepdims=True)
  target = jnp.take_along_axis(targets, best, axis=-1)[:, 0]
  return ((target == targets.max(-1)) & (target > 0)).mean(dtype=jnp.float32)


def make_train_step(
  graph: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  schedule: optax.Schedule,
  *,
  seed: int,
  mean: tuple[float, ...],
  std: tuple[float, ...],
  mesh: jax.sharding.Mesh | None = None,
  augmentation: Augmentation = _NO_AUGMENTATION,
  multi_label: bool = False,
  label_smoothing: float = 0.0,
  grad_accum_steps: int = 1,
  ema_decay: float = 0.0,
  log_every: int = 50,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """Builds the training step, to be jitted with the state donated.

  Args:
    graph: graph of the model, from `split_model`.
    optimizer: from `make_optimizer`.
    schedule: its learning rate by step, for the metrics.
    seed: seed of augmentation, dropout and stochastic depth, which depend on (seed, step) only.
    mean: mean of the pixels, per color.
    std: standard deviation of the pixels, per color.
    mesh: mesh of the devices that share a batch; None: one device.
    multi_label: whether a video has any number of labels; the loss is the mean over clips of the
      cross-entropy or, with `multi_label`, the mean over clips and classes of the binary one.
    label_smoothing: share of the target spread evenly over all classes; not with `multi_label`.
    grad_accum_steps: number of parts of a batch whose gradients are accumulated.
    ema_decay: decay of the EMA of the parameters; 0: no EMA.
    log_every: number of steps after which the means in the metrics are reset.

  Returns:
    `step(state, batch)` with batch "video" uint8 `[batch, time, height, width, 3]`, "position_ids"
    int32 `[batch, time]`, "label" as in `model_inputs`, "failed" int32 `[batch]` -> (state,
    metrics). Metrics are scalars: "loss" of this step, "learning_rate", "clips_failed", and means
    since the last logged step: "mean_loss", "mean_top1" (see `top1_accuracy`), "mean_grad_norm".
  """

  def loss_function(params, batch, key):
    model = merge_model(graph, params)
    pixels, targets = model_inputs(
      batch,
      key,
      augmentation,
      mean=mean,
      std=std,
      num_classes=model.config.num_classes,
      multi_label=multi_label,
      label_smoothing=label_smoothing,
    )
    logits = model(pixels, batch["position_ids"], key=key)
    if multi_label:
      losses = optax.sigmoid_binary_cross_entropy(logits, targets)
    else:
      losses = optax.softmax_cross_entropy(logits, targets)
    return losses.mean(), top1_accuracy(logits, targets)

  gradient = jax.value_and_grad(loss_function, has_aux=True)

  def gradient_of_batch(params, batch, key):
    if grad_accum_steps == 1:
      (loss, top1), grads = gradient(params, batch, key)
      return loss, top1, grads

    def part_first(x):
      # Each part takes an equal number of clips from each device.
      return jnp.moveaxis(x.reshape(-1, grad_accum_steps, *x.shape[1:]), 1, 0)

    def add_part(total, part):
      batch_part, index = part
      (loss, top1), grads = gradient(params, batch_part, jax.random.fold_in(key, index))
      return jax.tree.map(jnp.add, total, (loss, top1, grads)), None

    zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    parts = (jax.tree.map(part_first, batch), jnp.arange(grad_accum_steps))
    total, _ = jax.lax.scan(add_part, zero, parts)
    return jax.tree.map(lambda x: x / grad_accum_steps, total)

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    augmented = augment_batch(batch, key, augmentation, mesh)
    loss, top1, grads = gradient_of_batch(state.params, augmented, key)
    with jax.named_scope("optimizer"):
      updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
      params = optax.apply_updates(state.params, updates)
      ema_params = state.ema_params
      if ema_decay:
        ema_params = update_ema(ema_params, params, ema_decay, state.step + 1)

    now = {"steps": 1.0, "loss": loss, "top1": top1, "grad_norm": global_norm(grads)}
    starts_anew = state.step % log_every == 0
    totals = {
      name: jnp.where(starts_anew, 0.0, state.totals[name]) + value for name, value in now.items()
    }
    clips_failed = state.clips_failed + jnp.sum(batch["failed"] >= 0, dtype=jnp.int32)
    metrics = {
      "loss": loss,
      "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
      "clips_failed": clips_failed,
      **{f"mean_{name}": totals[name] / totals["steps"] for name in ("loss", "top1", "grad_norm")},
    }
    state = TrainState(
      step=state.step + 1,
      params=params,
      ema_params=ema_params,
      optimizer=optimizer_state,
      totals=totals,
      clips_failed=clips_failed,
    )
    return state, metrics

  return step
