"""What a running daemon says about itself: its status, and whether it predicts and learns."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from ffstream import __version__
from ffstream.config import Config
from ffstream.ff.presets import preset_of
from ffstream.learning.learner import Learner
from ffstream.server.admission import Admission
from ffstream.server.readiness import Hindrances, Readiness, of_predictions, of_samples


class Reports:
    """For any thread. `state` gives the state in one word, `rates` what was measured over the last seconds."""

    def __init__(
        self,
        config: Config,
        learner: Learner,
        admission: Admission,
        *,
        state: Callable[[], str],
        failed: Callable[[], bool],
        predicts: Callable[[], bool],
        rates: Callable[[], Mapping[str, float | None]],
        endpoints: Callable[[], dict[str, str]],
    ) -> None:
        self._config = config
        self._learner = learner
        self._admission = admission
        self._state = state
        self._failed = failed
        self._predicts = predicts
        self._rates = rates
        self._endpoints = endpoints
        self._preset = preset_of(config.network)
        self._began = time.monotonic()

    def alive(self) -> bool:
        """Whether no thread has died or is stuck."""
        return not self._failed()

    def predict_readiness(self) -> Readiness:
        """Whether predictions are answered."""
        return of_predictions(self._state(), answers=self._predicts(), **self._hindrances())

    def learn_readiness(self) -> Readiness:
        """Whether samples are accepted."""
        return of_samples(self._state(), **self._hindrances())

    def _hindrances(self) -> Hindrances:
        reason = self._admission.rejection_reason()
        return {
            "paused": self._learner.paused,
            "refusing": reason.code if reason else None,
            "interrupted": self._learner.restarts.summary(),
        }

    def lag_s(self) -> float | None:
        """How long the samples that wait will take. None: not known."""
        return self._lag_s(self._learner.backlog)

    def _lag_s(self, waiting: int) -> float | None:
        if not waiting:
            return 0.0
        learned_per_s = self._rates()["learned_per_s"]
        return waiting / learned_per_s if learned_per_s else None

    def status(self) -> dict[str, Any]:
        """What the daemon is doing: the one document that the control command, /status and /api/live give."""
        state, reason = self._state(), self._admission.rejection_reason()
        learning = self._learner.status()
        return {
            "time": time.time(),
            "uptime_s": time.monotonic() - self._began,
            "state": "paused" if state == "ready" and self._learner.paused else state,
            "refusing": reason and reason.code,
            "refusing_hint": reason and reason.hint,
            "version": __version__,
            "preset": self._preset,
            "teach": self._config.http.teach,
            "image_shape": list(self._config.network.image_shape),
            "labels": self._config.network.labels,
            **learning,
            **self._admission.status(),
            "rates": self._rates(),
            "lag_s": self._lag_s(learning["backlog"]),
            "endpoints": self._endpoints(),
        }
