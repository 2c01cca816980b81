"""A Ray cluster beside the daemon: who reaches its ports, and that all processes agree."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffstream.config import Config, load

DEPLOY = Path(__file__).parents[2] / "deploy"
RAY = DEPLOY / "ray"
KUBECTL_S = 60.0
TUNED = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict[str, Any]:
    (only,) = documents(RAY / "kubernetes" / "raycluster.yaml")
    return only


@pytest.fixture
def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The specifications of the pods of head, workers and daemon."""
    (patch,) = documents(RAY / "kubernetes" / "statefulset.yaml")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"], patch["spec"]]
    names = ["head", *(each["groupName"] for each in groups[1:-1]), "daemon"]
    return {name: group["template"]["spec"] for name, group in zip(names, groups, strict=True)}


@pytest.fixture
def services() -> dict[str, dict[str, Any]]:
    (compose,) = documents(RAY / "compose.yaml")
    found: dict[str, dict[str, Any]] = compose["services"]
    return found


def variables(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def test_every_process_has_the_same_settings_of_ray(
    pods: dict[str, dict[str, Any]], services: dict[str, dict[str, Any]]
) -> None:
    for settings in (*map(variables, pods.values()), *(each["environment"] for each in services.values())):
        assert settings.items() >= TUNED.items()
    guide = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert all(f"{name}={value}" in guide for name, value in TUNED.items()), "for machines without containers"


def test_every_process_reads_the_token_from_a_file(
    pods: dict[str, dict[str, Any]], services: dict[str, dict[str, Any]]
) -> None:
    for pod in pods.values():
        (secret,) = [each for each in pod["volumes"] if "secret" in each]
        (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == secret["name"]]
        assert variables(pod)["RAY_AUTH_TOKEN_PATH"] == f"{mount['mountPath']}/auth_token"
        assert secret["secret"] == {"secretName": "ffstream-ray", "defaultMode": 0o440}
    for service in services.values():
        (name,) = service["secrets"]
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{name}"


def options(environment: dict[str, str]) -> Config:
    return load(environment={name: value for name, value in environment.items() if name.startswith("FFSTREAM_")})


def test_the_daemon_joins_the_head_that_there_is(
    cluster: dict[str, Any], pods: dict[str, dict[str, Any]], services: dict[str, dict[str, Any]]
) -> None:
    head = f"{cluster['metadata']['name']}-head-svc:6379"  # the name that KubeRay gives
    in_pod, in_compose = options(variables(pods["daemon"])), options(services["ffstream"]["environment"])
    assert in_pod.pipeline.engine == in_compose.pipeline.engine == "ray"
    assert (in_pod.cluster.address, in_compose.cluster.address) == (head, "ray-head:6379")
    assert pods["daemon"]["containers"][0]["command"] == ["with-ray-node", head, "ffstream"]
    assert services["ffstream"]["entrypoint"] == ["with-ray-node", "ray-head:6379", "ffstream"]
    assert "--port=6379" in services["ray-head"]["entrypoint"]
    assert "--address=ray-head:6379" in services["ray-worker"]["entrypoint"]


def test_the_daemon_has_the_arguments_of_the_image(
    pods: dict[str, dict[str, Any]], services: dict[str, dict[str, Any]]
) -> None:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    (command,) = re.findall(r"^CMD (\[.*?\])", text, re.DOTALL | re.MULTILINE)
    of_image = json.loads(command.replace("\\\n", ""))
    for arguments in (pods["daemon"]["containers"][0]["args"], services["ffstream"]["command"]):
        split = [part for each in arguments for part in each.split("=", 1 if each.startswith("--") else 0)]
        assert split == of_image


def test_the_versions_of_ray_agree(cluster: dict[str, Any]) -> None:
    constraints = (DEPLOY.parent / "tools" / "constraints.txt").read_text(encoding="utf-8")
    assert re.findall(r"^ray==(\S+)$", constraints, re.MULTILINE) == [cluster["spec"]["rayVersion"]]
    (compose,) = documents(RAY / "compose.yaml")
    assert compose["services"]["ray-head"]["build"]["args"] == {"EXTRAS": "[ray]"}


def test_ray_reads_the_cluster_and_finds_processors_on_workers_only(cluster: dict[str, Any]) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster["metadata"]["namespace"] = "here"
    found = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    processors = {name: (each["resources"]["CPU"], each["min_workers"]) for name, each in found.items()}
    assert processors == {"headgroup": (0, 0), "stages": (2, 2)}


def test_only_the_cluster_and_the_daemon_reach_the_ports_of_ray() -> None:
    inside = {"podSelector": {"matchLabels": {"ray.io/cluster": "ffstream-ray"}}}
    daemon = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "ffstream"}}}
    policies = {
        each["metadata"]["name"]: each["spec"] for each in documents(RAY / "kubernetes" / "networkpolicy.yaml")
    }
    assert policies["ffstream-ray"] == {**inside, "policyTypes": ["Ingress"], "ingress": [{"from": [inside, daemon]}]}
    assert policies["ffstream-ray-daemon"] == {**daemon, "policyTypes": ["Ingress"], "ingress": [{"from": [inside]}]}
    (compose,) = documents(RAY / "compose.yaml")
    published = {name: each.get("ports") for name, each in compose["services"].items() if "ports" in each}
    assert published == {"ffstream": [f"127.0.0.1:{port}:{port}" for port in (5757, 5758, 8757)]}


def test_no_process_has_the_dashboard(cluster: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["include-dashboard"] == "false"
    assert "--include-dashboard=false" in services["ray-head"]["entrypoint"]


def test_a_stop_waits_for_longer_than_the_daemon_takes(services: dict[str, dict[str, Any]]) -> None:
    assert float(services["ffstream"]["stop_grace_period"].removesuffix("s")) > 2 * Config().shutdown.drain_timeout_s


def test_kustomize_makes_one_set_of_manifests() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(RAY / "kubernetes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=KUBECTL_S, check=True)
    made = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    assert made.keys() == {
        ("RayCluster", "ffstream-ray"),
        ("StatefulSet", "ffstream"),
        ("Service", "ffstream"),
        ("Service", "ffstream-predict"),
        *(("NetworkPolicy", name) for name in ("ffstream", "ffstream-ray", "ffstream-ray-daemon")),
    }
    assert set(re.findall(r"image: (\S+)", done.stdout)) == {"ffstream-ray:0.1.0"}
    (container,) = made["StatefulSet", "ffstream"]["spec"]["template"]["spec"]["containers"]
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    assert {"FFSTREAM_HTTP__HOSTS", "FFSTREAM_PIPELINE__ENGINE"} <= set(names)
    assert {each["mountPath"] for each in container["volumeMounts"]} > {"/var/lib/ffstream", "/tmp", "/dev/shm"}
