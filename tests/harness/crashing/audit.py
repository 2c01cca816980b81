"""Compares what was promised with what a daemon has left on disk.

An ack entry [n, first, count] promises that message n became the samples first … first + count - 1. The rows of the
journal say the same. The journal holds all samples after the oldest of the newest checkpoints; earlier rows were
trimmed because those checkpoints have learned them.

There is no record of each learned sample. Instead, a checkpoint counts in `replay.added` how many samples of the
stream passed on the way to this state. And its tensors must be bit-equal to those of a run that learned each sample
once and in order, which no other history can produce.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.harness.crashing.stream import KEPT_CHECKPOINTS, StoredMessage


@dataclass(frozen=True)
class Audit:
    """Numbers of samples: acked, acked but missing, learned or stored more than once."""

    acked: int
    lost: int
    twice: int
    in_order: bool


@dataclass(frozen=True)
class FinalState:
    """What a stopped daemon has left on disk."""

    rows: Sequence[StoredMessage]
    checkpoints: Sequence[int]  # sequence numbers of the newest ones; the journal holds all samples after the first
    tensors: dict[str, Any]  # of the newest checkpoint, as is `progress`
    progress: dict[str, Any]

    @classmethod
    def read(cls, state: Path) -> "FinalState":
        """Reads a state folder."""
        manifests = sorted((state / "checkpoints").glob("*/manifest.json"))
        newest = manifests[-1].parent
        return cls(
            rows=journal_rows(state / "journal.sqlite"),
            checkpoints=[int(each.parent.name) for each in manifests][-KEPT_CHECKPOINTS:],
            tensors=load_file(newest / "state.safetensors"),
            progress=json.loads(manifests[-1].read_text(encoding="utf-8"))["progress"],
        )

    def differences(self, other: "FinalState") -> list[str]:
        """Names of the parts of the newest checkpoint that are not bit-equal."""
        names = self.tensors.keys() | other.tensors.keys()
        different = [name for name in names if not _bit_equal(self.tensors.get(name), other.tensors.get(name))]
        keys = self.progress.keys() | other.progress.keys()
        different += [f"progress.{key}" for key in keys if self.progress.get(key) != other.progress.get(key)]
        if self.checkpoints[-1] != other.checkpoints[-1]:
            different.append("seq")
        return sorted(different)


def journal_rows(journal: Path) -> list[StoredMessage]:
    """The messages that a journal holds. A daemon may use it at the same time."""
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        return [StoredMessage(*row) for row in connection.execute("SELECT n, first_seq, count FROM messages")]
    finally:
        connection.close()


def _bit_equal(one: Any, other: Any) -> bool:
    """Compares bytes, because == takes 0 and -0 for equal, and NaN for unequal to itself."""
    if one is None or other is None:
        return False
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    )


def audit(sizes: Sequence[int], acks: Iterable[StoredMessage], final: FinalState) -> Audit:
    """Audits a stream of messages of these sizes, which were all acked and should all be learned."""
    statements = set(acks)
    acked = {each.n: each for each in sorted(statements, reverse=True)}  # the lowest sequence number given to each
    statements |= set(final.rows)
    learned = final.checkpoints[-1]
    not_learned = [min(each.samples, max(0, each.last_seq - learned)) for each in acked.values()]
    rows = set(final.rows)
    not_in_journal = [
        each.samples
        for each in acked.values()
        if final.checkpoints[0] < each.last_seq <= learned and each not in rows
    ]
    sent, passed = sum(sizes), final.progress.get("replay.added", 0)
    firsts = accumulate(sizes, initial=1)
    return Audit(
        acked=sum(each.samples for each in acked.values()),
        lost=max(sum(not_learned) + sum(not_in_journal), sent - learned, sent - passed),
        twice=max(_stored_twice(statements), learned - sent, passed - sent),
        in_order=all(
            n in acked and acked[n] == StoredMessage(n, first, count)
            for n, first, count in zip(range(1, len(sizes) + 1), firsts, sizes, strict=False)
        ),
    )


def _stored_twice(statements: Iterable[StoredMessage]) -> int:
    """Samples of messages that were stored at two places, and sequence numbers that were given to two messages."""
    by_message = defaultdict(list)
    for each in sorted(statements):
        by_message[each.n].append(each)
    repeated = sum(each.samples for several in by_message.values() for each in several[1:])
    places = sorted(several[0][1:] for several in by_message.values())
    shared = sum(
        max(0, min(first + count, later + later_count) - later)
        for (first, count), (later, later_count) in pairwise(places)
    )
    return repeated + shared
