"""Colours and other escape sequences are written to terminals only, and no colours if NO_COLOR is set."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.commands import CLI, COMMAND_S
from tests.harness.daemon import DaemonProcess, Daemons
from tests.harness.terminal import Terminal

FORCING = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
ERROR = ("checkpoint", "list", "--state", "nowhere")  # needs no daemon


def of_a_daemon(daemon: DaemonProcess) -> list[list[str]]:
    """Command lines with all kinds of output: tables, sentences, progress bars."""
    state = str(daemon.state)
    return [
        ["replay", "embedded", "--limit", "64", "--to", daemon.learn, "--control", daemon.control],
        ["evaluate", "embedded", "--limit", "64", "--at", daemon.predict],
        ["checkpoint", "--at", daemon.control],
        ["status", "--at", daemon.control],
        ["top", "--at", daemon.control],
        ["checkpoint", "list", "--state", state],
        ["journal", "stat", "--state", state],
        ["journal", "verify", "--state", state],
        ["config", "show"],
        ["--help"],
        [*ERROR],
    ]


def test_no_command_writes_escape_sequences_into_a_pipe(daemons: Daemons) -> None:
    for arguments in of_a_daemon(daemons.start("network.widths=[20]")):
        done = subprocess.run(
            [*CLI, *arguments], env=os.environ | FORCING, capture_output=True, timeout=COMMAND_S, check=False
        )
        assert done.returncode == (2 if arguments == [*ERROR] else 0), done.stderr
        assert b"\x1b" not in done.stdout + done.stderr, arguments


@pytest.mark.parametrize(
    ("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_a_terminal_gets_colours_unless_no_color_is_set(
    environment: dict[str, str], is_coloured: bool, tmp_path: Path
) -> None:
    with Terminal([*CLI, *ERROR], environment=environment, folder=tmp_path) as terminal:
        assert terminal.wait() == 2
        assert terminal.text.startswith("error: no state folder at nowhere")
        assert ("\x1b[" in terminal.output) == is_coloured


def test_a_table_in_a_terminal_has_styles_unless_no_color_is_set(daemons: Daemons) -> None:
    daemon = daemons.start("network.widths=[20]")
    for environment, is_styled in (({}, True), ({"NO_COLOR": "1"}, False)):
        with Terminal([*CLI, "status", "--at", daemon.control], environment=environment) as terminal:
            assert terminal.wait() == 0
            assert "learned up to" in terminal.text
            assert ("\x1b[" in terminal.output) == is_styled


def test_only_one_place_makes_consoles() -> None:
    """rich would decide for itself whether to write escape sequences."""
    folder = Path(__file__).parents[2] / "ffstream" / "cli"
    found = [path.name for path in folder.rglob("*.py") if " Console(" in path.read_text(encoding="utf-8")]
    assert found == ["output.py"]
