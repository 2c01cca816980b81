"""Options of learning, apart from the network: microbatches, stages, checkpoints, the prequential error."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ffstream.config.section import Section
from ffstream.util.option_errors import wrong

_NOT_CUSTOM = ("CPU", "GPU")  # Ray reserves these names


class Learning(Section):
    """How the stream is divided into microbatches."""

    linger_s: float = Field(1.0, ge=0, description="seconds that an incomplete microbatch waits for more samples")
    partial: Literal["flush", "wait"] = Field(
        "flush",
        description="then learn it (flush), or wait forever, so that the same samples make the same microbatches",
    )
    publish_every: int = Field(4, ge=1, description="microbatches between two snapshots")
    sleep_when_quiet_s: float = Field(
        0.0, ge=0, description="seconds without a new sample after which a network with phases sleeps; 0: never"
    )
    sleep_when_quiet_max_microbatches: int = Field(
        256,
        ge=16,  # journal.events.SLEEP_MICROBATCHES, the smallest number that can be decided
        description="sleep microbatches that a quiet stream causes, at most, until it continues",
    )


class PipelineSection(Section):
    """How the layers run. Of these options, only `overflow = skip` and `precision` change the weights."""

    engine: Literal["threads", "ray"] = Field(
        "threads",
        description="where stages run: on threads of the daemon, or in actors of a Ray cluster (see [cluster])",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA if there is a device")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="precision of matrix products; auto: bf16 where it is fast"
    )
    queue_depth: int = Field(4, ge=1, description="microbatches in the queue between two stages")
    overflow: Literal["block", "skip"] = Field(
        "block", description="when a queue is full, wait for the slow stage (block) or let it skip microbatches"
    )
    stages: tuple[int, ...] = Field(
        (), description="number of layers in each stage; empty: one layer each, or all layers of a recurrent network"
    )
    stall_timeout_s: float = Field(60.0, gt=0, description="seconds without progress before a thread counts as stuck")


class Cluster(Section):
    """Stages in a Ray cluster, with pipeline.engine = "ray". Only `replicas` and `merge_every` change the weights.

    A list has an entry for each stage; an empty one means the default for all stages.
    """

    address: str = Field(
        "local",
        description="local: a cluster of this machine, started and ended by the daemon; auto, or HOST:PORT of a head",
    )
    replicas: int = Field(1, ge=1, le=64, description="pipelines that learn disjoint microbatches of the stream")
    merge_every: int = Field(
        8, ge=1, description="microbatches of each replica after which the replicas' states are merged"
    )
    spares: int = Field(0, ge=0, le=64, description="actors that are ready to replace lost ones")
    cpus: tuple[float, ...] = Field((), description="processors that the actor of each stage reserves; default: 1")
    gpus: tuple[float, ...] = Field((), description="GPUs that the actor of each stage reserves; default: 0")
    resources: tuple[str, ...] = Field(
        (), description='custom resources of each stage, such as "big=1"; several are separated by commas'
    )
    placement: tuple[Literal["default", "spread"], ...] = Field(
        (), description="Ray's scheduling of each stage: fill nodes (default), or use as many as there are (spread)"
    )
    start_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="seconds in which all stages must be placed; then it is tried again"
    )
    insecure: bool = Field(
        False, description="send activities and weights between machines without encryption and authentication"
    )

    @field_validator("cpus", "gpus")
    @classmethod
    def _are_not_negative(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(each < 0 for each in value):
            raise ValueError("expected numbers from 0")
        return value

    @field_validator("gpus")
    @classmethod
    def _are_whole_above_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        # Ray refuses others only when it places an actor.
        if any(each > 1 and not each.is_integer() for each in value):
            raise ValueError("expected a share of one GPU, or whole numbers")
        return value

    @field_validator("resources")
    @classmethod
    def _are_amounts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            amounts(entry)
        return value


def as_written(values: Iterable[Any]) -> list[Any]:
    """As the user wrote them: pydantic makes 1.0 of 1."""
    return [int(each) if isinstance(each, float) and each.is_integer() else each for each in values]


def amounts(entry: str) -> dict[str, float]:
    """Custom resources from `name=amount,name=amount`. Raises ValueError."""
    found = {}
    for part in filter(None, entry.split(",")):
        name, _, amount = part.strip().partition("=")
        try:
            found[name] = float(amount or 1)
        except ValueError:
            found[name] = 0.0
        if not name or not 0 < found[name] < math.inf:
            raise ValueError(f"{part.strip()!r} is not NAME=AMOUNT")
        if name in _NOT_CUSTOM:
            raise ValueError(f"{name} is not a custom resource; set cluster.cpus or cluster.gpus")
    return found


class Checkpoints(Section):
    """When checkpoints are written, and which are kept."""

    every_samples: int = Field(100_000, ge=0, description="samples between two checkpoints; 0: not by count")
    every_s: float = Field(60.0, ge=0, description="seconds between two checkpoints; 0: not by time")
    write_bytes_per_s: int = Field(
        64 << 20,
        ge=0,
        description="bytes per second when a checkpoint is written while learning goes on; 0: no limit",
    )
    keep: int = Field(
        3,
        ge=1,
        description="newest checkpoints that are kept; the journal keeps all samples after the oldest of them",
    )
    ladder_s: tuple[float, ...] = Field(
        (600.0, 3600.0, 86_400.0, 604_800.0),
        description="older checkpoints kept for `rollback --skip`, in seconds of running: one per first number up"
        " to the age of the second, then one per second number up to the age of the third, and so on; empty: none",
    )
    max_bytes: int = Field(
        2 << 30,
        ge=0,
        description="bytes of all checkpoints; beyond that older ones are removed, but never the newest `keep`",
    )

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        steps = as_written(self.ladder_s)
        if len(steps) == 1 or any(not 0 < a < b < math.inf for a, b in pairwise(steps)):
            raise ValueError(wrong("ladder_s", steps, "expected ascending seconds, two or more, or [] for no ladder"))
        return self


class PrequentialSection(Section):
    """Prequential evaluation: microbatches are predicted before they are learned."""

    fraction: float = Field(1.0, ge=0, le=1, description="share of microbatches that are predicted")
    busy_fraction: float = Field(0.125, ge=0, le=1, description="the same while learning is behind the stream")
    busy_backlog_samples: int = Field(
        8192, ge=0, description="learning counts as behind while more samples than this are on disk and not learned"
    )
    queue_depth: int = Field(
        16, ge=1, description="microbatches that may wait to be predicted; further ones are not predicted"
    )
    drift_detector: Literal["none", "adwin"] = Field(
        "none", description="reports when the prequential error rises; adwin needs the extra ffstream[drift]"
    )
    drift_delta: float = Field(
        0.002, gt=0, lt=1, description="significance of the drift detector; smaller: fewer false reports"
    )

    @model_validator(mode="after")
    def _detector_has_errors(self) -> Self:
        if self.drift_detector != "none" and not self.fraction and not self.busy_fraction:
            reason = "with fraction = 0 and busy_fraction = 0 nothing is predicted, so it never sees an error"
            raise ValueError(wrong("drift_detector", self.drift_detector, reason))
        return self
