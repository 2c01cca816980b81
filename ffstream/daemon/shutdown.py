"""The stop of a daemon or a replica, in numbered steps that share one deadline.

Each part registers how it ends when it is started, so a start that fails half-way stops what was started and no more.
"""

import logging
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

log = logging.getLogger(__name__)

_LEAST_S = 0.1  # each step gets at least this, even after the deadline


class Order(IntEnum):
    """The steps."""

    STOP_ACCEPTING = 1  # what was acked is in the journal
    LEARN_QUEUED = 2  # the last barrier saves the state
    END_ENGINE = 3  # what the stages ran in: every part of the last barrier has arrived
    EVALUATE_QUEUED = 4  # the evaluation's part completes the last barrier
    WRITE_CHECKPOINT = 5
    STOP_RECORDING = 6  # the history has the last checkpoint
    END_COMMANDS = 7  # waiting commands are answered
    STOP_ANSWERING = 8  # predictions and control work until here
    STOP_AUTHENTICATING = 9  # only now, so that no open socket accepts connections without it
    CLOSE_CONTEXT = 10
    CLOSE_JOURNAL = 11
    RELEASE_STATE = 12


class ReplicaOrder(IntEnum):
    """The steps of a prediction replica."""

    STOP_FOLLOWING = 1
    STOP_ANSWERING = 2
    STOP_AUTHENTICATING = 3  # only now, so that no open socket accepts connections without it
    CLOSE_CONTEXT = 4


class _Step(NamedTuple):
    order: IntEnum
    name: str
    end: Callable[[float], bool]


class Shutdown:
    """Collects steps, then runs them in order."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    def add(self, order: IntEnum, name: str, end: Callable[[float], bool]) -> None:
        """`end` gets the seconds that are left, and returns whether it was in time."""
        self._steps.append(_Step(order, name, end))

    def run(self, timeout_s: float) -> list[str]:
        """Runs every step, even if an earlier one fails. Returns the names of the steps that failed or were late."""
        deadline = time.monotonic() + timeout_s
        late: list[str] = []
        for step in sorted(self._steps, key=lambda step: step.order):
            if step.order is Order.RELEASE_STATE and late:
                continue  # a late part may still write: the folder is locked until the process ends
            try:
                in_time = step.end(max(_LEAST_S, deadline - time.monotonic()))
            except Exception:
                log.exception("step failed name=%s", step.name)
                in_time = False
            if not in_time:
                late.append(step.name)
        return late
