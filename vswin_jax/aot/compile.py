"""Compiles the training step of a config for targets, and reports memory, work and collectives."""

import dataclasses
import json
import pathlib
import re
import time
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from vswin_jax.aot.batch_search import max_fitting
from vswin_jax.aot.dataset_metadata import dataset_metadata
from vswin_jax.aot.devices import devices_of
from vswin_jax.aot.hlo import read_collectives, read_loops
from vswin_jax.aot.results import NOTE, Result, describe, describe_search, table
from vswin_jax.aot.topologies import Target, parse_target
from vswin_jax.common.messages import one_line
from vswin_jax.common.paths import file_path, local_path
from vswin_jax.experiment.config import ConfigError, read_settings
from vswin_jax.experiment.initialization import override_config
from vswin_jax.experiment.plan import Plan, make_mesh, make_plan
from vswin_jax.models.catalog import model_config
from vswin_jax.models.cost import count_program_macs
from vswin_jax.models.vtn import VTNConfig
from vswin_jax.training import sharding

RESULTS_FILE = "compile.jsonl"
# Options of the TPU compiler: several times faster, slightly more memory, other bytes accessed.
_QUICK = {"exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0}


def compile_config(
  config: config_dict.ConfigDict,
  topologies: str,
  *,
  workdir: str | pathlib.Path | None = None,
  effort: str = "full",
  search: bool = True,
  overridden_keys: Collection[str] = (),
  write: Callable[[str], None] = print,
) -> list[Result]:
  """Compiles the training step of a config for one target, or for several with a table.

  Args:
    topologies: comma-separated names, see `parse_target`.
    workdir: a folder for `RESULTS_FILE`, which gets one line per result: after the step is
      compiled, and again after the search. None: no file.
    effort: of the compiler for the step, "quick" or "full"; the search always uses "quick".
    search: for the maximum batch size. Steps that do not fit are always followed by a search.
    overridden_keys: keys of `config` that take precedence over the initial weights.
    write: receives the text of the report as it becomes available.

  Returns:
    A result per target; `error` is set where the compiler failed.

  Raises:
    TargetError: a target is unknown, or its compiler is not installed.
    ConfigError: the config does not fit the target or the data set.
    DatasetError: the data set is neither prepared nor known.
    CheckpointError: the initial weights can't be read.
  """
  targets = [parse_target(name.strip()) for name in topologies.split(",")]
  if config.model.name is None:
    if config.init_from in (None, "random"):
      raise ConfigError(
        "this config takes its model from the initial weights; give --config.init_from=DIR "
        "(converted weights or a run) or --config.model.name"
      )
    config = override_config(
      config, file_path(config.init_from), mode="train", overridden_keys=overridden_keys
    )
  data = config.data
  dataset, source = dataset_metadata(data.name, data.dir, data.train_split)
  # Before the first compilation, so that an error of the last target doesn't come hours later.
  plans = [plan_for_target(config, target, dataset) for target in targets]
  rows = None
  if workdir is not None:
    rows = local_path(workdir) / RESULTS_FILE
    rows.parent.mkdir(parents=True, exist_ok=True)

  def report(result: Result, text: str) -> None:
    write(text)
    if rows is not None:
      with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")

  write(f"{data.name}: {dataset['num_videos']:,} training videos ({source})\n")
  results = []
  for target, plan in zip(targets, plans, strict=True):
    result = compile_plan(plan, target, effort)
    result = dataclasses.replace(result, wanted_batch_size=config.train.batch_size)
    report(result, describe(result))
    if not result.error and (search or not result.fits):
      result = search_settings(config, target, dataset, result)
      report(result, describe_search(result))
    write("")
    results.append(result)
  if len(results) > 1:
    write(f"{table(results)}\n")
  write(NOTE)
  return results


def plan_for_target(
  config: config_dict.ConfigDict,
  target: Target,
  dataset: dict,
  clips_per_device: int | None = None,
) -> Plan:
  """Returns the training plan of a config on the devices of a target.

  Args:
    dataset: from `dataset_metadata`.
    clips_per_device: None: those of the config's batch size, rounded up to the next one that is
      divisible among the devices.

  Raises:
    TargetError, ConfigError: see `compile_config`.
  """
  devices = devices_of(target)
  config = config.copy_and_resolve_references()
  if clips_per_device is None:
    divisor = len(devices) * config.train.grad_accum_steps
    config.train.batch_size = -(-config.train.batch_size // divisor) * divisor
  else:
    config.train.batch_size = clips_per_device * len(devices)
  settings = read_settings(config.lock())
  return make_plan(settings, make_mesh(settings, devices=devices), **dataset)


def compile_plan(plan: Plan, target: Target, effort: str = "quick") -> Result:
  """Compiles the training step of a plan from `plan_for_target`; runs nothing.

  Args:
    effort: "quick" or "full"; only the TPU compiler distinguishes them.
  """
  settings, mesh = plan.settings, plan.mesh
  start = time.monotonic()
  traced = trace_step(plan)
  try:
    compiled = compile_traced(traced, mesh, effort)
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if lacks_memory(message):
      needed = needed_memory(message)
      # Messages round the number.
      counts = {"memory": None if needed is None else max(needed, target.chip.memory + 1)}
    else:
      counts = {"error": one_line(message)[:200]}
  else:
    text, memory = compiled.as_text(), compiled.memory_analysis()
    costs = compiled.cost_analysis() or {}
    loops = read_loops(text)
    counts = {
      "memory": memory.peak_memory_in_bytes,
      "arguments": memory.argument_size_in_bytes,
      "flops": costs.get("flops"),
      "bytes_accessed": costs.get("bytes accessed"),
      "collectives": tuple(read_collectives(text, target.slices, target.slice_size)),
      "loops": len(loops),
      "unknown_loops": loops.count(None),
    }
  result = Result(
    model=settings.model["name"],
    topology=target.name,
    batch_size=settings.train.batch_size,
    wanted_batch_size=settings.train.batch_size,
    grad_accum_steps=settings.train.grad_accum_steps,
    fsdp=settings.mesh.fsdp,
    rematerialization=settings.model.get("rematerialization", "none"),
    epochs=settings.train.epochs,
    num_steps=plan.num_steps,
    effort=effort,
    seconds=time.monotonic() - start,
    product_flops=product_flops(traced, mesh.size),
    **counts,
  )
  jax.clear_caches()  # the programs are large, and none is compiled twice
  return result


def trace_step(plan: Plan) -> jax.stages.Traced:
  """Returns the training step of a plan, traced for the shapes of its state and batch."""
  settings = plan.settings
  size, clip = settings.train.batch_size, settings.clip
  labels = (size, plan.model_options["num_classes"]) if plan.multi_label else (size,)
  shapes = {
    "video": ((size, clip.num_frames, clip.size, clip.size, 3), jnp.uint8),
    "position_ids": ((size, clip.num_frames), jnp.int32),
    "label": (labels, jnp.int32),
    "failed": ((size,), jnp.int32),
  }
  place = sharding.batch_sharding(plan.mesh)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    for name, (shape, dtype) in shapes.items()
  }
  return plan.jitted_train_step().trace(plan.state_shapes(), batch)


def compile_traced(
  traced: jax.stages.Traced, mesh: jax.sharding.Mesh, effort: str
) -> jax.stages.Compiled:
  """Compiles a traced step with an effort of `EFFORTS`."""
  on_tpu = mesh.devices.flat[0].platform == "tpu"
  return traced.lower().compile(_QUICK if effort == "quick" and on_tpu else None)


def product_flops(traced: jax.stages.Traced, num_devices: int) -> float | None:
  """Returns the operations per device of the matrix products and convolutions of a step.

  They include all iterations of loops, and what rematerialization computes twice. None: the length
  of a loop depends on values.
  """
  try:
    return 2 * count_program_macs(traced.jaxpr) / num_devices
  except ValueError:
    return None


def lacks_memory(message: str) -> bool:
  """Returns whether a compiler failed because the device memory is too small.

  The small memories of a core (vmem, smem) can be too small for any number of clips.
  """
  pattern = r"in memory space hbm|memory on HBM|available HBM|(?<!ran )out of memory"
  return "RESOURCE_EXHAUSTED" in message and bool(re.search(pattern, message, re.IGNORECASE))


def needed_memory(message: str) -> int | None:
  """Returns the bytes that a program needs by the message of a compiler; None: not in there."""
  size = r"([\d.]+)([KMGT]?)"
  needed = re.search(rf"used {size} of \S+ hbm", message, re.IGNORECASE)
  needed = needed or re.search(rf"\({size}\) exceeds available HBM", message)
  return int(float(needed[1]) * 1024 ** " KMGT".index(needed[2] or " ")) if needed else None


def search_settings(
  config: config_dict.ConfigDict, target: Target, dataset: dict, result: Result
) -> Result:
  """Returns the result with the maximum batch size, and with flags that make a step fit.

  All are compiled, with quick effort. What fails to compile for another reason than memory counts
  as too large, and is listed in `failed`.
  """
  parts = config.train.grad_accum_steps
  advice, errors = [], {}

  def peak_memory_with(name: str, changes: dict, clips_per_device: int | None = None) -> int | None:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    try:
      plan = plan_for_target(changed, target, dataset, clips_per_device)
    except ConfigError as error:
      errors[name] = str(error)
      return None
    tried = compile_plan(plan, target)
    if tried.error:
      errors[name] = tried.error
    return tried.memory

  def peak_memory(clips: int) -> int | None:
    return peak_memory_with(f"{clips * parts} clips per chip", {}, clips * parts)

  def try_flags(changes: dict) -> None:
    flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
    memory = peak_memory_with(flags, changes)
    if memory is not None and memory <= target.chip.memory:
      advice.append(f"{flags} ({memory / 2**30:.2f} GiB)")

  # A run has at least one step.
  num_clips = config.train.epochs * dataset["num_videos"] * config.train.repeats
  limit = int(num_clips) // (target.num_devices * parts)
  clips = result.clips_per_device
  at_once, is_largest = max_fitting(
    peak_memory, target.chip.memory, {clips // parts: result.memory}, limit
  )
  largest = at_once * parts
  is_largest = is_largest and f"{largest + parts} clips per chip" not in errors
  if not result.fits:
    # The sum of the gradients takes memory too, so the next number of steps is tried as well.
    steps = [n for n in range(2, clips + 1) if clips % n == 0 and clips // n <= at_once]
    for number in steps[:2]:
      if not advice:
        try_flags({"train.grad_accum_steps": number})
    changes = {}
    is_vtn = isinstance(model_config(config.model.name), VTNConfig)
    recompute = "chunk" if is_vtn else "block"
    if result.rematerialization != recompute:
      changes["model.rematerialization"] = recompute
    group = min(target.slice_size, target.num_devices // max(config.mesh.slices, 1))
    if config.mesh.fsdp < group:
      changes["mesh.fsdp"] = group
    for key, value in changes.items():
      try_flags({key: value})
    if len(changes) > 1 and not advice:
      try_flags(changes)
    if largest:
      advice.append(
        f"--config.train.batch_size={largest * target.num_devices} ({largest} clips per chip; this "
        "changes the recipe, whose learning rate belongs to its batch size)"
      )
  return dataclasses.replace(
    result,
    largest=largest,
    is_largest=is_largest,
    advice=tuple(advice),
    failed=tuple(f"{name}: {error}" for name, error in errors.items()),
  )
