"""VTN's temporal encoder against HuggingFace's Longformer in PyTorch.

One forward pass of one video's features, float32 on the CPU: seconds (medians of repetitions that
alternate between the two), peak memory beyond that of the idle process with its weights, and the
ratios. Needs PyTorch and transformers.

  python -m benchmarks.temporal_encoder --frames=250,1000,4000,16000
"""

import argparse
import multiprocessing
import os
import statistics
import time

WIDTH, LAYERS, HEADS, WINDOW, POSITIONS = 768, 3, 12, 18, 288


def make_ours(frames: int):
  os.environ["JAX_PLATFORMS"] = "cpu"
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx

  from vswin_jax.models import model_config
  from vswin_jax.models.longformer import TemporalEncoder
  from vswin_jax.models.parameters import merge_model, split_model

  graph, params = split_model(TemporalEncoder(model_config("vtn_vit_b"), rngs=nnx.Rngs(0)))
  features = jnp.asarray(np.random.default_rng(0).normal(size=(1, frames, WIDTH)), jnp.float32)
  positions = jnp.arange(frames)[None]

  def run(params, features, positions):
    return merge_model(graph, params)(features, positions)

  program = jax.jit(run).lower(params, features, positions).compile()
  return lambda: program(params, features, positions).block_until_ready()


def make_theirs(frames: int):
  import torch
  from transformers import LongformerConfig, LongformerModel

  config = LongformerConfig(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=3072,
    attention_window=[WINDOW] * LAYERS,
    max_position_embeddings=POSITIONS,
    type_vocab_size=2,
    vocab_size=1,
    pad_token_id=0,
    layer_norm_eps=1e-12,
  )
  model = LongformerModel(config, add_pooling_layer=False).eval()
  tokens = -(-(1 + frames) // WINDOW) * WINDOW
  mask = torch.ones(1, tokens)
  mask[:, 0], mask[:, 1 + frames :] = 2, 0
  features = torch.randn(1, tokens, WIDTH)
  positions = (torch.arange(tokens) % (POSITIONS - 2))[None]
  types = torch.zeros(1, tokens, dtype=torch.long)

  def run():
    with torch.no_grad():
      output = model(
        inputs_embeds=features, attention_mask=mask, token_type_ids=types, position_ids=positions
      )
    return output.last_hidden_state[:, 0]

  return run


def memory(name: str) -> int:
  """Returns the current ("VmRSS") or peak ("VmHWM") bytes of this process on Linux."""
  with open("/proc/self/status") as status:
    line = next(line for line in status if line.startswith(name))
  return 1024 * int(line.split()[1])


def work(make, frames: int, connection) -> None:
  """Runs once per message and sends the seconds; at the end sends the bytes that the runs took."""
  run = make(frames)
  idle = memory("VmRSS")
  # Resets the peak.
  with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
  while connection.recv():
    start = time.perf_counter()
    run()
    connection.send(time.perf_counter() - start)
  connection.send(memory("VmHWM") - idle)


def measure(frames: int, repetitions: int) -> dict[str, tuple[float, int]]:
  """Returns the seconds and bytes of each side."""
  context = multiprocessing.get_context("spawn")
  sides = {}
  for name, make in (("ours", make_ours), ("theirs", make_theirs)):
    here, there = context.Pipe()
    process = context.Process(target=work, args=(make, frames, there), daemon=True)
    process.start()
    there.close()
    sides[name] = here
  seconds = {name: [] for name in sides}
  for repetition in range(repetitions + 1):
    for name, connection in sides.items():
      connection.send(True)
      elapsed = connection.recv()
      if repetition:
        seconds[name].append(elapsed)
  results = {}
  for name, connection in sides.items():
    connection.send(False)
    results[name] = statistics.median(seconds[name]), connection.recv()
  return results


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--frames", default="250,1000,4000,16000")
  parser.add_argument("--repetitions", type=int, default=5)
  arguments = parser.parse_args()
  print("| frames | ours | PyTorch | time ratio | ours | PyTorch | memory ratio |")
  print("|---|---|---|---|---|---|---|")
  for frames in map(int, arguments.frames.split(",")):
    results = measure(frames, arguments.repetitions)
    (our_time, our_memory), (their_time, their_memory) = results["ours"], results["theirs"]
    print(
      f"| {frames:,} | {1e3 * our_time:,.0f} ms | {1e3 * their_time:,.0f} ms "
      f"| {our_time / their_time:.2f} | {our_memory / 2**20:,.0f} MiB "
      f"| {their_memory / 2**20:,.0f} MiB | {our_memory / their_memory:.2f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
