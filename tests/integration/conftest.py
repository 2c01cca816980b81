"""Fixtures for daemons in the process of the test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.in_process import Running, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts daemons, by default on the same state folder. They are stopped at the end of the test."""
    started: list[Running] = []

    def make(*settings: str, name: str = "state") -> Running:
        started.append(Running(tmp_path / name, *settings))
        return started[-1]

    yield make
    for each in started:
        each.__exit__()


@pytest.fixture
def daemon(start: Start) -> Running:
    """A daemon that serves."""
    return start()
