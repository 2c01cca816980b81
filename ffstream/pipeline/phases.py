"""The phase of the next microbatch: whether it comes from the stream or from replay, and which rows it has."""

from dataclasses import dataclass

from ffstream.ff.objective import Phase


@dataclass
class PhaseSchedule:
    """`wake` microbatches of positive rows from the stream, then `sleep` of negative rows from replay, and so on.

    Both zero: interleaved, positive and negative rows together. `sleep` zero alone is a network deprived of sleep.
    """

    wake: int = 0
    sleep: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.position %= max(1, self.wake + self.sleep)  # a saved one may come from a longer schedule

    @property
    def separate(self) -> bool:
        """Whether positive and negative rows come in phases of their own."""
        return self.wake > 0

    @property
    def phase(self) -> Phase:
        """Of the next microbatch."""
        if not self.separate:
            return "interleaved"
        return "wake" if self.position < self.wake else "sleep"

    def advance(self) -> None:
        """One microbatch of the current phase has been given out."""
        if self.separate:
            self.position = (self.position + 1) % (self.wake + self.sleep)
