"""Self-check of attention kernels: whether they agree with XLA on this machine.

A kernel that the compiler accepts can still be wrong on a device that it never ran on. A run on an
accelerator therefore compares the kernels that it would use with XLA, for the shapes of its model.
Agreement is remembered per device kind, versions and shapes.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.resources
import json
import math
import os
import pathlib
from collections.abc import Sequence

import jax

from vswin_jax.attention.operations import KERNELS, current_platform, kernels
from vswin_jax.common.logging import logger, own_logger
from vswin_jax.common.paths import cache_folder, replacing
from vswin_jax.models.agreement import Agreement, Part, attention_config, compare, parts_of
from vswin_jax.models.catalog import model_config


def choose_attention(options: dict, frames: int, size: int) -> list[str] | None:
  """Returns the implementations that may compute the attention of a model, the fastest first.

  Args:
    options: arguments of `create_model`.
    frames: frames of a clip.
    size: height and width of a clip in pixels.

  Returns:
    Kernels that agree with XLA, and XLA's own implementation, which is always one of them. None:
    the options ask for no kernel of this platform, so there is nothing to check.
  """
  config, parts = _parts(options, frames, size)
  names = _kernels(config, parts)
  if not names:
    return None
  file = _file(config, parts)
  found = _read(file)
  missing = [name for name in names if any((part.name, name) not in found for part in parts)]
  if missing:
    logger.info("comparing kernels of attention with XLA: %s", ", ".join(missing))
    agreements = compare(parts, missing, config.dtype)
    found |= {(one.part, one.implementation): one for one in agreements}
    # What failed may succeed next time, with more free memory.
    _write(file, [one for one in found.values() if not one.failure])
  seconds = {parts[0].reference: math.inf}
  for name in names:
    agreements = [found[part.name, name] for part in parts]
    if all(one.agrees for one in agreements):
      times = [(one.milliseconds, one.expected_milliseconds) for one in agreements]
      seconds[name], seconds[parts[0].reference] = (
        sum(part.count * time for part, time in zip(parts, column)) for column in zip(*times)
      )
    else:
      _warn(next(one for one in agreements if not one.agrees))
  return sorted(seconds, key=seconds.get)


def with_attention(options: dict, attention: str) -> dict:
  """Returns arguments of `create_model` with another implementation of attention."""
  backbone = dict(options.get("backbone_options", ()))
  if "attention" in backbone:
    options = options | {"backbone_options": backbone | {"attention": attention}}
  return options | {"attention": attention}


def _parts(options: dict, frames: int, size: int):
  """Returns the configuration that has the attention of a model, and its parts."""
  model = model_config(**options)
  config = attention_config(model)
  if config is None:
    return None, []
  return config, parts_of(config, frames if config is model else 1, size)


def _kernels(config, parts: Sequence[Part]) -> list[str]:
  """Returns the kernels of this platform that a configuration asks for."""
  if config is None:
    return []
  if config.attention == "auto":
    return kernels(parts[0].known, config.dtype)
  return [name for name in KERNELS.get(current_platform(), ()) if name == config.attention]


def examples() -> list[tuple[dict, int, int]]:
  """Returns arguments of `check_all` that cover all kernels of this platform."""
  if current_platform() not in KERNELS:
    return [({"name": "video_swin_t"}, 32, 224)]
  swin_b, vit_b = ({"name": name, "dtype": "bfloat16"} for name in ("video_swin_b", "vtn_vit_b"))
  return [(swin_b, 32, 224), (swin_b | {"window_size": (16, 7, 7)}, 32, 224), (vit_b, 16, 224)]


def check_all(options: dict, frames: int, size: int) -> list[Agreement]:
  """Compares the kernels of this platform that a model would use with XLA; without any, "xla".

  Arguments are those of `choose_attention`.
  """
  config, parts = _parts(options, frames, size)
  return compare(parts, _kernels(config, parts) or ["xla"], config.dtype) if parts else []


def describe_machine() -> str:
  """Returns the device, the versions and the kernels that are for other platforms, in one line."""
  platform = current_platform()
  others = [name for other in KERNELS if other != platform for name in KERNELS[other]]
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib"))
  return (
    f"{jax.devices()[0].device_kind} ({platform}), {versions}; not for this platform: "
    f"{', '.join(others)}"
  )


def table(agreements: Sequence[Agreement]) -> str:
  """Returns agreements as a table in Markdown."""
  lines = [
    "| part | dtype | attention | error of output (XLA) | error of gradients (XLA) | largest for "
    "| ms (XLA) | agrees |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for one in agreements:
    if one.failure:
      cells = (one.failure, "", "", "")
    else:
      cells = (
        f"{one.output:.1e} ({one.expected_output:.1e})",
        f"{one.gradient:.1e} ({one.expected_gradient:.1e})",
        one.gradient_name,
        f"{one.milliseconds:.1f} ({one.expected_milliseconds:.1f})",
      )
    cells = (one.part, one.dtype, one.implementation, *cells, "yes" if one.agrees else "NO")
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def _warn(wrong: Agreement) -> None:
  reason = wrong.failure or (
    f"errors of {wrong.output:.1e} and {wrong.gradient:.1e} ({wrong.gradient_name}), where XLA has "
    f"{wrong.expected_output:.1e} and {wrong.expected_gradient:.1e}"
  )
  own_logger.warning(
    "the kernels of %s do not agree with XLA on %s and are not used (%s: %s); please report the "
    "output of `python -m vswin_jax.main --mode=selfcheck`",
    wrong.implementation,
    jax.devices()[0].device_kind,
    wrong.part,
    reason,
  )


def _read(file: pathlib.Path) -> dict[tuple[str, str], Agreement]:
  """Returns the agreements of earlier checks by part and implementation."""
  try:
    rows = [Agreement(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    return {(row.part, row.implementation): row for row in rows}
  except (OSError, TypeError, ValueError):
    return {}


def _write(file: pathlib.Path, agreements: Sequence[Agreement]) -> None:
  if not file.is_absolute():  # There is no home directory.
    return
  with contextlib.suppress(OSError):
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
      path.write_text(json.dumps([dataclasses.asdict(one) for one in agreements]))


def _file(config, parts: Sequence[Part]) -> pathlib.Path:
  """Returns the file of the agreements for a device kind, versions and shapes."""
  key = [
    jax.devices()[0].device_kind,
    jax.devices()[0].client.platform_version,
    *(importlib.metadata.version(name) for name in ("jax", "jaxlib")),
    *(_digest(package) for package in ("vswin_jax.attention", "vswin_jax.models")),
    *((part.name, part.shape) for part in parts),
    *(os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")),
    repr(config),
  ]
  name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
  return cache_folder() / "self_check" / f"{name}.json"


def _digest(package: str) -> str:
  files = sorted(importlib.resources.files(package).iterdir(), key=lambda file: file.name)
  sources = [file.read_bytes() for file in files if file.name.endswith(".py")]
  return hashlib.sha256(b"".join(sources)).hexdigest()
