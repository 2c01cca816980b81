"""The device of these tests, and how large they are.

`tools/gpu` runs them on a CUDA device. `tools/gpu --dry` sets FFSTREAM_GPU_DRY and runs them small on the CPU, so
that a machine without a device shows that they run at all.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from ffstream.data import load
from ffstream.ff.presets import recipe as make_recipe
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.device import compute_reproducibly
from tests.unit.pipeline.run import Store, Stream

DRY = bool(os.environ.get("FFSTREAM_GPU_DRY"))


class Size(NamedTuple):
    """How much is learned."""

    batch: int
    widths: tuple[int, ...]
    steps: int
    many_steps: int


SIZE = Size(4, (16, 12, 8), 20, 400) if DRY else Size(64, (512, 512, 256), 100, 2000)


@pytest.fixture(scope="session")
def device() -> Iterator[str]:
    """`cuda`, or `cpu` in a dry run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    if not DRY:
        compute_reproducibly()  # as a daemon does before it learns
    yield "cpu" if DRY else "cuda"
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def size() -> Size:
    return SIZE


@pytest.fixture(scope="session")
def digits() -> Stream:
    """The embedded training digits, repeated until there are enough."""
    train = load("embedded").train
    repeats = -(-SIZE.batch * SIZE.many_steps // len(train))
    images = np.tile(train.images.reshape(len(train), -1), (repeats, 1))
    return Stream(images, np.tile(train.labels.astype(np.int64), repeats))


@pytest.fixture(scope="session")
def fast() -> Recipe:
    """The preset `fast` in that size: Adam, label-free activities."""
    return make_recipe(
        "fast", widths=SIZE.widths, batch_size=SIZE.batch, warmup_batch_size=SIZE.batch, warmup_samples=0
    )


@pytest.fixture(scope="session")
def smooth(fast: Recipe) -> Recipe:
    """The same with SGD. Adam turns rounding errors into whole steps. While a layer's label vectors are zero, its
    gradients are nothing else: its weights then differ between two kinds of processor."""
    return fast.change(optimizer="sgd", learning_rate=0.1)


@pytest.fixture(scope="session")
def unsupervised(smooth: Recipe) -> Recipe:
    """Layers that learn from hybrids, and a readout of all of them."""
    return smooth.change(
        label_scheme="none",
        goodness="mean_squares",
        negatives="hybrid",
        objective={"kind": "threshold", "alpha": 5.0, "theta": 0.3},
        readout={"kind": "softmax", "optimizer": "sgd", "learning_rate": 0.01},
    )


@pytest.fixture
def store(tmp_path: Path, digits: Stream) -> Iterator[Store]:
    """An empty journal for those digits."""
    store = Store(tmp_path, inputs=digits.images.shape[1], labels=10)
    yield store
    for run in store.runs:
        run.end()
    store.journal.close()
