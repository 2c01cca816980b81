"""How our threads behave on a machine with few cores."""

import logging
import os
import threading

import torch

log = logging.getLogger(__name__)

# An ack or a prediction takes microseconds; behind a learning thread of equal rank it would wait milliseconds.
LEARNING_NICENESS = 15
EVALUATION_NICENESS = 19
WRITING_NICENESS = 19  # a checkpoint may take longer, learning should not


def use_one_core() -> None:
    """One intra-op thread: stages are the parallelism, and sums then have one order."""
    torch.set_num_threads(1)


def lower_priority(niceness: int) -> None:
    """Lets predictions and acks go first when cores are scarce. Linux gives each thread its own niceness."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except (AttributeError, OSError):
        log.debug("thread priority unchanged thread=%s", threading.current_thread().name)


def join(thread: threading.Thread, timeout_s: float) -> bool:
    """Waits for the end of a thread; one that was never started has nothing to end. False if the deadline passed."""
    if thread.ident is not None:
        thread.join(timeout_s)
    return not thread.is_alive()
