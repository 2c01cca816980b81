"""The commands of the control socket: arguments are checked first, then the work is done.

Each command takes the request's arguments on the control loop's thread, raises BadHeader for wrong ones, and returns
the work, which another thread does. The work's result is the reply; what it raises is an error reply.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ffstream.config import Config
from ffstream.errors import BadHeader, Busy, FFStreamError
from ffstream.journal.journal import Head
from ffstream.learning.learner import Learner
from ffstream.server.admission import Admission
from ffstream.server.control import Command

_COMMAND_S = 60.0  # time limit of a command whose request has no timeout_s


class Commands:
    """The commands of one daemon, by name in `table`. `waits` names those that may take long."""

    waits = frozenset({"wait_idle", "checkpoint", "rollback", "drain"})

    def __init__(
        self,
        config: Config,
        learner: Learner,
        head: Head,
        admission: Admission,
        status: Callable[[], dict[str, Any]],
        request_stop: Callable[[], None],
    ) -> None:
        self._config = config
        self._learner = learner
        self._head = head
        self._admission = admission
        self._status = status
        self._request_stop = request_stop
        self._draining = threading.Lock()
        self.table: dict[str, Command] = {
            "status": lambda arguments: self._status,
            "wait_idle": lambda arguments: partial(self._wait_idle, _seconds(arguments)),
            "checkpoint": lambda arguments: partial(self._checkpoint, _seconds(arguments)),
            "pause": lambda arguments: partial(self._pause, True),
            "resume": lambda arguments: partial(self._pause, False),
            "rollback": self._rollback,
            "drain": lambda arguments: partial(self._drain, _seconds(arguments)),
            "stop": lambda arguments: self._stop,
            "config": lambda arguments: self._show_config,
        }

    def _show_config(self) -> dict[str, Any]:
        return {"config": self._config.model_dump(mode="json")}

    def _wait_idle(self, timeout_s: float) -> dict[str, Any]:
        self._learner.wait_idle(timeout_s)
        return self._status()

    def _checkpoint(self, timeout_s: float) -> dict[str, Any]:
        written = self._learner.checkpoint(timeout_s)
        return {"seq": written.seq, "bytes": written.bytes, "seconds": written.seconds}

    def _pause(self, paused: bool) -> dict[str, Any]:
        self._learner.pause(paused)
        return {"paused": paused}

    def _rollback(self, arguments: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        to, later = arguments.get("to"), arguments.get("later", "relearn")
        if type(to) is not int or not 0 <= to < 2**63:
            raise BadHeader("rollback.to is not a sequence number", hint="ffstream rollback --to SEQ")
        if later not in ("relearn", "skip"):  # not a set: a list or a map has no hash
            raise BadHeader("rollback.later is neither relearn nor skip", hint="relearn is the default")
        return lambda: self._learner.rollback(to, skip=later == "skip")._asdict()

    def _drain(self, timeout_s: float) -> dict[str, Any]:
        """Accepts no more samples, learns what is acked, then stops. Rejected while learning is paused."""
        if not self._draining.acquire(blocking=False):
            raise Busy("another drain is under way", hint="it stops the daemon when it is done")
        try:
            self._learner.raise_if_paused()
            self._admission.draining = True
            while True:
                accepted, result = self._head.seq, self._wait_idle(timeout_s)
                if accepted == self._head.seq:  # no commit was in hand
                    break
        except FFStreamError:
            self._admission.draining = False
            raise
        finally:
            self._draining.release()
        self._request_stop()
        return result

    def _stop(self) -> dict[str, Any]:
        self._request_stop()
        return {"stopping": True}


def _seconds(arguments: dict[str, Any]) -> float:
    value = arguments.get("timeout_s", _COMMAND_S)
    if not isinstance(value, int | float) or not 0 <= value <= 86_400:
        raise BadHeader("timeout_s is not a number of seconds", hint="0 to 86400")
    return float(value)
