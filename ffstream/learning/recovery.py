"""Recovery: learning resumes at the newest whole checkpoint that the journal continues from.

The journal continues from checkpoint S if and only if it holds every sample after S that is not skipped. `retention`
keeps this true of the newest checkpoints. For an older one, on the ladder, it becomes true when a rollback to exactly
S skips everything later: the samples that are no longer in the journal are among those that the operator skipped. A
rollback to a sample between two such checkpoints is rejected.

A rollback that skips is atomic. Its commit is the transaction that adds the skip and notes `rollback_to` (see
`journal.skips`). The checkpoints that have learned skipped samples are removed afterwards; after a crash in between,
recovery finds the note and removes them.
"""

from contextlib import closing
from typing import NamedTuple

from ffstream.checkpoint.store import CheckpointStore
from ffstream.errors import CheckpointDamaged, JournalDamaged, SequenceUnknown, Unavailable
from ffstream.journal import skips
from ffstream.journal.journal import Journal
from ffstream.journal.reader import Reader
from ffstream.metrics import Metrics
from ffstream.pipeline.resume_state import ResumeState
from ffstream.util import failpoints


def find_resume_state(
    store: CheckpointStore, journal: Journal, metrics: Metrics, at_most: int | None = None, *, skip: bool = False
) -> ResumeState:
    """The newest whole checkpoint (at or below the sample `at_most`), or the beginning.

    With `skip`, the samples beyond `at_most` will not be learned, so the journal need not hold them. Raises
    JournalDamaged when the journal does not continue from it; if `at_most` was given, SequenceUnknown.
    """
    with closing(Reader(journal.path)) as reader:
        skipped, unfinished = reader.skips, reader.unfinished_rollback
    if unfinished is not None:
        finish_rollback(store, journal, unfinished)
    checkpoint, damages = store.newest(at_most)
    metrics.checkpoints_damaged.inc(len(damages))
    resume = ResumeState()
    if checkpoint is not None:
        resume = ResumeState(checkpoint.seq, checkpoint.tensors, checkpoint.progress)
    if resume.seq > journal.head.seq:
        # New samples would get numbers that count as learned: they would be acked and never learned.
        raise JournalDamaged(
            f"{journal.path} ends at sample {journal.head.seq}, before checkpoint {resume.seq}: they were saved at"
            " different times, or the journal was copied without its -wal file",
            hint="restore the journal.sqlite and journal.sqlite-wal that belong to the checkpoints, or a folder that"
            " `ffstream backup` made",
        )
    if checkpoint is None and journal.origin is not None:
        raise _no_origin(journal, at_most)
    wanted = skipped.next_wanted(resume.seq)
    if wanted < journal.first_seq and not (skip and at_most is not None and wanted > at_most):
        if at_most is not None:
            raise _unreachable(store, journal, at_most, resume.seq if checkpoint else None, skip=skip)
        # Otherwise learning would wait forever for the missing samples, without an error.
        raise JournalDamaged(
            f"samples {wanted} to {journal.first_seq - 1} are in no whole checkpoint and no longer in {journal.path}",
            hint="restore a checkpoint that has learned them, or use another --state folder",
        )
    return resume


def _no_origin(journal: Journal, at_most: int | None) -> CheckpointDamaged | SequenceUnknown:
    """The error for a stream that began from given weights and has no checkpoint left to continue from."""
    assert journal.origin is not None
    if at_most is not None:
        return SequenceUnknown(
            f"there is no checkpoint at or before {at_most}, and the stream did not begin from random weights",
            hint="`ffstream checkpoint list` shows the checkpoints",
        )
    hint = "restore a checkpoint or a backup"
    if not journal.head.seq:
        hint = f"start again with --from {journal.origin.source}"
    return CheckpointDamaged(
        f"the stream in {journal.path} began from the weights in {journal.origin.source}, and there is no whole"
        " checkpoint to begin at",
        hint=f"{hint}, or use another --state folder",
    )


def finish_rollback(store: CheckpointStore, journal: Journal, to: int) -> None:
    """Removes the checkpoints that have learned what a rollback skips. Raises Unavailable."""
    try:
        store.discard_after(to)
    except OSError as error:
        raise Unavailable(
            f"rollback to {to}: the checkpoints beyond it cannot be removed: {error}", hint="see the log"
        ) from error
    failpoints.reached("rollback.discarded")
    skips.finish(journal.path)


class Reach(NamedTuple):
    """How far back a rollback can go. None: not possible."""

    rollback_from: int | None  # the oldest sample, with --skip; only to checkpoints, below `relearn_from`
    rollback_age_s: float | None  # for how long daemons have run since then
    relearn_from: int | None  # any sample from this one on, and what came later can be learned again


def reach(store: CheckpointStore, journal: Journal) -> Reach:
    """How far back a rollback can go now. Raises Unavailable."""
    if journal.first_seq == 1 and journal.origin is None:
        return Reach(0, store.clock_s(), 0)
    try:
        rungs = store.rungs()
    except OSError as error:
        raise Unavailable(
            f"checkpoints cannot be read: {error}", hint="see the log; the file descriptors may be exhausted"
        ) from error
    if not rungs:
        return Reach(None, None, None)
    relearn = (rung.seq for rung in rungs if rung.seq + 1 >= journal.first_seq)
    return Reach(rungs[0].seq, store.clock_s() - rungs[0].clock_s, next(relearn, None))


def _unreachable(
    store: CheckpointStore, journal: Journal, to: int, begins: int | None, *, skip: bool
) -> SequenceUnknown:
    if begins is None:
        what = f"no checkpoint at or below {to}"
    elif begins == to:
        what = f"checkpoint {to} is there, but not every sample after it"
    else:
        what = f"checkpoint {begins} is the newest at or below {to}"
    now = reach(store, journal)
    exact = [str(seq) for seq in store.whole_seqs() if now.relearn_from is None or seq < now.relearn_from]
    hint = f"from {now.relearn_from} on" if now.relearn_from is not None else ""
    if exact:
        hint += f"{'; ' if hint else ''}with --skip also exactly to checkpoint {', '.join(exact)}"
    return SequenceUnknown(
        f"{what}, and the journal begins at sample {journal.first_seq}",
        hint=hint or "nothing has been learned yet",
    )
