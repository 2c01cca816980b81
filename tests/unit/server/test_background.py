"""Answers for people are computed with a low priority, few at a time."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable

import pytest
import torch

from ffstream.errors import Busy, Unavailable
from ffstream.server.background import Background
from ffstream.util.threads import EVALUATION_NICENESS

DEADLINE_S = 20.0


def run(background: Background, *works: Callable[[], object]) -> list[object]:
    """The results of all works, which begin together; or what they raise."""

    async def both() -> list[object]:
        given = [background.run(work) for work in works]
        return list(await asyncio.wait_for(asyncio.gather(*given, return_exceptions=True), DEADLINE_S))

    return asyncio.run(both())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
def test_threads_have_a_low_priority_and_use_one_core() -> None:
    background = Background()

    def look() -> tuple[str, int, int]:
        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return threading.current_thread().name, niceness, torch.get_num_threads()

    (found,) = run(background, look)
    assert background.stop(DEADLINE_S)
    assert isinstance(found, tuple)
    name, niceness, cores = found
    assert name.startswith("ff-view")
    assert niceness == max(EVALUATION_NICENESS, os.getpriority(os.PRIO_PROCESS, 0))
    assert cores == 1


def test_work_that_fails_raises() -> None:
    background = Background()
    (error,) = run(background, lambda: 1 // 0)
    assert isinstance(error, ZeroDivisionError)
    background.stop(DEADLINE_S)


def test_too_much_work_is_rejected_and_later_work_is_not() -> None:
    background = Background(threads=1, pending_max=3)
    release = threading.Event()
    release.set()
    results = run(background, *(lambda at=at: release.wait(DEADLINE_S) and at for at in range(5)))
    assert results[:3] == [0, 1, 2]
    assert [type(each) for each in results[3:]] == [Busy, Busy]
    assert run(background, lambda: 7) == [7]
    background.stop(DEADLINE_S)


def test_after_a_stop_no_work_is_taken() -> None:
    background = Background()
    assert run(background, lambda: 1) == [1]
    assert background.stop(DEADLINE_S)
    (error,) = run(background, lambda: 2)
    assert isinstance(error, Unavailable)
    assert error.hint
