"""Trains on GKE: a JobSet of TPU slices or of nodes with GPUs, by kubectl or by XPK.

  python launch/gke.py --name=k400 --image=IMAGE --topology=v5e:8x8 --bucket=my-data -- \
    --config=configs/k400_swin_t.py --workdir=gs://my-runs/k400

What comes after `--` goes to every process. The image is that of `launch/Dockerfile`.
"""

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys

import yaml
from absl import app, flags

from vswin_jax.aot.topologies import Target, TargetError, parse_target
from vswin_jax.common.checks import check_at_least, fields
from vswin_jax.common.cli import TRANSIENT, UNEXPECTED, parse_config_flags

# Chip -> the label of its nodes, and what XPK calls it.
_TPUS = {
  "v4": ("tpu-v4-podslice", "v4"),
  "v5e": ("tpu-v5-lite-podslice", "v5litepod"),
  "v5p": ("tpu-v5p-slice", "v5p"),
  "v6e": ("tpu-v6e-slice", "v6e"),
}
_CHIPS_PER_HOST = 4
_RESTARTS = 3
# Every preemption counts as a restart.
_RESTARTS_ON_SPOT = 100
_PORT = 8482
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_FOLDER = pathlib.Path(__file__).parent


class ManifestError(ValueError):
  """A job that can't be described; one line."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What runs, and where.

  Attributes:
    name: of the JobSet.
    image: of the container.
    arguments: of `vswin_jax.main`.
    topology: TPU slices as `pods.targets.parse_target` takes them, such as "v5e:8x8" or
      "4*v6e:16x16"; unused if there are GPU nodes.
    gpu_nodes: 0: TPUs.
    gpus_per_node: of a node with GPUs, all used by one process.
    gpu_type: the label of those nodes.
    bucket: mounted to read as /mnt/BUCKET; empty: none.
    service_account: of Kubernetes, that may read the bucket and write the workdir; empty: the
      default one.
    spot: whether nodes may be preempted.
    cache: folder of compiled programs that all processes see, as in gs://...; empty: none.
    restarts: how many times all are started again after a fault or a preemption; None: 3, on spot
      nodes 100.
    grace_seconds: for saving when a node is drained; spot nodes give less, whatever is asked for.

  Raises:
    ManifestError: a value is out of range.
  """

  name: str
  image: str
  arguments: tuple[str, ...]
  topology: str = "v5e:8x8"
  gpu_nodes: int = 0
  gpus_per_node: int = 8
  gpu_type: str = "nvidia-h100-80gb"
  bucket: str = ""
  service_account: str = ""
  spot: bool = False
  cache: str = ""
  restarts: int | None = None
  grace_seconds: int = 120

  def __post_init__(self):
    # Names of pods, which are longer, have at most 63 characters.
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
      raise ManifestError(
        f"name must be of at most 40 lower-case letters, digits and -, got {self.name!r}"
      )
    try:
      check_at_least(1, **fields(self, "gpus_per_node"))
      check_at_least(0, **fields(self, "gpu_nodes", "grace_seconds"), restarts=self.max_restarts)
    except ValueError as error:
      raise ManifestError(error) from None
    if not self.gpu_nodes:
      _tpu(self.topology)

  @property
  def max_restarts(self) -> int:
    if self.restarts is not None:
      return self.restarts
    return _RESTARTS_ON_SPOT if self.spot else _RESTARTS


def _tpu(topology: str) -> Target:
  try:
    target = parse_target(topology)
  except TargetError as error:
    raise ManifestError(error) from None
  if target.chip.name not in _TPUS:
    raise ManifestError(f"topology {topology!r} is none of TPUs; for GPUs give --gpu_nodes")
  if target.slice_size % _CHIPS_PER_HOST:
    raise ManifestError(
      f"topology {topology!r} has {target.slice_size} chips; hosts have {_CHIPS_PER_HOST}"
    )
  return target


def manifest(job: Job) -> dict:
  """The JobSet (v1alpha2), as what YAML or JSON is made of."""
  kind = "gpu" if job.gpu_nodes else "tpu"
  jobset = yaml.safe_load((_FOLDER / f"jobset_{kind}.yaml").read_text())
  jobset["metadata"]["name"] = job.name
  jobset["spec"]["failurePolicy"]["maxRestarts"] = job.max_restarts
  [workers] = jobset["spec"]["replicatedJobs"]
  template = workers["template"]["spec"]
  pod = template["template"]["spec"]
  [container] = pod["containers"]
  container["image"] = job.image
  pod["terminationGracePeriodSeconds"] = job.grace_seconds
  if job.cache:
    container["env"] = [{"name": _CACHE_VARIABLE, "value": job.cache}]
  # Kubernetes would put variables in the place of $(...).
  arguments = [argument.replace("$", "$$") for argument in job.arguments]
  if job.gpu_nodes:
    hosts = job.gpu_nodes
    pod["nodeSelector"] = {"cloud.google.com/gke-accelerator": job.gpu_type}
    container["resources"]["limits"] = {"nvidia.com/gpu": job.gpus_per_node}
    container["args"] = [
      *arguments,
      f"--coordinator={job.name}-workers-0-0.{job.name}:{_PORT}",
      f"--num_processes={hosts}",
    ]
  else:
    target = _tpu(job.topology)
    label, _ = _TPUS[target.chip.name]
    hosts = target.slice_size // _CHIPS_PER_HOST
    workers["replicas"] = target.slices
    pod["nodeSelector"] = {
      "cloud.google.com/gke-tpu-accelerator": label,
      "cloud.google.com/gke-tpu-topology": "x".join(map(str, target.grid)),
    }
    container["args"] = arguments
  template["parallelism"] = template["completions"] = hosts
  if job.spot:
    pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
  if job.service_account:
    pod["serviceAccountName"] = job.service_account
  if job.bucket:
    _mount_bucket(pod, job.bucket)
    template["template"] = {
      "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
      "spec": pod,
    }
  return jobset


def _mount_bucket(pod: dict, bucket: str) -> None:
  pod["volumes"].append(
    {
      "name": "data",
      "csi": {
        "driver": "gcsfuse.csi.storage.gke.io",
        "readOnly": True,
        "volumeAttributes": {"bucketName": bucket, "mountOptions": "implicit-dirs"},
      },
    }
  )
  pod["containers"][0]["volumeMounts"].append(
    {"name": "data", "mountPath": f"/mnt/{bucket}", "readOnly": True}
  )


def xpk_command(job: Job, *, cluster: str, zone: str = "", project: str = "") -> list[str]:
  """The command of XPK for the same run on TPUs.

  XPK writes the manifest itself. Of its own accord it starts again what was killed (statuses from
  127), but nothing else.

  Raises:
    ManifestError: the job has what XPK is not told here: GPUs, a bucket, a service account; or a
      slice of a shape that is no product.
  """
  if job.gpu_nodes or job.bucket or job.service_account:
    raise ManifestError(
      "XPK runs on TPUs here and brings its own storage and accounts (xpk storage attach); leave "
      "out --gpu_nodes, --bucket and --service_account"
    )
  if not cluster:
    raise ManifestError("XPK needs --cluster")
  target = _tpu(job.topology)
  # Signals reach the run only if no shell stands between.
  inside = f"cd /vswin_jax && exec {shlex.join(['launch/run_once.sh', *job.arguments])}"
  return [
    *("xpk", "workload", "create", f"--workload={job.name}", f"--cluster={cluster}"),
    *([f"--zone={zone}"] if zone else []),
    *([f"--project={project}"] if project else []),
    *(f"--tpu-type={_product(target)}", f"--num-slices={target.slices}"),
    *(["--spot"] if job.spot else []),
    *([f"--env={_CACHE_VARIABLE}={job.cache}"] if job.cache else []),
    *(f"--max-restarts={job.max_restarts}", f"--restart-on-exit-codes={UNEXPECTED},{TRANSIENT}"),
    f"--docker-image={job.image}",
    *(f"--termination-grace-period-seconds={job.grace_seconds}", f"--command={inside}"),
  ]


def _product(target: Target) -> str:
  """What XPK calls a slice, which it knows by the number of chips or cores alone."""
  _, prefix = _TPUS[target.chip.name]
  name = f"{prefix}-{target.slice_size * (2 if target.chip.cores_in_name else 1)}"
  try:
    is_of_this_shape = parse_target(name).grid == target.grid
  except TargetError:
    is_of_this_shape = False
  if not is_of_this_shape:
    raise ManifestError(
      f"XPK can't be told the shape of topology {target.name!r}; use --via=kubectl, or a product "
      "such as v5e-64"
    )
  return name


def define_flags() -> None:
  flags.DEFINE_enum("via", "kubectl", ["kubectl", "xpk"], "What hands the job over.")
  flags.DEFINE_string("name", "vswin-jax", "Of the job.")
  flags.DEFINE_string("image", None, "The container, see launch/Dockerfile.", required=True)
  flags.DEFINE_string("topology", "v5e:8x8", "TPU slices, such as v5e:8x8, v4-128, 4*v6e:16x16.")
  flags.DEFINE_integer("gpu_nodes", 0, "Nodes with GPUs, in place of TPUs.")
  flags.DEFINE_integer("gpus_per_node", 8, "GPUs of such a node.")
  flags.DEFINE_string("gpu_type", "nvidia-h100-80gb", "The label of such nodes.")
  flags.DEFINE_string("bucket", "", "Mounted to read as /mnt/BUCKET.")
  flags.DEFINE_string("service_account", "", "Of Kubernetes, for the buckets.")
  flags.DEFINE_boolean("spot", False, "Nodes that may be preempted.")
  flags.DEFINE_string("cache", "", "Folder of compiled programs, as in gs://...")
  flags.DEFINE_integer(
    "restarts",
    None,
    "How many times all are started again after a fault or a preemption; by default 3, on spot "
    "nodes 100.",
  )
  flags.DEFINE_integer("grace_seconds", 120, "For saving when a node is drained.")
  flags.DEFINE_string("namespace", "default", "Of Kubernetes.")
  flags.DEFINE_string("cluster", "", "For XPK.")
  flags.DEFINE_string("zone", "", "For XPK.")
  flags.DEFINE_string("project", "", "For XPK.")
  flags.DEFINE_boolean("dry_run", False, "Print the command and run nothing.")


def main(arguments: list[str]) -> None:
  if not arguments[1:]:
    sys.exit("error: give the arguments of the run after --, as in -- --config=... --workdir=...")
  options = flags.FLAGS
  names = [field.name for field in dataclasses.fields(Job) if field.name != "arguments"]
  text = None
  try:
    job = Job(arguments=tuple(arguments[1:]), **{name: options[name].value for name in names})
    if options.via == "xpk":
      command = xpk_command(
        job, cluster=options.cluster, zone=options.zone, project=options.project
      )
    else:
      command = ["kubectl", "apply", f"--namespace={options.namespace}", "--filename=-"]
      text = yaml.safe_dump(manifest(job), sort_keys=False)
  except ManifestError as error:
    sys.exit(f"error: {error}")
  if options.dry_run:
    print(shlex.join(command) + (f" <<'MANIFEST'\n{text}MANIFEST" if text else ""))
    return
  try:
    sys.exit(subprocess.run(command, input=text, text=True, check=False).returncode)
  except FileNotFoundError:
    sys.exit(f"error: no program {command[0]!r} on this machine; install it first")


# Not defined for those who import this module: they have flags of their own.
if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=parse_config_flags)
