"""The checks of the cluster files: each returns what is wrong with a file, a line a problem, or nothing."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import botocore.session
import kubernetes_validate
import yaml
from botocore.validate import ParamValidator
from jsonschema import Draft202012Validator

from mgc import __version__
from mgc.cli import parse

REPO = Path(__file__).parents[2]
CLUSTER = REPO / "cluster"
KUBERNETES = "1.37"
RAY_KINDS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig", "RayCluster": None}
"""Where in its specification each has that of its RayCluster."""


def documents(name):
    """The YAML documents of a file below cluster/, with each anchor's copies apart."""
    return [json.loads(json.dumps(each)) for each in yaml.safe_load_all((CLUSTER / name).read_text())]


def locked(package):
    """The version that constraints.txt has of a package."""
    return re.search(rf"^{package}==(\S+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE)[1]


# Formats: a misspelt field is a problem


def schema_problems(manifest, schema):
    """What KubeRay's own schema says of a RayJob, a RayService or a RayCluster."""
    errors = Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def kubernetes_problems(resource):
    """What Kubernetes' own schema says of a resource that it knows."""
    try:
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


def resources(manifest):
    """A manifest as resources that Kubernetes knows: itself, or its pod templates."""
    if manifest["kind"] not in RAY_KINDS:
        return [manifest]
    return [
        {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": name}, "template": template}
        for name, template in pod_templates(manifest).items()
    ]


def pod_templates(manifest):
    """The pod templates of a RayJob, a RayService, a RayCluster or a Deployment, by name."""
    spec = manifest["spec"]
    if manifest["kind"] == "Deployment":
        return {"pod": spec["template"]}
    found = {"submitter": spec["submitterPodTemplate"]} if manifest["kind"] == "RayJob" else {}
    ray = ray_cluster(manifest)
    found["head"] = ray["headGroupSpec"]["template"]
    return found | {group["groupName"]: group["template"] for group in ray["workerGroupSpecs"]}


def ray_cluster(manifest):
    """The specification of the RayCluster."""
    where = RAY_KINDS[manifest["kind"]]
    return manifest["spec"][where] if where else manifest["spec"]


def admission_problems(manifest):
    """What KubeRay's operator refuses although the schema allows it."""
    spec, found = manifest["spec"], []
    ray = ray_cluster(manifest) if "clusterSelector" not in spec else {}
    longest = {"RayJob": 47, "RayService": 47, "RayCluster": 53}[manifest["kind"]]
    if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{longest - 2}}}[a-z0-9])?", manifest["metadata"]["name"]):
        found.append(f"the name must be a DNS label of at most {longest} characters")
    if manifest["kind"] == "RayJob":
        if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
            found.append("exactly one of rayClusterSpec and clusterSelector")
        if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
            found.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
    if ray.get("authOptions", {}).get("mode") == "token" and version(ray.get("rayVersion", "0")) < (2, 52):
        found.append("a token needs rayVersion 2.52 or newer")
    for group in [ray.get("headGroupSpec", {}), *ray.get("workerGroupSpecs", [])]:
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"]):
            found.append("resources in rayStartParams and in the group")
        if not group.get("minReplicas", 0) <= group.get("replicas", 0) <= group.get("maxReplicas", 2**31 - 1):
            found.append(f"{group['groupName']}: minReplicas ≤ replicas ≤ maxReplicas")
        restart = group.get("template", {}).get("spec", {}).get("restartPolicy", "Never")
        if ray.get("autoscalerOptions", {}).get("version") == "v2" and restart != "Never":
            found.append("the autoscaler v2 needs the restartPolicy Never")
    return found


def version(text):
    return tuple(int(number) for number in text.split(".")[:2])


def launcher_problems(config):
    """What Ray's launcher says of its file, and EC2's interface of the machines in it."""
    import ray.autoscaler  # here, because tests that fork want a process without Ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    known = schema["properties"]["provider"]["properties"]
    found = [f"provider.{name} is not known" for name in config["provider"] if name not in known]
    try:
        validate_config(prepare_config(json.loads(json.dumps(config))))
    except Exception as error:
        found.append(str(error).splitlines()[0])
    ec2 = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in config["available_node_types"].items():
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **node["node_config"]}, ec2)
        found += [f"{name}: {line}" for line in report.generate_report().splitlines()]
    return found


def containerfile_problems(text):
    """What hadolint says of a Containerfile."""
    command = [Path(sys.executable).with_name("hadolint"), "--no-color", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()


# Our own promises


def image_problems(images, gpu=False):
    """Images that are not ours of this version, or not of the right kind."""
    wanted = f"registry.example.com/mgc:{__version__}-{'cuda' if gpu else 'cpu'}"
    return [f"{image} should be {wanted}" for image in images if image != wanted]


def pod_problems(manifest):
    """Pods that run as root or with another image, and Ray nodes without the bucket's credentials and MLflow."""
    found = []
    for name, template in pod_templates(manifest).items():
        (container,) = template["spec"]["containers"]
        limits = container["resources"]["limits"]
        found += image_problems([container["image"]], gpu="nvidia.com/gpu" in limits)
        user, rights = template["spec"].get("securityContext", {}), container.get("securityContext", {})
        if not user.get("runAsNonRoot") or user.get("runAsUser") != user_of_the_image():
            found.append(f"{name}: not the user of the image")
        if rights.get("allowPrivilegeEscalation", True) or rights["capabilities"]["drop"] != ["ALL"]:
            found.append(f"{name}: more rights than it needs")
        if manifest["kind"] == "Deployment" or name == "submitter":
            continue
        if container["resources"]["requests"] != limits:
            found.append(f"{name}: Ray counts limits, Kubernetes requests; they differ")
        if container.get("envFrom") != [{"secretRef": {"name": "bucket"}}]:
            found.append(f"{name}: no credentials of the bucket")
        if {"name": "MLFLOW_TRACKING_URI", "value": mlflow_address()} not in container.get("env", []):
            found.append(f"{name}: no MLflow server")
    return found


def user_of_the_image():
    """The number of the user that the Containerfile ends with."""
    return int(re.findall(r"^USER (\d+)$", (CLUSTER / "Containerfile").read_text(), re.MULTILINE)[-1])


def mlflow_address():
    """The address of the service in mlflow.yaml."""
    (service,) = (each for each in documents("kuberay/mlflow.yaml") if each["kind"] == "Service")
    return f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


def version_problems(manifest):
    """A RayCluster of another Ray than the lock file's, or without authentication."""
    ray, found = ray_cluster(manifest), []
    if ray.get("rayVersion") != locked("ray"):
        found.append(f"rayVersion is not {locked('ray')}, as in constraints.txt")
    if ray.get("authOptions") != {"mode": "token"}:
        found.append("no token authentication")
    return found


def job_problems(entrypoint):
    """A job that does not exist, or does not understand its flags."""
    program, script, *flags = shlex.split(entrypoint)
    job = REPO / "pipelines" / Path(script).name
    if program != "python" or not job.is_file():
        return [f"{script}: no such job"]
    command = re.search(r'main\(\["(\w+)"', job.read_text())[1]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            parse([command, *flags])
    except SystemExit:
        return [" ".join(said.getvalue().split())]
    return []


def service_problems(manifest):
    """What Ray Serve says of its config, our application of its arguments, and what of it does not fit its workers."""
    from ray.serve.schema import ServeDeploySchema  # here, because tests that fork want a process without Ray

    from pipelines import serve

    try:
        given = yaml.safe_load(manifest["spec"]["serveConfigV2"])
        config = ServeDeploySchema.model_validate(given)
        if given != config.model_dump(exclude_unset=True):  # it passes over what it does not know
            return ["a field that Ray Serve does not know"]
        (application,) = config.applications
        assert getattr(serve, application.import_path.removeprefix("pipelines.serve:")) is serve.app
        built = serve.app(application.args)
    except Exception as error:
        return [str(error)]
    (deployment,) = application.deployments
    name = built._bound_deployment.name
    found = [] if deployment.name == name else [f"{deployment.name}: the deployment is {name}"]
    cpus = deployment.ray_actor_options.num_cpus
    room = sum(number * int(has_cpus // cpus) for number, has_cpus, _ in worker_nodes(manifest))
    if room < deployment.num_replicas:
        found.append(f"room for {room} replicas, not {deployment.num_replicas}")
    for name, template in pod_templates(manifest).items():
        (container,) = template["spec"]["containers"]
        given = {each["name"]: each for each in container["env"]}
        if "secretKeyRef" not in given.get("MGC_TOKEN", {}).get("valueFrom", {}):
            found.append(f"{name}: no token from a secret")
        if given.get("PYTHONPATH", {}).get("value") != "/opt/mgc":
            found.append(f"{name}: pipelines/ is not on the path")
    return found


def flags_of(entrypoint):
    """The flags of a command line with their values; None of a flag without a value."""
    words = shlex.split(entrypoint)
    return {
        word: None if after.startswith("--") else after
        for word, after in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--")
    }


def storage_problems(manifest):
    """A job on nodes that share no disk, whose files are not in the bucket, or whose retry would begin anew."""
    flags = flags_of(manifest["spec"]["entrypoint"])
    found = [
        f"{flag} {flags[flag]}: not in the bucket"
        for flag in ("--root", "--out", "--features", "--storage")
        if flag in flags and not flags[flag].startswith("s3://mgc-example/")
    ]
    needed = {"--wait"} | ({"--storage", "--name"} if "sweep.py" in manifest["spec"]["entrypoint"] else set())
    found += [f"no {flag}" for flag in sorted(needed - set(flags))]
    if not manifest["spec"].get("backoffLimit"):
        found.append("no retry")
    return found


def capacity_problems(entrypoint, nodes):
    """Resources that a job asks for and that its workers do not have.

    Parameters
    ----------
    entrypoint
        The job's command line.
    nodes
        A (number, CPUs, GPUs) of each kind of worker, as many as there can be.
    """
    flags = flags_of(entrypoint)
    if "sweep.py" in entrypoint:
        cpus, gpus = float(flags.get("--cpus-per-trial", 1)), float(flags.get("--gpus-per-trial", 0))
        room = sum(
            number * int(min(has_cpus // cpus, has_gpus // gpus if gpus else has_cpus // cpus))
            for number, has_cpus, has_gpus in nodes
            if bool(gpus) == bool(has_gpus)
        )
        wanted = int(flags["--concurrent"])
        return [] if room >= wanted else [f"room for {room} trials at a time, not {wanted}"]
    room = sum(number * has_cpus for number, has_cpus, _ in nodes)
    return [] if room >= int(flags["--workers"]) else [f"{room} CPUs, not {flags['--workers']}"]


def worker_nodes(manifest):
    """A (number, CPUs, GPUs) of each worker group."""
    found = []
    for group in ray_cluster(manifest)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found.append((group["maxReplicas"], int(limits["cpu"]), int(limits.get("nvidia.com/gpu", 0))))
    return found
