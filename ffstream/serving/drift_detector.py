"""Reports when the prequential error rises: ADWIN (Bifet and Gavaldà 2007), from the package river.

It only reports. What layers do by themselves when the concept has changed is in `ff/adaptation.py`. Its window is not
saved: after a restart it begins with the samples that are predicted next.
"""

import logging
from typing import Any

from torch import Tensor

from ffstream.config import PrequentialSection
from ffstream.errors import ConfigError
from ffstream.metrics import Metrics

log = logging.getLogger(__name__)


class DriftDetector:
    """For the thread that evaluates."""

    def __init__(self, adwin: Any, metrics: Metrics) -> None:
        """`adwin` is a `river.drift.ADWIN`."""
        self._adwin = adwin
        self._metrics = metrics

    def add(self, wrong_B: Tensor, seq: int) -> None:
        """Takes which predictions of a microbatch were wrong (B; bool). `seq` is that of its last sample."""
        for wrong in wrong_B.tolist():
            before = self._adwin.estimation
            self._adwin.update(wrong)
            # ADWIN drops the part of its window that differs. A falling error is learning, not a drift.
            if self._adwin.drift_detected and self._adwin.estimation > before:
                self._metrics.drifts.inc()
                self._metrics.drift_seq.set(seq)
                log.warning(
                    "drift detected seq=%d error=%.4f earlier_error=%.4f", seq, self._adwin.estimation, before
                )


def make_detector(options: PrequentialSection, metrics: Metrics) -> DriftDetector | None:
    """The detector that the options name; None for none. Raises ConfigError if its package is not installed."""
    if options.drift_detector == "none":
        return None
    try:
        from river.drift import ADWIN
    except ImportError as error:
        raise ConfigError(
            'prequential.drift_detector = "adwin": the package river is not installed',
            hint='pip install "ffstream[drift]", or set prequential.drift_detector to "none"',
        ) from error
    adwin: Any = ADWIN
    return DriftDetector(adwin(delta=options.drift_delta), metrics)
