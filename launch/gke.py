"""Trains on GKE: applies a JobSet of TPU slices or of nodes with GPUs by kubectl.

  python launch/gke.py --name=k400 --image=IMAGE --topology=v5e:8x8 --bucket=my-data -- \
    --config=configs/k400_swin_t.py --workdir=gs://my-runs/k400

Every process gets the arguments after `--`. The image is that of `launch/Dockerfile`.
"""

import argparse
import pathlib
import re
import shlex
import subprocess
import sys

import yaml

from vswin_jax.aot.topologies import TargetError, parse_target

# Labels of the nodes, by chip.
_TPUS = {
  "v4": "tpu-v4-podslice",
  "v5e": "tpu-v5-lite-podslice",
  "v5p": "tpu-v5p-slice",
  "v6e": "tpu-v6e-slice",
}
_CHIPS_PER_HOST = 4
_PORT = 8482


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("--name", default="vswin-jax", help="name of the JobSet (vswin-jax)")
  add("--namespace", default="default", help="Kubernetes namespace (default)")
  add("--image", required=True, help="container image, see launch/Dockerfile")
  add("--topology", default="v5e:8x8", help="TPU slices: v5e:8x8, v4-128, 4*v6e:16x16 (v5e:8x8)")
  add("--gpu_nodes", type=int, default=0, help="number of nodes with GPUs, instead of TPUs (0)")
  add("--gpus_per_node", type=int, default=8, help="(8)")
  add("--gpu_type", default="nvidia-h100-80gb", help="label of the nodes (nvidia-h100-80gb)")
  add("--bucket", default="", help="bucket that is mounted as /mnt/BUCKET, read-only")
  add("--service_account", default="", help="Kubernetes service account with access to buckets")
  add("--spot", action="store_true", help="use nodes that may be preempted")
  add("--cache", default="", help="folder of compiled programs that all processes see: gs://...")
  add("--restarts", type=int, help="maximum number of restarts (3; with --spot 100)")
  add("--grace_seconds", type=int, default=120, help="time to save when a node is drained (120)")
  add("--dry_run", action="store_true", help="print the command and run nothing")
  add("run_arguments", nargs="+", help="of vswin_jax.main, after --")
  options = parser.parse_args(arguments)
  # Names of pods are longer, and have at most 63 characters.
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
    parser.error(
      f"--name must be at most 40 lower-case letters, digits and -, got {options.name!r}"
    )
  if options.restarts is None:
    # Every preemption counts as a restart.
    options.restarts = 100 if options.spot else 3
  for name, smallest in (
    ("gpu_nodes", 0), ("gpus_per_node", 1), ("restarts", 0), ("grace_seconds", 0),
  ):  # fmt: skip
    if getattr(options, name) < smallest:
      parser.error(f"--{name} must be at least {smallest}, got {getattr(options, name)}")
  try:
    options.slices = None if options.gpu_nodes else parse_target(options.topology)
  except TargetError as error:
    parser.error(str(error))
  if options.slices and options.slices.chip.name not in _TPUS:
    parser.error(f"--topology={options.topology} is not a TPU of GKE; for GPUs give --gpu_nodes")
  if options.slices and options.slices.slice_size % _CHIPS_PER_HOST:
    parser.error(f"--topology={options.topology} must have a multiple of {_CHIPS_PER_HOST} chips")
  return options


def manifest(options: argparse.Namespace) -> dict:
  """Returns the JobSet (v1alpha2) as nested dicts."""
  jobset = yaml.safe_load(pathlib.Path(__file__).with_name("jobset.yaml").read_text())
  jobset["metadata"]["name"] = options.name
  jobset["spec"]["failurePolicy"]["maxRestarts"] = options.restarts
  [workers] = jobset["spec"]["replicatedJobs"]
  job = workers["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  container["image"] = options.image
  # Kubernetes expands $(...).
  container["args"] = [argument.replace("$", "$$") for argument in options.run_arguments]
  pod["terminationGracePeriodSeconds"] = options.grace_seconds
  if options.slices:
    hosts = options.slices.slice_size // _CHIPS_PER_HOST
    workers["replicas"] = options.slices.slices
    pod["nodeSelector"] = {
      "cloud.google.com/gke-tpu-accelerator": _TPUS[options.slices.chip.name],
      "cloud.google.com/gke-tpu-topology": "x".join(map(str, options.slices.grid)),
    }
  else:
    hosts = options.gpu_nodes
    del jobset["metadata"]["annotations"]
    pod["nodeSelector"] = {"cloud.google.com/gke-accelerator": options.gpu_type}
    container["resources"]["limits"] = {"nvidia.com/gpu": options.gpus_per_node}
    container["ports"] = [{"containerPort": _PORT}]
    container["args"] += [
      f"--coordinator={options.name}-workers-0-0.{options.name}:{_PORT}",
      f"--num_processes={hosts}",
    ]
  job["parallelism"] = job["completions"] = hosts
  if options.spot:
    pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
  if options.service_account:
    pod["serviceAccountName"] = options.service_account
  if options.cache:
    container["env"] = [{"name": "JAX_COMPILATION_CACHE_DIR", "value": options.cache}]
  if options.bucket:
    job["template"]["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
    attributes = {"bucketName": options.bucket, "mountOptions": "implicit-dirs"}
    driver = {
      "driver": "gcsfuse.csi.storage.gke.io",
      "readOnly": True,
      "volumeAttributes": attributes,
    }
    pod["volumes"].append({"name": "data", "csi": driver})
    container["volumeMounts"].append(
      {"name": "data", "mountPath": f"/mnt/{options.bucket}", "readOnly": True}
    )
  return jobset


def main() -> int | str:
  options = parse_arguments(sys.argv[1:])
  command = ["kubectl", "apply", f"--namespace={options.namespace}", "--filename=-"]
  text = yaml.safe_dump(manifest(options), sort_keys=False)
  if options.dry_run:
    print(f"{shlex.join(command)} <<'MANIFEST'\n{text}MANIFEST")
    return 0
  try:
    return subprocess.run(command, input=text, text=True, check=False).returncode
  except FileNotFoundError:
    return "error: no program kubectl on this machine; install it first"


if __name__ == "__main__":
  sys.exit(main())
