"""What deploy/ holds for those who watch: it names metrics that there are, and Prometheus takes it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import generate_latest

from ffstream.errors import BacklogFull, DiskFull, JournalFull, MemoryFull, TooManyFiles, Unavailable
from ffstream.metrics import Metrics
from ffstream.server.rejections import ConnectionReason
from tests import grafana_schema

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "ffstream.yml"
DASHBOARD = DEPLOY / "grafana" / "provisioning" / "dashboards" / "ffstream.json"
PROMTOOL_S = 60.0

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; tools/setup --system installs it"
)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b(?:ffstream|process)_\w+", text))


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Every name in a scrape, those of metrics with labels included."""
    text = generate_latest(Metrics().registry).decode()
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + part for name, kind in families for part in parts.get(kind, ("",))}


def test_alerts_are_about_metrics_that_there_are(exposed: set[str]) -> None:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    names = names_in(" ".join(rule["expr"] for rule in group["rules"]))
    assert len(names) > 15
    assert names <= exposed


def test_the_guide_says_what_to_do_about_each_alert_and_each_reason() -> None:
    guide = (DEPLOY / "README.md").read_text()
    alerts = guide.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", alerts, re.MULTILINE)
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    assert [each for each in rows if each.startswith("Ffstream")] == [rule["alert"] for rule in group["rules"]]
    assert set(get_args(ConnectionReason)) <= set(rows)
    refusing = {kind.code for kind in (BacklogFull, JournalFull, DiskFull, MemoryFull, TooManyFiles, Unavailable)}
    assert refusing <= set(rows)


def test_the_events_that_the_guide_names_are_logged() -> None:
    guide = (DEPLOY / "README.md").read_text()
    section = guide.partition("\n### When something is lost\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `([a-z ]+)` \| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    assert len(rows) > 6
    package = DEPLOY.parent / "ffstream"
    sources = " ".join(
        file.read_text() for part in ("learning", "pipeline") for file in (package / part).rglob("*.py")
    )
    templates = dict(re.findall(r'"([a-z ]+)((?: \w+=%[\w.]+)+)"', sources))
    for event, fields in rows:
        assert re.findall(r"(\w+)=", templates[event]) == re.findall(r"\w+", fields), event


def test_the_dashboard_shows_metrics_that_there_are(exposed: set[str]) -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(targets) > len(dashboard["panels"]) > 30
    assert names_in(" ".join(targets) + str(dashboard["annotations"]) + str(dashboard["templating"])) <= exposed
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places), "no panel lies on another"


def test_the_dashboard_fits_the_schema() -> None:
    """Grafana itself was not run."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    assert grafana_schema.faults(dashboard) == []
    panel = next(each for each in dashboard["panels"] if each["type"] == "timeseries")
    panel["tilte"] = panel["title"]
    panel["gridPos"]["x"] = "0"
    panel["options"]["legend"]["displayMode"] = "lst"
    found = "\n".join(grafana_schema.faults(dashboard))
    assert all(each in found for each in ("tilte", "'0' is not a int", "'lst' is none of")), found


@promtool
@pytest.mark.parametrize("comments", ["#", ""], ids=["as it is", "with the jobs in comments"])
def test_prometheus_takes_its_configuration(tmp_path: Path, comments: str) -> None:
    shutil.copytree(DEPLOY / "prometheus", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "prometheus.yml"
    text = re.sub(r"^  # (?=[- ] )", f"  {comments}", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")
    check = ["promtool", "check", "config", str(path)]
    done = subprocess.run(check, capture_output=True, text=True, timeout=PROMTOOL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["ffstream@", "ffstream-replica@"])
def test_the_units_retry_temporary_failures_but_not_wrong_options(name: str) -> None:
    lines = (DEPLOY / f"{name}.service").read_text().splitlines()
    assert "RestartPreventExitStatus=2" in lines, "75 and 1 are tried again"
    assert {"Wants=network-online.target", "After=network-online.target", "Restart=on-failure"} <= set(lines)


def test_a_replica_may_wait_for_its_daemon_however_long() -> None:
    lines = (DEPLOY / "ffstream-replica@.service").read_text().splitlines()
    assert {"TimeoutStartSec=infinity", "StartLimitIntervalSec=0"} <= set(lines)


def test_a_stop_is_for_the_daemon_which_still_needs_the_processes_of_its_stages() -> None:
    assert "KillMode=mixed" in (DEPLOY / "ffstream@.service").read_text().splitlines()


def test_the_unit_refuses_a_lost_state() -> None:
    lines = (DEPLOY / "ffstream@.service").read_text().splitlines()
    assert "EnvironmentFile=-/etc/default/ffstream.existing" in lines
    assert any(line.startswith("ExecStartPost=+") and "FFSTREAM_EXISTING=true" in line for line in lines)
