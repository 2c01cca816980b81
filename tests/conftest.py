"""What holds for every test."""

import os
from collections.abc import Iterator

import hypothesis
import pytest

from ffstream.util import failpoints
from tests.support import Watch

# Before torch is imported: tests run side by side already, and the order of a sum must not hang on how many
# cores there are. Daemons that a test starts inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A noisy machine is no failure; pytest-timeout stops what hangs.
hypothesis.settings.register_profile("ffstream", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("ffstream")


@pytest.fixture
def watched() -> Iterator[Watch]:
    """`failpoints.watch` for one test."""
    yield failpoints.watch
    failpoints.watch(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
