"""What was promised, and what is there in the end.

What counts as what: an ack [n, first, count] promises that message n became the samples first … first+count−1. The
journal says the same of the rows that it still has, which reach back to the oldest of the newest checkpoints; what
was trimmed lay at or below it and has been learned by it. The daemon keeps no record of each learned sample. In every
checkpoint it keeps `replay.added`: how many samples of the stream went by on the way to this state. And the state
itself, equal in every bit to one that learned each sample once and in order, leaves no room for another history.
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

from tests.harness.crashing.stream import KEPT, Heard


@dataclass(frozen=True)
class Account:
    """Samples: acked, acked and gone, in the stream more than once."""

    acked: int
    lost: int
    twice: int
    in_order: bool


@dataclass(frozen=True)
class Remains:
    """What a stopped daemon left."""

    rows: Sequence[Heard]
    checkpoints: Sequence[int]  # the newest, those that the journal reaches back to
    tensors: dict[str, Any]
    progress: dict[str, Any]

    @classmethod
    def of(cls, state: Path) -> "Remains":
        """Reads a state folder."""
        manifests = sorted((state / "checkpoints").glob("*/manifest.json"))
        newest = manifests[-1].parent
        return cls(
            rows=rows_of(state / "journal.sqlite"),
            checkpoints=[int(each.parent.name) for each in manifests][-KEPT:],
            tensors=load_file(newest / "state.safetensors"),
            progress=json.loads(manifests[-1].read_text(encoding="utf-8"))["progress"],
        )

    def differs_from(self, other: "Remains") -> list[str]:
        """Names of what is not equal bit for bit, in the newest checkpoint."""
        names = self.tensors.keys() | other.tensors.keys()
        different = [name for name in names if not _same_bits(self.tensors.get(name), other.tensors.get(name))]
        keys = self.progress.keys() | other.progress.keys()
        different += [f"progress.{key}" for key in keys if self.progress.get(key) != other.progress.get(key)]
        if self.checkpoints[-1] != other.checkpoints[-1]:
            different.append("seq")
        return sorted(different)


def rows_of(journal: Path) -> list[Heard]:
    """What a journal has not forgotten; a daemon may be at work on it."""
    connection = sqlite3.connect(f"file:{journal}?mode=ro", uri=True)
    try:
        return [Heard(*row) for row in connection.execute("SELECT n, first_seq, count FROM messages")]
    finally:
        connection.close()


def _same_bits(one: Any, other: Any) -> bool:
    """Not `==`: that takes 0 for −0, and NaN for nothing."""
    if one is None or other is None:
        return False
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
    )


def settle(sizes: Sequence[int], heard: Iterable[Heard], remains: Remains) -> Account:
    """The account of a stream of messages of those sizes, all acked, after everything was learned."""
    statements = set(heard)
    acked = {each.n: each for each in sorted(statements, reverse=True)}  # the first place that each was given
    statements |= set(remains.rows)
    learned = remains.checkpoints[-1]
    beyond = [min(each.samples, max(0, each.first_seq + each.samples - 1 - learned)) for each in acked.values()]
    rows = set(remains.rows)
    gone = [
        each.samples
        for each in acked.values()
        if remains.checkpoints[0] < each.first_seq + each.samples - 1 <= learned and each not in rows
    ]
    sent, went_by = sum(sizes), remains.progress.get("replay.added", 0)
    firsts = accumulate(sizes, initial=1)
    return Account(
        acked=sum(each.samples for each in acked.values()),
        lost=max(sum(beyond) + sum(gone), sent - learned, sent - went_by),
        twice=max(_twice(statements), learned - sent, went_by - sent),
        in_order=all(
            n in acked and acked[n] == Heard(n, first, count)
            for n, first, count in zip(range(1, len(sizes) + 1), firsts, sizes, strict=False)
        ),
    )


def _twice(statements: Iterable[Heard]) -> int:
    """Samples of messages that were given two places, and sequence numbers that were given to two messages."""
    places = defaultdict(list)
    for each in sorted(statements):
        places[each.n].append(each)
    again = sum(each.samples for several in places.values() for each in several[1:])
    once = sorted(several[0][1:] for several in places.values())
    shared = sum(
        max(0, min(first + count, later + later_count) - later)
        for (first, count), (later, later_count) in pairwise(once)
    )
    return again + shared
