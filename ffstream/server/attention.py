"""What needs a person's attention though the daemon works: in the log once, in status and metric while it lasts."""

import logging
from typing import Final

from ffstream.metrics import Metrics

log = logging.getLogger(__name__)

WARNINGS: Final = (
    "log_pinned",  # a reader keeps the journal's log from being folded into its file
    "clients_near_limit",  # soon no new client is accepted
)


class Warnings:
    """Written by one thread, read by others."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._active: dict[str, str] = {}
        for name in WARNINGS:
            metrics.warning.labels(name).set(0)

    @property
    def active(self) -> dict[str, str]:
        """By name, what is the matter and what to do."""
        return dict(self._active)

    def set(self, name: str, text: str | None) -> None:
        """`text` says what is the matter and what to do; None: nothing is."""
        assert name in WARNINGS
        if text is None:
            if self._active.pop(name, None) is not None:
                log.info("warning over name=%s", name)
        else:
            if name not in self._active:
                log.warning("warning name=%s: %s", name, text)
            self._active[name] = text
        self._metrics.warning.labels(name).set(text is not None)
