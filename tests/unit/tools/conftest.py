"""Fixtures of the tests of commands."""

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def _signals_are_kept() -> Iterator[None]:
    """`tools/bench` handles SIGTERM, for the whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
