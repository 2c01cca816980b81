"""The messages of a producer that have no final answer, and those among them that must be sent again."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

_RETRY_MAX_S = 60.0  # whatever the daemon asks for

RETRY_S = 0.1


class Message(NamedTuple):
    """A message as it is sent: the number of samples, the fields of the header except `base`, the payload."""

    samples: int
    fields: dict[str, Any]
    frame: bytes


class Unanswered:
    """Messages by number, lowest first. They are kept until they are acked or rejected for good.

    `bytes`: of all payloads.
    """

    def __init__(self, next_n: int) -> None:
        self.bytes = 0
        self._messages: dict[int, Message] = {}
        self._base = next_n

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, n: object) -> bool:
        return n in self._messages

    def __iter__(self) -> Iterator[int]:
        return iter(self._messages)

    def __getitem__(self, n: int) -> Message:
        return self._messages[n]

    def add(self, n: int, message: Message) -> None:
        """Adds a message. Its number must be above all others."""
        self._messages[n] = message
        self.bytes += len(message.frame)

    def settle(self, n: int) -> Message | None:
        """Removes a message, because it has a final answer. None if it had one before."""
        message = self._messages.pop(n, None)
        if message is not None:
            self.bytes -= len(message.frame)
        return message

    def base(self) -> int:
        """The lowest number. There must be one."""
        while self._base not in self._messages:  # cheaper than the first key of a dict that shrinks from the front
            self._base += 1
        return self._base


class Retries:
    """Messages that the daemon has rejected for now. They are sent again a few at a time.

    After a rejection one message is sent again, and twice as many each time one of them is acked. If all were sent at
    once, most of them would meet the same limit again.
    """

    def __init__(self, burst_max: int) -> None:
        self._burst_max = burst_max
        self._burst = 1
        self._waiting: set[int] = set()
        self._sent: set[int] = set()  # the last burst
        self._due_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def rejected(self, n: int | None, now: float, retry_after_s: float | None) -> None:
        """A message was rejected, or with None a message without a number. Nothing is sent again before it is due."""
        if n is not None:
            self._waiting.add(n)
        self._burst = 1
        self._sent.clear()
        self._due_at = now + min(max(retry_after_s or 0.0, RETRY_S), _RETRY_MAX_S)

    def acked(self, numbers: Iterable[int]) -> None:
        """Messages were acked. The next burst is larger and due at once if they were in the last one."""
        if not self._sent.isdisjoint(numbers):
            self._burst = min(2 * self._burst, self._burst_max)
            self._due_at = 0.0

    def take(self, now: float, credit: int, timeout_s: float) -> list[int]:
        """Returns the next burst if one is due, lowest numbers first. The one after it is due after `timeout_s`."""
        if not self._waiting or not credit or now < self._due_at:
            return []
        burst = sorted(self._waiting)[: min(self._burst, credit)]
        self._sent = set(burst)
        self._waiting -= self._sent
        self._due_at = now + timeout_s
        return burst

    def settle(self, n: int) -> None:
        """A message has a final answer."""
        self._waiting.discard(n)

    def clear(self) -> None:
        """Everything unanswered is sent again, whether it was rejected or not."""
        self._waiting.clear()
