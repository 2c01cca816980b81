"""Runs `ffstream` commands as processes, each with a deadline."""

import json
import subprocess
import sys
from typing import Any

CLI = (sys.executable, "-m", "ffstream.cli")
COMMAND_S = 120.0  # long enough for a loaded machine; only a command that hangs takes this long


class CommandFailed(Exception):
    """A command ended with an exit code other than 0. The message contains what it wrote to stderr."""


def run_cli(*arguments: str, timeout_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
    """Runs `ffstream ARGUMENTS` and returns its exit code, stdout and stderr. Raises subprocess.TimeoutExpired."""
    return subprocess.run([*CLI, *arguments], capture_output=True, encoding="utf-8", timeout=timeout_s, check=False)


def run_json(*arguments: str, timeout_s: float = COMMAND_S) -> dict[str, Any]:
    """Runs `ffstream ARGUMENTS --json` and returns the last line that it prints, parsed.

    Raises:
        CommandFailed: when the exit code is not 0.
        subprocess.TimeoutExpired: when it takes longer than `timeout_s`.
    """
    done = run_cli(*arguments, "--json", timeout_s=timeout_s)
    if done.returncode:
        command = " ".join(["ffstream", *arguments, "--json"])
        raise CommandFailed(f"{command} ended with exit code {done.returncode}\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
