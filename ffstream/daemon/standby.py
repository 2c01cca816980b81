"""What a standby answers over HTTP, at `listen.standby_http`: that it is alive, and that it is not ready.

    /healthz 200    /readyz 503    /readyz/learn 503    /metrics with ffstream_standby 1

It ends after a takeover: from then on the same metrics are at `listen.http`. So, with the same options for both
daemons of a machine, one address is that of the daemon that serves, and the other that of the standby.
"""

import logging

from ffstream.config import Config
from ffstream.daemon.website import http_server
from ffstream.errors import StartBlocked
from ffstream.metrics import Metrics
from ffstream.server.access import Access
from ffstream.server.http import HttpServer
from ffstream.server.probes import probe_routes
from ffstream.server.readiness import Readiness
from ffstream.util.threads import OnFailure

log = logging.getLogger(__name__)

_NOT_READY = Readiness(False, "standby: it waits for the end of another daemon")
_STOP_S = 2.0


class StandbyHttp:
    """`listen` each second until it listens, `release` after the takeover, then `stop`. Raises ConfigError."""

    def __init__(self, config: Config, access: Access, metrics: Metrics, on_failure: OnFailure) -> None:
        self._config = config
        self._access = access
        self._metrics = metrics
        self._on_failure = on_failure
        self._server: HttpServer | None = None
        self._blocked_by = ""

    def listen(self) -> None:
        """Does nothing if it listens, or if no address is configured.

        If the address is in use, perhaps by another standby, that is logged once.
        """
        if self._server is not None or not self._config.listen.standby_http:
            return
        try:
            self._server = self._make()
        except StartBlocked as error:
            if error.message != self._blocked_by:
                log.warning("the standby is not watched yet error=%r hint=%s", error.message, error.hint)
            self._blocked_by = error.message
            return
        self._server.start()
        log.info("standby answers http=%s", self._server.address)

    def _make(self) -> HttpServer:
        routes = probe_routes(
            self._metrics.registry, alive=lambda: True, predicts=lambda: _NOT_READY, learns=lambda: _NOT_READY
        )
        return http_server(self._config, self._access, routes, self._on_failure, option="standby_http")

    def release(self) -> None:
        """Lets go of the address soon; returns at once."""
        if self._server is not None:
            self._server.end()

    def stop(self, timeout_s: float = _STOP_S) -> bool:
        """False if the deadline passed."""
        return self._server is None or self._server.stop(timeout_s)
