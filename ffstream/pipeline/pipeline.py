"""A pipeline on the samples of a journal: feeder, stages and channels, started and stopped as one.

    feeder ─queue→ stage 0 ─queue→ stage 1 … stage n      each ends when its inbox is closed; the engine says where

A pipeline goes from one state to later ones. A rollback builds another pipeline from an older state.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, get_args

from torch import Tensor

from ffstream.config import Config
from ffstream.ff.objective import Phase
from ffstream.journal.journal import Journal
from ffstream.journal.reader import Reader
from ffstream.metrics import Metrics
from ffstream.pipeline.batcher import Batcher
from ffstream.pipeline.engine import Engine
from ffstream.pipeline.feeder import Feeder, FeederState
from ffstream.pipeline.listener import Listener
from ffstream.pipeline.phases import PhaseSchedule
from ffstream.pipeline.quiet_sleep import QuietSleep
from ffstream.pipeline.replay_buffer import ReplayBuffer
from ffstream.pipeline.resume_state import ResumeState
from ffstream.pipeline.stage_gauges import StageGauges
from ffstream.util.threads import Worker


class Pipeline:
    """`save_contributors` names the parts that, besides feeder and stages, contribute to every saving barrier.

    Raises CheckpointIncompatible, ConfigError, JournalDamaged.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        journal: Journal,
        resume: ResumeState,
        listener: Listener,
        metrics: Metrics,
        *,
        save_contributors: Sequence[str] = (),
    ) -> None:
        self._config = config
        self._listener = listener
        self._metrics = metrics
        self.stages = engine.stages(resume, listener.on_failure)
        self._reader = Reader(journal.path)
        self._feeder = self._build_feeder(journal, resume, save_contributors)
        self._connect_gauges()

    def _build_feeder(self, journal: Journal, resume: ResumeState, save_contributors: Sequence[str]) -> Feeder:
        recipe, progress = self._config.network, resume.progress
        schedule = PhaseSchedule(recipe.wake, recipe.sleep, progress.get("phase_position", 0))
        replay = ReplayBuffer(recipe, used=recipe.draws_from_replay)
        if replay.capacity:
            resume.check_replay(
                capacity=replay.capacity,
                inputs=recipe.inputs,
                labels=recipe.labels,
                unlabelled=recipe.learns_unlabelled,
            )
            if "replay.added" in progress:
                replay.load_state_dict(dict(resume.tensors), progress["replay.added"])
        return Feeder(
            self._config,
            FeederState(progress.get("step", 0), resume.seq, resume.version, schedule, progress.get("slept", 0)),
            batcher=Batcher(self._reader, recipe, resume.seq),
            head=journal.head,
            replay=replay,
            quiet=QuietSleep(journal.path, self._reader.sleeps, self._config.learning),
            out=self.stages.inbox,
            stages=[stage.name for stage in self.stages.gauges],
            save_contributors=save_contributors,
            listener=self._listener,
        )

    def _connect_gauges(self) -> None:
        metrics = self._metrics
        metrics.applied_seq.set_function(lambda: self.applied_seq)
        metrics.live_error.set_function(lambda: self.live_error)
        for phase in get_args(Phase):
            metrics.phase.labels(phase).set_function(partial(self._is_phase, phase))
        for stage in self.stages.gauges:
            stage.connect()

    def _is_phase(self, phase: str) -> float:
        return float(self.phase == phase)

    def weights(self) -> dict[str, Tensor]:
        """The EMA weights, by name. Only before `start`."""
        return self.stages.weights()

    def start(self) -> None:
        """Starts every stage, then the feeder; returns once they run. Raises StagesLost."""
        self.stages.start()
        self._feeder.start()

    def stop(self, timeout_s: float, *, save: bool = True) -> bool:
        """Feeds no more, lets the stages learn what was fed, sends a last barrier. False if the deadline passed."""
        deadline = time.monotonic() + timeout_s
        self._feeder.stop(save=save)
        ended = [self.stages.join(timeout_s), self._feeder.thread.join(max(0.0, deadline - time.monotonic()))]
        if all(ended):
            self._reader.close()
        return all(ended)

    def abort(self, timeout_s: float) -> bool:
        """Drops what is in the queues and ends each thread after its current item."""
        self.stages.abort()
        return self.stop(timeout_s, save=False)

    @property
    def applied_seq(self) -> int:
        """Sequence number up to which every layer has learned, or has skipped."""
        return min(gauges.last_seq for gauges in self._last_stages)

    @property
    def live_error(self) -> float | None:
        """The recent prequential error of the weights that learn; None if it is not known."""
        errors = [each.live_error for each in self._last_stages if each.live_error is not None]
        return sum(errors) / len(errors) if errors else None

    @property
    def _last_stages(self) -> list[StageGauges]:
        """One of each replica."""
        return [gauges for gauges in self.stages.gauges if gauges.is_last]

    @property
    def fed_seq(self) -> int:
        """The last sample that was fed to the first stage; it increases only while the pipeline is not paused."""
        return self._feeder.state.seq

    @property
    def fed_microbatches(self) -> tuple[int, int]:
        """Microbatches that were fed in the phase `sleep`, and in all, since this pipeline was made."""
        return self._feeder.fed_sleep, self._feeder.fed

    @property
    def phase(self) -> str:
        """The phase of the next microbatch."""
        return self._feeder.phase

    def skipped_up_to(self, seq: int) -> int:
        """How many of the samples 1 … `seq` are not to be learned."""
        return self._reader.skips.count(seq)

    def pause(self, paused: bool) -> None:
        """Stops or resumes feeding."""
        self._feeder.pause(paused)

    def request_checkpoint(self) -> Future[int]:
        """Sends a saving barrier as soon as possible. The result is its `seq`, once all parts are there.

        If the pipeline ends before that, the future never gets a result.
        """
        return self._feeder.request_checkpoint()

    @property
    def threads(self) -> list[Worker]:
        """The one that others wait for comes first."""
        return [*self.stages.threads, self._feeder.thread]

    def describe_layers(self) -> list[dict[str, Any]]:
        """Each layer for the status reply."""
        recipe = self._config.network
        shown = [stage for stage in self.stages.gauges if stage.shows_layers]
        layers = [layer for stage in shown for layer in stage.describe_layers()]
        shapes = recipe.output_shapes()
        for layer, compares, options, shape in zip(layers, recipe.compares, recipe.layers, shapes, strict=True):
            layer["connection"], layer["shape"], layer["compares"] = options.connection.kind, list(shape), compares
            layer["decoder"] = options.decoder.kind
            if layer["threshold"] is None:
                layer["threshold"] = options.objective.threshold
        return layers

    def describe(self) -> list[dict[str, Any]]:
        """Each stage for the status reply."""
        return [stage.describe() for stage in self.stages.gauges]
