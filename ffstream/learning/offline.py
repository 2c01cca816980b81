"""What a state folder shows without a daemon: a checkpoint, and the samples that are still in the journal.

Nothing is written, and a daemon may be running. Mistakes are those of a checkpoint that has not learned the samples,
as in prequential evaluation. After a clean stop the newest checkpoint has learned all of them, so an older one
predicts.

Shapes: B samples, I inputs.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.checkpoint import manifest
from ffstream.checkpoint.manifest import CHECKPOINTS
from ffstream.checkpoint.weights import Weights, of_checkpoint, of_newest
from ffstream.errors import NoSamples
from ffstream.ff.classifier import Classifier
from ffstream.ff.recipe import Recipe
from ffstream.journal import inspection
from ffstream.journal.reader import Reader
from ffstream.journal.schema import JOURNAL
from ffstream.metrics import Metrics
from ffstream.pipeline.batcher import Batcher
from ffstream.serving.cached import Record
from ffstream.serving.inspection import Inspector
from ffstream.serving.mistakes import Mistakes
from ffstream.serving.recent import SAMPLES_MAX, RecentSamples
from ffstream.serving.snapshot import Snapshot, Snapshots
from ffstream.util.error_record import WINDOW_SAMPLES
from ffstream.util.labels import UNLABELLED

_ENOUGH = 1000  # mistakes of fewer samples say little, so an older checkpoint with more of them is better


class Samples(NamedTuple):
    """Samples with a label, and the sequence number of each."""

    images_BI: Tensor
    labels_B: Tensor
    seqs_B: Tensor


class Evaluated:
    """What an evaluation keeps to look at."""

    def __init__(self, labels: int) -> None:
        self.mistakes = Mistakes(labels)
        self.recent = RecentSamples()


def newest(state: Path) -> Inspector:
    """The newest checkpoint, with the newest samples of the journal. Raises what `of_newest` and a journal raise."""
    weights = of_newest(state / CHECKPOINTS)
    evaluated = Evaluated(weights.recipe.labels)
    for batch in _read(state, weights.recipe, 0, SAMPLES_MAX):
        evaluated.recent.add(batch.images_BI, batch.labels_B)
    return _inspector(weights, evaluated)


def mistakes(state: Path) -> Record:
    """As `Inspector.mistakes`, with `seq` of the checkpoint that predicts, `first_seq` and `last_seq` of the samples.

    Raises NoSamples if no checkpoint has samples after it in the journal.
    """
    folder = state / CHECKPOINTS
    newest_weights = of_newest(folder)
    seq = _predicting(state, manifest.seqs(folder), newest_weights.seq)
    weights = newest_weights if seq == newest_weights.seq else of_checkpoint(manifest.folder_of(folder, seq))
    classifier = weights.network().classifier()
    evaluated = Evaluated(weights.recipe.labels)
    seqs: list[int] = []
    for batch in _read(state, weights.recipe, seq, WINDOW_SAMPLES):
        prediction = classifier.predict(batch.images_BI)
        evaluated.mistakes.add(batch.images_BI, batch.labels_B, prediction, batch.seqs_B)
        seqs += [int(batch.seqs_B[0]), int(batch.seqs_B[-1])]
    if not seqs:
        raise NoSamples(f"no sample after checkpoint {seq} has a label", hint="send samples with labels")
    record = _inspector(weights, evaluated, classifier).mistakes()
    return record | {"seq": seq, "first_seq": seqs[0], "last_seq": seqs[-1]}


def _inspector(weights: Weights, evaluated: Evaluated, classifier: Classifier | None = None) -> Inspector:
    snapshots = Snapshots(Metrics())
    snapshots.publish(Snapshot(classifier or weights.network().classifier(), 1, weights.seq))
    return Inspector(weights.recipe, snapshots, lambda: evaluated)


def _predicting(state: Path, seqs: list[int], newest_seq: int) -> int:
    """The checkpoint that predicts: the newest one that has not learned enough samples, or all of the journal."""
    with _journal(state) as connection:
        first, last = _range(connection)
    usable = [seq for seq in seqs if first - 1 <= seq < last and seq <= newest_seq]
    if not usable:
        raise NoSamples(
            f"checkpoint {newest_seq} has learned every sample in the journal, and so have the older ones",
            hint="use --at with a running daemon, which remembers its mistakes, or send more samples",
        )
    return next((seq for seq in reversed(usable) if last - seq >= _ENOUGH), usable[0])


@contextmanager
def _journal(state: Path) -> Iterator[sqlite3.Connection]:
    """A connection that sees the journal as it is now, whatever a daemon deletes meanwhile."""
    with inspection.opened(state / JOURNAL) as connection:
        connection.execute("BEGIN")
        yield connection


def _range(connection: sqlite3.Connection) -> tuple[int, int]:
    """The first and the last sample in the journal; 1 and 0 if there is none."""
    query = "SELECT min(first_seq), max(first_seq + count - 1) FROM messages"
    first, last = connection.execute(query).fetchone()
    return first or 1, last or 0


def _read(state: Path, recipe: Recipe, beyond: int, samples_max: int) -> list[Samples]:
    """The newest samples after `beyond` that have a label, in order."""
    found = []
    with _journal(state) as connection:
        first, last = _range(connection)
        batcher = Batcher(Reader(state / JOURNAL, connection), recipe, max(beyond, first - 1, last - samples_max))
        while (batch := batcher.next(flush=True)) is not None:
            found.append(_labelled(*batch, batcher.seq))
    return [each for each in found if len(each.labels_B)]


def _labelled(images_BI: Tensor, labels_B: Tensor, last_seq: int) -> Samples:
    seqs_B = torch.arange(last_seq - len(labels_B) + 1, last_seq + 1)
    known_B = labels_B != UNLABELLED
    return Samples(images_BI[known_B], labels_B[known_B], seqs_B[known_B])
