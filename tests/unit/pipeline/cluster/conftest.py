from collections.abc import Iterator

import pytest

from tests.unit.pipeline.cluster.local import Engines, ended_engines
from tests.unit.pipeline.run import Store


@pytest.fixture
def engines(store: Store) -> Iterator[Engines]:
    """Makes engines whose actors are threads of this process. `store` ends the runs."""
    with ended_engines() as engines:
        yield engines
        for run in store.runs:
            run.end()
