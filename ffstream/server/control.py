"""The control socket: commands to the daemon. They run beside the loop, which goes on serving."""

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from ffstream.config import Limits
from ffstream.errors import BadHeader, Busy, FFStreamError
from ffstream.metrics import Metrics
from ffstream.server.router import Received, RouterLoop
from ffstream.util.threads import OnFailure
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import Hello, Reply, Request

log = logging.getLogger(__name__)

# Looks at the arguments, on the loop's thread: raises FFStreamError, or returns what is to be done on another one.
Command = Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]

_WAITING_MAX = 64  # a thread each, made when needed
_RESERVED = 8  # of these, for commands that answer at once: whoever waits keeps nobody from saying stop
_BUSY_POLL_MS = 5
_LAST_ANSWERS_S = 1.0


class ControlLoop(RouterLoop):
    """Thread `ff-control`. Each command's work returns the reply's result. `waits` names those that may take long."""

    def __init__(
        self,
        commands: Mapping[str, Command],
        limits: Limits,
        metrics: Metrics,
        on_failure: OnFailure,
        *,
        checker: ImageChecker,
        boot: str,
        waits: Collection[str] = (),
    ) -> None:
        super().__init__(
            "control",
            limits,
            metrics,
            on_failure,
            checker=ImageChecker(checker.image_shape, checker.labels, 0),  # it takes no samples
            boot=boot,
            payload_max_bytes=0,  # no command has one
            batch_messages=64,
            batch_bytes=1 << 20,
        )
        self._commands = commands
        self._waits = waits
        self._workers = ThreadPoolExecutor(_WAITING_MAX, thread_name_prefix="ff-command")
        self._waiting: list[tuple[bytes, int, str, Future[dict[str, Any]]]] = []

    def handle(self, batch: list[Received]) -> None:
        """Starts each command."""
        for received in batch:
            peer, message, payload, *_ = received
            if isinstance(message, Hello):
                self.welcome(peer)
                continue
            assert isinstance(message, Request)
            try:
                codec.expect_payload(payload, 0)
                command = self._commands.get(message.command)
                if command is None:
                    known = ", ".join(sorted(self._commands))
                    raise BadHeader("unknown command", hint=f"there are {known}")
                work = command(message.arguments)
                if len(self._waiting) >= _WAITING_MAX - _RESERVED * (message.command in self._waits):
                    raise Busy(f"{len(self._waiting)} commands are running", hint="try again later")
            except Exception as error:  # a strange argument is no reason to end the daemon
                self._refuse(peer, message.id, received.sender(), error)
                continue
            self._waiting.append((peer, message.id, received.sender(), self._workers.submit(work)))

    def _refuse(self, peer: bytes, id: int, sender: str, error: BaseException) -> None:
        if not isinstance(error, FFStreamError):
            log.error("command failed", exc_info=error)
            error = FFStreamError(repr(error), hint="see the daemon's log")
        self.refuse(peer, error, sender=sender, id=id)

    def idle(self) -> None:
        """Replies to what has finished."""
        running = []
        for peer, id, sender, future in self._waiting:
            if not future.done():
                running.append((peer, id, sender, future))
                continue
            error = future.exception()
            if error is None:
                self.reply(peer, Reply(id=id, result=future.result()))
            else:
                self._refuse(peer, id, sender, error)
        self._waiting = running

    def _poll_ms(self) -> int:
        return _BUSY_POLL_MS if self._waiting else super()._poll_ms()

    def finish(self) -> None:
        """Answers what is under way: when the daemon stops, a command ends soon, or is not waited for."""
        wait([future for *_, future in self._waiting], _LAST_ANSWERS_S)
        self.idle()

    def stop(self, timeout_s: float) -> bool:
        """Ends the loop, then the workers: nothing is submitted to them any more."""
        stopped = super().stop(timeout_s)
        self._workers.shutdown(wait=False, cancel_futures=True)
        return stopped
