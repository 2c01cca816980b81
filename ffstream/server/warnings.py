"""Warnings for the operator while the daemon works: written to the log once, in status and metric while they last."""

import logging
from typing import Final

from ffstream.metrics import Metrics

log = logging.getLogger(__name__)

WARNINGS: Final = (
    "log_pinned",  # a reader prevents the journal's log from being folded into its file
    "clients_near_limit",  # soon no new client will be accepted
)


class Warnings:
    """The warnings of one daemon. One thread sets them, others read them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._active: dict[str, str] = {}
        for name in WARNINGS:
            metrics.warning.labels(name).set(0)

    @property
    def active(self) -> dict[str, str]:
        """The texts of active warnings, by name: what the problem is, and what to do."""
        return dict(self._active)

    def set(self, name: str, text: str | None) -> None:
        """Activates a warning with its text, or clears it with None."""
        assert name in WARNINGS
        if text is None:
            if self._active.pop(name, None) is not None:
                log.info("warning cleared name=%s", name)
        else:
            if name not in self._active:
                log.warning("warning name=%s: %s", name, text)
            self._active[name] = text
        self._metrics.warning.labels(name).set(text is not None)
