"""A standby takes over when the daemon that serves ends, whether it is stopped or killed."""

import socket
from pathlib import Path

import httpx
import numpy as np
import pytest

from ffstream.client import Producer
from ffstream.daemon.daemon import Daemon
from tests.harness.commands import COMMAND_S, run_cli, run_json
from tests.harness.daemon import START_S, Daemons
from tests.harness.daemon_directory import free_port, serve_arguments
from tests.in_process import config
from tests.support import wait_until

SIZE = 32


def send(producer: Producer, messages: int) -> int:
    images = np.random.default_rng(messages).integers(0, 256, (SIZE, 784), dtype=np.uint8)
    for _ in range(messages):
        producer.send(images, np.arange(SIZE) % 10)
    return messages * SIZE


def test_a_standby_takes_over_from_a_killed_daemon_and_no_acked_sample_is_lost(daemons: Daemons) -> None:
    """Twice in a row. The producer finds each next daemon on the same port."""
    learn = f"listen.learn=tcp://127.0.0.1:{free_port()}"
    serves = daemons.start(learn)
    sent = 0
    with Producer(serves.learn) as producer:
        for _ in range(2):
            stands_by = daemons.start(learn, standby=True)
            sent += send(producer, 40)
            serves.kill()
            sent += send(producer, 20)
            stands_by.await_ready()
            serves = stands_by
        producer.flush(COMMAND_S)
    assert serves.log_text().count("taking over") == 2
    status = serves.status(idle=True)
    assert (status["accepted"], status["learned"]) == (sent, sent)
    assert serves.terminate() == 0


def test_a_standby_takes_over_from_a_stopped_daemon_and_can_itself_be_stopped(daemons: Daemons) -> None:
    serves = daemons.start()
    stands_by = daemons.start(standby=True)
    another = daemons.start(standby=True)
    assert another.terminate() == 0
    assert serves.status()["state"] == "ready", "stopping a standby does not affect it"
    with Producer(serves.learn) as producer:
        sent = send(producer, 10)
    assert serves.status(idle=True)["learned"] == sent
    assert serves.terminate() == 0
    stands_by.await_ready()
    assert stands_by.status()["learned"] == sent
    assert f"learning begins checkpoint={sent}" in stands_by.log_text()
    assert stands_by.terminate() == 0


@pytest.mark.parametrize("ended", ["stopped", "killed"])
def test_learning_stays_paused_after_a_takeover(daemons: Daemons, ended: str) -> None:
    serves = daemons.start()
    stands_by = daemons.start(standby=True)
    run_json("pause", "--at", serves.control)
    with Producer(serves.learn) as producer:
        sent = send(producer, 3)
    if ended == "killed":
        serves.kill()
    else:
        assert serves.terminate() == 0
    stands_by.await_ready()
    status = stands_by.status()
    assert (status["state"], status["accepted"], status["learned"]) == ("paused", sent, 0)
    assert "learning starts paused" in stands_by.log_text()
    run_json("resume", "--at", stands_by.control)
    assert stands_by.status(idle=True)["learned"] == sent
    assert stands_by.terminate() == 0


def test_a_standby_can_be_watched_at_an_address_of_its_own(daemons: Daemons) -> None:
    http, standby_http = (f"127.0.0.1:{free_port()}" for _ in range(2))
    settings = (f"listen.http={http}", f"listen.standby_http={standby_http}")

    def get(address: str, path: str) -> tuple[int, str]:
        answer = httpx.get(f"http://{address}{path}", trust_env=False, timeout=COMMAND_S)
        return answer.status_code, answer.text

    def standby_answers() -> bool:
        try:
            return "\nffstream_standby 1.0\n" in get(standby_http, "/metrics")[1]
        except httpx.TransportError:  # nothing listens there, or what did has just ended
            return False

    serves = daemons.start(*settings)
    assert "\nffstream_standby 0.0\n" in get(http, "/metrics")[1]
    assert not standby_answers(), "it does not stand by"
    stands_by = daemons.start(*settings, standby=True)
    assert get(standby_http, "/healthz") == (200, "ok\n")
    assert get(standby_http, "/readyz")[0] == get(standby_http, "/readyz/learn")[0] == 503
    assert get(standby_http, "/readyz")[1].startswith("standby")
    assert standby_answers()
    assert "\nffstream_applied_seq " not in get(standby_http, "/metrics")[1], "what it does not know has no value"
    another = daemons.start(*settings, standby=True)
    assert "the standby is not watched yet" in another.log_text()
    serves.kill()
    wait_until(lambda: stands_by.is_serving() or another.is_serving(), START_S, "one has taken over")
    assert "\nffstream_standby 0.0\n" in get(http, "/metrics")[1]
    wait_until(standby_answers, START_S, "the other one has the address")


def test_a_standby_on_a_free_state_folder_starts_at_once(tmp_path: Path) -> None:
    daemon = Daemon(config(tmp_path / "state"))
    assert daemon.stand_by()
    daemon.start()
    assert daemon.state == "ready"
    daemon.stop()


def test_a_standby_with_invalid_endpoints_fails_at_its_start(daemons: Daemons) -> None:
    serves = daemons.start()
    done = run_cli(*serve_arguments(serves.state, ["listen.learn=tcp://0.0.0.0:*"]), "--standby")
    assert done.returncode == 2
    assert "is reachable from other machines" in done.stderr
    assert serves.status()["state"] == "ready"


def test_a_standby_with_another_recipe_fails_at_its_start(daemons: Daemons) -> None:
    serves = daemons.start()
    with Producer(serves.learn) as producer:
        send(producer, 10)
    run_json("checkpoint", "--at", serves.control)
    done = run_cli(*serve_arguments(serves.state, ["network.widths=[20]"]), "--standby")
    assert done.returncode == 2, "a service manager must not restart it"
    assert "network.layers (how many) = 1, not 2" in done.stderr


def test_a_service_manager_is_notified_of_standby_and_takeover(
    daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serves = daemons.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(COMMAND_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        stands_by = daemons.start(standby=True)
        standby = b"READY=1\nSTATUS=standing by for another daemon\nWATCHDOG=1"
        assert [manager.recv(100), manager.recv(100)] == [standby, standby]
        serves.kill()
        received = iter(lambda: manager.recv(100), b"STATUS=starting\nWATCHDOG=1\nWATCHDOG_USEC=300000000")
        assert set(received) <= {standby}
        assert manager.recv(100) == b"READY=1\nSTATUS=serving\nWATCHDOG_USEC=30000000"
    stands_by.await_ready()
