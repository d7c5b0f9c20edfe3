"""GKE launcher: JobSet manifests and the kubectl command."""

import copy
import json
import pathlib
import sys

import jsonschema
import pytest
import yaml

from launch import gke
from tests.launch.programs import ARGUMENTS
from vswin_jax.common.cli import USER_ERRORS

SCHEMA = json.loads(pathlib.Path(__file__).with_name("jobset_schema.json").read_text())


def validate(manifest: dict) -> None:
  jsonschema.Draft202012Validator.check_schema(SCHEMA)
  jsonschema.Draft202012Validator(SCHEMA).validate(manifest)


def manifest(*options: str) -> dict:
  options = ["--name=k4", "--image=registry/image:1", *options, "--", *ARGUMENTS]
  return gke.manifest(gke.parse_arguments(options))


def parts(manifest: dict) -> tuple[dict, dict, dict, dict]:
  """Returns the replicated job, its job, its pod and the pod's container."""
  [workers] = manifest["spec"]["replicatedJobs"]
  job = workers["template"]["spec"]
  pod = job["template"]["spec"]
  [container] = pod["containers"]
  return workers, job, pod, container


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
  changed = copy.deepcopy(manifest())
  place(changed)[key] = 1
  with pytest.raises(jsonschema.ValidationError, match=key):
    validate(changed)


def test_the_schema_refuses_other_types():
  changed = manifest()
  parts(changed)[1]["parallelism"] = "16"
  with pytest.raises(jsonschema.ValidationError, match="'16' is not of type 'integer'"):
    validate(changed)


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
  jobset = manifest(f"--topology={topology}", "--restarts=7", "--grace_seconds=30")
  validate(jobset)
  workers, job, pod, container = parts(jobset)
  assert jobset["metadata"]["name"] == "k4"
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
  assert workers["replicas"] == slices
  assert (job["parallelism"], job["completions"], job["completionMode"]) == (
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
  # Kubernetes turns $$ into $.
  assert container["args"] == [argument.replace("$", "$$") for argument in ARGUMENTS]
  assert container["resources"] == {"limits": {"google.com/tpu": 4}}


def test_gpu_nodes():
  jobset = manifest("--gpu_nodes=3", "--gpus_per_node=4", "--gpu_type=nvidia-l4", "--spot")
  validate(jobset)
  workers, job, pod, container = parts(jobset)
  assert (workers["name"], workers["replicas"]) == ("workers", 1)
  assert (job["parallelism"], job["completions"], job["completionMode"]) == (3, 3, "Indexed")
  # The name of the first pod: JobSet, replicated job, index of the job and of the pod, in the
  # domain of the JobSet.
  assert container["args"][-2:] == ["--coordinator=k4-workers-0-0.k4:8482", "--num_processes=3"]
  assert container["resources"] == {"limits": {"nvidia.com/gpu": 4}}
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-accelerator": "nvidia-l4",
    "cloud.google.com/gke-spot": "true",
  }


@pytest.mark.parametrize(
  "options, restarts", [([], 3), (["--spot"], 100), (["--spot", "--restarts=0"], 0)]
)
def test_preemptions_count_as_restarts(options, restarts):
  assert manifest(*options)["spec"]["failurePolicy"]["maxRestarts"] == restarts


@pytest.mark.parametrize("gpu_nodes", [0, 2])
def test_only_wrong_commands_are_not_restarted(gpu_nodes):
  jobset = manifest(f"--gpu_nodes={gpu_nodes}")
  _, job, pod, container = parts(jobset)
  [rule] = job["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": list(USER_ERRORS),
  }
  [policy] = jobset["spec"]["failurePolicy"]["rules"]
  assert (policy["action"], policy["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
  # Required for such a policy; and no pod is restarted alone.
  assert (pod["restartPolicy"], job["backoffLimit"]) == ("Never", 0)


def test_a_bucket_is_mounted():
  jobset = manifest("--bucket=my-data", "--service_account=trainer", "--cache=gs://b/c")
  validate(jobset)
  _, job, pod, container = parts(jobset)
  assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert mounts == {"shared-memory": "/dev/shm", "data": "/mnt/my-data"}
  assert [volume["name"] for volume in pod["volumes"]] == list(mounts)
  assert pod["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "my-data"
  assert pod["serviceAccountName"] == "trainer"
  assert container["env"] == [{"name": "JAX_COMPILATION_CACHE_DIR", "value": "gs://b/c"}]


def test_kubectl_applies_the_manifest(programs):
  programs.add("kubectl", 'cat >"$folder/manifest"; exit 3')
  command = (sys.executable, "launch/gke.py", "--name=k4", "--image=registry/image:1")
  ended = programs.run(*command, "--namespace=ml", "--bucket=my-data", "--", *ARGUMENTS)
  assert ended.returncode == 3
  assert programs.calls() == [["kubectl", "apply", "--namespace=ml", "--filename=-"]]
  text = (programs.folder / "manifest").read_text()
  assert yaml.safe_load(text) == manifest("--bucket=my-data")
  ended = programs.run(sys.executable, "launch/gke.py", "--image=i", "--", "x", PATH="/nowhere")
  assert ended.returncode == 1 and "no program kubectl" in ended.stderr


@pytest.mark.parametrize(
  "options, message",
  [
    (["--image=i"], "run_arguments"),
    (["--", "x"], "--image"),
    (["--image=i", "--restart=2", "--", "x"], "--restart=2"),
    (["--image=i", "--topology=h100:1x1x8", "--", "x"], "give --gpu_nodes"),
    (["--image=i", "--topology=v5e:1x1", "--", "x"], "multiple of 4 chips"),
    (["--image=i", "--topology=v5e:3x4", "--", "x"], "topology 'v5e:3x4'"),
    (["--image=i", "--name=K4", "--", "x"], "--name must be"),
    (["--image=i", "--restarts=-1", "--", "x"], "--restarts must be at least 0, got -1"),
  ],
)
def test_invalid_options(capsys, options, message):
  with pytest.raises(SystemExit) as end:
    gke.parse_arguments(options)
  assert end.value.code in USER_ERRORS
  assert message in capsys.readouterr().err.splitlines()[-1]
