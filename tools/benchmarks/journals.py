"""A journal full of random samples."""

import numpy as np

from ffstream.journal.journal import Entry, Journal


def fill(journal: Journal, inputs: int, samples: int, messages: int, commit: int = 32) -> None:
    """Stores so many messages of `samples` samples, all with the same images and labels, `commit` in a commit."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (samples, inputs), dtype=np.uint8).tobytes()
    labels = draw.integers(0, 10, samples).astype("<u2").tobytes()
    for first in range(1, messages + 1, commit):
        numbers = range(first, min(first + commit, messages + 1))
        journal.append([Entry("bench", n, n, samples, "uint8", labels, images) for n in numbers])
