"""Notices that the clock was set back, so that a clock that is wrong for minutes costs the history nothing.

Points are in the order of time, so those later than the clock must go. But a machine without a battery begins in the
past, and is right as soon as it has a network. So the history waits for some minutes first.
"""

import logging

log = logging.getLogger(__name__)

_STEP_S = 60.0  # a smaller step is a correction, and costs the points of these seconds
_PATIENCE_S = 600.0


class SetBack:
    """For one thread. Call `recorded` for each time that is recorded."""

    def __init__(self) -> None:
        self._newest_s = 0.0
        self._since_s: float | None = None

    def recorded(self, time_s: float) -> None:
        """The history has a point of this time, in seconds since 1970."""
        self._newest_s = time_s

    def waits(self, time_s: float, monotonic_s: float) -> bool:
        """Whether nothing is to be recorded, because the clock is behind what was recorded, and perhaps wrong."""
        behind_s = self._newest_s - time_s
        if behind_s < _STEP_S:
            self._since_s = None
            return False
        if self._since_s is None:
            self._since_s = monotonic_s
            log.warning("clock set back seconds=%.0f history_waits_s=%.0f", behind_s, _PATIENCE_S)
        if monotonic_s - self._since_s < _PATIENCE_S:
            return True
        log.warning("clock stays set back: what is later is removed from the history seconds=%.0f", behind_s)
        self._since_s = None
        return False
