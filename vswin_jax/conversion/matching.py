"""Matching of the tensors of a file to the parameters of a model."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Keys under which training scripts save the weights, beside optimizer state and the like.
_NESTED = ("state_dict", "model_state", "model", "model_state_dict", "module")
# Prefixes that wrappers of parallel training and compilation add to every name.
_WRAPPERS = ("module.", "_orig_mod.")


class ConversionError(ValueError):
  """Raised when weights can't be converted; the message lists all problems."""


def find_tensors(content: object) -> dict[str, np.ndarray]:
  """Returns the weights of a file by name, without prefixes of wrappers.

  Args:
    content: the object in the file, see `torch_files.read_file`.

  Raises:
    ConversionError: it holds no weights, or something else among them.
  """
  nested = [content[name] for name in _NESTED if isinstance(content, Mapping) and name in content]
  for candidate in (*nested, content):
    if isinstance(candidate, Mapping) and any(
      isinstance(value, np.ndarray) for value in candidate.values()
    ):
      break
  else:
    raise ConversionError(
      f"no weights in the file: it holds {_describe(content)}; expected a dict of tensors, by "
      f"itself or under one of {', '.join(_NESTED)}"
    )
  others = [
    f"{name} ({_describe(value)})"
    for name, value in candidate.items()
    if not isinstance(value, np.ndarray)
  ]
  if others:
    raise ConversionError(_listing("not tensors, but among the weights", others))
  tensors = {str(name): value for name, value in candidate.items()}
  while wrapper := next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors)), None):
    tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
  return tensors


def _describe(value: object) -> str:
  if isinstance(value, Mapping):
    names = [str(name)[:40] for name in list(value)[:5]]
    return f"a dict of {', '.join(names)}{', ...' if len(value) > 5 else ''}" if names else "{}"
  return str(getattr(value, "name", None) or type(value).__name__)


def match(
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Mapping[str, np.ndarray],
  name_of: Callable[[str], str],
  from_source: Callable[[str, np.ndarray], np.ndarray],
  ignored: str,
  random: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
  """Matches every parameter of a model with a tensor of the file, and vice versa.

  Args:
    shapes: shapes of the model's parameters, by dotted path.
    tensors: tensors of the file, by name.
    name_of: maps the path of a parameter to the name of its tensor.
    from_source: maps (path, tensor) to the parameter in the model's layout.
    ignored: pattern of the names of tensors that need no parameter.
    random: prefixes of the paths of parameters that need no tensor.

  Returns:
    float32 parameters by path, without those under `random`.

  Raises:
    ConversionError: parameters or tensors without a match, or tensors of a wrong shape, of a wrong
      dtype or not finite; the message lists them all.
  """
  params, problems, used = {}, [], set()
  for path, shape in shapes.items():
    name = name_of(path)
    used.add(name)
    if path.startswith(random):
      continue
    if name not in tensors:
      problems.append(f"missing: {name}, for {path} {list(shape)}")
      continue
    tensor = tensors[name]
    # The kind of bfloat16 and float8 is V.
    if tensor.dtype.kind not in "fV":
      problems.append(f"not floating point: {name} is {tensor.dtype}")
      continue
    try:
      parameter = from_source(path, tensor)
    except ValueError:
      parameter = None
    if parameter is None or parameter.shape != tuple(shape):
      problems.append(f"wrong shape: {name} {list(tensor.shape)} does not fit {path} {list(shape)}")
    elif not np.isfinite(parameter).all():
      problems.append(f"not finite: {name} holds infinite values or NaN")
    else:
      params[path] = parameter.astype(np.float32, copy=False)
  for name in tensors:
    if name not in used and not re.fullmatch(ignored, name):
      problems.append(f"unknown: {name} {list(tensors[name].shape)}")
  if problems:
    raise ConversionError(_listing("the weights do not fit the model that they describe", problems))
  return params


def _listing(what: str, items: Sequence[str]) -> str:
  return f"{what}, {len(items)} in all:\n  " + "\n  ".join(items)
