"""The microbatches that a daemon forms when a data set is streamed to it, pass after pass.

They lie on the recipe's grid, with replayed samples beside the fresh ones, in the phases of the recipe. The stream
pauses after each pass, so that a pass ends with a flushed microbatch and a run of one pass is the beginning of a
longer one.
"""

from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ffstream.config import Config
from ffstream.data import Split
from ffstream.data.streams import hidden, stream
from ffstream.ff.objective import Phase
from ffstream.pipeline.feeder import publish_is_due
from ffstream.pipeline.messages import MicroBatch
from ffstream.pipeline.phases import PhaseSchedule
from ffstream.pipeline.replay_buffer import ReplayBuffer
from ffstream.util.labels import UNLABELLED


class Microbatches:
    """An endless stream of a split. `seed` decides the order, and which samples have no label if `label_fraction` is
    less than 1; the seed of the recipe decides what is replayed."""

    def __init__(self, config: Config, split: Split, seed: int, label_fraction: float = 1.0) -> None:
        self._recipe = config.network
        self._publish_every = config.learning.publish_every
        self._split, self._seed = split, seed
        is_hidden_N = torch.from_numpy(hidden(len(split), label_fraction, seed))
        self._labels_N = torch.from_numpy(split.labels.astype(np.int64)).masked_fill_(is_hidden_N, UNLABELLED)
        # A new schedule applies from the next microbatch on.
        self.schedule = PhaseSchedule(self._recipe.wake, self._recipe.sleep)
        self._replay = ReplayBuffer(self._recipe, used=self._recipe.draws_from_replay)
        self._order: tuple[int, np.ndarray] | None = None
        self.step = 0  # of the next microbatch
        self.seq = 0  # of the last fresh sample

    def next(self) -> MicroBatch:
        """The next microbatch."""
        phase = self.phase
        if phase == "sleep":
            images, labels, ages = self._replay.for_sleep(self.step)
            batch = MicroBatch(self.step, self.seq, phase, images, labels, 0, ages)
        else:
            batch = self._take()
        self.step += 1
        self.schedule.advance()
        return batch

    def _take(self) -> MicroBatch:
        """Samples of the stream, up to the end of the grid or of the pass, and replayed ones beside them."""
        size, recipe = len(self._split), self._recipe
        number, first = divmod(self.seq, size)
        end = min(recipe.batch_end(self.seq), (number + 1) * size)
        at = self._order_of(number)[first : first + end - self.seq]
        images = torch.from_numpy(self._split.images[at].reshape(len(at), -1))
        labels = self._labels_N[torch.from_numpy(at)]
        self.seq = end
        batch = self._replay.beside(MicroBatch(self.step, end, self.phase, images, labels, len(at)))
        self._replay.add(images, labels)
        return batch

    def _order_of(self, number: int) -> np.ndarray:
        if self._order is None or self._order[0] != number:
            passes = stream(self._split, passes=number + 1, seed=self._seed)
            self._order = number, next(islice(passes, number, None))
        return self._order[1]

    @property
    def phase(self) -> Phase:
        """The phase of the next microbatch."""
        return self.schedule.phase

    @property
    def publishes(self) -> bool:
        """Whether a daemon publishes a snapshot after the last microbatch."""
        return publish_is_due(self.step, self._publish_every) or self._waits

    @property
    def _waits(self) -> bool:
        """Whether the pass ends before the next microbatch is complete, so that the stream pauses first."""
        size = len(self._split)
        return self.phase != "sleep" and self._recipe.batch_end(self.seq) > (self.seq // size + 1) * size

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A copy: tensors, and JSON values."""
        tensors, progress = self._replay.state_dict()
        return tensors, {"step": self.step, "seq": self.seq, "phase_position": self.schedule.position, **progress}

    def load_state_dict(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.step, self.seq = progress["step"], progress["seq"]
        self.schedule.position = progress["phase_position"]
        if "replay.added" in progress:
            self._replay.load_state_dict(tensors, progress["replay.added"])
