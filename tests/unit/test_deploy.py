"""What deploy/ holds for those who watch: it names metrics that there are, and Prometheus takes it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from ffstream.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules" / "ffstream.yml"
DASHBOARD = DEPLOY / "grafana" / "provisioning" / "dashboards" / "ffstream.json"
PROMTOOL_S = 60.0

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bffstream_\w+", text))


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """Every name in a scrape, those of metrics with labels included."""
    text = generate_latest(Metrics().registry).decode()
    families = re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE)
    parts = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + part for name, kind in families for part in parts.get(kind, ("",))}


def test_alerts_are_about_metrics_that_there_are(exposed: set[str]) -> None:
    expressions = re.findall(r"expr: (?:>\n)?((?: {10}.*\n)+|.*)", RULES.read_text())
    names = names_in("".join(expressions))
    assert len(names) > 8
    assert names <= exposed


def test_the_dashboard_shows_metrics_that_there_are(exposed: set[str]) -> None:
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(targets) > len(dashboard["panels"]) > 10
    assert names_in(" ".join(targets) + str(dashboard["annotations"]) + str(dashboard["templating"])) <= exposed
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places), "no panel lies on another"


@promtool
def test_prometheus_takes_its_configuration() -> None:
    check = ["promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yml")]
    done = subprocess.run(check, capture_output=True, text=True, timeout=PROMTOOL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


STORY = f"""
rule_files: ["{RULES}"]
tests:
  - interval: 30s
    input_series:
      - series: 'ffstream_refusing_samples{{instance="a", reason="disk_full"}}'
        values: '0x9 1x10 0x10'
      - series: 'ffstream_journal_backlog_samples{{instance="a"}}'
        values: '100x60'
      - series: 'ffstream_samples_learned_total{{instance="a"}}'
        values: '0+50x9 500x50'
      - series: 'ffstream_learning_paused{{instance="a"}}'
        values: '0x60'
    alert_rule_test:
      - {{alertname: FfstreamRefusesSamples, eval_time: 4m, exp_alerts: []}}
      - alertname: FfstreamRefusesSamples
        eval_time: 7m
        exp_alerts:
          - exp_labels: {{severity: page, instance: a, reason: disk_full}}
            exp_annotations:
              summary: "a takes no samples: disk_full"
              description: "Producers wait. It takes samples again by itself once that is over: ffstream status"
      - {{alertname: FfstreamRefusesSamples, eval_time: 12m, exp_alerts: []}}
      - {{alertname: FfstreamLearningStands, eval_time: 8m, exp_alerts: []}}
      - alertname: FfstreamLearningStands
        eval_time: 20m
        exp_alerts:
          - exp_labels: {{severity: page, instance: a}}
            exp_annotations:
              summary: "a has 100 samples to learn and learns none"
              description: "With learning.partial = wait half a microbatch waits for ever; else see the log."
"""


@promtool
def test_alerts_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "story.yml").write_text(STORY)
    test = ["promtool", "test", "rules", str(tmp_path / "story.yml")]
    done = subprocess.run(test, capture_output=True, text=True, timeout=PROMTOOL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
