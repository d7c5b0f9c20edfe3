"""Fitting the tensors of a file to the parameters of a model, every one of them."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

# Names under which training scripts keep the weights, beside optimizer state and the like.
_NESTED = ("state_dict", "model_state", "model", "model_state_dict", "module")
# Wrappers of parallel training and compilation put these before every name.
_WRAPPERS = ("module.", "_orig_mod.")

# A regular expression that no name matches.
NOTHING = r"(?!)"


class ConversionError(ValueError):
  """Weights that can't be converted; the message says all that is wrong and what to do."""


def find_tensors(content: object) -> dict[str, np.ndarray]:
  """The weights of a file by name, without wrappers' prefixes.

  Args:
    content: what the file holds, see `torch_files.read_file`.

  Raises:
    ConversionError: no weights there, or something that is no tensor among them.
  """
  nested = [content[name] for name in _NESTED if isinstance(content, Mapping) and name in content]
  for candidate in (*nested, content):
    if isinstance(candidate, Mapping) and any(map(_is_tensor, candidate.values())):
      break
  else:
    raise ConversionError(
      f"no weights in the file: it holds {_describe(content)}; expected a dict of tensors, by "
      f"itself or under one of {', '.join(_NESTED)}"
    )
  strange = [
    f"{name} ({_describe(value)})" for name, value in candidate.items() if not _is_tensor(value)
  ]
  if strange:
    raise ConversionError(_listing("not tensors, where weights should be", strange))
  tensors = {str(name): value for name, value in candidate.items()}
  while wrapper := next((w for w in _WRAPPERS if all(n.startswith(w) for n in tensors)), None):
    tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
  return tensors


def _is_tensor(value: object) -> bool:
  return isinstance(value, np.ndarray)


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
  *,
  ignored: str = NOTHING,
  replaced: str = NOTHING,
) -> dict[str, np.ndarray]:
  """Finds the tensor of every parameter, and a use for every tensor.

  Args:
    shapes: of the model's parameters, by dotted path.
    tensors: of the file, by name.
    name_of: path of a parameter -> name of its tensor.
    from_source: (path, tensor) -> the parameter, in the model's layout.
    ignored: regular expression of names of tensors that the model computes by itself.
    replaced: of paths of parameters that the caller fills; their tensors are ignored too.

  Returns:
    float32 parameters by path, but for those `replaced`.

  Raises:
    ConversionError: lists all that is missing, left over, of a wrong shape or type, or not finite.
  """
  params, problems, used = {}, [], set()
  for path, shape in shapes.items():
    name = name_of(path)
    used.add(name)
    if re.fullmatch(replaced, path):
      continue
    if name not in tensors:
      problems.append(f"missing: {name}, for {path} {list(shape)}")
      continue
    tensor = tensors[name]
    # bfloat16 and other floats from outside numpy are of the kind V.
    if tensor.dtype.kind not in "fV":
      problems.append(f"not floating point: {name} is {tensor.dtype}")
      continue
    try:
      parameter = from_source(path, tensor)
      fits = parameter.shape == tuple(shape)
    except ValueError:
      fits = False
    if fits and np.isfinite(parameter).all():
      params[path] = parameter.astype(np.float32, copy=False)
    elif fits:
      problems.append(f"not finite: {name} holds infinite values or NaN")
    else:
      problems.append(f"wrong shape: {name} {list(tensor.shape)} does not fit {path} {list(shape)}")
  for name in tensors:
    if name not in used and not re.fullmatch(ignored, name):
      problems.append(f"unknown: {name} {list(tensors[name].shape)}")
  if problems:
    raise ConversionError(_listing("the weights do not fit the model that they describe", problems))
  return params


def _listing(what: str, items: Sequence[str]) -> str:
  return f"{what}, {len(items)} in all:\n  " + "\n  ".join(items)
