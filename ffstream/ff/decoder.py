"""Options of decoders: how a layer learns to reconstruct its input from its activities, so that it can dream.

`ff/decoding.py` computes them, `ff/memories.py` keeps what dreams begin with. Dreams as negatives: `ff/dreams.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.optimizer import Adam, InverseSqrt, Optimizer, Schedule
from ffstream.ff.part import Part, field_of, register, resolve


class Memory(Part):
    """What a layer remembers of its activities. A dream begins with activities drawn from it."""

    family: ClassVar[str] = "memory"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]
    blurs: int = Field(
        0,
        ge=0,
        le=1000,
        description="maps are mixed by areas: how often the noise that makes them is blurred; 0: place by place",
    )

    def build(self, sizes: Any, device: Any) -> Any:
        """An `ff.memories.ActivityMemory` for a layer with these `ff.memories.Sizes`."""
        return resolve(self.implementation)(self, sizes, device)


@register
class Store(Memory):
    """The activities of the newest samples, and the sorted grey values of their images: no picture.

    What is drawn is a mixture of two of them, which have the same label if labels are known.
    """

    kind: Literal["store"] = "store"
    implementation: ClassVar[str] = "ffstream.ff.memories:StoreMemory"
    samples: int = Field(512, ge=1, le=1_000_000, description="samples whose activities are remembered")


@register
class Statistics(Memory):
    """Mean and covariance of the activities, and the mean of the sorted grey values, of each label: no sample.

    What is drawn is normally distributed, cut at 0. The covariance is a random sketch (see `ff/memories.py`).
    """

    kind: Literal["statistics"] = "statistics"
    implementation: ClassVar[str] = "ffstream.ff.memories:StatisticsMemory"
    rank: int = Field(128, ge=1, description="rank of the covariance of each label")
    rate: float = Field(5e-3, gt=0, le=1, description="weight of a whole microbatch in the statistics, at least")


class Decoder(Part):
    """Reconstructs the input of a layer from its activities."""

    family: ClassVar[str] = "decoder"
    must_define: ClassVar[tuple[str, ...]] = ("build",)

    def build(self, recipe: Any, index: int, input_shape: Any, placement: Any) -> Any:
        """An `ff.decoding.LinearDecoding` for that layer; None if it does not learn one."""
        raise NotImplementedError


@register
class NoDecoder(Decoder):
    """The layer learns none, and cannot dream."""

    kind: Literal["none"] = "none"

    def build(self, recipe: Any, index: int, input_shape: Any, placement: Any) -> Any:
        """None."""
        return None


@register
class LinearDecoder(Decoder):
    """D ĥ + d, learned beside the layer by the delta rule: nothing of it reaches the layer's weights."""

    kind: Literal["linear"] = "linear"
    implementation: ClassVar[str] = "ffstream.ff.decoding:LinearDecoding"
    memory: Annotated[Memory, *field_of("memory")] = Field(Store(), description="what dreams begin with")
    optimizer: Annotated[Optimizer, *field_of("optimizer")] = Field(
        Adam(beta1=0.9, beta2=0.99), description="the optimiser"
    )
    schedule: Annotated[Schedule, *field_of("schedule")] = Field(
        InverseSqrt(), description="how the learning rate falls"
    )
    learning_rate: float = Field(
        1e-3, ge=0, description="learning rate of a whole microbatch at the start of the stream"
    )
    min_learning_rate_ratio: float = Field(
        0.1, ge=0, le=1, description="the schedule never falls below this share of the learning rate"
    )

    def build(self, recipe: Any, index: int, input_shape: Any, placement: Any) -> Any:
        """An `ff.decoding.LinearDecoding`."""
        return resolve(self.implementation)(recipe, index, input_shape, placement)
