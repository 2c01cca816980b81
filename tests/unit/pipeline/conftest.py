from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import wait_until
from tests.unit.pipeline.learner import DEADLINE_S, Store, running


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty journal. Afterwards no thread of ours is left."""
    store = Store(tmp_path)
    yield store
    for run in store.runs:
        run.end()
    wait_until(lambda: not running(), DEADLINE_S, "all threads ended")
    store.journal.close()
