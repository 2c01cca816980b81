"""`ffstream serve --log-format json`: a log collector can parse every line that a daemon writes."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffstream.client import Producer
from tests.harness.commands import run_cli
from tests.harness.daemon import start_daemon
from tests.harness.daemon_directory import DaemonDirectory, serve_arguments


def parsed(text: str) -> dict[str, dict[str, Any]]:
    """The last line of each event. Fails if a line is not a JSON object with the stable keys."""
    found = {}
    for line in text.splitlines():
        fields = json.loads(line)
        assert {"time", "level", "logger", "event", "message"} <= fields.keys()
        found[fields["event"]] = fields
    return found


def test_every_line_of_a_daemon_is_a_json_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFSTREAM_LOG_FORMAT", "json")
    directory = DaemonDirectory(tmp_path / "state", ["network.widths=[20]"])
    with start_daemon(directory) as daemon:
        daemon.await_ready()
        with Producer(daemon.learn) as producer:
            producer.send(np.zeros((32, 784), np.uint8), np.arange(32) % 10)
        assert daemon.status(idle=True)["learned"] == 32

        second = run_cli(*serve_arguments(daemon.state))
        assert (second.returncode, second.stdout) == (75, "")
        end = parsed(second.stderr)["exit"]
        assert (end["exit_code"], end["code"], end["level"]) == (75, "start_blocked", "error")
        assert end["error"] == f"{daemon.state} is in use by another daemon"
        assert "stop it" in end["hint"]

        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.terminate() == 0
    events = parsed(daemon.log_text())  # stdout and stderr
    assert (events["ready"]["seq"], events["ready"]["applied"]) == (0, 0)
    assert events["ready"]["predict"] == daemon.predict
    assert (events["checkpoint written"]["seq"], events["stopped"]["late"]) == (32, "none")


def test_a_wrong_option_is_a_json_line_too(tmp_path: Path) -> None:
    done = run_cli("serve", "--log-format", "json", "--state", str(tmp_path), "--set", "network.epochs=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert parsed(done.stderr)["exit"]["error"] == "network.epochs: there is no such option"
