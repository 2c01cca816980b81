"""Daemons as real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemons import DaemonProcess, Daemons, daemons_below


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Starts daemons with options of the test's own; none outlives it."""
    with daemons_below(tmp_path) as started:
        yield started


@pytest.fixture
def daemon(daemons: Daemons) -> DaemonProcess:
    """A daemon with default options on free ports."""
    return daemons.start()
