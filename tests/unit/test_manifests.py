"""Containers and Kubernetes: who is restarted, who is found, who may ask, and how long a stop may take."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffstream.config import Config, load
from ffstream.server.origin import Hosts

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
NAME = {"app.kubernetes.io/name": "ffstream"}


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


def test_requests_by_the_names_of_services_are_allowed(container: dict[str, Any]) -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    (prometheus,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    targets = [
        target for job in prometheus["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    hosts = Hosts(names=load(environment=compose["services"]["ffstream"]["environment"]).http.hosts)
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
    with_standby = yaml.safe_load(re.sub(r"^  # (?=[- ] )", "  ", configuration, flags=re.MULTILINE))
    assert {"ffstream"} == {each["job_name"] for each in yaml.safe_load(configuration)["scrape_configs"]}
    assert jobs == {each["job_name"] for each in with_standby["scrape_configs"]}, "the comment that is to be taken"
    monitor = document("podmonitor.yaml")["spec"]
    template = document("statefulset.yaml")["spec"]["template"]
    assert template["metadata"]["labels"][monitor["jobLabel"]] == "ffstream"


def test_scrapes_come_before_a_connection_is_given_up() -> None:
    (prometheus,) = documents(DEPLOY / "prometheus" / "prometheus.yml")
    intervals = [prometheus["global"]["scrape_interval"]]
    intervals += [each["interval"] for each in document("podmonitor.yaml")["spec"]["podMetricsEndpoints"]]
    assert all(float(each.removesuffix("s")) < Config().limits.http_keep_alive_s for each in intervals)


def test_stop_timeouts_are_longer_than_a_stop_takes() -> None:
    (compose,) = documents(DEPLOY / "compose.yaml")
    pod = document("statefulset.yaml")["spec"]["template"]["spec"]
    run = re.findall(r"docker run --stop-timeout (\d+)", (DEPLOY / "Containerfile").read_text(encoding="utf-8"))
    (unit,) = re.findall(r"^TimeoutStopSec=(\d+)", (DEPLOY / "ffstream@.service").read_text(encoding="utf-8"), re.M)
    assert run, "the example of docker run"
    waits = [pod["terminationGracePeriodSeconds"], compose["services"]["ffstream"]["stop_grace_period"], *run, unit]
    assert all(float(str(each).removesuffix("s")) > 2 * Config().shutdown.drain_timeout_s for each in waits)


def test_every_example_of_docker_run_waits_for_a_stop() -> None:
    for path in (*DEPLOY.rglob("*"), DEPLOY.parent / "README.md"):
        if path.is_file() and path.suffix != ".png":
            for line in path.read_text(encoding="utf-8").splitlines():
                assert "docker run" not in line or "--stop-timeout" in line, f"{path.name}: {line}"
