"""When an alert fires, and when it must not: told to Prometheus as series of values, a minute apart.

Values are in promtool's notation: `_` for none, `stale` for the end of a process.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules" / "ffstream.yml"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}
PROMTOOL_S = 60.0

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; tools/setup --system installs it"
)


def of(metric: str, **labels: str) -> str:
    """A series of the daemon `a`."""
    matchers = ", ".join(f'{name}="{value}"' for name, value in {"instance": "a", **labels}.items())
    return f"{metric if metric == 'up' or metric.startswith('process_') else f'ffstream_{metric}'}{{{matchers}}}"


UP = of("up", job="ffstream")
LEARNED, WRITTEN = of("samples_learned_total"), of("checkpoint_timestamp_seconds")
BACKLOG, PAUSED = of("journal_backlog_samples"), of("learning_paused")
ERROR, WINDOW = of("prequential_error_ratio"), of("prequential_window_samples")
CONNECTED, STALENESS = of("replica_connected"), of("replica_staleness_seconds")
INTERRUPTED, REPLACED = of("learning_interrupted"), of("stage_replacements_total", stage="1", reason="actor")
RESTARTS = of("layer_restarts_total", layer="0")


class Fires(NamedTuple):
    """An alert fires `at` these minutes and not at the minutes `silent`, with these labels besides its severity.

    `said`: what the placeholders of its summary and description become, in their order.
    """

    alert: str
    series: dict[str, str]
    at: tuple[int, ...]
    silent: tuple[int, ...]
    said: tuple[str, ...] = ("a",)
    labels: Mapping[str, str] = MappingProxyType({"instance": "a"})

    def expected(self) -> dict[str, Any]:
        rule, said = ALERTS[self.alert], iter(self.said)
        texts = {name: re.sub(r"{{.*?}}", lambda _: next(said), text) for name, text in rule["annotations"].items()}
        return {"exp_labels": {**rule["labels"], **self.labels}, "exp_annotations": texts}


FIRES = [
    Fires("FfstreamDown", {UP: "1x5 0x10 1x5"}, (8, 15), (5, 17), labels={"instance": "a", "job": "ffstream"}),
    Fires("FfstreamVanished", {UP: "1x5 stale _x20 1x5"}, (18, 25), (5, 9, 29), (), {"job": "ffstream"}),
    Fires("FfstreamVanished", {}, (6,), (4,), (), {"job": "ffstream"}),
    Fires(
        "FfstreamStandbyMissing",
        {of("up", job="ffstream-standby"): "1x5 0x10 1x5", UP: "1x20"},
        (13,),
        (5, 10, 18),
        labels={"instance": "a", "job": "ffstream-standby"},
    ),
    Fires(
        "FfstreamRefusesSamples",
        {
            of("refusing_samples", reason="disk_full"): "0x4 1x5 0x10",
            of("refusing_samples", reason="draining"): "0x20",
        },
        (8,),
        (4, 12),
        ("a", "disk_full"),
        {"instance": "a", "reason": "disk_full"},
    ),
    Fires(
        "FfstreamLearningStands",
        {BACKLOG: "100x60", LEARNED: "0+100x5 500x55", PAUSED: "0x60"},
        (20,),
        (8,),
        ("a", "100"),
    ),
    Fires("FfstreamLearningInterrupted", {INTERRUPTED: "1 0x9 1x10 0x5"}, (17, 20), (1, 5, 13, 23)),
    Fires(
        "FfstreamStageReplacedOften",
        {REPLACED: "0x5 0+1x10 10x40", of("stage_replacements_total", stage="0", reason="actor"): "0x5 1x50"},
        (15,),
        (5, 35),
        ("1", "a", "9"),
        {"instance": "a", "stage": "1"},
    ),
    # Different reasons count as one.
    Fires(
        "FfstreamStageReplacedOften",
        {of("stage_replacements_total", stage="1", reason=reason): "0x5 3x20" for reason in ("actor", "connection")},
        (10,),
        (5, 23),
        ("1", "a", "6"),
        {"instance": "a", "stage": "1"},
    ),
    Fires(
        "FfstreamFallsBehind",
        {BACKLOG: "0+10000x60", of("journal_backlog_seconds"): "0+30x60"},
        (40,),
        (10, 24),
        ("a", "20m 0s"),
    ),
    Fires("FfstreamPaused", {PAUSED: "0x5 1x40 0x5"}, (40,), (5, 30, 48)),
    Fires(
        "FfstreamNeedsAttention",
        {of("warning", reason="log_pinned"): "0 1x20 0x5"},
        (17,),
        (10, 23),
        ("a", "log_pinned"),
        {"instance": "a", "reason": "log_pinned"},
    ),
    Fires("FfstreamCheckpointFails", {of("checkpoint_failures_total"): "0x5 1x40"}, (7, 19), (5, 25)),
    *(
        Fires("FfstreamNoCheckpoint", {LEARNED: "0+1000x120", WRITTEN: written}, (50, 100), (10,))
        for written in ("_x120", "0x120")  # never, and long ago
    ),
    Fires(
        "FfstreamCheckpointDamaged", {of("checkpoints_damaged_total"): "2x10 stale 0x10"}, (1, 10), (12,), ("a", "2")
    ),
    Fires(
        "FfstreamDiskNearlyFull",
        {of("disk_free_bytes"): "5e9x5 1073741823x20 5e9x5", of("disk_min_free_bytes"): "536870912x60"},
        (20,),
        (5, 12, 27),
        ("1024Mi", "a"),
    ),
    Fires(
        "FfstreamMemoryNearlyFull",
        {
            of("process_resident_memory_bytes", job="ffstream"): "5e8x5 1932735284x20",
            of("memory_max_bytes", job="ffstream"): "2147483648x30",
        },
        (20,),
        (5, 12),
        ("a", "1.8Gi"),
        {"instance": "a", "job": "ffstream"},
    ),
    Fires(
        "FfstreamDiskSlow",
        {
            of("journal_commit_seconds_bucket", le="1"): "0+90x60",
            of("journal_commit_seconds_bucket", le="2.5"): "0+100x60",
            of("journal_commit_seconds_bucket", le="+Inf"): "0+100x60",
        },
        (20,),
        (8,),
        ("2.35s", "a"),
    ),
    Fires(
        "FfstreamErrorRises", {ERROR: "0.03x120 0.2x20", WINDOW: "10000x140"}, (133,), (110, 129), ("a", "20%", "")
    ),
    Fires("FfstreamConceptChanged", {RESTARTS: "0x5 1x30"}, (7, 19), (5, 25)),
    Fires("FfstreamConceptChanged", {RESTARTS: "0x40", of("drifts_total"): "0x5 1x30"}, (7, 19), (5, 25)),
    Fires(
        "FfstreamLayerSeparatesNothing",
        {
            of("layer_separation_ratio", layer="0"): "0.97x60",
            of("layer_separation_ratio", layer="1"): "0.51x60",
            LEARNED: "0+2000x60",
        },
        (45,),
        (24,),
        ("1", "a", "51%"),
        {"instance": "a", "layer": "1"},
    ),
    Fires(
        "FfstreamRowsContradict",
        {of("layer_contradictions_ratio", layer="0"): "0x5 0.0009x5 0.02x20 0x5"},
        (24,),
        (11, 36),
        ("a", "2%"),
        {"instance": "a", "layer": "0"},
    ),
    Fires(
        "FfstreamReplicaDown",
        {of("up", job="ffstream-replica"): "1x5 0x10 1x5", UP: "1x20"},
        (9, 15),
        (5, 7, 17),
        labels={"instance": "a", "job": "ffstream-replica"},
    ),
    # It waits for its first snapshot, or has lost the daemon.
    Fires("FfstreamReplicaNotFollowing", {CONNECTED: "0x20 1x5"}, (11, 20), (9, 23), ("a", "a")),
    Fires("FfstreamReplicaNotFollowing", {CONNECTED: "1x5 0x20 1x5", UP: "1x30"}, (17, 25), (15, 28), ("a", "a")),
    Fires(
        "FfstreamReplicaStale",
        {CONNECTED: "1x20", STALENESS: "0.3x5 45x10 0.3x5"},
        (9, 14),
        (5, 7, 18),
        ("a", "45s"),
    ),
    *(
        Fires(
            "FfstreamReplicaFails",
            {of("replica_failures_total", reason=reason): "_x5 1+120x10 1201x10"},
            (9, 15),
            (6, 24),
            ("a", reason),
            {"instance": "a", "reason": reason},
        )
        for reason in ("checkpoint_damaged", "checkpoint_incompatible", "bad_size", "unauthorized", "busy")
    ),
    Fires(
        "FfstreamStrangers",
        {of("connections_refused_total", socket="learn", reason="handshake"): "0x5 0+30x10 300x20"},
        (12,),
        (5, 35),
        ("a", "180", "learn", "handshake"),
        {"instance": "a", "socket": "learn", "reason": "handshake"},
    ),
]

# A replica that follows the daemon of FIRST_STREAM. Its first transfer is damaged on the way.
FOLLOWS_FIRST_STREAM = {
    of("up", job="ffstream-replica"): "1x60",
    CONNECTED: "0x1 1x59",
    STALENESS: "_x2 0.3x58",
    of("replica_failures_total", reason="unreachable"): "_ 3x59",
    of("replica_failures_total", reason="checkpoint_damaged"): "_ _ 1x58",
}
# One that outlives DRAIN_AND_RESTART: the daemon stops, is away, and recovers for six minutes.
FOLLOWS_RESTART = {
    of("up", job="ffstream-replica"): "1x119",
    CONNECTED: "1x64 0x6 1x48",
    STALENESS: "0.3x64 60+60x6 0.3x48",
    of("replica_failures_total", reason="unavailable"): "_x63 1 5x54",
    of("replica_failures_total", reason="unreachable"): "_x64 40+40x6 280x47",
    of("replica_failures_total", reason="deadline_exceeded"): "_x68 3+30x2 63x48",
}

# Stages in a cluster. A stage is lost at times, and placed again at once.
CLUSTER_FIRST = {INTERRUPTED: "1x1 0x58", REPLACED: "_x1 0x30 1x27"}
CLUSTER_RESTART = {INTERRUPTED: "0x64 stale 1x1 0x52", REPLACED: "2x64 stale _x1 0x30 1x21"}

# A daemon that does well, for an hour: every series that an alert reads. At first nothing is known, then comes its
# first stream, which is faster than it learns; checkpoints are written, and it ends.
FIRST_STREAM = {
    UP: "1x60",
    LEARNED: "0x10 1000+1000x20 21000x29",
    BACKLOG: "0x10 200000-10000x20 0x29",
    of("journal_backlog_seconds"): "0x10 200-10x20 0x29",
    PAUSED: "0x60",
    ERROR: "_x10 0.9-0.03x20 0.3x29",
    WINDOW: "0x10 1000+1000x9 10000x39",
    WRITTEN: "_x11 660+60x20 1860x28",
    RESTARTS: "0x60",
    of("drifts_total"): "0x60",
    of("checkpoint_failures_total"): "0x60",
    of("checkpoints_damaged_total"): "0x60",
    of("disk_free_bytes"): "9e9x10 9e9-1e8x20 7e9x29",
    of("disk_min_free_bytes"): "536870912x60",
    of("process_resident_memory_bytes", job="ffstream"): "4e8x60",
    of("memory_max_bytes", job="ffstream"): "2e9x60",
    of("refusing_samples", reason="draining"): "0x60",
    of("refusing_samples", reason="disk_full"): "0x60",
    of("warning", reason="log_pinned"): "0x60",
    of("layer_separation_ratio", layer="0"): "_x11 0.5+0.02x20 0.9x28",
    of("layer_contradictions_ratio", layer="0"): "_x11 0x49",
    of("connections_refused_total", socket="learn", reason="handshake"): "_x20 1x40",
    of("journal_commit_seconds_bucket", le="1"): "0x10 0+100x20 2000x29",
    of("journal_commit_seconds_bucket", le="+Inf"): "0x10 0+100x20 2000x29",
    **FOLLOWS_FIRST_STREAM,
    **CLUSTER_FIRST,
}
# It has learned for an hour, drains for five minutes, ends, and is back within the next minute with what it knew. The
# process is a new one, so its counters begin at 0.
DRAIN_AND_RESTART = {
    UP: "1x64 0 1x54",
    LEARNED: "100000+1000x64 stale 0x2 500+1000x52",
    BACKLOG: "500x59 300x4 0 stale 2000-100x20 0x33",
    of("journal_backlog_seconds"): "5x64 stale _ 20-1x20 0x32",
    PAUSED: "0x64 stale 0x54",
    ERROR: "0.03x64 stale 0.03x54",
    WINDOW: "10000x64 stale 10000x54",
    WRITTEN: "0+60x64 stale 3840x3 4080+60x51",
    RESTARTS: "2x64 stale 0x54",
    of("drifts_total"): "3x64 stale 0x54",
    of("checkpoint_failures_total"): "1x64 stale 0x54",
    of("checkpoints_damaged_total"): "0x64 stale 0x54",
    of("disk_free_bytes"): "9e9x64 stale _ 9e9x53",
    of("disk_min_free_bytes"): "536870912x64 stale 536870912x54",
    of("process_resident_memory_bytes", job="ffstream"): "4e8x64 stale 4e8x54",
    of("memory_max_bytes", job="ffstream"): "2e9x64 stale 2e9x54",
    of("refusing_samples", reason="draining"): "0x59 1x4 stale 0x54",
    of("refusing_samples", reason="disk_full"): "0x64 stale 0x54",
    of("warning", reason="log_pinned"): "0x64 stale 0x54",
    of("layer_separation_ratio", layer="0"): "0.97x64 stale _x3 0.97x51",
    of("layer_contradictions_ratio", layer="0"): "0x64 stale _x3 0x51",
    of("connections_refused_total", socket="learn", reason="handshake"): "200x64 stale 50x54",
    of("journal_commit_seconds_bucket", le="1"): "9000+100x64 stale 0+100x54",
    of("journal_commit_seconds_bucket", le="+Inf"): "9000+100x64 stale 0+100x54",
    **FOLLOWS_RESTART,
    **CLUSTER_RESTART,
}


def promtool(folder: Path, *tests: tuple[dict[str, str], list[dict[str, Any]]]) -> None:
    """Runs promtool's unit tests of the rules. Each has series, and what alerts are expected when."""
    document = {
        "rule_files": [str(RULES)],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": expected,
            }
            for series, expected in tests
        ],
    }
    story = folder / "story.yml"
    story.write_text(json.dumps(document))  # JSON is YAML, too
    command = ["promtool", "test", "rules", str(story)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROMTOOL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def silent(alert: str, minutes: Iterable[int]) -> list[dict[str, Any]]:
    return [{"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": []} for minute in minutes]


def test_every_alert_fires_and_ends(tmp_path: Path) -> None:
    assert {each.alert for each in FIRES} == set(ALERTS)
    promtool(
        tmp_path,
        *(
            (
                each.series,
                [
                    *silent(each.alert, each.silent),
                    *(
                        {"alertname": each.alert, "eval_time": f"{minute}m", "exp_alerts": [each.expected()]}
                        for minute in each.at
                    ),
                ],
            )
            for each in FIRES
        ),
    )


@pytest.mark.parametrize(
    ("series", "minutes"),
    [
        pytest.param(FIRST_STREAM, 60, id="an idle daemon's first stream"),
        pytest.param(DRAIN_AND_RESTART, 119, id="a planned drain and a restart"),
    ],
)
def test_a_daemon_that_does_well_raises_no_alert(tmp_path: Path, series: dict[str, str], minutes: int) -> None:
    read = {name for rule in ALERTS.values() for name in re.findall(r"\b(?:ffstream_|process_)\w+", rule["expr"])}
    assert read == {name for name in (each.partition("{")[0] for each in series) if name != "up"}
    promtool(tmp_path, (series, [each for alert in ALERTS for each in silent(alert, range(0, minutes, 2))]))


@pytest.mark.parametrize(
    ("error", "window"),
    [
        pytest.param(
            "_x30 0x30 0.3x90 0.1x60", "0x30 100+100x89 10000x90", id="a new network, at first without error"
        ),
        pytest.param("_x30 0.9-0.01x80 0.1x100", "0x30 200+200x49 10000x130", id="a new network that gets better"),
        pytest.param("0.03x120 stale _x9 0.9x60", "10000x120 stale 0x9 50+50x60", id="a restart with a new state"),
        pytest.param("0.03x120 0.9x60", "10000x120 50+50x60", id="a rollback to the beginning"),
    ],
)
def test_the_first_errors_and_a_restart_raise_no_alert(tmp_path: Path, error: str, window: str) -> None:
    promtool(tmp_path, ({ERROR: error, WINDOW: window}, silent("FfstreamErrorRises", range(0, 240, 2))))


@pytest.mark.parametrize(
    ("learned", "written"),
    [
        pytest.param("0+1000x120", "_x2 90+60x117", id="checkpoints come regularly"),
        pytest.param("0+1000x5 5000x115", "_x2 90+60x4 330x114", id="a stream that has ended"),
        pytest.param("0x3 500+500x3 2000x113", "_x120", id="a short stream, over before the first checkpoint is due"),
        pytest.param("0x5 1000+1000x100", "-600000x6 330+60x100", id="a restart after a week"),
    ],
)
def test_checkpoints_that_are_not_due_raise_no_alert(tmp_path: Path, learned: str, written: str) -> None:
    promtool(tmp_path, ({LEARNED: learned, WRITTEN: written}, silent("FfstreamNoCheckpoint", range(0, 120, 2))))


def test_learning_that_is_paused_does_not_stand(tmp_path: Path) -> None:
    series = {BACKLOG: "100x60", LEARNED: "500x60", PAUSED: "1x60"}
    promtool(tmp_path, (series, silent("FfstreamLearningStands", range(0, 60, 2))))


def test_learning_that_is_interrupted_is_not_said_to_stand(tmp_path: Path) -> None:
    stands = next(each for each in FIRES if each.alert == "FfstreamLearningStands")
    promtool(
        tmp_path, ({**stands.series, INTERRUPTED: "0x5 1x60"}, silent("FfstreamLearningStands", range(0, 60, 2)))
    )
