"""What the next microbatch is: from the stream or from memory, and with which polarities."""

from dataclasses import dataclass

from ffstream.ff.layer import Polarity


@dataclass
class PhaseSchedule:
    """`wake` microbatches of positive data from the stream, then `sleep` of negative data from memory, and so on.

    Both zero: interleaved, positive and negative together. `sleep` zero alone is a network deprived of sleep.
    """

    wake: int = 0
    sleep: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        self.position %= max(1, self.wake + self.sleep)  # a saved one may come from a longer schedule

    @property
    def separate(self) -> bool:
        """Whether polarities come apart."""
        return self.wake > 0

    @property
    def polarity(self) -> Polarity:
        """What the next microbatch is."""
        if not self.separate:
            return "interleaved"
        return "wake" if self.position < self.wake else "sleep"

    def advance(self) -> None:
        """One microbatch of the current phase has been given out."""
        if self.separate:
            self.position = (self.position + 1) % (self.wake + self.sleep)
