"""kill -9 at random, again and again, while a producer sends: nothing acked is lost, nothing is learned twice, and
the weights at the end are bit for bit those of a daemon that nobody killed."""

import json
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ffstream.client import Control, Producer
from tests.daemons import Daemons, daemons_below
from tests.in_process import INPUTS, SMALL, Running, free_port, images, labels
from tests.support import wait_until

BATCHES = 400
SIZES = (1, 8, 3, 5)  # samples in a message: microbatches begin and end anywhere in one
DETERMINISTIC = (
    "network.rehearsal=4",
    "network.seed=3",
    "learning.partial=wait",
    "learning.publish_every=4",
    "checkpoint.every_samples=150",
    "checkpoint.keep=50",  # so that the journal keeps nearly everything
    "limits.window_messages=32",
)
SAMPLES = sum(SIZES[at % len(SIZES)] for at in range(BATCHES))
DEADLINE_S = 60.0


def message(at: int) -> tuple[Any, Any]:
    size = SIZES[at % len(SIZES)]
    return images(size, seed=at), labels(size, seed=at)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    with daemons_below(tmp_path) as started:
        yield started


def last_checkpoint(state: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder = max((state / "checkpoints").glob("*/manifest.json")).parent
    progress = json.loads((folder / "manifest.json").read_text())["progress"]
    return load_file(folder / "state.safetensors"), progress


def never_killed(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The same samples through a daemon that lives."""
    with Running(folder, *DETERMINISTIC) as running:
        producer = running.producer()
        for at in range(BATCHES):
            producer.send(*message(at))
        producer.flush(DEADLINE_S)
        running.control().wait_idle(DEADLINE_S)
    return last_checkpoint(folder)


def seqs(state: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in (state / "checkpoints").glob("*/manifest.json"))


def journaled(state: Path) -> list[tuple[str, int, int, int]]:
    """What is left of the journal: client, message number, first sequence number, samples."""
    connection = sqlite3.connect(f"file:{state / 'journal.sqlite'}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT client, n, first_seq, count FROM messages ORDER BY first_seq").fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("seed", [1])
def test_killed_again_and_again_it_learns_each_sample_once_and_in_order(
    tmp_path: Path, daemons: Daemons, seed: int
) -> None:
    chance = random.Random(seed)
    endpoints = [f"listen.{name}=tcp://127.0.0.1:{free_port()}" for name in ("learn", "control")]
    settings = [*SMALL, *endpoints, *DETERMINISTIC]
    state = tmp_path / "state"
    daemon = daemons.start(*settings)
    producer = Producer(daemon.learn, client="me", ack_timeout_s=2.0)
    sent, checkpointed_at_kill = 0, []

    def send_until(condition: Any) -> None:
        nonlocal sent
        while sent < BATCHES and not condition():
            producer.send(*message(sent), timeout_s=DEADLINE_S)
            sent += 1

    # The first death comes before the first checkpoint, the others where chance has it: with messages under way.
    moments = [20, *sorted(chance.sample(range(60, BATCHES - 20), 4))]
    for at, moment in enumerate(moments):
        send_until(lambda: sent >= moment)  # noqa: B023
        if at == 2:
            wait_until(lambda: seqs(state), DEADLINE_S, "this time there is a checkpoint")
        checkpointed_at_kill.append((seqs(state) or [0])[-1])
        daemon.kill()
        daemon = daemons.start(*settings)
    assert checkpointed_at_kill[0] == 0
    assert checkpointed_at_kill[-1] > 0
    send_until(lambda: False)
    producer.flush(DEADLINE_S)
    producer.close()

    assert producer.counts.sent == producer.counts.acked == SAMPLES
    assert producer.last_seq == SAMPLES
    assert producer.counts.resent > 0, "no kill met a message under way: this run proves little"
    with Control(daemon.control) as control:
        status = control.wait_idle(DEADLINE_S)
    assert status["accepted"] == SAMPLES
    whole = status["learned"]
    assert SAMPLES - 8 < whole <= SAMPLES
    assert daemon.terminate() == 0

    rows = journaled(state)
    ends = [sum(SIZES[each % len(SIZES)] for each in range(n)) for n in range(BATCHES + 1)]
    assert rows == [("me", n, ends[n - 1] + 1, ends[n] - ends[n - 1]) for n in range(rows[0][1], BATCHES + 1)]
    assert rows[0][2] <= min(seqs(state)) + 1, "the journal reaches back to the oldest checkpoint"

    tensors, progress = last_checkpoint(state)
    expected, expected_progress = never_killed(tmp_path / "alive")
    assert seqs(state)[-1] == seqs(tmp_path / "alive")[-1] == whole
    assert tensors.keys() == expected.keys()
    assert any(name.startswith("layers.") and value.abs().sum() > 0 for name, value in tensors.items())
    different = [name for name in expected if not torch.equal(tensors[name], expected[name])]
    assert different == [], "bit for bit"
    for key in ("step", "phase_position", "memory.added"):
        assert progress[key] == expected_progress[key]
    assert tensors["memory.images"].shape == (100, INPUTS)
