"""The messages that travel through the pipeline.

A barrier takes a Chandy–Lamport snapshot of the chain: each contributor that it passes adds its part of the state, as
it is after everything before the barrier and nothing behind it. Together the parts are one consistent state, and no
stage had to stop.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.objective import Phase


class MicroBatch(NamedTuple):
    """Samples that make one update of every layer. `seq` is the last fresh sample's number.

    `images` (B, inputs) uint8 or float32; `labels` (B) int64. `fresh` of them, the first, come from the stream. The
    other R are replayed; `ages` (R) int64 says how many samples of the stream ago each came, and is None if R is 0.
    `replicas` is as in `Activities`: 1 if every replica of the network learns this microbatch.
    """

    step: int
    seq: int
    phase: Phase
    images: Tensor
    labels: Tensor
    fresh: int
    ages: Tensor | None = None
    replicas: int = 1


class StageOutput(NamedTuple):
    """A microbatch on its way between two stages. `ready` is a CUDA event: the activities are computed."""

    step: int
    seq: int
    fresh: int
    activities: Activities
    ready: Any = None


class Merge(NamedTuple):
    """After the microbatch `step` the replicas of each stage merge their states."""

    step: int


@dataclass(frozen=True)
class Part:
    """One contributor's part of a barrier, by name: EMA weights and, if it saves, the tensors and JSON values of its
    state."""

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)


class Barrier:
    """Follows the sample `seq` in the stream. Its weights become snapshot `version`, and with `saves` its state a
    checkpoint.

    `on_complete` is called once, on the thread of the last contributor.
    """

    def __init__(
        self,
        *,
        step: int,
        seq: int,
        version: int,
        saves: bool,
        contributors: Iterable[str],
        on_complete: Callable[["Barrier"], None],
    ) -> None:
        self.step = step
        self.seq = seq
        self.version = version
        self.saves = saves
        self._missing = set(contributors)
        self._parts: list[Part] = []
        self._on_complete = on_complete
        self._lock = threading.Lock()

    def contribute(self, name: str, part: Part) -> None:
        """Adds one contributor's part; the last one completes the barrier. Raises KeyError for a second part."""
        with self._lock:
            self._missing.remove(name)
            self._parts.append(part)
            complete = not self._missing
        if complete:
            self._on_complete(self)

    @property
    def weights(self) -> dict[str, Tensor]:
        """All parts' weights."""
        return {name: value for part in self._parts for name, value in part.weights.items()}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All parts' tensors."""
        return {name: value for part in self._parts for name, value in part.tensors.items()}

    @property
    def progress(self) -> dict[str, Any]:
        """All parts' JSON."""
        return {name: value for part in self._parts for name, value in part.progress.items()}
