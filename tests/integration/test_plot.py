"""`ffstream plot` of a daemon, of its state folder while it runs, and of the folder after its end."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ffstream.cli import main
from tests.harness.commands import CLI, COMMAND_S, run_cli, run_json
from tests.harness.daemon import DaemonProcess, Daemons
from tests.support import folder_contents, wait_until

KINDS = ["curve", "goodness", "activities", "mistakes", "filters", "dreams"]


def plot(what: str, out: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["plot", "--what", what, "--out", str(out), *arguments])


def learn(daemon: DaemonProcess, samples: int) -> None:
    run_json("replay", "embedded", "--limit", str(samples), "--to", daemon.learn, "--control", daemon.control)
    daemon.status(idle=True)


@pytest.fixture
def daemon(daemons: Daemons) -> DaemonProcess:
    """A daemon that has learned and dreams, with a checkpoint that has not learned all of it."""
    daemon = daemons.start("network.widths=[40,40]", "network.decoder=linear")
    learn(daemon, 640)
    run_json("checkpoint", "--at", daemon.control)
    learn(daemon, 320)
    return daemon


def history_is_stored(daemon: DaemonProcess) -> bool:
    from ffstream.history.file import HISTORY, Unfit, read

    try:
        return any(read(daemon.state / HISTORY).document("all")["columns"]["window_error"])
    except (Unfit, OSError):
        return False


def test_every_kind_is_drawn_of_a_daemon_and_of_its_folder(daemon: DaemonProcess, tmp_path: Path) -> None:
    wait_until(lambda: history_is_stored(daemon), COMMAND_S, "the history is in its file")
    for what in KINDS:
        live, running = tmp_path / f"{what}-live.png", tmp_path / f"{what}-running.svg"
        drawn = plot(what, live, "--at", daemon.http)
        assert (drawn.exit_code, drawn.output) == (0, f"{live} written\n")
        assert live.read_bytes().startswith(b"\x89PNG")
        drawn = plot(what, running, "--state", str(daemon.state))
        assert drawn.exit_code == 0, drawn.output
        assert b"<svg" in running.read_bytes()[:1000]
    assert daemon.status()["state"] == "ready"

    daemon.kill()  # the -wal and -shm files stay
    before = folder_contents(daemon.state)
    assert plot("curve", tmp_path / "killed.png", "--state", str(daemon.state)).exit_code == 0
    assert plot("mistakes", tmp_path / "killed.png", "--state", str(daemon.state)).exit_code == 0
    assert folder_contents(daemon.state) == before


def test_every_kind_is_drawn_of_the_folder_of_a_stopped_daemon(daemon: DaemonProcess, tmp_path: Path) -> None:
    daemon.stop()
    before = folder_contents(daemon.state)
    for what in KINDS:
        ended = tmp_path / f"{what}-ended.png"
        drawn = plot(what, ended, "--state", str(daemon.state))
        assert drawn.exit_code == 0, drawn.output
        assert ended.stat().st_size > 5000
    assert folder_contents(daemon.state) == before, "reading changes nothing"


def test_the_mistakes_of_a_folder_are_those_of_a_checkpoint_that_has_not_learned_the_samples(
    daemon: DaemonProcess,
) -> None:
    from ffstream.learning import offline

    daemon.stop()  # writes a checkpoint that has learned everything
    record = offline.mistakes(daemon.state)
    assert (record["seq"], record["first_seq"], record["last_seq"]) == (640, 641, 960)
    assert record["window_samples"] == 320
    wrong = sum(each["wrong"] for each in record["per_class"])
    assert 0 < wrong < 320
    assert len(record["latest"]) == min(24, wrong)


def test_a_folder_whose_samples_are_all_learned_says_what_is_needed(daemons: Daemons, tmp_path: Path) -> None:
    daemon = daemons.start("network.widths=[20]")
    learn(daemon, 64)
    daemon.stop()
    drawn = plot("mistakes", tmp_path / "a.png", "--state", str(daemon.state))
    assert drawn.exit_code == 1
    assert "checkpoint 64 has learned every sample in the journal" in drawn.output
    assert "hint: use --at with a running daemon" in drawn.output
    assert not (tmp_path / "a.png").exists()


def test_a_daemon_with_a_token_is_asked_with_it(daemons: Daemons, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-the-test\n")
    token.chmod(0o600)
    daemon = daemons.start("network.widths=[20]", f"security.http_token={token}")
    learn(daemon, 64)
    out = tmp_path / "filters.png"
    refused = plot("filters", out, "--at", daemon.http)
    assert refused.exit_code == 2
    assert "a token is required" in refused.output
    assert "--token FILE" in refused.output
    assert plot("filters", out, "--at", daemon.http, "--token", str(token)).exit_code == 0


def test_errors_of_the_daemon_are_shown_with_their_hint(daemons: Daemons, tmp_path: Path) -> None:
    daemon = daemons.start("network.widths=[20]")
    for arguments, message in (
        (("filters", "--layer", "7"), "there is no layer 7"),
        (("activities",), "no sample was evaluated since learning began"),
        (("curve",), "the history has no error yet"),
    ):
        what, *rest = arguments
        drawn = plot(what, tmp_path / "a.png", "--at", daemon.http, *rest)
        assert drawn.exit_code in (1, 2), drawn.output
        assert message in drawn.output
        assert "hint: " in drawn.output


def test_a_state_folder_in_the_environment_does_not_prevent_asking_a_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FFSTREAM_STATE", str(tmp_path))
    assert "no history at" in plot("curve", tmp_path / "a.png").output
    assert "no answer from" in plot("curve", tmp_path / "a.png", "--at", "http://127.0.0.1:1").output


def test_wrong_arguments_are_explained(tmp_path: Path) -> None:
    drawn = plot("curve", tmp_path / "a.jpg")
    assert (drawn.exit_code, "must end in .png or .svg" in drawn.output) == (2, True)
    assert plot("curve", tmp_path / "a.png", "--at", "http://127.0.0.1:1", "--state", str(tmp_path)).exit_code == 2
    unreachable = plot("curve", tmp_path / "a.png", "--at", "http://127.0.0.1:1")
    assert unreachable.exit_code == 1
    assert re.search(r"no answer from http://127.0.0.1:1/api/history\S*: Connection refused", unreachable.output)
    assert "start the daemon with `ffstream serve`" in unreachable.output
    nothing = plot("curve", tmp_path / "a.png", "--state", str(tmp_path))
    assert nothing.exit_code == 2
    assert "no history at" in nothing.output
    for what in ("curve", "filters"):
        missing = plot(what, tmp_path / "a.png", "--state", str(tmp_path / "missing"))
        assert (missing.exit_code, "no state folder at" in missing.output) == (2, True)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*CLI, "plot", "--what", "curve", "--out", "a.png"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr == 'error: the package matplotlib is not installed [config]\nhint: pip install "ffstream[plot]"\n'
    )


def test_only_plot_imports_matplotlib() -> None:
    program = (
        "import sys, ffstream.cli.plot, ffstream.cli.top, ffstream.cli.serve; print('matplotlib' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=True, timeout=COMMAND_S
    )
    assert done.stdout == "False\n"
    assert run_cli("plot", "--help").returncode == 0
