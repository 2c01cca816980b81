"""The commands as a user runs them in a shell: real processes, real sockets."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ffstream import __version__
from ffstream.client import Control
from ffstream.client.requests import RequestConnection
from ffstream.wire.messages import ErrorReply, Hello, Reply, Request
from tests.harness.commands import CLI, COMMAND_S, run_cli, run_json
from tests.harness.daemon import DaemonProcess, Daemons, start_daemon
from tests.harness.daemon_directory import DaemonDirectory, serve_arguments
from tests.support import folder_contents, wait_until

UNUSED = "tcp://127.0.0.1:1"  # no program listens there


def replay(daemon: DaemonProcess, *arguments: str) -> dict[str, object]:
    return run_json("replay", "embedded", "--to", daemon.learn, *arguments)


def status(daemon: DaemonProcess, *, idle: bool = False) -> dict[str, Any]:
    """What the command prints; with `idle`, once every acked sample is learned."""
    wait = ["--wait-idle", str(COMMAND_S)] if idle else []
    return run_json("status", "--at", daemon.control, *wait, timeout_s=2 * COMMAND_S)


def test_the_commands_stream_evaluate_checkpoint_pause_roll_back_and_stop(daemons: Daemons) -> None:
    daemon = daemons.start()
    assert status(daemon)["prequential_error"] is None

    sent = replay(daemon, "--limit", "2000")
    assert (sent["sent"], sent["acked"], sent["rejected"]) == (2000, 2000, 0)

    found = status(daemon, idle=True)
    assert (found["accepted"], found["learned"], found["applied_seq"]) == (2000, 2000, 2000)
    assert [stage["last_seq"] for stage in found["stages"]] == [2000, 2000]

    result = run_json("evaluate", "embedded", "--at", daemon.predict, "--limit", "500")
    assert result["n"] == 500
    assert result["error"] < 0.25  # guessing would have an error of 90 %
    assert 0 < result["p50_ms"] <= result["p99_ms"]

    assert run_json("checkpoint", "--at", daemon.control)["seq"] == 2000

    # While learning is paused, samples are acked and wait.
    run_json("pause", "--at", daemon.control)
    assert replay(daemon, "--limit", "320")["acked"] == 320
    found = status(daemon)
    assert (found["state"], found["learned"], found["backlog"]) == ("paused", 2000, 320)
    late = run_cli("status", "--at", daemon.control, "--wait-idle", "0.1")
    assert late.returncode == 1
    assert "learning is paused, and 320 samples are not learned" in late.stderr
    run_json("resume", "--at", daemon.control)
    assert status(daemon, idle=True)["learned"] == 2320

    # A rollback takes the latest samples back while the daemon serves. Later samples are learned.
    back = run_json("rollback", "--to", "2000", "--skip", "--at", daemon.control)
    assert back == {"to": 2000, "checkpoint": 2000, "first": 2001, "last": 2320, "later": "skipped"}
    assert "rolled back to=2000 checkpoint=2000 first=2001 last=2320 later=skipped" in daemon.log_text()
    assert replay(daemon, "--limit", "64")["acked"] == 64
    found = status(daemon, idle=True)
    assert (found["accepted"], found["learned"], found["skipped"]) == (2384, 2064, 320)
    unknown = run_cli("rollback", "--to", "9999", "--at", daemon.control)
    assert unknown.returncode == 1
    assert "sample 9999 is not learned" in unknown.stderr
    assert "sequence_unknown" in unknown.stderr

    assert run_json("stop", "--at", daemon.control) == {"stopping": True}
    assert daemon.wait() == 0
    assert not (daemon.state / "endpoints.json").exists()


def test_a_restarted_daemon_continues_where_it_stopped(daemons: Daemons) -> None:
    first = daemons.start()
    acked = _replay_until_ctrl_c(first)
    assert status(first, idle=True)["learned"] == acked

    # A second daemon on the same state folder fails and does not affect the first one.
    second = run_cli(*serve_arguments(first.state))
    assert second.returncode == 75
    assert f"error: {first.state} is in use by another daemon [start_blocked]\nhint: " in second.stderr
    assert "Traceback" not in second.stderr
    assert json.loads((first.state / "endpoints.json").read_text())["pid"] == first.pid
    assert status(first)["state"] == "ready"

    assert first.terminate() == 0
    again = daemons.start()
    assert f"learning begins checkpoint={acked}" in again.log_text()
    assert status(again)["learned"] == acked
    assert run_json("drain", "--at", again.control)["learned"] == acked
    assert again.wait() == 0


def test_sighup_reloads_and_only_a_stop_is_reported_to_the_service_manager(
    daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that SIGHUP stopped with exit code 0 would stay down, because the unit restarts it only on failure."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(COMMAND_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        daemon = daemons.start()
        assert [manager.recv(100), manager.recv(100)] == [b"READY=1\nSTATUS=serving", b"WATCHDOG=1"]
        assert replay(daemon, "--limit", "64")["acked"] == 64
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "INFO ffstream.server.access reloaded " in daemon.log_text(), COMMAND_S, "it has reloaded")
        assert replay(daemon, "--limit", "64")["acked"] == 64, "it still serves"
        daemon.process.send_signal(signal.SIGTERM)
        received = iter(lambda: manager.recv(100), b"STOPPING=1")
        assert set(received) <= {b"WATCHDOG=1"}
    assert daemon.wait() == 0
    assert len(list((daemon.state / "checkpoints").glob("*/manifest.json"))) == 1


def test_sigterm_stops_a_daemon_before_it_serves(tmp_path: Path) -> None:
    """The first process of a container ignores signals that it does not handle, so it must handle them early."""
    config = tmp_path / "config"
    os.mkfifo(config)
    # The pipe is open for writing once the daemon reads its options.
    with start_daemon(DaemonDirectory(tmp_path / "state"), config=config) as daemon, config.open("w"):
        assert daemon.terminate() == 0


def test_sighup_does_not_stop_a_daemon_before_it_serves(tmp_path: Path) -> None:
    config = tmp_path / "config"
    os.mkfifo(config)
    with start_daemon(DaemonDirectory(tmp_path / "state"), config=config) as daemon:
        with config.open("w") as file:  # open once the daemon reads its options
            daemon.process.send_signal(signal.SIGHUP)
            file.write("unknown = 1")
        assert daemon.wait() == 2, "it continued to read its options"


def test_sigterm_during_imports_stops_a_daemon(tmp_path: Path) -> None:
    """Also in a finalizer, where Python ignores exceptions."""
    code = """
import os, signal, sys
import ffstream.config
from ffstream.cli import main

class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

def load(*arguments):
    Finalized()
    os._exit(7)

ffstream.config.load = load
main(["serve"])
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=COMMAND_S, check=False)
    assert ended.returncode == 0


def test_checkpoint_commands_need_an_existing_state_folder(tmp_path: Path) -> None:
    for command in ("list", "verify"):
        done = run_cli("checkpoint", command, "--state", str(tmp_path))
        assert done.returncode == 2
        assert "no state folder" in done.stderr


def test_a_second_signal_stops_a_daemon_at_once_and_no_acked_sample_is_lost(daemons: Daemons) -> None:
    daemon = daemons.start()
    run_json("pause", "--at", daemon.control)
    assert replay(daemon, "--limit", "640")["acked"] == 640
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGINT)
    assert daemon.wait() in (0, 1), "0: it stopped before the second signal"
    again = daemons.start()
    run_json("resume", "--at", again.control)
    assert status(again, idle=True)["learned"] == 640


def test_a_daemon_that_was_frozen_does_not_count_as_stuck(daemons: Daemons) -> None:
    """As when a virtual machine is migrated: time passes, and no thread could make progress."""
    daemon = daemons.start("pipeline.stall_timeout_s=12", "network.widths=[1000,1000]")
    replay(daemon, "--limit", "2000")  # acked long before it is learned, so a stage has work
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(15)  # the time without progress is what is tested
    daemon.process.send_signal(signal.SIGCONT)
    assert status(daemon, idle=True)["learned"] == 2000
    assert daemon.terminate() == 0


def _replay_until_ctrl_c(daemon: DaemonProcess) -> int:
    command = [*CLI, "replay", "embedded", "--to", daemon.learn, "--rate", "200", "--json"]
    replaying = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        with Control(daemon.control) as control:
            wait_until(lambda: control.status(COMMAND_S)["accepted"] > 0, COMMAND_S, "the replay has started")
        replaying.send_signal(signal.SIGINT)
        stdout, _ = replaying.communicate(timeout=COMMAND_S)
    finally:
        replaying.kill()
        replaying.wait(COMMAND_S)
    assert replaying.returncode == 130
    result = json.loads(stdout)
    assert 0 < result["acked"] == result["sent"] < 10_000
    assert status(daemon)["accepted"] == result["acked"]
    return int(result["acked"])


def test_a_replay_reports_at_once_why_it_waits(daemons: Daemons) -> None:
    daemon = daemons.start("limits.backlog_max_samples=64")
    run_json("pause", "--at", daemon.control)
    command = [*CLI, "replay", "embedded", "--to", daemon.learn, "--limit", "640", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as replaying:
        assert replaying.stderr is not None
        line = replaying.stderr.readline()
        assert line.startswith("waiting: ")
        assert "_full)" in line
        assert "limits.backlog_max_samples" in line
        run_json("resume", "--at", daemon.control)
        stdout, _ = replaying.communicate(timeout=COMMAND_S)
    assert replaying.returncode == 0
    assert json.loads(stdout)["acked"] == 640


def test_a_replay_of_labels_that_the_daemon_does_not_know_sends_nothing(daemons: Daemons) -> None:
    daemon = daemons.start("network.labels=5")
    refused = run_cli("replay", "embedded", "--to", daemon.learn, "--limit", "40", "--batch", "1", "--json")
    assert refused.returncode == 1
    assert refused.stdout == ""
    first, hint = refused.stderr.splitlines()
    assert first.startswith("error: the labels are 0 to 9, the daemon takes 0 to 4: ")
    assert first.endswith("nothing was sent [label_out_of_range]")
    assert "network.labels=10" in hint
    assert status(daemon)["accepted"] == 0


def test_a_waiting_client_gets_an_error_when_the_daemon_stops(daemons: Daemons) -> None:
    # The samples do not fill a microbatch, so none is learned before this time.
    daemon = daemons.start("network.warmup_samples=0", f"learning.linger_s={10 * COMMAND_S}")
    assert replay(daemon, "--limit", "40")["acked"] == 40

    with RequestConnection(daemon.control, "control", Reply, connect_timeout_s=COMMAND_S, keys=None) as connection:
        connection.greet(Hello(), COMMAND_S)
        connection.send(Request(id=1, command="wait_idle", arguments={"timeout_s": 600}))
        second = Request(id=2, command="status")
        # The answer shows that the first request is being handled.
        connection.ask(2, lambda _: (second, ()), COMMAND_S, repeatable=True)
        assert daemon.terminate() == 0
        received = connection.receive(COMMAND_S)
    assert received is not None
    error = received[0]
    assert isinstance(error, ErrorReply)
    assert (error.id, error.code) == (1, "unavailable")
    assert "40 samples wait on disk" in error.message


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["serve", "--set", "learning.lingr_s=3"], 2, "learning.lingr_s"),
        (["config", "check", "--set", "learning.linger_s=long"], 2, "learning.linger_s"),
        (["config", "show", "--config", "/no/such/file"], 2, "/no/such/file"),
        (["serve", "--state", "/proc/none"], 2, "/proc/none"),
        (["status", "--at", "nonsense"], 2, "nonsense"),
        (["status", "--at", UNUSED], 1, f"nobody listens at {UNUSED} (Connection refused)"),
        (["evaluate", "embedded", "--at", UNUSED], 1, f"nobody listens at {UNUSED} (Connection refused)"),
        (["evaluate", "no-such-dataset"], 1, "no-such-dataset"),
    ],
)
def test_a_failed_command_prints_an_error_and_a_hint(arguments: list[str], code: int, error: str) -> None:
    done = run_cli(*arguments)
    assert done.returncode == code
    *_, first, hint = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert hint.startswith("hint: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["status", "--timeout", "nan"], "not a number of seconds"),
        (["status", "--wait-idle", "nan"], "not a number of seconds"),
        (["rollback", "--to", str(2**63)], "--to"),
    ],
)
def test_an_invalid_number_is_named_in_the_error(arguments: list[str], named: str) -> None:
    done = run_cli(*arguments)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_the_output_of_config_show_is_a_valid_config_file(tmp_path: Path) -> None:
    file = tmp_path / "ffstream.toml"
    file.write_text(run_cli("config", "show", "--set", "learning.linger_s=0.25").stdout)
    assert "linger_s = 0.25" in file.read_text()
    assert run_cli("config", "check", "--config", str(file)).returncode == 0
    assert run_cli("config", "show", "--config", str(file)).stdout == file.read_text()


def test_client_commands_do_not_import_torch() -> None:
    done = run_cli("--version")
    assert done.stdout == f"ffstream, version {__version__}\n"
    code = "import sys, ffstream.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=COMMAND_S, check=False).returncode == 0


def test_only_its_user_can_access_the_files_of_a_daemon(daemons: Daemons, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        daemon = daemons.start(f"listen.learn=ipc://{tmp_path}/learn")
    finally:
        os.umask(before)
    with daemon.frozen():  # otherwise a listed file may be deleted before it is checked
        made = [daemon.state, *daemon.state.rglob("*"), tmp_path / "learn"]
        assert {path.name for path in made} >= {"journal.sqlite", "checkpoints", "lock", "endpoints.json", "learn"}
        assert [path for path in made if path.stat().st_mode & 0o077] == []


INSPECTIONS = (["journal", "stat"], ["journal", "verify"], ["checkpoint", "list"], ["checkpoint", "verify"])


def inspect(state: Path, code: int = 0) -> list[dict[str, Any]]:
    """What the inspection commands print. Asserts that they change nothing, so a daemon must be frozen meanwhile."""
    before = folder_contents(state)
    results = []
    for command in INSPECTIONS:
        done = run_cli(*command, "--state", str(state), "--json")
        assert done.returncode in {0, code}, done.stderr
        results.append(json.loads(done.stdout))
    assert folder_contents(state) == before
    return results


def test_a_state_folder_can_be_inspected_while_a_daemon_runs_after_a_kill_and_when_damaged(daemons: Daemons) -> None:
    daemon = daemons.start()
    # With names, because an unnamed client may be forgotten at any time.
    replay(daemon, "--limit", "2000", "--client", "one")
    status(daemon, idle=True)
    run_json("checkpoint", "--at", daemon.control)
    run_json("pause", "--at", daemon.control)
    replay(daemon, "--limit", "320", "--client", "two")
    for command in INSPECTIONS:
        assert run_cli(*command, "--state", str(daemon.state), "--json").returncode == 0, "while a daemon runs"

    # Otherwise the daemon may trim its journal or checkpoint its WAL meanwhile.
    with daemon.frozen():
        stat, verify, checkpoints, verified = inspect(daemon.state)
        daemon.kill()
    assert (stat["last_seq"], stat["next_seq"], stat["checkpoint_seq"], stat["backlog"]) == (2320, 2321, 2000, 320)
    assert (stat["inputs"], stat["labels"], stat["gaps"]) == (784, 10, [])
    assert stat["clients"] == 2
    assert (verify["whole"], verify["last_seq"], verify["problems"]) == (True, 2320, [])
    assert [(each["seq"], each["whole"]) for each in checkpoints["checkpoints"]] == [(2000, True)]
    assert checkpoints["checkpoints"][0]["recipe"]["image_shape"] == [28, 28]
    assert (verified["recovery"], checkpoints["half_written"]) == (2000, [])

    assert inspect(daemon.state)[1] == verify

    state_file = daemon.state / "checkpoints" / f"{2000:020d}" / "state.safetensors"
    content = bytearray(state_file.read_bytes())
    content[-1] ^= 1
    state_file.write_bytes(content)
    connection = sqlite3.connect(daemon.state / "journal.sqlite")
    connection.execute("UPDATE messages SET labels = zeroblob(length(labels)) WHERE first_seq > 2100")
    connection.commit()
    connection.close()
    # This opens the journal for writing, which also removes the WAL that the killed daemon has left.
    assert run_cli("journal", "accept", "--state", str(daemon.state)).returncode == 0
    stat, verify, checkpoints, verified = inspect(daemon.state, code=1)
    assert not verify["whole"]
    assert verify["problems"][0]["what"] == "have a wrong checksum"
    assert stat["whole"], "stat does not read images, so it does not find the damage"
    assert (checkpoints["checkpoints"][0]["whole"], verified["checkpoints"][0]["whole"]) == (True, False)
    assert verified["recovery"] is None
    done = run_cli("journal", "verify", "--state", str(daemon.state))
    assert done.returncode == 1
    assert "have a wrong checksum\n" in done.stdout
    assert "hint: " in done.stderr


@pytest.mark.parametrize("command", INSPECTIONS)
def test_inspecting_a_state_folder_that_does_not_exist_fails_and_creates_nothing(
    command: list[str], tmp_path: Path
) -> None:
    done = run_cli(*command, "--state", str(tmp_path / "none"))
    assert done.returncode == 2
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: no ")
    assert hint.startswith("hint: ")
    assert list(tmp_path.iterdir()) == []
