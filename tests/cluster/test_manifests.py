"""The cluster files: formats, KubeRay's rules, and what we promise; and that a mistake in each is found."""

from __future__ import annotations

import json
import re

import pytest
from helpers.manifests import (
    CLUSTER,
    RAY_KINDS,
    REPO,
    admission_problems,
    capacity_problems,
    containerfile_problems,
    documents,
    image_problems,
    job_problems,
    kubernetes_problems,
    launcher_problems,
    locked,
    pod_problems,
    pod_templates,
    ray_cluster,
    resources,
    schema_problems,
    service_problems,
    storage_problems,
    version_problems,
    worker_nodes,
)

JOBS = ["kuberay/preprocess.yaml", "kuberay/sweep.yaml"]
SERVICE = "kuberay/serve.yaml"
RAY = [*JOBS, SERVICE, "kuberay/interactive.yaml"]
PLAIN = ["kuberay/mlflow.yaml", "kuberay/network.yaml"]
PAGE = REPO / "docs" / "cluster.md"


def changed(name, path, value=None, *, rename=None):
    """The documents of a file with one mistake.

    Parameters
    ----------
    name
        File below cluster/.
    path
        Where: keys and numbers; of a file of several documents the number of the document is the first.
    value
        What is put there; None deletes it.
    rename
        The name that the last key gets instead.
    """
    found = documents(name)
    place = found if len(found) > 1 else found[0]
    *way, last = (int(key) if key.isdigit() else key for key in path.split())
    for key in way:
        place = place[key]
    before = place.pop(last)
    if rename:
        place[rename] = before
    elif value is not None:
        place[last] = value
    return found


@pytest.fixture(scope="module")
def schemas(kuberay):
    """KubeRay's schemas, by kind."""
    kinds = {"RayJob": "rayjobs", "RayService": "rayservices", "RayCluster": "rayclusters"}
    return {kind: json.loads((kuberay / f"{name}.v1.schema.json").read_text()) for kind, name in kinds.items()}


# Formats


def test_every_file_is_checked_here():
    names = {file.relative_to(CLUSTER).as_posix() for file in CLUSTER.rglob("*") if file.is_file()}
    assert names == {*RAY, *PLAIN, "README.md", "Containerfile", "aws.yaml", "local.sh"}


@pytest.mark.parametrize("name", RAY)
def test_ray_manifests_follow_the_schema_of_kuberay(name, schemas):
    (manifest,) = documents(name)
    assert schema_problems(manifest, schemas[manifest["kind"]]) == []


@pytest.mark.parametrize("name", RAY)
def test_ray_manifests_are_admitted(name):
    (manifest,) = documents(name)
    assert admission_problems(manifest) == []


@pytest.mark.parametrize("name", RAY + PLAIN)
def test_resources_and_pod_templates_follow_the_schema_of_kubernetes(name):
    found = [resource for manifest in documents(name) for resource in resources(manifest)]
    assert found
    assert [kubernetes_problems(resource) for resource in found] == [[]] * len(found)


def test_the_launcher_takes_its_file():
    assert launcher_problems(*documents("aws.yaml")) == []


def test_hadolint_has_nothing_to_say_of_the_containerfile():
    assert containerfile_problems((CLUSTER / "Containerfile").read_text()) == []


POD = "template spec containers 0"
HEAD = "spec rayClusterSpec headGroupSpec template spec"
WORKER = "spec rayClusterSpec workerGroupSpecs 0"


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("kuberay/preprocess.yaml", "spec backoffLimit", "backofLimit"),
        ("kuberay/preprocess.yaml", "spec ttlSecondsAfterFinished", "ttlSecondsAfterFinish"),
        ("kuberay/preprocess.yaml", "spec rayClusterSpec authOptions mode", "modus"),
        ("kuberay/preprocess.yaml", f"{WORKER} maxReplicas", "maxReplica"),
        ("kuberay/sweep.yaml", "spec entrypoint", "entryPoint"),
        ("kuberay/sweep.yaml", f"{HEAD} securityContext", "securitycontext"),
        ("kuberay/sweep.yaml", f"{WORKER} template spec tolerations 0 effect", "efect"),
        (SERVICE, "spec serveConfigV2", "serveConfig"),
        (SERVICE, "spec excludeHeadPodFromServeSvc", "excludeHeadPod"),
        (SERVICE, "spec rayClusterConfig workerGroupSpecs 0 replicas", "replica"),
        ("kuberay/interactive.yaml", "spec enableInTreeAutoscaling", "enableAutoscaling"),
        ("kuberay/interactive.yaml", "spec autoscalerOptions idleTimeoutSeconds", "idleTimeoutMinutes"),
    ],
)
def test_a_misspelt_field_of_a_ray_manifest_is_found(name, path, wrong, schemas):
    (manifest,) = changed(name, path, rename=wrong)
    assert wrong in " ".join(schema_problems(manifest, schemas[manifest["kind"]]))


@pytest.mark.parametrize(
    ("name", "path", "wrong"),
    [
        ("kuberay/preprocess.yaml", "spec submitterPodTemplate spec restartPolicy", "restart"),
        ("kuberay/preprocess.yaml", f"{HEAD} containers 0 envFrom", "envfrom"),
        ("kuberay/sweep.yaml", f"{WORKER} {POD} resources limits", "limit"),
        ("kuberay/interactive.yaml", "spec headGroupSpec template spec containers 0 ports 0 containerPort", "port"),
        (SERVICE, f"spec rayClusterConfig workerGroupSpecs 0 {POD} env 2 valueFrom secretKeyRef", "secretRef"),
        ("kuberay/mlflow.yaml", "0 spec accessModes", "accessMode"),
        ("kuberay/mlflow.yaml", "1 spec template spec containers 0 readinessProbe httpGet", "http"),
        ("kuberay/mlflow.yaml", "1 spec template spec volumes 0 persistentVolumeClaim", "claim"),
        ("kuberay/mlflow.yaml", "2 spec ports 0 targetPort", "target"),
        ("kuberay/network.yaml", "0 spec ingress 0 from", "form"),
        ("kuberay/network.yaml", "1 spec podSelector", "selector"),
    ],
)
def test_a_misspelt_field_of_a_pod_or_a_plain_resource_is_found(name, path, wrong):
    found = [resource for manifest in changed(name, path, rename=wrong) for resource in resources(manifest)]
    assert any(kubernetes_problems(resource) for resource in found)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("kuberay/preprocess.yaml", "metadata name", "x" * 48),
        (SERVICE, "metadata name", "x" * 48),
        ("kuberay/interactive.yaml", "metadata name", "x" * 54),
        ("kuberay/sweep.yaml", "metadata name", "MGC"),
        ("kuberay/sweep.yaml", "spec shutdownAfterJobFinishes", None),
        ("kuberay/sweep.yaml", "spec rayClusterSpec rayVersion", "2.51.1"),
        ("kuberay/sweep.yaml", "spec rayClusterSpec rayVersion", None),
        ("kuberay/interactive.yaml", "spec headGroupSpec rayStartParams", {"num-cpus": "0"}),
        ("kuberay/preprocess.yaml", f"{WORKER} minReplicas", 5),
        ("kuberay/sweep.yaml", f"{WORKER} template spec", {"restartPolicy": "Always"}),
    ],
)
def test_what_kuberay_would_refuse_is_found(name, path, value):
    (manifest,) = changed(name, path, value)
    if path.endswith("rayStartParams"):
        manifest["spec"]["headGroupSpec"]["resources"] = {"CPU": "0"}
    assert admission_problems(manifest)


def test_a_job_with_two_clusters_is_found():
    (manifest,) = documents("kuberay/sweep.yaml")
    manifest["spec"]["clusterSelector"] = {"ray.io/cluster": "mgc"}
    assert admission_problems(manifest)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("idle_timeout_minutes", "idle_timeout_minute"),
        ("docker head_run_options", "head_run_option"),
        ("auth ssh_user", "ssh_users"),
        ("provider region", "regoin"),
        ("available_node_types gpu max_workers", "maxWorkers"),
        ("available_node_types gpu docker worker_image", "image"),
        ("available_node_types cpu node_config InstanceMarketOptions", "InstanceMarketOption"),
        ("available_node_types head node_config BlockDeviceMappings 0 Ebs VolumeSize", "Size"),
        ("worker_start_ray_commands", "worker_start_commands"),
    ],
)
def test_a_misspelt_field_of_the_launcher_is_found(path, wrong):
    assert launcher_problems(*changed("aws.yaml", path, rename=wrong))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("FROM ${BASE}", "FORM ${BASE}"),
        ("COPY pipelines pipelines", "COPPY pipelines pipelines"),
        ("WORKDIR /opt/mgc", "WORKDIR opt/mgc"),
        ("USER 1000", "USER root"),
        ("--no-cache-dir", ""),
    ],
)
def test_a_mistake_in_the_containerfile_is_found(right, wrong):
    text = (CLUSTER / "Containerfile").read_text()
    assert right in text
    assert containerfile_problems(text.replace(right, wrong))


# Our own promises


@pytest.mark.parametrize("name", [*RAY, *PLAIN, "aws.yaml", "local.sh", "Containerfile"])
def test_a_file_opens_with_the_command_that_uses_it(name):
    opening = re.match(r"(#.*\n)+", (CLUSTER / name).read_text())[0]
    assert re.search(rf"^#   .*cluster/{name}", opening, re.MULTILINE)


@pytest.mark.parametrize("name", RAY)
def test_ray_is_that_of_the_lock_file_and_asks_for_a_token(name):
    assert version_problems(*documents(name)) == []


@pytest.mark.parametrize("name", [*RAY, "kuberay/mlflow.yaml"])
def test_pods_have_our_image_no_root_and_what_a_job_needs(name):
    pods = [manifest for manifest in documents(name) if manifest["kind"] in (*RAY_KINDS, "Deployment")]
    assert pods
    assert [problem for manifest in pods for problem in pod_problems(manifest)] == []


def test_the_launcher_has_our_images_and_asks_for_a_token():
    (config,) = documents("aws.yaml")
    docker = config["docker"]
    assert "--env RAY_AUTH_MODE=token" in docker["run_options"]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert image_problems([docker["head_image"], docker["worker_image"]]) == []
    for node in config["available_node_types"].values():
        if "GPU" in node["resources"]:
            assert image_problems([node["docker"]["worker_image"]], gpu=True) == []


def test_the_image_has_the_versions_of_the_lock_file():
    text = (CLUSTER / "Containerfile").read_text()
    python = re.search(r'^python_version = "(.+)"$', (REPO / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert re.search(r"^ARG BASE=python:([\d.]+)-slim", text, re.MULTILINE)[1] == python
    assert f"BASE=rayproject/ray:{locked('ray')}-py{python.replace('.', '')}-gpu" in text
    installs = re.findall(r"pip install .*", text)
    assert [line for line in installs if "--constraint constraints.txt" not in line and "--no-deps" not in line] == []
    assert re.search(r"^USER [1-9]\d*$", text.rstrip().splitlines()[-2])


def jobs():
    """Every command line of a job in the manifests and on the page."""
    lines = [documents(name)[0]["spec"]["entrypoint"] for name in JOBS]
    commands = re.sub(r"\\\n\s*", "", PAGE.read_text())
    return lines + re.findall(r"python \S*pipelines/\w+\.py .+", commands)


@pytest.mark.parametrize("line", jobs())
def test_jobs_exist_and_understand_their_flags(line):
    assert job_problems(line) == []


@pytest.mark.parametrize("name", JOBS)
def test_a_job_keeps_everything_in_the_bucket_and_is_tried_again(name):
    assert storage_problems(*documents(name)) == []


@pytest.mark.parametrize("name", JOBS)
def test_workers_have_what_a_job_asks_for(name):
    (manifest,) = documents(name)
    assert capacity_problems(manifest["spec"]["entrypoint"], worker_nodes(manifest)) == []


def test_the_service_is_one_of_ray_serve_and_of_our_application():
    assert service_problems(*documents(SERVICE)) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("import_path:", "import_paths:"),
        ("pipelines.serve:app", "pipelines.serve:apps"),
        ("route_prefix: /", "prefix: /"),
        ("model: champion", "modell: champion"),
        ("at_once: 8", "at_onces: 8"),
        ("at_once: 8", "at_once: 0"),
        ("num_replicas: 2", "num_replicas: 3"),
        ("num_replicas: 2", "num_replica: 2"),
        ("num_cpus: 4", "num_cpus: 5"),
        ("num_cpus: 4", "num_cpu: 4"),
        ("deployments:\n      - name: genre", "deployments:\n      - name: genres"),
    ],
)
def test_a_mistake_in_the_config_of_ray_serve_is_found(right, wrong):
    (manifest,) = documents(SERVICE)
    config = manifest["spec"]["serveConfigV2"]
    assert right in config
    manifest["spec"]["serveConfigV2"] = config.replace(right, wrong)
    assert service_problems(manifest)


@pytest.mark.parametrize("number", [1, 2])
def test_a_service_without_its_token_or_its_path_is_found(number):
    (manifest,) = documents(SERVICE)
    del manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["env"][number]
    assert service_problems(manifest)


def test_machines_of_the_launcher_have_what_the_jobs_of_the_page_ask_for():
    (config,) = documents("aws.yaml")
    kinds = config["available_node_types"].values()
    nodes = [
        (kind["max_workers"], kind["resources"]["CPU"], kind["resources"].get("GPU", 0))
        for kind in kinds
        if "max_workers" in kind
    ]
    lines = [line for line in jobs() if "/opt/mgc/" in line and "$BUCKET" in line]
    assert len(lines) == 2
    assert [capacity_problems(line, nodes) for line in lines] == [[], []]
    assert sum(number for number, _, _ in nodes) <= config["max_workers"]


def test_gpus_are_there_only_while_they_are_wanted():
    for name in ("kuberay/sweep.yaml", "kuberay/interactive.yaml"):
        ray = ray_cluster(*documents(name))
        (gpu,) = (group for group in ray["workerGroupSpecs"] if group["groupName"] == "gpu")
        assert ray["enableInTreeAutoscaling"]
        assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)


def test_the_head_takes_no_tasks():
    for name in RAY:
        assert ray_cluster(*documents(name))["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (config,) = documents("aws.yaml")
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_the_network_policies_select_our_pods():
    ray, mlflow = documents("kuberay/network.yaml")
    nodes = {"matchLabels": {"ray.io/is-ray-node": "yes"}}  # KubeRay's label
    assert ray["spec"]["podSelector"] == nodes == mlflow["spec"]["ingress"][0]["from"][0]["podSelector"]
    for name in JOBS:
        submitter = pod_templates(*documents(name))["submitter"]["metadata"]["labels"]
        assert ray["spec"]["ingress"][1]["from"][0]["podSelector"] == {"matchLabels": submitter}
    operator = ray["spec"]["ingress"][1]["from"][1]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert f"kuberay/kuberay-operator --version 1.7.0 --namespace {operator}" in PAGE.read_text()
    _, server, _ = documents("kuberay/mlflow.yaml")
    assert mlflow["spec"]["podSelector"] == {"matchLabels": server["spec"]["template"]["metadata"]["labels"]}


def test_the_page_names_files_that_are_there_and_makes_the_secret():
    named = set(re.findall(r"\bcluster/[\w./-]+", PAGE.read_text()))
    assert {name for name in named if not (REPO / name.rstrip(".")).exists()} == set()
    assert "secret generic bucket" in PAGE.read_text()


@pytest.mark.parametrize(
    ("check", "name", "path", "value"),
    [
        (version_problems, "kuberay/sweep.yaml", "spec rayClusterSpec rayVersion", "2.59.0"),
        (version_problems, "kuberay/sweep.yaml", "spec rayClusterSpec authOptions", {"mode": "disabled"}),
        (pod_problems, "kuberay/sweep.yaml", f"{WORKER} {POD} image", "rayproject/ray:2.60.0"),
        (pod_problems, "kuberay/sweep.yaml", f"{WORKER} {POD} resources limits nvidia.com/gpu", None),
        (pod_problems, "kuberay/sweep.yaml", f"{WORKER} {POD} resources limits cpu", "5"),
        (pod_problems, "kuberay/sweep.yaml", f"{WORKER} {POD} envFrom", None),
        (pod_problems, "kuberay/sweep.yaml", f"{HEAD} containers 0 env 0 value", "http://mlflow:8080"),
        (pod_problems, "kuberay/sweep.yaml", f"{HEAD} securityContext runAsUser", 0),
        (pod_problems, "kuberay/sweep.yaml", f"{HEAD} containers 0 securityContext", {}),
        (storage_problems, "kuberay/sweep.yaml", "spec backoffLimit", 0),
        (storage_problems, "kuberay/sweep.yaml", "spec entrypoint", "python sweep.py --features /data/set --wait 1"),
    ],
)
def test_a_broken_promise_is_found(check, name, path, value):
    (manifest,) = changed(name, path, value)
    assert check(manifest)


@pytest.mark.parametrize(
    "line", ["python /opt/mgc/pipelines/tune.py", "python pipelines/sweep.py --features f --no-such-flag"]
)
def test_a_job_that_would_not_start_is_found(line):
    assert job_problems(line)


@pytest.mark.parametrize(
    ("line", "nodes"),
    [
        ("sweep.py --concurrent 4 --gpus-per-trial 1", [(3, 8, 1)]),
        ("sweep.py --concurrent 4 --gpus-per-trial 1", [(4, 8, 0)]),
        ("sweep.py --concurrent 4 --gpus-per-trial 1 --cpus-per-trial 8", [(4, 4, 1)]),
        ("sweep.py --concurrent 4 --cpus-per-trial 2", [(1, 6, 0)]),
        ("preprocess.py --workers 33", [(4, 8, 0)]),
    ],
)
def test_workers_that_are_too_few_or_too_small_are_found(line, nodes):
    assert capacity_problems(line, nodes)


def test_several_trials_fit_on_a_gpu():
    assert capacity_problems("sweep.py --concurrent 8 --gpus-per-trial 0.25 --cpus-per-trial 2", [(2, 8, 1)]) == []
