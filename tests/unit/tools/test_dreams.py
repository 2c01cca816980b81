"""`tools/bench dreams`: errors are those at the end of a sleep phase."""

import numpy as np
import pytest

from ffstream.data import Split
from tools.benchmarks.dreams import Case, Learner

SETTINGS = ("network.batch_size=8", "network.widths=[8,8]")


@pytest.mark.parametrize(("passes", "rounds"), [(0.1, 1), (1, 3), (2, 6), (4, 12)])
def test_phases_end_with_a_whole_round_also_after_several_passes(passes: float, rounds: int) -> None:
    """A pass has 50 samples, so its last microbatch has two of eight. A round: two microbatches, and one of sleep."""
    rng = np.random.default_rng(0)
    train = Split(rng.integers(0, 256, (50, 28, 28), np.uint8), rng.integers(0, 10, 50).astype(np.uint8))
    learner = Learner(Case("wake-sleep", options={"replay": 0, "wake": 2, "sleep": 1}), train, 0, SETTINGS)
    learner.learn(passes)
    microbatches = learner._microbatches
    assert (microbatches.step, microbatches.schedule.position) == (3 * rounds, 0)
