"""Settings and fixtures of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from ffstream.util import failpoints
from tests.support import Watch

if TYPE_CHECKING:
    from tests.harness.daemon import Daemons

# Set before torch is imported. Tests already run in parallel, and the order in which a sum is computed must not
# depend on the number of cores. Daemons that a test starts inherit the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline per example: a slow machine is not a failure, and pytest-timeout ends a test that hangs.
hypothesis.settings.register_profile("ffstream", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("ffstream")


@pytest.fixture
def watched() -> Iterator[Watch]:
    """`failpoints.watch`; the watcher is removed at the end of the test."""
    yield failpoints.watch
    failpoints.watch(None)


@pytest.fixture
def daemons(tmp_path: Path) -> "Iterator[Daemons]":
    """Starts daemons as processes. Those that still run at the end of the test are killed."""
    from tests.harness.daemon import Daemons  # imports numpy, so not before the environment is set

    with Daemons(tmp_path) as started:
        yield started


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu or os.environ.get("FFSTREAM_GPU_DRY"):  # then they run on the CPU, see tests/gpu/conftest.py
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
