"""Containers and Kubernetes: who is restarted, who is found, who may ask, and how long a stop may take."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffstream.config import Config, load
from ffstream.server.origin import Hosts
from tests.harness.commands import COMMAND_S, run_cli

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
NAME = {"app.kubernetes.io/name": "ffstream"}
REPLICA = {"app.kubernetes.io/name": "ffstream-replica"}
KUBECTL_S = 60.0


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def document(name: str) -> dict[str, Any]:
    (only,) = documents(KUBERNETES / name)
    return only


@pytest.fixture
def container() -> dict[str, Any]:
    (only,) = document("statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def test_liveness_is_health_and_readiness_is_predictions(container: dict[str, Any]) -> None:
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}


def defaults(environment: dict[str, str]) -> dict[str, str]:
    """As compose passes them on where the person has set none of them: `${NAME:-default}`."""
    return {name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value) for name, value in environment.items()}


def test_requests_by_the_names_of_services_are_allowed(container: dict[str, Any]) -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    (prometheus,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    targets = [
        target for job in prometheus["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    hosts = Hosts(names=load(environment=defaults(compose["services"]["ffstream"]["environment"])).http.hosts)
    assert targets
    assert all(hosts.allow(target) for target in targets)
    given = {each["name"]: each.get("value", "").replace("$(POD_NAMESPACE)", "here") for each in container["env"]}
    hosts = Hosts(names=load(environment={"FFSTREAM_HTTP__HOSTS": given["FFSTREAM_HTTP__HOSTS"]}).http.hosts)
    (named,) = [
        each["metadata"]["name"]
        for each in documents(KUBERNETES / "service.yaml")
        if "http" in [port["name"] for port in each["spec"]["ports"]]
    ]
    names = list(given)
    assert names.index("POD_NAMESPACE") < names.index("FFSTREAM_HTTP__HOSTS"), "a variable knows those before it"
    assert all(hosts.allow(f"{named}{end}:8757") for end in ("", ".here", ".here.svc", ".here.svc.cluster.local"))


def test_predictions_leave_dns_when_not_ready_and_nothing_else_does() -> None:
    services = {each["metadata"]["name"]: each["spec"] for each in documents(KUBERNETES / "service.yaml")}
    published = {
        name: (sorted(port["name"] for port in spec["ports"]), spec.get("publishNotReadyAddresses", False))
        for name, spec in services.items()
    }
    assert published == {"ffstream": (["http", "learn"], True), "ffstream-predict": (["predict"], False)}
    assert all(spec["selector"] == NAME and spec["clusterIP"] == "None" for spec in services.values())
    assert document("statefulset.yaml")["spec"]["serviceName"] == "ffstream", "the pod's own name is in DNS, too"


def test_every_port_is_one_that_the_container_has(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"learn": 5757, "predict": 5758, "http": 8757}
    for service in documents(KUBERNETES / "service.yaml"):
        for port in service["spec"]["ports"]:
            assert port["port"] == ports[port["targetPort"]]
    for rule in document("networkpolicy.yaml")["spec"]["ingress"]:
        assert {port["port"] for port in rule["ports"]} <= set(ports)
    for endpoint in document("podmonitor.yaml")["spec"]["podMetricsEndpoints"]:
        assert endpoint["port"] in ports


def test_monitoring_in_a_namespace_of_its_own_may_ask_for_metrics_only() -> None:
    rules = document("networkpolicy.yaml")["spec"]["ingress"]
    (monitoring,) = [rule for rule in rules if "namespaceSelector" in rule["from"][0]]
    assert len(monitoring["from"]) == 1, "both selectors must hold"
    assert monitoring["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert monitoring["from"][0]["podSelector"]["matchLabels"]
    assert monitoring["ports"] == [{"port": "http"}]


def test_the_default_manifests_need_no_operator() -> None:
    resources = document("kustomization.yaml")["resources"]
    kinds = {each["kind"]: each["apiVersion"] for name in resources for each in documents(KUBERNETES / name)}
    assert kinds == {"NetworkPolicy": "networking.k8s.io/v1", "Service": "v1", "StatefulSet": "apps/v1"}
    monitor = document("podmonitor.yaml")
    assert (monitor["kind"], monitor["apiVersion"]) == ("PodMonitor", "monitoring.coreos.com/v1")
    assert monitor["spec"]["selector"]["matchLabels"] == NAME


def test_the_rules_for_the_operator_are_those_of_prometheus() -> None:
    (rules,) = documents(DEPLOY / "prometheus" / "rules" / "ffstream.yml")
    manifest = document("prometheusrule.yaml")
    assert (manifest["kind"], manifest["apiVersion"]) == ("PrometheusRule", "monitoring.coreos.com/v1")
    assert manifest["spec"] == rules, "its first lines say how to write it again"


def test_the_alerts_find_the_job_that_is_scraped() -> None:
    (rules,) = documents(DEPLOY / "prometheus" / "rules" / "ffstream.yml")
    jobs = set(re.findall(r'job="([\w-]+)"', json.dumps(rules).replace('\\"', '"')))
    configuration = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    complete = yaml.safe_load(re.sub(r"^  # (?=[- ] )", "  ", configuration, flags=re.MULTILINE))
    assert {"ffstream"} == {each["job_name"] for each in yaml.safe_load(configuration)["scrape_configs"]}
    assert jobs == {each["job_name"] for each in complete["scrape_configs"]}, "the comments that are to be taken"
    for folder, workload, job in (("", "statefulset", "ffstream"), ("replicas/", "deployment", "ffstream-replica")):
        monitor = document(f"{folder}podmonitor.yaml")["spec"]
        labels = document(f"{folder}{workload}.yaml")["spec"]["template"]["metadata"]["labels"]
        assert labels[monitor["jobLabel"]] == job in jobs
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
    # Compose's name for all containers of the service; each replica has the port.
    (found,) = [each for each in complete["scrape_configs"] if each["job_name"] == "ffstream-replica"]
    (names,) = found["dns_sd_configs"]
    (compose,) = documents(DEPLOY / "compose.yaml")
    assert (names["names"], names["type"]) == (["replica"], "A")
    assert f"--http=0.0.0.0:{names['port']}" in compose["services"]["replica"]["command"]


def test_scrapes_come_before_a_connection_is_given_up() -> None:
    (prometheus,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    intervals = [prometheus["global"]["scrape_interval"]]
    intervals += [each["interval"] for each in document("podmonitor.yaml")["spec"]["podMetricsEndpoints"]]
    assert all(float(each.removesuffix("s")) < Config().limits.http_keep_alive_s for each in intervals)


def test_stop_timeouts_are_longer_than_a_stop_takes() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    pod = document("statefulset.yaml")["spec"]["template"]["spec"]
    run = re.findall(r"docker run --stop-timeout (\d+)", (DEPLOY / "Containerfile").read_text(encoding="utf-8"))
    units = [each.read_text(encoding="utf-8") for each in DEPLOY.glob("*.service")]
    stops = [re.findall(r"^TimeoutStopSec=(\d+)", unit, re.M)[0] for unit in units]
    assert run, "the example of docker run"
    waits = [pod["terminationGracePeriodSeconds"], compose["services"]["ffstream"]["stop_grace_period"], *run, *stops]
    replica = document("replicas/deployment.yaml")["spec"]["template"]["spec"]
    waits += [replica["terminationGracePeriodSeconds"], compose["services"]["replica"]["stop_grace_period"]]
    assert all(float(str(each).removesuffix("s")) > 2 * Config().shutdown.drain_timeout_s for each in waits)


@pytest.fixture
def replicas() -> dict[str, dict[str, Any]]:
    """The container of a replica: in a pod, and in compose."""
    (pod,) = document("replicas/deployment.yaml")["spec"]["template"]["spec"]["containers"]
    (compose,) = documents(DEPLOY / "compose.yaml")
    service = compose["services"]["replica"]
    return {
        "pod": {"args": pod["args"], "env": {each["name"]: each["value"] for each in pod["env"]}, **pod_parts(pod)},
        "compose": {"args": service["command"], "env": service["environment"]},
    }


def pod_parts(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "ports": {each["name"]: each["containerPort"] for each in container["ports"]},
        "probes": {
            kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
        },
    }


def test_a_replica_is_started_with_options_that_it_has(
    replicas: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command takes them, up to the last one, which is wrong on purpose."""
    for each in replicas.values():
        for name, value in each["env"].items():
            monkeypatch.setenv(name, value)
        done = run_cli(*each["args"], "--set=http.hosts=wrong:name", timeout_s=COMMAND_S)
        assert done.returncode == 2
        assert "http.hosts" in done.stderr
        assert "/tmp" in each["env"]["NUMBA_CACHE_DIR"], "the root file system is read-only"
        # Otherwise no replica would be ready once the daemon has been away for a while.
        assert not any("staleness" in argument for argument in each["args"])


def test_replicas_follow_the_control_socket_that_the_daemon_opens_for_them(
    replicas: dict[str, dict[str, Any]],
) -> None:
    (container,) = document("replicas/statefulset.yaml")["spec"]["template"]["spec"]["containers"]
    (variable,), (port,) = container["env"], container["ports"]
    assert load(environment={variable["name"]: variable["value"]}).listen.control == "tcp://0.0.0.0:5759"
    assert port == {"name": "control", "containerPort": 5759}
    assert all("--follow=tcp://ffstream:5759" in each["args"] for each in replicas.values())
    assert "ffstream" in {each["metadata"]["name"] for each in documents(KUBERNETES / "service.yaml")}
    (compose,) = documents(DEPLOY / "compose.yaml")
    of_daemon = compose["services"]["ffstream"]["environment"]
    assert "${FFSTREAM_LISTEN__CONTROL:-" in of_daemon["FFSTREAM_LISTEN__CONTROL"], "the example sets it"
    assert load(environment=defaults(of_daemon)).listen == Config().listen, "without replicas it is on loopback"
    assert compose["services"]["replica"]["profiles"] == ["replicas"]
    assert not any("5759" in port for each in compose["services"].values() for port in each["ports"])


def test_the_ports_of_replicas_are_those_that_they_listen_on(replicas: dict[str, dict[str, Any]]) -> None:
    pod, in_compose = replicas["pod"], replicas["compose"]
    assert pod["ports"] == {"predict": 5758, "http": 8757}
    for each in (pod, in_compose):
        assert {"--listen=tcp://0.0.0.0:5758", "--http=0.0.0.0:8757"} <= set(each["args"])
    assert pod["probes"] == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    (compose,) = documents(DEPLOY / "compose.yaml")
    (published,) = compose["services"]["replica"]["ports"]
    assert re.fullmatch(r"127\.0\.0\.1:5768-57\d\d:5758", published), "a port of this machine for each"
    assert "127.0.0.1:8757/healthz" in (DEPLOY / "Containerfile").read_text(encoding="utf-8"), "its HEALTHCHECK"
    service = document("replicas/service.yaml")["spec"]
    assert service == {
        "selector": REPLICA,
        "ports": [{"name": "predict", "port": 5758, "targetPort": "predict"}],
    }, "only those that are ready, and new connections go to any of them"


def test_only_replicas_reach_the_control_socket() -> None:
    policies = {
        each["metadata"]["name"]: each["spec"] for each in documents(KUBERNETES / "replicas/networkpolicy.yaml")
    }
    assert policies["ffstream-control"] == {
        "podSelector": {"matchLabels": NAME},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": REPLICA}}], "ports": [{"port": "control"}]}],
    }
    of_daemon = document("networkpolicy.yaml")["spec"]["ingress"]
    assert all({"port": "control"} not in rule["ports"] for rule in of_daemon)
    # Clients and monitoring reach a replica as they reach the daemon, except for its learn socket.
    expected = [{**rule, "ports": [port for port in rule["ports"] if port["port"] != "learn"]} for rule in of_daemon]
    assert policies["ffstream-replica"]["podSelector"] == {"matchLabels": REPLICA}
    assert policies["ffstream-replica"]["ingress"] == expected


def test_kustomize_adds_replicas_to_the_daemon(tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    kustomization = tmp_path / "kubernetes" / "kustomization.yaml"
    text = kustomization.read_text(encoding="utf-8")
    plain = kustomize(kustomization.parent)
    kustomization.write_text(text.replace("# components:", "components:"), encoding="utf-8")
    made = kustomize(kustomization.parent)
    added = {
        ("Deployment", "ffstream-replica"),
        ("Service", "ffstream-replica"),
        ("NetworkPolicy", "ffstream-replica"),
        ("NetworkPolicy", "ffstream-control"),
    }
    assert made.keys() == plain.keys() | added
    assert len(made) == len(plain) + len(added)
    pod = made["Deployment", "ffstream-replica"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "ffstream:0.1.0", "the image is set in one place"
    key = ("StatefulSet", "ffstream")
    (container,), (before,) = (each[key]["spec"]["template"]["spec"]["containers"] for each in (made, plain))
    assert [each for each in container["env"] if each not in before["env"]] == [
        {"name": "FFSTREAM_LISTEN__CONTROL", "value": "tcp://0.0.0.0:5759"}
    ]
    assert len(container["env"]) == len(before["env"]) + 1
    assert len(container["ports"]) == len(before["ports"]) + 1


def kustomize(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What it makes of the folder, by kind and name."""
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=KUBECTL_S, check=True)
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}


def test_every_example_of_docker_run_waits_for_a_stop() -> None:
    for path in (*DEPLOY.rglob("*"), DEPLOY.parent / "README.md"):
        if path.is_file() and path.suffix != ".png":
            for line in path.read_text(encoding="utf-8").splitlines():
                assert "docker run" not in line or "--stop-timeout" in line, f"{path.name}: {line}"
