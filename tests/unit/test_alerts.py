"""When an alert fires, and when it must not: told to Prometheus as series of values, a minute apart."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "rules" / "ffstream.yml"
PROMTOOL_S = 60.0

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; tools/setup --system installs it"
)


def check(folder: Path, series: dict[str, str], alert: str, at: dict[str, dict[str, Any] | None]) -> None:
    """Whether the alert fires with these labels, `at` these times: `None` where it must not fire.

    `series`: values of each metric in promtool's notation, `_` for none and `stale` for the end of a process.
    """
    expected = [
        {"alertname": alert, "eval_time": time, "exp_alerts": [] if fires is None else [fires]}
        for time, fires in at.items()
    ]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": inputs, "alert_rule_test": expected}
    story = folder / "story.yml"
    story.write_text(json.dumps({"rule_files": [str(RULES)], "tests": [test]}))  # JSON is YAML, too
    command = ["promtool", "test", "rules", str(story)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROMTOOL_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def fires(severity: str, summary: str, description: str, **labels: str) -> dict[str, Any]:
    return {
        "exp_labels": {"severity": severity, "instance": "a", **labels},
        "exp_annotations": {"summary": summary, "description": description},
    }


def refusing(reason: str) -> str:
    return f'ffstream_refusing_samples{{instance="a", reason="{reason}"}}'


def of(metric: str) -> str:
    return f'ffstream_{metric}{{instance="a"}}'


def test_rejected_samples_alert_while_the_cause_lasts(tmp_path: Path) -> None:
    alert = fires(
        "page",
        "a rejects all samples: disk_full",
        "Producers wait and send again; predictions are still answered. It accepts samples again automatically when"
        " the cause is gone. See: ffstream status",
        reason="disk_full",
    )
    series = {refusing("disk_full"): "0x4 1x5 0x10", refusing("draining"): "0x20"}
    check(tmp_path, series, "FfstreamRefusesSamples", {"4m": None, "8m": alert, "12m": None})


def test_a_warning_that_lasts_alerts(tmp_path: Path) -> None:
    alert = fires(
        "ticket",
        "a works but needs attention: log_pinned",
        "What is wrong and what to do is in: ffstream status",
        reason="log_pinned",
    )
    series = {'ffstream_warning{instance="a", reason="log_pinned"}': "0 1x20 0x5"}
    check(tmp_path, series, "FfstreamNeedsAttention", {"10m": None, "17m": alert, "23m": None})


def test_a_layer_that_separates_nothing_alerts_once_it_has_learned_enough(tmp_path: Path) -> None:
    alert = fires(
        "ticket",
        "layer 1 of a does not tell right from wrong",
        "Its right rows have more goodness in 51% of the samples. Labels may be random, or its learning rate or"
        " objective does not fit.",
        layer="1",
    )
    series = {
        'ffstream_layer_separation_ratio{instance="a", layer="0"}': "0.97x60",
        'ffstream_layer_separation_ratio{instance="a", layer="1"}': "0.51x60",
        of("samples_learned_total"): "0+2000x60",
    }
    check(tmp_path, series, "FfstreamLayerSeparatesNothing", {"24m": None, "45m": alert})


def test_contradicting_rows_alert(tmp_path: Path) -> None:
    alert = fires(
        "ticket",
        "a learns 2% of its negative rows as positive rows, too",
        "The stream holds equal images with different labels, or negatives that equal their images.",
        layer="0",
    )
    series = {'ffstream_layer_contradictions_ratio{instance="a", layer="0"}': "0x5 0.0009x5 0.02x20 0x5"}
    check(tmp_path, series, "FfstreamRowsContradict", {"11m": None, "24m": alert, "36m": None})


def test_a_planned_drain_raises_no_alert(tmp_path: Path) -> None:
    series = {refusing("draining"): "0x4 1x30 stale", refusing("disk_full"): "0x34 stale"}
    check(tmp_path, series, "FfstreamRefusesSamples", {"6m": None, "20m": None, "34m": None, "40m": None})


def test_a_backlog_without_learning_raises_an_alert(tmp_path: Path) -> None:
    alert = fires(
        "page",
        "a has 100 samples to learn, and has learned none for five minutes",
        "With learning.partial = wait an incomplete microbatch waits for more samples, which is no fault. Otherwise"
        " see its log.",
    )
    series = {
        of("journal_backlog_samples"): "100x60",
        of("samples_learned_total"): "0+100x5 500x55",
        of("learning_paused"): "0x60",
    }
    check(tmp_path, series, "FfstreamLearningStands", {"8m": None, "20m": alert})
    check(tmp_path, series | {of("learning_paused"): "1x60"}, "FfstreamLearningStands", {"20m": None})


ERROR, WINDOW = of("prequential_error_ratio"), of("prequential_window_samples")


def test_a_prequential_error_that_rises_alerts(tmp_path: Path) -> None:
    alert = fires(
        "ticket",
        "the prequential error of a rose to 20%",
        "The stream has changed, or labels are wrong. To undo what was learned after sample SEQ: ffstream rollback"
        " --to SEQ --skip",
    )
    series = {ERROR: "0.03x120 0.2x20", WINDOW: "10000x140"}
    check(tmp_path, series, "FfstreamErrorRises", {"110m": None, "129m": None, "133m": alert})


@pytest.mark.parametrize(
    ("error", "window"),
    [
        pytest.param(
            "_x30 0x30 0.3x90 0.1x60", "0x30 100+100x89 10000x90", id="a new network, at first without error"
        ),
        pytest.param("_x30 0.9-0.01x80 0.1x100", "0x30 200+200x49 10000x130", id="a new network that gets better"),
        pytest.param("0.03x120 stale _x5 0.03x60", "10000x120 stale _x5 10000x60", id="a restart that restores it"),
        pytest.param("0.03x120 stale _x9 0.9x60", "10000x120 stale 0x9 50+50x60", id="a restart with a new state"),
        pytest.param("0.03x120 0.9x60", "10000x120 50+50x60", id="a rollback to the beginning"),
    ],
)
def test_the_first_errors_and_a_restart_raise_no_alert(tmp_path: Path, error: str, window: str) -> None:
    times = {f"{minute}m": None for minute in range(0, 240, 2)}
    check(tmp_path, {ERROR: error, WINDOW: window}, "FfstreamErrorRises", dict(times))


LEARNED, WRITTEN = of("samples_learned_total"), of("checkpoint_timestamp_seconds")
NO_CHECKPOINT = fires(
    "ticket",
    "a learns, and has written no checkpoint for half an hour",
    "The journal grows and a restart takes longer. See checkpoint.every_s; to write one now: ffstream checkpoint",
)


@pytest.mark.parametrize("written", ["_x120", "0x120"])
def test_learning_without_a_checkpoint_alerts_also_if_there_never_was_one(tmp_path: Path, written: str) -> None:
    series = {LEARNED: "0+1000x120", WRITTEN: written}
    check(tmp_path, series, "FfstreamNoCheckpoint", {"10m": None, "50m": NO_CHECKPOINT, "100m": NO_CHECKPOINT})


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
    times = {f"{minute}m": None for minute in range(0, 120, 2)}
    check(tmp_path, {LEARNED: learned, WRITTEN: written}, "FfstreamNoCheckpoint", dict(times))
