"""Options of the preprocessing of images, before the first layer; `ff/input.py` computes it.

What is fitted to the stream (a mean) is part of the state that a checkpoint holds and of the weights that predict.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.connection import Shape
from ffstream.ff.part import Part, register, resolve


class Preprocessing(Part):
    """Pixels in, pixels out."""

    family: ClassVar[str] = "preprocessing"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]

    def output_shape(self, image_shape: Shape) -> Shape:
        """Shape of what the first layer gets."""
        return image_shape

    def build(self, image_shape: Shape, device: Any) -> Any:
        """An `ff.input.Preprocessor`."""
        make: Callable[..., Any] = resolve(self.implementation)
        return make(self, image_shape, device)


@register
class Unchanged(Preprocessing):
    """Pixels between 0 and 1."""

    kind: Literal["none"] = "none"
    implementation: ClassVar[str] = "ffstream.ff.input:Unchanging"


@register
class RunningMean(Preprocessing):
    """Images are shifted by the mean of all images seen: a pixel that is always bright tells nothing."""

    kind: Literal["running_mean"] = "running_mean"
    implementation: ClassVar[str] = "ffstream.ff.input:Centering"
    min_weight: float = Field(
        1e-3, gt=0, le=1, description="least weight of a microbatch in the mean: so it follows a drift"
    )
