"""Where learning begins: at the newest whole checkpoint that the journal goes on from."""

from dataclasses import asdict

from ffstream.checkpoint.store import CheckpointStore
from ffstream.config import Config
from ffstream.errors import JournalDamaged, SequenceUnknown
from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.pipeline import StartingPoint


def open_store(config: Config) -> CheckpointStore:
    """The checkpoints of a daemon with these options. Raises Unavailable."""
    return CheckpointStore(config.state / "checkpoints", keep=config.checkpoint.keep, recipe=asdict(config.network))


def starting_point(
    store: CheckpointStore, journal: Journal, metrics: Metrics, at_most: int | None = None
) -> StartingPoint:
    """The newest whole checkpoint (at or below a sample) or the very beginning.

    Raises JournalDamaged when the journal does not go on from it; for a sample that is asked for, SequenceUnknown.
    """
    checkpoint, damages = store.newest(at_most)
    metrics.checkpoints_damaged.inc(len(damages))
    start = StartingPoint()
    if checkpoint is not None:
        start = StartingPoint(checkpoint.seq, checkpoint.tensors, checkpoint.progress)
    if start.seq > journal.head.seq:
        # New samples would get numbers that count as learned: acked, and never learned.
        raise JournalDamaged(
            f"{journal.path} ends at sample {journal.head.seq}, before checkpoint {start.seq}",
            hint="put the journal back that belongs to the checkpoints, or use another --state folder",
        )
    if start.seq + 1 < journal.first_seq:
        if at_most is not None:
            raise SequenceUnknown(
                f"no checkpoint at or below {at_most}, and the journal begins at sample {journal.first_seq}",
                hint=_reachable(store),
            )
        # Nothing would ever fill the gap: learning would wait for it, and say nothing.
        raise JournalDamaged(
            f"samples {start.seq + 1} to {journal.first_seq - 1} are in no whole checkpoint and not in"
            f" {journal.path} any more",
            hint="put a checkpoint back that has learned them, or use another --state folder",
        )
    return start


def _reachable(store: CheckpointStore) -> str:
    seqs = store.seqs()
    return f"from {seqs[0]} on" if seqs else "nothing is learned that could be undone"
