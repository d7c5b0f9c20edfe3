"""From a config and the names of machines to what compiling for them says."""

import dataclasses
import pathlib
from collections.abc import Callable, Collection

import jax
from ml_collections import config_dict

from vswin_jax.aot.batch_search import largest_that_fits
from vswin_jax.aot.compiler import Compiled, compile_step
from vswin_jax.aot.dataset_metadata import DatasetMetadata, dataset_metadata
from vswin_jax.aot.devices import devices_of
from vswin_jax.aot.hlo import read_collectives, read_loops
from vswin_jax.aot.results import NOTE, Result, describe, describe_search, table, write_row
from vswin_jax.aot.topologies import Target, parse_targets
from vswin_jax.common.paths import file_path, local_path
from vswin_jax.experiment.config import ConfigError, read_settings
from vswin_jax.experiment.initialization import override_config
from vswin_jax.experiment.plan import Plan, make_mesh, make_plan
from vswin_jax.models.catalog import model_config
from vswin_jax.models.vtn import VTNConfig

RESULTS_FILE = "compile.jsonl"


def run(
  config: config_dict.ConfigDict,
  topologies: str,
  *,
  workdir: str | pathlib.Path | None = None,
  effort: str = "full",
  search: bool = True,
  overridden_keys: Collection[str] = (),
  say: Callable[[str], None] = print,
) -> list[Result]:
  """Compiles the training step of a config for one machine, or for several with a table.

  Args:
    topologies: names as `parse_target` reads them, with commas between.
    workdir: where results are added to `RESULTS_FILE`, a line as soon as the step is compiled and
      one more after what is tried besides; None: nowhere.
    effort: of the compiler for what is asked for, "quick" or "full"; what is tried besides, the
      largest batch and what would fit, takes the quick one.
    search: for the largest number of clips a device.
    overridden_keys: keys of `config` that hold against the weights that it starts from.
    say: is given what there is to read, when it is known.

  Returns:
    A result for each machine, also where the compiler failed, which has an `error`.

  Raises:
    TargetError: an unknown machine, or no compiler for it.
    ConfigError: values that do not fit.
    DatasetError: a data set that is neither prepared nor known.
    CheckpointError: weights that can't be read.
  """
  targets = parse_targets(topologies)
  config = settle_model(config, overridden_keys)
  metadata = dataset_metadata(config.data.name, config.data.dir, config.data.train_split)
  # All before the first is compiled: what does not fit the last is not said after hours.
  plans = [plan_for(config, target, metadata) for target in targets]
  rows = None
  if workdir is not None:
    folder = local_path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / RESULTS_FILE
  results = []
  for target, plan in zip(targets, plans, strict=True):
    result = compile_plan(plan, target, metadata, config.train.batch_size, effort)
    _keep(result, rows, say, describe)
    if not result.error and (search or not result.fits):
      result = search_largest(config, target, metadata, result)
      if not result.fits:
        result = add_advice(config, target, metadata, result)
      _keep(result, rows, say, describe_search)
    say("")
    results.append(result)
  if len(results) > 1:
    say(f"{table(results)}\n\n{NOTE}")
  return results


def _keep(
  result: Result,
  rows: pathlib.Path | None,
  say: Callable[[str], None],
  words: Callable[[Result], str],
) -> None:
  say(words(result))
  if rows is not None:
    write_row(rows, result)


def settle_model(
  config: config_dict.ConfigDict, overridden_keys: Collection[str] = ()
) -> config_dict.ConfigDict:
  """The config with the model of the weights that it starts from, if it names none itself.

  Args:
    overridden_keys: keys of `config` that hold against what the weights say.

  Raises:
    ConfigError: neither a model nor weights are given.
  """
  if config.model.name is not None:
    return config
  if config.init_from in (None, "random"):
    raise ConfigError(
      "which model? This config takes it from the weights that it starts from; give "
      "--config.init_from=DIR of converted weights or of a run, or --config.model.name"
    )
  source = file_path(config.init_from)
  return override_config(config, source, mode="train", overridden_keys=overridden_keys)


def compile_for(
  config: config_dict.ConfigDict,
  target: Target,
  metadata: DatasetMetadata,
  *,
  clips_per_device: int | None = None,
) -> Result:
  """Compiles the training step for a machine, with quick effort.

  Args:
    clips_per_device: None: as many as the config says, or the next number that can be divided.

  Raises:
    TargetError, ConfigError: as `run`.
  """
  plan = plan_for(config, target, metadata, clips_per_device)
  return compile_plan(plan, target, metadata, config.train.batch_size)


def compile_plan(
  plan: Plan,
  target: Target,
  metadata: DatasetMetadata,
  wanted_batch_size: int,
  effort: str = "quick",
) -> Result:
  """Compiles the training step of a plan from `plan_for`."""
  compiled = compile_step(plan, effort)
  jax.clear_caches()  # no step is compiled twice, and the programs are large
  return result_of(plan, target, metadata, wanted_batch_size, compiled)


def plan_for(
  config: config_dict.ConfigDict,
  target: Target,
  metadata: DatasetMetadata,
  clips_per_device: int | None = None,
) -> Plan:
  """The plan of a config on a machine, with a batch that its devices can share."""
  devices = devices_of(target)
  config = config.copy_and_resolve_references()
  if clips_per_device is None:
    shares = len(devices) * config.train.grad_accum_steps
    config.train.batch_size = -(-config.train.batch_size // shares) * shares
  else:
    config.train.batch_size = clips_per_device * len(devices)
  settings = read_settings(config.lock())
  return make_plan(
    settings,
    make_mesh(settings, devices),
    num_classes=metadata.num_classes,
    num_videos=metadata.num_videos,
    multi_label=metadata.multi_label,
  )


def result_of(
  plan: Plan, target: Target, metadata: DatasetMetadata, wanted_batch_size: int, compiled: Compiled
) -> Result:
  config = plan.settings
  loops = read_loops(compiled.text) if compiled.text else []
  return Result(
    model=config.model["name"],
    topology=target.name,
    num_devices=target.num_devices,
    batch_size=config.train.batch_size,
    wanted_batch_size=wanted_batch_size,
    fsdp=config.mesh.fsdp,
    rematerialization=config.model.get("rematerialization") or "none",
    epochs=config.train.epochs,
    num_steps=plan.num_steps,
    effort=compiled.effort,
    seconds=compiled.seconds,
    memory=compiled.memory,
    needed=compiled.needed,
    arguments=compiled.arguments,
    flops=compiled.flops,
    bytes_accessed=compiled.bytes_accessed,
    collectives=tuple(read_collectives(compiled.text, target.slices, target.slice_size))
    if compiled.text
    else (),
    loops=len(loops),
    unknown_loops=loops.count(None),
    product_flops=compiled.product_flops,
    grad_accum_steps=config.train.grad_accum_steps,
    num_videos=metadata.num_videos,
    videos_source=metadata.source,
    error=compiled.error,
  )


def search_largest(
  config: config_dict.ConfigDict,
  target: Target,
  metadata: DatasetMetadata,
  result: Result,
  known: dict[int, int | None] | None = None,
) -> Result:
  """The result with the largest number of clips a device that fit, found with quick effort.

  A number that does not compile for another reason than memory counts as too large, and is said.

  Args:
    known: bytes by clips a device that are known besides; None: more than there are.
  """
  parts = config.train.grad_accum_steps
  failed = {}

  def peak_memory(clips: int) -> int | None:
    size, why = _try(config, target, metadata, clips * parts)
    if why:
      failed[clips] = f"{clips * parts} clips a chip: {why}"
    return size

  # The run must have a step.
  clips = config.train.epochs * metadata.num_videos * config.train.repeats
  most = int(clips) // (target.num_devices * parts)
  memory = {**(known or {}), result.clips_per_device: _size(result)}
  tried = {clips // parts: size for clips, size in memory.items()}
  found = largest_that_fits(peak_memory, target.chip.memory, tried, most=most)
  return dataclasses.replace(
    result,
    largest=found.clips * parts,
    is_largest=found.is_largest and found.clips + 1 not in failed,
    failed=(*result.failed, *failed.values()),
  )


def _try(
  config: config_dict.ConfigDict,
  target: Target,
  metadata: DatasetMetadata,
  clips_per_device: int | None,
) -> tuple[int | None, str]:
  """Bytes of a step, also of one that needs more than there are if the compiler says how many; and
  why it did not compile, if that was something else."""
  try:
    result = compile_for(config, target, metadata, clips_per_device=clips_per_device)
  except ConfigError as error:
    return None, str(error)
  return _size(result), result.error


def _size(result: Result) -> int | None:
  """Bytes at the peak, also if they are more than there are; None: more, no one says how many."""
  if result.memory is None and result.needed is not None:
    # Messages give rounded numbers.
    return max(result.needed, result.target.chip.memory + 1)
  return result.memory


def add_advice(
  config: config_dict.ConfigDict, target: Target, metadata: DatasetMetadata, result: Result
) -> Result:
  """The result of a step that does not fit, with flags that were compiled and do.

  Args:
    result: from `search_largest`.
  """
  advice, failed = [], []

  def helps(changes: dict) -> bool:
    changed = config.copy_and_resolve_references()
    changed.update_from_flattened_dict(changes)
    size, why = _try(changed, target, metadata, None)
    flags = " ".join(f"--config.{key}={value}" for key, value in changes.items())
    if why:
      failed.append(f"{flags}: {why}")
    fits = size is not None and size <= target.chip.memory
    if fits:
      advice.append(f"{flags} ({size / 2**30:.2f} GiB)")
    return fits

  # The sum over the parts takes memory too, so more parts may be needed.
  kept = any(helps({"train.grad_accum_steps": parts}) for parts in _parts(config, result)[:2])
  more = []
  recompute = "chunk" if isinstance(model_config(config.model.name), VTNConfig) else "block"
  if result.rematerialization != recompute:
    more.append({"model.rematerialization": recompute})
  if config.mesh.fsdp < target.slice_size:
    more.append({"mesh.fsdp": target.slice_size})
  helped = [kept, *map(helps, more)]
  if len(more) > 1 and not any(helped):
    helps(more[0] | more[1])
  if result.largest:
    batch_size = result.largest * result.num_devices
    advice.append(
      f"--config.train.batch_size={batch_size} ({result.largest} clips a chip; changes the recipe, "
      "whose rates go with its batch)"
    )
  return dataclasses.replace(result, advice=tuple(advice), failed=(*result.failed, *failed))


def _parts(config: config_dict.ConfigDict, result: Result) -> list[int]:
  """Numbers of parts, the fewest first, into which the clips of a device can be cut so that a part
  is no larger than what fits."""
  at_once = (result.largest or 0) // config.train.grad_accum_steps
  clips = result.clips_per_device
  return [
    parts for parts in range(2, clips + 1) if clips % parts == 0 and clips // parts <= at_once
  ]
