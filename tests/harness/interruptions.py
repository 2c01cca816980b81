"""Interrupts the learning of a daemon whose stages run in a Ray cluster, for as long as a test wants."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from tests.harness.cluster_processes import keeper_of
from tests.harness.daemon import START_S, DaemonProcess
from tests.support import wait_until

# A cluster on this machine. The keeper may be held for longer than a test takes.
SETTINGS = ("pipeline.engine=ray", "cluster.start_timeout_s=600")


def await_stages(daemon: DaemonProcess) -> list[dict[str, Any]]:
    """The stages of its status, once they are placed."""
    wait_until(lambda: daemon.status()["interrupted"] is None, START_S, "stages are placed")
    stages: list[dict[str, Any]] = daemon.status()["stages"]
    return stages


@contextmanager
def interrupted(daemon: DaemonProcess) -> Iterator[None]:
    """In the block the daemon has lost its first stage, and nothing is placed, because its keeper is stopped."""
    keeper = keeper_of(daemon)
    assert keeper is not None
    lost = psutil.Process(await_stages(daemon)[0]["pid"])
    keeper.suspend()
    try:
        lost.kill()
        wait_until(lambda: daemon.status()["interrupted"] is not None, START_S, "the loss is noticed")
        yield
    finally:
        keeper.resume()
