from collections.abc import Iterator
from pathlib import Path

import pytest

from ffstream.ff import kernels
from tests.support import wait_until
from tests.unit.pipeline.run import DEADLINE_S, Store, running


@pytest.fixture(scope="session", autouse=True)
def kernels_are_compiled() -> None:
    """Here, and not on a thread of low priority while a test waits for it."""
    kernels.prepare()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty journal. Before and afterwards no thread of ours is left."""
    # The control socket's workers are told to end and not waited for: those of a test before may be on their way.
    wait_until(lambda: not running(), DEADLINE_S, "the threads of the tests before ended")
    store = Store(tmp_path)
    yield store
    for run in store.runs:
        run.end()
    wait_until(lambda: not running(), DEADLINE_S, "all threads ended")
    store.journal.close()
