"""Gauges are absent until their value is known, and are restored after a restart and a rollback."""

import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.in_process import WAIT_S, Running, feed
from tests.support import wait_until

OF_CHECKPOINTS = {"checkpoint_bytes", "checkpoint_last_seq", "checkpoint_timestamp_seconds"}
OF_LEARNING = {"layer_goodness", "layer_loss", "layer_separation_ratio"}
OF_SAMPLES = {"layer_margin", "layer_weight_norm"}
OF_MANY_SAMPLES = {"layer_dead_units_ratio", "layer_contradictions_ratio"}
OF_HEALTH = {*OF_SAMPLES, *OF_MANY_SAMPLES}


def scrape(running: Running) -> dict[str, dict[tuple[str, ...], float]]:
    """Every gauge, with its values by the values of their labels."""
    text = httpx.get(f"http://{running.daemon.http.address}/metrics", trust_env=False, timeout=WAIT_S).text
    return {
        family.name.removeprefix("ffstream_"): {tuple(each.labels.values()): each.value for each in family.samples}
        for family in text_string_to_metric_families(text)
        if family.type == "gauge" and family.name.startswith("ffstream_") and family.name != "ffstream_build_info"
    }


def absent(running: Running) -> set[str]:
    """Gauges without a value, except those that only `serve`, a replica, a cluster, a drift, a decoder and other
    objectives set."""
    empty = {name for name, values in scrape(running).items() if not values}
    return {name for name in empty if not name.startswith("replica_")} - {
        "drift_last_seq",
        "layer_running_goodness",
        "layer_threshold",
        "layer_decoder_error_ratio",
        "stage_place_info",
    }


def test_gauges_of_errors_and_checkpoints_are_absent_before_the_first_sample(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        unknown = {"prequential_error_ratio", "live_error_ratio", *OF_CHECKPOINTS, *OF_LEARNING, *OF_HEALTH}
        wait_until(lambda: absent(running) == unknown, WAIT_S, "the journal is measured")
        assert scrape(running)["prequential_window_samples"] == {(): 0.0}
        feed(running, 80)
        known = {*OF_CHECKPOINTS, *OF_MANY_SAMPLES}
        wait_until(lambda: absent(running) == known, WAIT_S, "it has predicted and learned")
        running.control().request("checkpoint")
        assert absent(running) <= {*OF_LEARNING, *OF_MANY_SAMPLES}, "no sample was learned since the checkpoint"


def test_gauges_of_errors_and_checkpoints_are_restored_after_a_restart(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        feed(running, 80)
        result = running.control().request("checkpoint")
        before = scrape(running)
        assert 0 < before["prequential_error_ratio"][()] <= 1
        assert before["prequential_window_samples"] == {(): 80.0}
        assert before["checkpoint_last_seq"] == {(): result["seq"]} == {(): 80.0}
        assert before["checkpoint_bytes"] == {(): result["bytes"]}
        written = before["checkpoint_timestamp_seconds"][()]
        assert time.time() - WAIT_S < written <= time.time()
        running.restart()
        measured = {"clients", "journal_used_bytes", "journal_log_bytes", "disk_free_bytes"}
        assert absent(running) <= {*measured, *OF_LEARNING, *OF_HEALTH}, "nothing is learned yet"
        after = scrape(running)
        for name in (
            "prequential_error_ratio",
            "prequential_window_samples",
            "live_error_ratio",
            "checkpoint_last_seq",
            "checkpoint_bytes",
        ):
            assert after[name] == before[name]
        assert written - WAIT_S < after["checkpoint_timestamp_seconds"][()] <= written, "the same checkpoint"


def test_gauges_have_their_earlier_values_after_a_rollback(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        feed(running, 40)
        running.control().request("checkpoint")
        then = scrape(running)
        feed(running, 80)
        assert running.control().request("checkpoint")["seq"] == 120
        running.control().request("pause")  # otherwise later samples are learned again before the scrape
        running.control().request("rollback", {"to": 40})
        now = scrape(running)
        for name in (
            "prequential_error_ratio",
            "prequential_window_samples",
            "live_error_ratio",
            "checkpoint_last_seq",
            "checkpoint_bytes",
        ):
            assert now[name] == then[name]


def test_gauges_are_absent_after_a_rollback_to_the_beginning(tmp_path: Path) -> None:
    with Running(tmp_path / "state") as running:
        feed(running, 40)
        running.control().request("pause")
        running.control().request("rollback", {"to": 0})
        assert {"prequential_error_ratio", *OF_CHECKPOINTS} <= absent(running)
