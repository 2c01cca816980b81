"""`ffstream top` in a terminal: it follows a daemon, says when it is lost, and leaves the terminal as it was."""

import signal

import psutil
import pytest

from tests.harness.commands import CLI, COMMAND_S, run_cli, run_json
from tests.harness.daemon import DaemonProcess, Daemons
from tests.harness.daemon_directory import free_port
from tests.harness.terminal import Terminal

COMMAND = (*CLI, "top", "--interval", "0.1", "--at")


@pytest.fixture
def daemon(daemons: Daemons) -> DaemonProcess:
    return daemons.start("network.widths=[20,20]")


def test_it_follows_learning_and_ends_with_q(daemon: DaemonProcess) -> None:
    with Terminal([*COMMAND, daemon.control]) as terminal:
        terminal.expect("READY  waiting for samples")
        terminal.expect("no samples are predicted yet")
        run_json("replay", "embedded", "--limit", "2000", "--to", daemon.learn)
        end = terminal.expect("2,000 accepted, 2,000 learned, 0 waiting")
        terminal.expect(r"\d% of the last [\d,]+ predicted", after=end)  # fewer than all while it was behind
        terminal.expect(r"layer\s+right group\s+wrong groups\s+margin", after=end)
        run_json("pause", "--at", daemon.control)
        terminal.expect("PAUSED  samples are stored", after=end)
        terminal.send("q")
        assert terminal.wait() == 0
        assert "\x1b[?1049l" in terminal.output, "the screen from before is back"
        assert "\x1b[?25h" in terminal.output, "the cursor is visible"


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_restores_the_terminal(daemon: DaemonProcess, sign: signal.Signals, code: int) -> None:
    # A shell, because the settings of a terminal end with its last process.
    run = 'stty -a >before; "$@"; echo "code=$?"; stty -a >after; cmp before after && echo same'
    with Terminal(["bash", "-c", run, "bash", *COMMAND, daemon.control], folder=daemon.state.parent) as terminal:
        terminal.expect("READY")
        if sign is signal.SIGINT:
            terminal.send("\x03")
        else:
            (program,) = psutil.Process(terminal.process.pid).children()
            program.terminate()
        terminal.expect(f"code={code}")
        terminal.expect("same")


def test_a_stopped_daemon_is_lost_and_found_again_when_it_is_back(daemons: Daemons) -> None:
    fixed = f"listen.control=tcp://127.0.0.1:{free_port()}"
    daemon = daemons.start("network.widths=[20]", fixed)
    with Terminal([*COMMAND, daemon.control]) as terminal:
        terminal.expect("READY")
        daemon.kill()
        end = terminal.expect(r"LOST  no answer for \d")
        again = daemons.start("network.widths=[20]", fixed)
        assert again.control == daemon.control
        terminal.expect("READY", after=end)
        terminal.send("q")
        assert terminal.wait() == 0


def test_without_a_terminal_or_with_once_it_prints_one_frame(daemon: DaemonProcess) -> None:
    for arguments in ((), ("--once",)):
        done = run_cli("top", *arguments, "--at", daemon.control)
        assert done.returncode == 0
        assert done.stdout.startswith("READY  waiting for samples\n")
        assert done.stdout.count("READY") == 1
        assert "\x1b" not in done.stdout
    with Terminal([*COMMAND, daemon.control, "--once"]) as terminal:
        assert terminal.wait() == 0
        assert terminal.text.count("READY") == 1
        assert "\x1b[?1049h" not in terminal.output, "the frame stays on the screen"


def test_without_a_daemon_it_fails_at_once() -> None:
    done = run_cli("top", "--at", "tcp://127.0.0.1:1", timeout_s=COMMAND_S)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
