"""Self-check of attention kernels: whether they agree with XLA on the machine at hand.

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
import pathlib
from collections.abc import Sequence

import jax

from vswin_jax.attention.operations import KERNELS, current_platform, kernels
from vswin_jax.common.logging import logger, own_logger
from vswin_jax.common.paths import cache_folder, replacing
from vswin_jax.models.agreement import Agreement, Part, compare, parts_of
from vswin_jax.models.catalog import model_config


def trusted_kernels(options: dict, frames: int, size: int) -> list[str] | None:
  """Returns the kernels for the attention of a model that agree with XLA, the fastest first.

  Args:
    options: arguments of `create_model`.
    frames: frames of a clip.
    size: height and width of a clip in pixels.

  Returns:
    Implementations of attention; empty: compute with XLA. None: the options ask for no kernel of
    this platform, so there is nothing to check.
  """
  config = model_config(**options)
  parts = parts_of(config, frames, size)
  names = kernels(parts[0].known, config.dtype) if parts else []
  if config.attention != "auto":
    names = [name for name in KERNELS.get(current_platform(), ()) if name == config.attention]
  if not parts or not names:
    return None
  file = _file(parts, names, config)
  agreements = _read(file)
  if agreements is None:
    logger.info("comparing kernels of attention with XLA: %s", ", ".join(names))
    agreements = compare(parts, names, config.dtype)
    _warn(agreements)
    _write(file, agreements)
  return sorted(
    (name for name in names if all(one.agrees for one in _of(agreements, name))),
    key=lambda name: _seconds(parts, _of(agreements, name)),
  )


def examples() -> list[tuple[dict, int, int]]:
  """Returns arguments of `check_all` that cover all kernels of this platform."""
  if current_platform() not in KERNELS:
    return [({"name": "video_swin_t"}, 32, 224)]
  swin_b, vit_b = ({"name": name, "dtype": "bfloat16"} for name in ("video_swin_b", "vtn_vit_b"))
  return [(swin_b, 32, 224), (swin_b | {"window_size": (16, 7, 7)}, 32, 224), (vit_b, 16, 224)]


def check_all(options: dict, frames: int, size: int) -> list[Agreement]:
  """Compares all implementations of this platform with XLA; arguments as in `trusted_kernels`."""
  config = model_config(**options)
  parts = parts_of(config, frames, size)
  known = parts[0].known if parts else ()
  return compare(parts, kernels(known, config.dtype) or ["xla"], config.dtype)


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


def _of(agreements: Sequence[Agreement], implementation: str) -> list[Agreement]:
  return [one for one in agreements if one.implementation == implementation]


def _seconds(parts: Sequence[Part], agreements: Sequence[Agreement]) -> float:
  """Returns the time of all parts of a model, as often as it has them."""
  return sum(part.count * one.milliseconds / 1e3 for part, one in zip(parts, agreements))


def _warn(agreements: Sequence[Agreement]) -> None:
  for name in dict.fromkeys(one.implementation for one in agreements if not one.agrees):
    wrong = next(one for one in _of(agreements, name) if not one.agrees)
    reason = wrong.failure or (
      f"errors of {max(wrong.output, wrong.gradient):.1e} where XLA has "
      f"{max(wrong.expected_output, wrong.expected_gradient):.1e}"
    )
    own_logger.warning(
      "the kernels of %s do not agree with XLA on %s and are not used (%s: %s); please report this "
      "with the output of `python -m vswin_jax.main --mode=selfcheck`",
      name,
      jax.devices()[0].device_kind,
      wrong.part,
      reason,
    )


def _read(file: pathlib.Path) -> list[Agreement] | None:
  """Returns the agreements of an earlier check; None: there are none."""
  try:
    return [Agreement(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
  except (OSError, TypeError, ValueError):
    return None


def _write(file: pathlib.Path, agreements: Sequence[Agreement]) -> None:
  # A kernel that failed may succeed next time, with more free memory.
  if not all(one.agrees for one in agreements):
    return
  with contextlib.suppress(OSError):
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as path:
      path.write_text(json.dumps([dataclasses.asdict(one) for one in agreements]))


def _file(parts: Sequence[Part], names: Sequence[str], config) -> pathlib.Path:
  """Returns the file of the agreements for a device kind, versions and shapes."""
  key = [
    jax.devices()[0].device_kind,
    jax.devices()[0].client.platform_version,
    *(importlib.metadata.version(name) for name in ("jax", "jaxlib")),
    *(_digest(package) for package in ("vswin_jax.attention", "vswin_jax.models")),
    *((part.name, part.shape) for part in parts),
    names,
    repr(config),
  ]
  name = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
  return cache_folder() / "self_check" / f"{name}.json"


def _digest(package: str) -> str:
  files = sorted(importlib.resources.files(package).iterdir(), key=lambda file: file.name)
  sources = [file.read_bytes() for file in files if file.name.endswith(".py")]
  return hashlib.sha256(b"".join(sources)).hexdigest()
