"""What people and programs see while the stages of a cluster are gone: nothing fails, and all of them are told."""

import json
import re
from typing import Any

import httpx
import numpy as np
import pytest

from ffstream.client import Predictor
from tests.harness.commands import COMMAND_S, run_cli, run_json
from tests.harness.daemon import START_S, DaemonProcess, Daemons
from tests.harness.daemon_directory import free_port
from tests.harness.interruptions import SETTINGS, await_stages, interrupted
from tests.support import wait_until

pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture
def daemon(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> DaemonProcess:
    monkeypatch.setenv("FFSTREAM_LOG_FORMAT", "json")
    return daemons.start("network.widths=[20,20]", *SETTINGS)


def get(daemon: DaemonProcess, path: str) -> tuple[int, str]:
    answer = httpx.get(f"{daemon.http}{path}", trust_env=False, timeout=COMMAND_S)
    return answer.status_code, answer.text


def shown(daemon: DaemonProcess, *command: str) -> str:
    done = run_cli(*command, "--at", daemon.control)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def events(daemon: DaemonProcess, name: str) -> list[dict[str, Any]]:
    """Each line of the log is a JSON object, also when Ray has something to say."""
    lines = [json.loads(line) for line in daemon.log_text().splitlines()]
    return [line for line in lines if line["event"] == name]


def test_a_lost_stage_is_named_and_learning_goes_on(daemon: DaemonProcess) -> None:
    stages = await_stages(daemon)
    run_json("replay", "embedded", "--limit", "500", "--to", daemon.learn)
    daemon.status(idle=True)
    for command in (("status",), ("top", "--once")):
        text = shown(daemon, *command)
        assert all(f"{each['name']} {each['node']} {each['host']} {each['pid']} cpu" in text for each in stages)
        assert "interrupted" not in text.lower()
    with interrupted(daemon):
        for path in ("/readyz", "/readyz/learn"):
            assert get(daemon, path) == (200, "ready, learning is interrupted: ff-stage-0 is lost\n")
        assert get(daemon, "/healthz") == (200, "ok\n")
        assert "ffstream_learning_interrupted 1.0" in get(daemon, "/metrics")[1]
        assert run_json("replay", "embedded", "--limit", "700", "--to", daemon.learn, "--seed", "1")["acked"] == 700
        with Predictor(daemon.predict) as predictor:
            assert len(predictor.predict(np.zeros((3, 28, 28), np.uint8)).labels) == 3
        said = (
            rf"learning is interrupted for [\d.]+ (s|min), 1 try: ff-stage-0 is lost \(process {stages[0]['pid']} on"
        )
        assert re.search(said, shown(daemon, "status"))
        top = shown(daemon, "top", "--once")
        assert top.startswith("INTERRUPTED samples are stored, not learned; predictions go on")
        assert re.search(said, top)
    status = daemon.status(idle=True)
    assert (status["accepted"], status["interrupted"]) == (1200, None)
    assert get(daemon, "/readyz/learn") == (200, "ready\n")
    assert daemon.stop() == 0
    (lost,) = events(daemon, "stage lost")
    assert (lost["stage"], lost["pid"], lost["node"]) == ("0", stages[0]["pid"], stages[0]["node"])
    assert lost["reason"] in ("actor", "connection")
    (begin,) = events(daemon, "learning is interrupted")
    assert begin["reason"].startswith("ff-stage-0 is lost")
    (end,) = events(daemon, "learning goes on")
    assert (end["tries"], end["level"]) == (1, "info")
    assert end["seconds"] > 0
    assert [each["stage"] for each in events(daemon, "stage placed")] == ["0", "1", "0", "1"]
    assert "oken authentication" not in daemon.log_text()


def test_without_a_cluster_samples_are_acked_and_threads_learn_them_later(daemons: Daemons) -> None:
    nowhere = f"cluster.address=127.0.0.1:{free_port()}"
    waits = daemons.start("network.widths=[20,20]", "pipeline.engine=ray", nowhere, "cluster.start_timeout_s=2")
    assert run_json("replay", "embedded", "--limit", "300", "--to", waits.learn)["acked"] == 300
    wait_until(lambda: waits.status()["interrupted"]["tries"] > 1, START_S, "it is tried again")
    assert get(waits, "/readyz/learn")[0] == 200
    reasons = r"(the Ray cluster (does not answer|cannot be used)|the keeper has ended.*)"
    assert re.fullmatch(rf"ready, learning is interrupted: {reasons}\n", get(waits, "/readyz")[1])
    assert waits.status()["learned"] == 0
    assert waits.stop() == 0
    threads = daemons.start("network.widths=[20,20]", "pipeline.engine=threads", nowhere)
    assert threads.status(idle=True)["learned"] == 300
