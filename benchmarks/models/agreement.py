"""Agreement of a model with its peer in PyTorch: parameters and outputs for the same weights."""

import os

import numpy as np

# A clip that exercises shifts and padding, and costs little: frames, height, width.
_SMALL_CLIP = (6, 40, 64)


def compare(model: str) -> dict:
  """Returns the parameters of both, and the largest difference of logits over the largest logit.

  The weights of the peer, which are random, pass through the converter. Both compute on the CPU in
  float32.
  """
  os.environ["JAX_PLATFORMS"] = "cpu"
  import jax
  import jax.numpy as jnp
  import torch
  from flax import nnx

  from benchmarks.models.peers import create_module
  from vswin_jax import create_model
  from vswin_jax.conversion.families import ConversionOptions, convert_tensors
  from vswin_jax.models.parameters import merge_model, split_model, unflatten

  peer = create_module(model).eval()
  tensors = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
  converted = convert_tensors(tensors, ConversionOptions())
  ours = nnx.eval_shape(lambda: create_model(**converted.model))
  graph, _ = split_model(ours)
  params = jax.tree.map(jnp.asarray, unflatten(converted.params))
  clip = (2, 224, 224) if model.startswith("vtn") else _SMALL_CLIP
  video = np.random.default_rng(0).standard_normal((1, *clip, 3), np.float32)
  logits = jax.jit(lambda params, video: merge_model(graph, params)(video))(params, video)
  with torch.no_grad():
    expected = peer(torch.from_numpy(video).permute(0, 4, 1, 2, 3)).numpy()
  return {
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(ours, nnx.Param))),
    "peer_parameters": sum(parameter.numel() for parameter in peer.parameters()),
    "difference": float(np.abs(np.asarray(logits) - expected).max() / np.abs(expected).max()),
  }
