"""Settings and fixtures of all tests."""

import os
import re
from collections.abc import Generator, Iterator
from itertools import chain, groupby, islice
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fails a test that is skipped because of a command that is installed, or was to be."""
    report = yield
    _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a file that is skipped as a whole."""
    report = yield
    _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or not isinstance(report.longrepr, tuple) or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2]
    for command in os.environ.get("FFSTREAM_TEST_COMMANDS", "").split():
        if re.search(rf"\b{re.escape(command)}\b", reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}\nFFSTREAM_TEST_COMMANDS names {command}, so this may not be skipped"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores, because long tests wait for daemons, disks and clocks most of the time."""
    return len(os.sched_getaffinity(0)) + 1


def _long_tests_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """`--dist worksteal` gives each worker a contiguous part. Each part begins with files of long tests.

    What is stolen at the end is then short. Files of long tests stay together, because their tests share daemons.
    """
    unit = Path(__file__).parent / "unit"
    files = [list(tests) for _, tests in groupby(items, key=lambda item: item.path)]
    long = [tests for tests in files if unit not in tests[0].path.parents]
    short = chain.from_iterable(tests for tests in files if unit in tests[0].path.parents)
    parts = [list(chain.from_iterable(long[at::workers])) for at in range(workers)]
    for part in parts:
        part.extend(islice(short, max(0, len(items) // workers - len(part))))
    return [*chain.from_iterable(parts), *short]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items[:] = _long_tests_first(items, getattr(config, "workerinput", {}).get("workercount", 1))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu or os.environ.get("FFSTREAM_GPU_DRY"):  # then they run on the CPU, see tests/gpu/conftest.py
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
