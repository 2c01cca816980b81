"""One run of one learner over a stream: points along the way, and a state from which a killed run continues.

In a folder of runs, each run has two files. `NAME.state` is what torch saved: the state of the learner and of the
replay buffer, the position in the stream, and all points so far. It is replaced as a whole after each point, so it is
valid if and only if it exists. `NAME.jsonl` has the same points for people, one JSON object a line.

Predictions before learning (prequential) are made in the first pass only, with the weights that a daemon would have
published by then. Seconds are CPU seconds of the process in `learn`.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ffstream.data import Split
from ffstream.pipeline.messages import MicroBatch
from ffstream.util.durable import fsync, fsync_entry
from ffstream.util.labels import UNLABELLED
from tools.benchmarks.accuracy.learners import Learner, held_out_error
from tools.benchmarks.accuracy.stream import Microbatches


@dataclass(frozen=True)
class Point:
    """After `samples` fresh samples: CPU seconds of learning, samples with a label predicted before learned, how many
    of them were wrong, and the share of wrong predictions on held-out data, where it was measured."""

    samples: int
    seconds: float
    predicted: int
    wrong: int
    error: float | None = None


@dataclass(frozen=True)
class Plan:
    """How long a run is, and where it is evaluated.

    `pass_samples`: samples in a pass. `every`: samples between two points. `every_error`: the error on held-out data
    is measured at each point, not only at the end of a pass.
    """

    pass_samples: int
    every: int
    every_error: bool


class Run:
    """A run of a learner. With a folder, it begins where the run of that name there has ended."""

    def __init__(
        self, learner: Learner, microbatches: Microbatches, held_out: Split, plan: Plan, files: "Files | None" = None
    ) -> None:
        self.learner, self._microbatches, self._plan = learner, microbatches, plan
        self._held_out = held_out
        self.points: list[Point] = []
        self._seconds, self._predicted, self._wrong = 0.0, 0, 0
        self._files = files
        self._published = learner.weights()
        if files is not None and (kept := files.load()) is not None:
            self._restore(kept)
        self._predict = learner.predictor(self._published)

    def advance(self, samples: int, seconds: float = 0.0) -> None:
        """Learns up to that many samples of the stream, then on until that many CPU seconds were spent.

        The error is measured where either is reached. Seconds are compared as points have them, in milliseconds.
        """
        while self._microbatches.seq < samples or self._spent_s < seconds:
            before, spent_s = self._microbatches.seq, self._spent_s
            self._learn(self._microbatches.next())
            after, plan = self._microbatches.seq, self._plan
            ends_pass = after > before and after % plan.pass_samples == 0
            measured = ends_pass or before < samples <= after or spent_s < seconds <= self._spent_s
            if measured or after // plan.every > before // plan.every:
                self._add_point(measured=plan.every_error or measured)

    @property
    def _spent_s(self) -> float:
        return round(self._seconds, 3)

    def _learn(self, batch: MicroBatch) -> None:
        if batch.fresh and self._microbatches.seq <= self._plan.pass_samples:
            labels_B = batch.labels[: batch.fresh]
            known_B = labels_B != UNLABELLED
            self._predicted += int(known_B.sum())
            predicted_B = self._predict(batch.images[: batch.fresh])
            self._wrong += int((predicted_B != labels_B)[known_B].sum())
        start = time.process_time()
        self.learner.learn(batch)
        self._seconds += time.process_time() - start
        if self._microbatches.publishes and self._microbatches.seq < self._plan.pass_samples:
            self._published = self.learner.weights()
            self._predict = self.learner.predictor(self._published)

    def _add_point(self, *, measured: bool) -> None:
        now = held_out_error(self.learner, self._held_out) if measured else None
        self.points.append(Point(self._microbatches.seq, self._spent_s, self._predicted, self._wrong, now))
        if self._files is not None:
            self._files.save(self._state(), self.points)

    # --- state ---------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        tensors, progress = self._microbatches.state_dict()
        return {
            "learner": self.learner.state_dict(),
            "published": self._published,
            "replay": tensors,
            "position": progress,
            "counts": [self._seconds, self._predicted, self._wrong],
            "points": [asdict(point) for point in self.points],
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self._published = state["published"]
        self._microbatches.load_state_dict(state["replay"], state["position"])
        self._seconds, self._predicted, self._wrong = state["counts"]
        self.points = [Point(**each) for each in state["points"]]


class Files:
    """The files of one run. What the result depends on is in its name as a digest, so another recipe never continues
    from them."""

    def __init__(self, folder: Path, name: str, *depends_on: str) -> None:
        digest = hashlib.sha256("\0".join(depends_on).encode()).hexdigest()[:10]
        folder.mkdir(parents=True, exist_ok=True)
        self.state = folder / f"{name}-{digest}.state"
        self.points = folder / f"{name}-{digest}.jsonl"

    def load(self) -> dict[str, Any] | None:
        """The state that was saved last, None if there is none."""
        if not self.state.exists():
            return None
        found: dict[str, Any] = torch.load(self.state, weights_only=True)
        return found

    def save(self, state: dict[str, Any], points: list[Point]) -> None:
        """Replaces both files. A crash leaves the old state or the new one."""
        with _replaced(self.state) as temporary:
            torch.save(state, temporary)
        with _replaced(self.points) as temporary:
            temporary.write_text("".join(json.dumps(asdict(point)) + "\n" for point in points), encoding="utf-8")


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path`, flushed to the disk, at the end of the block."""
    temporary = path.with_name(f"{path.name}.tmp")
    yield temporary
    fsync(temporary)
    temporary.replace(path)
    fsync_entry(path)
