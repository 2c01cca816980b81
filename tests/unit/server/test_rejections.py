"""Rejections are logged by reason and with their sender. Many rejections write few lines."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffstream.metrics import Metrics
from ffstream.server.rejections import RejectedConnections, RejectionLog
from tests.in_process import INPUTS, Running
from tests.support import wait_until

WAIT_S = 30.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("ffstream.server.rejections.time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with Running(tmp_path / "state") as running:
        yield running


def test_each_reason_has_one_line_a_second_with_the_count_and_the_latest_detail(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rejections = RejectionLog("message rejected", "learn")
    for at in range(5):
        rejections.add("bad_shape", f"message={at}")
    rejections.add("rate_limited", "message=slow", logging.INFO)
    clock.now += 0.5
    rejections.flush()
    clock.now += 0.5
    rejections.flush()
    rejections.flush()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "message rejected socket=learn reason=bad_shape count=1 message=0"),
        ("INFO", "message rejected socket=learn reason=rate_limited count=1 message=slow"),
        ("WARNING", "message rejected socket=learn reason=bad_shape count=4 message=4"),
    ]


def test_flushing_everything_writes_all_pending_lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    rejections = RejectionLog("message rejected", "predict")
    for _ in range(3):
        rejections.add("bad_size")
    rejections.flush(everything=True)
    assert [record.getMessage() for record in caplog.records] == [
        "message rejected socket=predict reason=bad_size count=1 ",
        "message rejected socket=predict reason=bad_size count=2 ",
    ]


def test_rejected_connections_are_counted_and_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    rejections = RejectedConnections("http", metrics)
    for _ in range(2):
        rejections.add("token", "address=10.0.0.1")
    clock.now += 1.0
    rejections.flush()
    counted = {"socket": "http", "reason": "token"}
    assert metrics.registry.get_sample_value("ffstream_connections_refused_total", counted) == 2
    line = "connection rejected socket=http reason=token count=1 address=10.0.0.1"
    assert [record.getMessage() for record in caplog.records] == [line, line]


def test_rejected_messages_are_logged_with_their_sender(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    learn, predict, control = running.peer(), running.peer("predict"), running.peer("control")
    learn.samples(1, client="anna\n", labels=b"\7\0")
    predict.send("predict", bytes(INPUTS), id=1, count=1, dtype="uint8", shape=[INPUTS - 1])
    control.send("request", id=1, command="dance", arguments={})
    control.send_frames(b"nonsense")
    for peer, code in ((learn, "label_out_of_range"), (predict, "bad_shape"), (control, "bad_header")):
        assert peer.answer()["code"] == code
    assert control.answer()["code"] == "bad_header"
    running.stop()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("message rejected ")]
    (of_learn,) = [line for line in lines if "socket=learn " in line]
    assert r"reason=label_out_of_range count=1 address=127.0.0.1 client='anna\n' message=" in of_learn
    assert "hint=" in of_learn
    (of_predict,) = [line for line in lines if "socket=predict " in line]
    assert "reason=bad_shape count=1 address=127.0.0.1 message=" in of_predict
    of_control = [line for line in lines if "socket=control " in line]
    assert all("reason=bad_header" in line and "address=127.0.0.1" in line for line in of_control)
    assert sum(int(line.split("count=")[1].split()[0]) for line in of_control) == 2
    assert not any("\n" in line for line in lines), "a client's name cannot forge a line"


def test_many_invalid_messages_write_few_lines_that_count_them_all(
    running: Running, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The clock stands still, so one line for each reason is due now, and another one when the daemon stops."""
    villain = running.peer()
    for n in range(1, 301):
        villain.samples(n, labels=b"\7\0")
        villain.send_frames(b"nonsense")
        villain.answer()
        villain.answer()
    wait_until(
        lambda: running.metric("messages_rejected_total", reason="bad_header") == 300, WAIT_S, "all are counted"
    )
    running.stop()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("message rejected ")]
    counts: Counter[str] = Counter()
    for line in lines:
        found = re.search(r"reason=(\w+) count=(\d+) ", line)
        assert found
        counts[found[1]] += int(found[2])
    assert counts == {"bad_header": 300, "label_out_of_range": 300}
    assert len(lines) == 4
