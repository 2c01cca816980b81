"""deploy/ray/with-ray-node: a node of a Ray cluster beside a command."""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.support import wait_until

SCRIPT = Path(__file__).parents[2] / "deploy" / "ray" / "with-ray-node"
DEADLINE_S = 120.0

pytest.importorskip("ray", reason="ray is not installed")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, because it is part of the addresses of sockets."""
    with tempfile.TemporaryDirectory(prefix="ray") as name:
        yield Path(name)


@pytest.fixture
def environment(folder: Path) -> Mapping[str, str]:
    token = folder / "token"
    token.write_text("a token of this test and of nothing else")
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    return os.environ | given | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.fixture
def head(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a head."""
    options = ["--port=0", "--num-cpus=0", "--include-dashboard=false", "--object-store-memory=100000000", "--block"]
    log = folder / "head.log"
    with running(["ray", "start", "--head", f"--temp-dir={folder}", *options], environment, log):
        wait_until(lambda: "Ray runtime started" in log.read_text(), DEADLINE_S, "the head runs")
        (address,) = re.findall(r"ray start --address='(\S+)'", log.read_text())
        yield address


@contextlib.contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[psutil.Popen]:
    """Ends the command, and after it all that it left."""
    with log.open("w") as output:
        process = psutil.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=DEADLINE_S)
        for each in alive:
            each.kill()
        assert not alive, f"{alive}: {log.read_text()}"


def raylets(process: psutil.Popen) -> list[psutil.Process]:
    return [each for each in process.children(recursive=True) if each.name() == "raylet"]


def test_a_node_that_dies_is_replaced_and_ends_with_the_command(
    head: str, folder: Path, environment: Mapping[str, str]
) -> None:
    log = folder / "node.log"

    def joined(times: int) -> bool:
        return log.read_text().count("Ray runtime started") == times

    with running([str(SCRIPT), head, "sleep", "1000"], environment, log) as command:
        wait_until(lambda: joined(1), DEADLINE_S, "a node joins")
        assert command.name() == "sleep", "the command receives the signals itself"
        (node,) = raylets(command)
        node.kill()
        wait_until(lambda: joined(2), DEADLINE_S, "another node joins")
        assert [each.pid for each in raylets(command)] != [node.pid]
    assert command.returncode == -15


def test_a_node_without_the_token_does_not_join(head: str, folder: Path, environment: Mapping[str, str]) -> None:
    other = folder / "other"
    other.write_text("another token")
    for change in ({"RAY_AUTH_TOKEN_PATH": str(other)}, {"RAY_AUTH_MODE": "disabled"}):
        command = ["ray", "health-check", "--address", head]
        done = subprocess.run(
            command, env={**environment, **change}, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert "InvalidAuthToken" in done.stderr
        assert done.returncode != 0
