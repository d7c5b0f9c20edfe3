"""Manifests that the API server would take, and what hands them over."""

import copy
import json
import os
import pathlib
import shlex
import subprocess
import sys

import jsonschema
import pytest
import yaml

from launch import gke
from vswin_jax.aot import topologies
from vswin_jax.common.cli import USER_ERRORS

ROOT = pathlib.Path(__file__).parents[2]
SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset_schema.json").read_text())
ARGUMENTS = ("--config=c.py", "--workdir=my runs/a", "--config.model.num_heads=(1,1,2,2)")


def validate(manifest: dict) -> None:
  jsonschema.Draft202012Validator.check_schema(SCHEMA)
  jsonschema.Draft202012Validator(SCHEMA).validate(manifest)


def job(**options) -> gke.Job:
  return gke.Job(**{"name": "k4", "image": "registry/image:1", "arguments": ARGUMENTS, **options})


def parts(manifest: dict) -> tuple[dict, dict, dict, dict]:
  """A replicated job, the job in it, its pod and the container of that."""
  [workers] = manifest["spec"]["replicatedJobs"]
  spec = workers["template"]["spec"]
  pod = spec["template"]["spec"]
  [container] = pod["containers"]
  return workers, spec, pod, container


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_files_are_valid(kind):
  validate(yaml.safe_load((ROOT / "launch" / f"jobset_{kind}.yaml").read_text()))


@pytest.mark.parametrize(
  "place, key",
  [
    (lambda manifest: manifest["spec"]["failurePolicy"], "maxRestart"),
    (lambda manifest: parts(manifest)[0], "replica"),
    (lambda manifest: parts(manifest)[1], "completionmode"),
    (lambda manifest: parts(manifest)[1]["podFailurePolicy"]["rules"][0], "onExitCode"),
    (lambda manifest: parts(manifest)[2], "terminationGracePeriod"),
    (lambda manifest: parts(manifest)[3], "volumeMount"),
    (lambda manifest: parts(manifest)[2]["volumes"][0], "emptydir"),
  ],
)
def test_the_schema_refuses_unknown_fields(place, key):
  manifest = copy.deepcopy(gke.manifest(job()))
  place(manifest)[key] = 1
  with pytest.raises(jsonschema.ValidationError, match=key):
    validate(manifest)


def test_the_schema_refuses_other_types():
  manifest = gke.manifest(job())
  parts(manifest)[1]["parallelism"] = "16"
  with pytest.raises(jsonschema.ValidationError, match="'16' is not of type 'integer'"):
    validate(manifest)


@pytest.mark.parametrize(
  "topology, slices, label, shape, hosts",
  [
    ("v5e:8x8", 1, "tpu-v5-lite-podslice", "8x8", 16),
    ("v5e-64", 1, "tpu-v5-lite-podslice", "8x8", 16),
    ("4*v6e:16x16", 4, "tpu-v6e-slice", "16x16", 64),
    ("v5p:2x2x2", 1, "tpu-v5p-slice", "2x2x2", 2),
    ("2*v4:4x4x8", 2, "tpu-v4-podslice", "4x4x8", 32),
  ],
)
def test_tpu_slices(topology, slices, label, shape, hosts):
  manifest = gke.manifest(job(topology=topology, restarts=7, grace_seconds=30))
  validate(manifest)
  workers, spec, pod, container = parts(manifest)
  assert manifest["metadata"]["name"] == "k4"
  assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
  assert workers["replicas"] == slices
  assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (
    hosts,
    hosts,
    "Indexed",
  )
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": label,
    "cloud.google.com/gke-tpu-topology": shape,
  }
  assert pod["terminationGracePeriodSeconds"] == 30
  assert container["image"] == "registry/image:1"
  assert container["command"] == ["launch/run_once.sh"]
  assert container["args"] == list(ARGUMENTS)
  assert container["resources"] == {"limits": {"google.com/tpu": 4}}


def test_gpu_nodes_know_each_other():
  manifest = gke.manifest(job(gpu_nodes=3, gpus_per_node=4, gpu_type="nvidia-l4", spot=True))
  validate(manifest)
  workers, spec, pod, container = parts(manifest)
  assert (workers["replicas"], spec["parallelism"], spec["completions"]) == (1, 3, 3)
  assert spec["completionMode"] == "Indexed"
  # The name of the first pod: job set, replicated job, number of the job, number of the pod, in
  # the domain that is named like the job set.
  assert container["args"] == [
    *ARGUMENTS,
    "--coordinator=k4-workers-0-0.k4:8482",
    "--num_processes=3",
  ]
  assert workers["name"] == "workers"
  assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-accelerator": "nvidia-l4",
    "cloud.google.com/gke-spot": "true",
  }


@pytest.mark.parametrize(
  "options, restarts",
  [({}, 3), ({"spot": True}, 100), ({"spot": True, "restarts": 0}, 0)],
)
def test_preemptions_count_as_restarts(options, restarts):
  assert gke.manifest(job(**options))["spec"]["failurePolicy"]["maxRestarts"] == restarts
  assert f"--max-restarts={restarts}" in gke.xpk_command(job(**options), cluster="c")


@pytest.mark.parametrize("gpu_nodes", [0, 2])
def test_wrong_commands_fail_the_whole_and_faults_start_it_again(gpu_nodes):
  manifest = gke.manifest(job(gpu_nodes=gpu_nodes))
  _, spec, pod, container = parts(manifest)
  [rule] = spec["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": list(USER_ERRORS),
  }
  [policy] = manifest["spec"]["failurePolicy"]["rules"]
  assert (policy["action"], policy["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  # Kubernetes wants this of pods with such a policy; and no pod comes back alone.
  assert (pod["restartPolicy"], spec["backoffLimit"]) == ("Never", 0)


def test_a_bucket_is_mounted():
  manifest = gke.manifest(job(bucket="my-data", service_account="trainer", cache="gs://b/c"))
  validate(manifest)
  _, spec, pod, container = parts(manifest)
  assert spec["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert mounts == {"shared-memory": "/dev/shm", "data": "/mnt/my-data"}
  assert [volume["name"] for volume in pod["volumes"]] == list(mounts)
  assert pod["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "my-data"
  assert pod["serviceAccountName"] == "trainer"
  assert container["env"] == [{"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/c"}]


def test_kubernetes_replaces_nothing_in_arguments():
  manifest = gke.manifest(job(arguments=("--rules=(r'a$',$(X))",)))
  assert parts(manifest)[3]["args"] == ["--rules=(r'a$$',$$(X))"]


def command_line(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "launch/gke.py", *arguments],
    cwd=ROOT,
    env={**os.environ, "PATH": path or os.environ["PATH"]},
    capture_output=True,
    text=True,
  )


def test_kubectl(cluster):
  options = ("--name=k4", "--image=registry/image:1", "--namespace=ml", "--bucket=my-data")
  dry = command_line(*options, "--dry_run", "--", *ARGUMENTS)
  assert (dry.returncode, dry.stderr) == (0, "")
  first, *manifest, last = dry.stdout.splitlines()
  assert first == "kubectl apply --namespace=ml --filename=- <<'MANIFEST'"
  assert last == "MANIFEST"
  assert yaml.safe_load("\n".join(manifest)) == gke.manifest(job(bucket="my-data"))

  # What is run is what was printed.
  cluster.answer("kubectl", 'cat >"$folder/manifest"; exit 3')
  ended = command_line(*options, "--", *ARGUMENTS, path=cluster.environment()["PATH"])
  assert ended.returncode == 3
  assert cluster.calls() == ["kubectl apply --namespace=ml --filename=-"]
  assert (cluster.folder / "manifest").read_text() == "\n".join(manifest) + "\n"


XPK = (
  "xpk workload create --workload=k4 --cluster=c --zone=z --project=p --tpu-type={type} "
  "--num-slices=2 --spot --env=JAX_COMPILATION_CACHE_DIR=gs://b/c --max-restarts=5 "
  "--restart-on-exit-codes=70,75 --docker-image=registry/image:1 "
  "--termination-grace-period-seconds=120 "
)


@pytest.mark.parametrize(
  "topology, tpu_type",
  [
    ("v5e:8x8", "v5litepod-64"),
    ("v6e:4x8", "v6e-32"),
    ("v5p:4x4x4", "v5p-128"),
    ("v4:2x2x4", "v4-32"),
  ],
)
def test_xpk(topology, tpu_type):
  ended = command_line(
    *("--via=xpk", "--name=k4", "--image=registry/image:1", "--cluster=c", "--zone=z"),
    *("--project=p", "--restarts=5", "--spot", "--cache=gs://b/c"),
    *(f"--topology=2*{topology}", "--dry_run", "--", *ARGUMENTS),
  )
  assert (ended.returncode, ended.stderr) == (0, "")
  assert ended.stdout.startswith(XPK.format(type=tpu_type) + "'--command=cd /vswin_jax && exec ")
  inside = shlex.split(ended.stdout)[-1].removeprefix("--command=cd /vswin_jax && exec ")
  assert shlex.split(inside) == ["launch/run_once.sh", *ARGUMENTS]


@pytest.mark.parametrize(
  "options, message",
  [
    (["--image=i"], "give the arguments of the run after --, as in -- --config=... --workdir=..."),
    (["--", "--config=c"], "flag --image=None: Flag --image must have a value other than None."),
    (
      ["--image=i", "--restart=2", "--", "x"],
      "Unknown command line flag 'restart'. Did you mean: restarts ?",
    ),
    (
      ["--image=i", "--topology=h100:1x1x8", "--", "x"],
      "topology 'h100:1x1x8' is none of TPUs; for GPUs give --gpu_nodes",
    ),
    (
      ["--image=i", "--topology=v5e:1x1", "--", "x"],
      "topology 'v5e:1x1' has 1 chips; hosts have 4",
    ),
    (
      ["--image=i", "--name=K4", "--", "x"],
      "name must be of at most 40 lower-case letters, digits and -, got 'K4'",
    ),
    (["--image=i", "--restarts=-1", "--", "x"], "restarts must be at least 0, got -1"),
    (["--image=i", "--via=xpk", "--", "x"], "XPK needs --cluster"),
    (
      ["--image=i", "--via=xpk", "--cluster=c", "--topology=v5e:4x16", "--", "x"],
      "XPK can't be told the shape of topology 'v5e:4x16'; use --via=kubectl, or a product such as "
      "v5e-64",
    ),
    (
      ["--image=i", "--via=xpk", "--cluster=c", "--bucket=b", "--", "x"],
      "XPK runs on TPUs here and brings its own storage and accounts (xpk storage attach); leave "
      "out --gpu_nodes, --bucket and --service_account",
    ),
  ],
)
def test_bad_jobs_end_in_one_line(options, message):
  ended = command_line(*options)
  assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"error: {message}\n")


@pytest.mark.parametrize("topology", ["v3:4x4", "v5e:8", "v5e:3x4", "v4:8x8"])
def test_slices_that_are_not_made(topology):
  with pytest.raises(topologies.TargetError) as expected:
    topologies.parse_target(topology)
  with pytest.raises(gke.ManifestError) as error:
    job(topology=topology)
  assert str(error.value) == str(expected.value)


def test_a_missing_program_is_named(tmp_path):
  ended = command_line("--image=i", "--", "--config=c", path=str(tmp_path))
  assert ended.stderr == "error: no program 'kubectl' on this machine; install it first\n"
  assert ended.returncode == 1
