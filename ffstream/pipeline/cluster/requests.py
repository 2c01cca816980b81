"""What the daemon and its keeper say to each other. The daemon made the keeper, so both run the same code."""

from collections.abc import Sequence
from typing import NamedTuple

from ffstream.errors import StagesLost


def is_stopping() -> StagesLost:
    """Why nothing more is placed, once the daemon stops."""
    return StagesLost("the daemon is stopping", hint="learning goes on after its restart")


class Slot(NamedTuple):
    """What the actor of a stage needs."""

    cpus: float = 1.0
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    placement: str = "default"

    def __str__(self) -> str:
        extra = [f"{amount:g} {name}" for name, amount in self.resources]
        return " + ".join([f"{self.cpus:g} CPU", *([f"{self.gpus:g} GPU"] if self.gpus else []), *extra])


class Connect(NamedTuple):
    """Connect to a cluster, or start one. Answered by Connected or Failed."""

    address: str
    cpus: int  # of a cluster on this machine
    resources: tuple[tuple[str, float], ...]
    spares: int


class Connected(NamedTuple):
    """Ray is there."""

    nodes: int


class Place(NamedTuple):
    """Find an actor for each slot, and let all listen. Answered by Placed or Failed.

    There is a slot for each of the `stages` of each of the `replicas`, the first replica first. `client` is the
    daemon's public key.
    """

    slots: Sequence[Slot]
    token: str
    client: str
    encrypt: bool
    timeout_s: float
    replicas: int
    stages: int

    def followers(self, index: int) -> int:
        """From how many other replicas the actor of this slot gets states to merge."""
        return self.replicas - 1 if index < self.stages else 0


class Spot(NamedTuple):
    """Where an actor listens."""

    number: int
    node: str
    pid: int
    host: str
    control: int
    inlet: int
    key: str
    mergers: Sequence[int]  # ports for the other replicas, of a stage of the first one


class Placed(NamedTuple):
    """In the order of the slots."""

    spots: Sequence[Spot]


class Failed(NamedTuple):
    """It is not possible at present."""

    reason: str


class Kill(NamedTuple):
    """End these actors. Not answered."""

    numbers: Sequence[int]


class Lost(NamedTuple):
    """An actor is gone, while it ran a stage. Not a reply."""

    number: int
    reason: str
