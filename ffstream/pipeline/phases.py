"""Phases: whether the next microbatch comes from the stream or from replay, and which rows it has."""

from dataclasses import dataclass

from ffstream.ff.objective import Phase


@dataclass
class PhaseSchedule:
    """Alternates `wake` microbatches of positive rows from the stream and `sleep` of negative rows from replay.

    Both zero: interleaved, positive and negative rows together. With only `sleep` zero, the network never sleeps.
    """

    wake: int = 0
    sleep: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.position %= max(1, self.wake + self.sleep)  # a saved position may come from a longer schedule

    @property
    def separate(self) -> bool:
        """Whether positive and negative rows come in separate phases."""
        return self.wake > 0

    @property
    def phase(self) -> Phase:
        """The phase of the next microbatch."""
        if not self.separate:
            return "interleaved"
        return "wake" if self.position < self.wake else "sleep"

    def advance(self) -> None:
        """One microbatch of the current phase was sent."""
        if self.separate:
            self.position = (self.position + 1) % (self.wake + self.sleep)
