"""A course of learning, from a starting point on: the pipeline, and the evaluation of what its snapshots predict.

    journal → pipeline → barriers ─┬→ a snapshot, for whoever predicts and for the evaluation
                                   └→ a checkpoint, once the evaluation has added its part

A rollback ends one course and begins another.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ffstream.checkpoint.store import Checkpoint
from ffstream.config import Config
from ffstream.ff.classifier import Classifier
from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.messages import Barrier, MicroBatch, Part
from ffstream.pipeline.pipeline import Callbacks, Pipeline, StartingPoint
from ffstream.serving.prequential import NAME as PREQUENTIAL
from ffstream.serving.prequential import ErrorRecord, Prequential
from ffstream.serving.snapshot import Snapshot
from ffstream.util import failpoints
from ffstream.util.threads import OnFailure, Worker


class Course:
    """`publish` gets each snapshot, `save` each checkpoint, on the course's threads; neither may block."""

    def __init__(
        self,
        config: Config,
        journal: Journal,
        start: StartingPoint,
        *,
        metrics: Metrics,
        publish: Callable[[Snapshot], None],
        save: Callable[[Checkpoint], None],
        on_failure: OnFailure,
    ) -> None:
        self._config = config
        self._head = journal.head
        self._publish = publish
        self._save = save
        self.pipeline = Pipeline(
            config,
            journal=journal.path,
            head=journal.head,
            start=start,
            callbacks=Callbacks(self._on_barrier, on_failure, self._observe, self._on_saving),
            metrics=metrics,
            save_contributors=(PREQUENTIAL,),
        )
        self.first = Snapshot(self._classifier(self.pipeline.weights()), start.version, start.seq)
        self.prequential = Prequential(
            metrics,
            self.first,
            fraction=config.prequential.fraction,
            busy_fraction=config.prequential.busy_fraction,
            queue_depth=config.prequential.queue_depth,
            record=ErrorRecord(start.progress.get("prequential")),
            on_failure=on_failure,
        )

    def start(self) -> None:
        """Learns from now on."""
        self.prequential.start()
        self.pipeline.start()

    @property
    def threads(self) -> list[Worker]:
        """Those that learn and evaluate."""
        return [*self.pipeline.threads, self.prequential.thread]

    def status(self) -> dict[str, Any]:
        """What is learned, and how well."""
        pipeline, record = self.pipeline, self.prequential.record
        applied = pipeline.applied_seq  # once: learning goes on while we look
        skipped = pipeline.skipped_up_to(applied)
        return {
            "learned": applied - skipped,
            "skipped": skipped,
            "applied_seq": applied,
            "prequential_error": record.recent,
            "prequential_error_total": record.total,
            "prequential_window_samples": record.window_samples,
            "phase": pipeline.phase,
            "stages": pipeline.describe(),
        }

    # --- what the pipeline reports, on its threads ---------------------------------------------------------------

    def _observe(self, micro: MicroBatch, version: int) -> None:
        behind = self._head.seq - micro.seq > self._config.prequential.busy_backlog_samples
        self.prequential.observe(micro.images, micro.labels, version, behind=behind)

    def _on_saving(self, barrier: Barrier) -> None:
        self.prequential.mark(lambda progress: barrier.contribute(PREQUENTIAL, Part(progress=progress)))

    def _on_barrier(self, barrier: Barrier) -> None:
        snapshot = Snapshot(self._classifier(barrier.weights), barrier.version, barrier.seq)
        self._publish(snapshot)
        # A saving barrier waits for the evaluator, so later ones may overtake it; its snapshot is wanted too.
        self.prequential.publish(snapshot)
        if barrier.saves:
            failpoints.reached("cut.complete")
            self._save(Checkpoint(barrier.seq, barrier.tensors, barrier.progress))

    def _classifier(self, weights: Mapping[str, Tensor]) -> Classifier:
        return Classifier(self._config.network, weights)
