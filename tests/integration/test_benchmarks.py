"""Measurements of `tools/bench` run and report, with few samples.

Not those that need a daemon which learns for as long as they measure: `checkpoint`, and `predict` while learning.
"""

import json
from dataclasses import replace

import pytest

from ffstream.data import load
from tests.harness.daemon import temporary_daemon
from tools.benchmarks import accuracy, ingest, learn, predict, recovery, security
from tools.benchmarks.report import Report, Row


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, Row]:
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["value"] > 0 for row in found)
    assert all(row["ratio"] == row["value"] / row["peer_value"] for row in found if "peer" in row)
    return {row["name"]: row for row in found}


@pytest.fixture
def report() -> Report:
    return Report(True, "a test")


def test_learn(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    learn.run(report, 1, [("784-16-16", (16, 16), 4)])
    figures = ("pipeline_over_serial", "share_of_gemm")
    assert rows(capsys).keys() == {
        f"learn/784-16-16/{dtype}/{figure}" for dtype in ("fp32", "bf16") for figure in figures
    }


def test_accuracy(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load("embedded")
    train, test = (
        replace(each, images=each.images[:1000], labels=each.labels[:1000]) for each in (digits.train, digits.test)
    )
    few = replace(digits, train=train, test=test)
    accuracy.run(report, few, 1, ("network.preset=fast",))
    found = rows(capsys)
    assert found["accuracy/embedded/test"]["value"] == found["accuracy/embedded/test/seed0"]["value"]
    assert 0 < found["accuracy/embedded/prequential"]["value"] < 100


def test_ingest(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    ingest.run(report, 1, long=False, samples=6400)
    names = {"batch64/acked", "batch64/acked_and_learned", "single/acked", "resident_memory_60k"}
    assert rows(capsys).keys() == {f"ingest/{name}" for name in names}


def test_predict(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_daemon(*predict.SETTINGS) as daemon:
        predict.while_idle(report, daemon, alone_ms=1.0, queries=50)
    assert rows(capsys).keys() == {"predict/idle/p50", "predict/idle/p99"}


def test_recovery(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    recovery.run(report, 1, samples=1000)
    assert {"recovery/ready", "recovery/taken_over", "recovery/catching_up"} <= rows(capsys).keys()


def test_security(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    security.run(report, 1, samples=6400)
    assert rows(capsys)["security/batch64/acked_with_curve"]["peer"] == "plain"
