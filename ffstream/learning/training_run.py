"""A training run: the pipeline, and the prequential evaluation of its snapshots.

    journal → pipeline → barriers ─┬→ snapshot, for predictions and for the evaluation
                                   └→ checkpoint, once the evaluation has added its part

A rollback ends one run and starts another.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from ffstream.checkpoint.store import Checkpoint
from ffstream.checkpoint.writer import CheckpointWriter
from ffstream.config import Config
from ffstream.errors import FFStreamError, StagesLost
from ffstream.ff.classifier import Classifier
from ffstream.journal.journal import Journal
from ffstream.metrics import Metrics
from ffstream.pipeline.engine import Engine
from ffstream.pipeline.messages import Barrier, MicroBatch, Part
from ffstream.pipeline.pipeline import Pipeline
from ffstream.pipeline.resume_state import ResumeState
from ffstream.serving.drift_detector import make_detector
from ffstream.serving.prequential import NAME as PREQUENTIAL
from ffstream.serving.prequential import Prequential
from ffstream.serving.snapshot import Snapshot, Snapshots
from ffstream.util import failpoints
from ffstream.util.error_record import WINDOW_SAMPLES, ErrorRecord
from ffstream.util.threads import OnFailure, Worker


class TrainingRun:
    """The pipeline's listener. Publishes into `snapshots` from its construction on, and saves through `writer`.

    Raises CheckpointIncompatible, ConfigError, JournalDamaged.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        journal: Journal,
        resume: ResumeState,
        *,
        snapshots: Snapshots,
        writer: CheckpointWriter,
        metrics: Metrics,
        on_failure: OnFailure,
    ) -> None:
        self._config = config
        self._head = journal.head
        self._snapshots = snapshots
        self._writer = writer
        self._on_failure = on_failure
        self._is_lost = False
        self.was_started = False
        record = ErrorRecord(resume.progress.get("prequential"))
        self.pipeline = Pipeline(config, engine, journal, resume, self, metrics, save_contributors=(PREQUENTIAL,))
        first = Snapshot(self._classifier(self.pipeline.weights()), resume.version, resume.seq)
        self.prequential = Prequential(
            metrics,
            first,
            fraction=config.prequential.fraction,
            busy_fraction=config.prequential.busy_fraction,
            queue_depth=config.prequential.queue_depth,
            record=record,
            detector=make_detector(config.prequential, metrics),
            on_failure=on_failure,
        )
        snapshots.publish(first)

    def start(self) -> None:
        """Returns once every stage and thread runs. Raises StagesLost; then the run has to be aborted."""
        self.was_started = True
        try:
            self.prequential.start()
            self.pipeline.start()
        except StagesLost:
            self._is_lost = True
            raise

    @property
    def learns(self) -> bool:
        """Whether it was started, and has its stages."""
        return self.was_started and not self._is_lost

    def abort(self, timeout_s: float) -> bool:
        """Ends each thread after its current item. What is not saved is still in the journal. False if late."""
        deadline = time.monotonic() + timeout_s
        ended = self.pipeline.abort(timeout_s)
        return ended and self.prequential.stop(max(0.1, deadline - time.monotonic()), drop=True)

    @property
    def threads(self) -> list[Worker]:
        """The threads that learn and evaluate."""
        return [*self.pipeline.threads, self.prequential.thread]

    @property
    def applied_seq(self) -> int:
        """Sequence number up to which every layer has learned."""
        return self.pipeline.applied_seq

    def request_checkpoint(self) -> Future[int]:
        """The result is the sequence number of a checkpoint, once it is on its way to the writer."""
        return self.pipeline.request_checkpoint()

    def status(self) -> dict[str, Any]:
        """Progress and prequential error, for the status reply."""
        pipeline, record = self.pipeline, self.prequential.record
        applied = pipeline.applied_seq  # read once: learning goes on
        skipped = pipeline.skipped_up_to(applied)
        return {
            "learned": applied - skipped,
            "skipped": skipped,
            "applied_seq": applied,
            "prequential_error": record.recent,
            "prequential_error_total": record.total,
            "prequential_window_samples": record.window_samples,
            "live_error": pipeline.live_error,
            "phase": pipeline.phase,
            "stages": pipeline.describe(),
            "layers": pipeline.describe_layers(),
            "window": {"error": record.recent, "samples": record.window_samples, "size": WINDOW_SAMPLES},
        }

    # --- pipeline.Listener ------------------------------------------------------------------------------------------

    def on_microbatch(self, microbatch: MicroBatch, version: int) -> None:
        """Queues it for the evaluation."""
        behind = self._head.seq - microbatch.seq > self._config.prequential.busy_backlog_samples
        self.prequential.observe(microbatch.images, microbatch.labels, version, behind=behind, seq=microbatch.seq)

    def on_saving(self, barrier: Barrier) -> None:
        """Lets the evaluation add its part after everything observed so far."""
        self.prequential.mark(lambda progress: barrier.contribute(PREQUENTIAL, Part(progress=progress)))

    def on_barrier(self, barrier: Barrier) -> None:
        """Publishes its weights, and saves its state if it has one."""
        snapshot = Snapshot(self._classifier(barrier.weights), barrier.version, barrier.seq)
        self._snapshots.publish(snapshot)
        # A saving barrier waits for the evaluation, so later ones may overtake it; its snapshot is needed too.
        self.prequential.publish(snapshot)
        if barrier.saves:
            failpoints.reached("cut.complete")
            self._writer.submit(Checkpoint(barrier.seq, barrier.tensors, barrier.progress))

    def on_failure(self, error: FFStreamError) -> None:
        """Passes it on."""
        self._is_lost |= isinstance(error, StagesLost)
        self._on_failure(error)

    def _classifier(self, weights: Mapping[str, Tensor]) -> Classifier:
        return Classifier(self._config.network, weights)
