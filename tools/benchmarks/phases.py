"""Wake and sleep in long phases: the error at the end of each phase, and what happens without sleep.

The microbatches are those of a daemon (see accuracy/stream.py), and the serial reference learns them.
"""

from collections.abc import Sequence
from itertools import pairwise, product

import torch

from ffstream.config import load
from ffstream.data import Dataset
from ffstream.data.dataset import Split
from ffstream.pipeline.device import choose_product_dtype
from ffstream.pipeline.phases import PhaseSchedule
from tools.benchmarks.accuracy.learners import ForwardForward, held_out_error, splits_of
from tools.benchmarks.accuracy.stream import Microbatches
from tools.benchmarks.report import Report

_POINTS = (0, 250, 500, 1000, 2000, 4000, 8000, 16_000)
_RECOVERIES = 2


class Learner:
    """A network that learns one split in phases of `length` microbatches, and is judged on another one."""

    def __init__(self, train: Split, judge: Split, length: int, seed: int, settings: Sequence[str]) -> None:
        own = ("preset=wake-sleep", f"seed={seed}", f"wake={length}", f"sleep={length}")
        config = load(settings=[*(f"network.{each}" for each in own), *settings], environment={})
        dtype = choose_product_dtype("auto", torch.device("cpu"))
        self._learner = ForwardForward(config.network, dtype)
        self._stream = Microbatches(config, train, seed)
        self._length = length
        self._rounds_per_pass = len(train) / config.network.batch_size / length
        self._judge = judge

    def learn(self, microbatches: int) -> None:
        """Learns that many, in the phases that are due."""
        for _ in range(microbatches):
            self._learner.learn(self._stream.next())

    def rounds(self, passes: float) -> int:
        """How many rounds of a wake and a sleep phase there are in that many passes; at least one."""
        return max(1, int(passes * self._rounds_per_pass))

    def wake(self, microbatches: int) -> None:
        """Only wake microbatches."""
        self._stream.schedule = PhaseSchedule(wake=1)
        self.learn(microbatches)

    def sleep(self, microbatches: int) -> None:
        """Only sleep microbatches."""
        self._stream.schedule = PhaseSchedule(wake=1, sleep=microbatches, position=1)
        self.learn(microbatches)

    def error(self) -> float:
        """Error of the EMA weights, in percent."""
        return 100 * held_out_error(self._learner, self._judge)


def run(
    report: Report,
    dataset: Dataset,
    *,
    lengths: Sequence[int],
    seeds: int,
    passes: float,
    validation: bool,
    settings: Sequence[str],
) -> None:
    """The error after the last wake and the last sleep phase, for each length of the phases and each seed."""
    train, judge, _ = splits_of(dataset, validation=validation)
    for length, seed in product(lengths, range(seeds)):
        learner = Learner(train, judge, length, seed, settings)
        rounds = learner.rounds(passes)
        for number, phase in product(range(rounds), ("wake", "sleep")):
            learner.learn(length)
            if number == rounds - 1:
                report.add(f"phases/{dataset.name}/{length}/seed{seed}/after_{phase}", learner.error(), "%")


def deprivation(
    report: Report,
    dataset: Dataset,
    *,
    length: int,
    seed: int,
    passes: float,
    microbatches: int,
    recovery: int,
    validation: bool,
    settings: Sequence[str],
) -> None:
    """The error after wake microbatches without sleep, and after each of two rounds of sleep and wake: `recovery` and
    `length` microbatches."""
    train, judge, _ = splits_of(dataset, validation=validation)
    learner = Learner(train, judge, length, seed, settings)
    learner.learn(2 * length * learner.rounds(passes))
    name = f"deprivation/{dataset.name}/{length}/seed{seed}"
    report.add(f"{name}/rested", learner.error(), "%")
    points = [each for each in _POINTS if each < microbatches]
    for before, after in pairwise([*points, microbatches]):
        learner.wake(after - before)
        report.add(f"{name}/wake_{after}", learner.error(), "%")
    for number in range(1, _RECOVERIES + 1):
        learner.sleep(recovery)
        report.add(f"{name}/sleep_{number}", learner.error(), "%")
        learner.wake(length)
        report.add(f"{name}/sleep_{number}_wake", learner.error(), "%")
