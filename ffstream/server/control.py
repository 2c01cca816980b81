"""The control socket: commands for the daemon. They run on threads of their own while the loop keeps serving."""

import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from ffstream.config import Limits
from ffstream.errors import BadHeader, Busy, FFStreamError, Unauthorized, Unavailable
from ffstream.metrics import Metrics
from ffstream.server import followers
from ffstream.server.followers import Answer, Followers, Rejection, Source
from ffstream.server.received import Received
from ffstream.server.router import RouterLoop
from ffstream.util.threads import OnFailure
from ffstream.wire import codec
from ffstream.wire.images import ImageChecker
from ffstream.wire.messages import Hello, Reply, Request

log = logging.getLogger(__name__)

# Checks the arguments on the loop's thread: raises FFStreamError, or returns the work for another thread.
Command = Callable[[dict[str, Any]], Callable[[], dict[str, Any]]]

_COMMANDS_MAX = 64  # at a time, each on a thread
_RESERVED = 8  # of these, for commands that do not wait: commands that do must not delay a stop
_BUSY_POLL_MS = 5
_FOLLOWED_POLL_MS = 20
_LAST_ANSWERS_S = 1.0


class _Running(NamedTuple):
    """A command that runs, and the client that waits for its result."""

    peer: bytes
    id: int
    sender: str
    result: Future[dict[str, Any]]


class ControlLoop(RouterLoop):
    """Thread `ff-control`. `waits` names the commands that may take long. `source`: for the command `snapshot`."""

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
        source: Source | None = None,
    ) -> None:
        super().__init__(
            "control",
            limits,
            metrics,
            on_failure,
            # The control socket takes no samples.
            checker=ImageChecker(checker.image_shape, checker.labels, 0, unlabelled=checker.unlabelled),
            boot=boot,
            payload_max_bytes=0,  # and no payload
            batch_messages=64,
            batch_bytes=1 << 20,
        )
        self._commands = commands
        self._waits = waits
        self._workers = ThreadPoolExecutor(_COMMANDS_MAX, thread_name_prefix="ff-command")
        self._running: list[_Running] = []
        self._followers: Followers | None = None
        if source is not None:
            self._followers = Followers(source, limits, metrics, boot=boot, submit=self._workers.submit)

    def handle(self, batch: list[Received]) -> None:
        """Starts the commands."""
        for received in batch:
            peer, message, payload, *_ = received
            if isinstance(message, Hello):
                self.welcome(peer)
                continue
            assert isinstance(message, Request)
            try:
                codec.expect_payload(payload, 0)
                self._check_right(message.command, received.key)
                if message.command == followers.COMMAND and self._followers is not None:
                    self._followers.add(peer, message, received.sender(), received.key)
                    continue
                work = self._work(message)
            except Exception as error:  # unforeseen arguments must not end the daemon
                self._reject(peer, message.id, received.sender(), error)
                continue
            self._running.append(_Running(peer, message.id, received.sender(), self._workers.submit(work)))

    def _check_right(self, command: str, key: str) -> None:
        """Raises Unauthorized for a command that this client may not give."""
        if command != followers.COMMAND and self._guard is not None and self._guard.may_only_follow(key):
            raise Unauthorized(
                f"this client's key may only be used for {followers.COMMAND}, hello and ping, not for {command}",
                hint="security.follow_clients allows no more; the keys in security.control_clients may do everything",
            )

    def _work(self, request: Request) -> Callable[[], dict[str, Any]]:
        command = self._commands.get(request.command)
        if command is None:
            known = ", ".join(sorted([*self._commands, *([followers.COMMAND] if self._followers else [])]))
            raise BadHeader("unknown command", hint=f"known commands are {known}")
        work = command(request.arguments)
        if len(self._running) >= _COMMANDS_MAX - _RESERVED * (request.command in self._waits):
            raise Busy(f"{len(self._running)} commands are running", hint="try again later")
        return work

    def _reject(self, peer: bytes, id: int, sender: str, error: BaseException) -> None:
        if not isinstance(error, FFStreamError):
            log.error("command failed", exc_info=error)
            error = FFStreamError(repr(error), hint="see the daemon's log")
        self.reject(peer, error, sender=sender, id=id)

    def idle(self) -> None:
        """Replies to the commands that have finished, and to those that wait for a snapshot."""
        if self._followers is not None:
            for each in self._followers.poll():
                self._answer_follower(self._followers, each)
        unfinished = []
        for running in self._running:
            peer, id, sender, result = running
            if not result.done():
                unfinished.append(running)
            elif (error := result.exception()) is None:
                self.reply(peer, Reply(id=id, result=result.result()))
            else:
                self._reject(peer, id, sender, error)
        self._running = unfinished

    def _answer_follower(self, queue: Followers, answer: Answer | Rejection) -> None:
        if isinstance(answer, Rejection):
            self._reject(*answer)
            return
        if self._guard is not None and not self._guard.admits(answer.key):  # removed while the request waited
            self._reject(
                answer.peer, answer.id, answer.sender, self._key_removed(self._guard, answer.peer, answer.key)
            )
            return
        reply = Reply(id=answer.id, result=answer.result)
        queue.sent(answer, self.reply_tracked(answer.peer, reply, answer.encoded.frames if answer.encoded else ()))

    def _poll_ms(self) -> int:
        if self._running:
            return _BUSY_POLL_MS
        return _FOLLOWED_POLL_MS if self._followers is not None and self._followers.waits else super()._poll_ms()

    def finish(self) -> None:
        """Answers the running commands. When the daemon stops, a command ends soon, or is not waited for."""
        wait([each.result for each in self._running], _LAST_ANSWERS_S)
        self.idle()
        if self._followers is not None:
            for each in self._followers.reject_all(
                Unavailable("the daemon is stopping", hint="follow it again later")
            ):
                self._reject(*each)

    def stop(self, timeout_s: float) -> bool:
        """Ends the loop, then the threads that run commands."""
        stopped = super().stop(timeout_s)
        self._workers.shutdown(wait=False, cancel_futures=True)
        return stopped
