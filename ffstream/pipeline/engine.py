"""Where the stages of a pipeline run. An engine is found by its name in `pipeline.engine`.

An engine serves all training runs of a daemon, one after the other. Only it knows how stages are placed, started and
watched, and what their queues are made of. Everything above a pipeline is the same for every engine.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol

from torch import Tensor

from ffstream.config import Config
from ffstream.metrics import Metrics
from ffstream.pipeline.channel import Outbox
from ffstream.pipeline.resume_state import ResumeState
from ffstream.pipeline.stage_gauges import StageGauges
from ffstream.util.threads import OnFailure, Worker

_ENGINES: Final = {
    "threads": "ffstream.pipeline.threads:ThreadEngine",
    "ray": "ffstream.pipeline.cluster.engine:ClusterEngine",
}


class Stages(Protocol):
    """The stages of one pipeline."""

    @property
    def gauges(self) -> Sequence[StageGauges]:
        """Of each stage, in order."""

    @property
    def inbox(self) -> Outbox:
        """What the feeder sends to."""

    @property
    def threads(self) -> Sequence[Worker]:
        """Threads of this process that must make progress. The one that others wait for comes first."""

    def weights(self) -> dict[str, Tensor]:
        """The EMA weights, by name. Only before `start`."""

    def start(self) -> None:
        """Returns once all stages run. Raises StagesLost if that is not possible at present."""

    def abort(self) -> None:
        """Drops what is queued; each stage ends after its current item."""

    def join(self, timeout_s: float) -> bool:
        """Returns when all stages have ended: after `abort`, or after the inbox was closed. False if the deadline
        passed."""


class Hardware(NamedTuple):
    """In words: where matrix products are computed, and in which precision."""

    precision: str
    device: str


class Engine(Protocol):
    """Raises ConfigError when it is made and cannot be used here."""

    # Whether stages can be lost while the daemon lives on, and are placed again: see `learning.restarts`.
    is_remote: bool

    def connect(self) -> None:
        """Makes sure that stages can be placed now. Raises StagesLost."""

    def stages(self, resume: ResumeState, on_failure: OnFailure) -> Stages:
        """The stages of a pipeline that continues from `resume`. Raises CheckpointIncompatible, ConfigError.

        `on_failure` is called at most once for a stage; with StagesLost if a stage that was lost may be replaced.
        """

    def cancel(self) -> None:
        """No stages are placed from now on: what waits for that raises StagesLost. Those that run go on."""

    def hardware(self) -> Hardware:
        """Of the stages that were started last."""

    def status(self) -> dict[str, Any]:
        """For the status reply."""

    def stop(self, timeout_s: float) -> bool:
        """Ends what serves all runs. False if the deadline passed."""


def make_engine(config: Config, metrics: Metrics) -> Engine:
    """The engine that the options name. Raises ConfigError."""
    module, _, name = _ENGINES[config.pipeline.engine].partition(":")
    engine: Engine = getattr(import_module(module), name)(config, metrics)
    return engine
