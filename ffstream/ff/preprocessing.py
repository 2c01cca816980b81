"""Options of the preprocessing of images before the first layer. `ff/input.py` computes it.

What is fitted to the stream (a mean, say) is part of the state in a checkpoint and of the weights that predict.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.connection import Shape, channels_of
from ffstream.ff.part import Part, register, resolve


class Preprocessing(Part):
    """Turns images into the first layer's input."""

    family: ClassVar[str] = "preprocessing"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]

    def output_shape(self, image_shape: Shape) -> Shape:
        """The shape of the first layer's input rows. Raises ValueError if it cannot take such images."""
        return image_shape

    @property
    def fitted_samples(self) -> int:
        """How many samples at the start of the stream every replica of a network has to see, so that all of them are
        fitted to the same."""
        return 0

    def build(self, image_shape: Shape, device: Any) -> Any:
        """An `ff.input.Preprocessor` for images of this shape."""
        return resolve(self.implementation)(self, image_shape, device)


@register
class Unchanged(Preprocessing):
    """Pixels between 0 and 1, as they are."""

    kind: Literal["none"] = "none"
    implementation: ClassVar[str] = "ffstream.ff.input:Unchanging"


@register
class RunningMean(Preprocessing):
    """Subtracts the mean of all images seen so far, because a pixel that is always bright carries no information."""

    kind: Literal["running_mean"] = "running_mean"
    implementation: ClassVar[str] = "ffstream.ff.input:Centering"
    min_weight: float = Field(
        1e-3, gt=0, le=1, description="smallest weight of a microbatch in the mean, so that the mean follows a drift"
    )


@register
class Whitening(RunningMean):
    """Subtracts the running mean, then decorrelates the numbers of each patch (`ff/whitening.py`; Coates, Ng and Lee
    2011 whiten patches in the same way)."""

    kind: Literal["whitening"] = "whitening"  # type: ignore[assignment]
    implementation: ClassVar[str] = "ffstream.ff.whitening:PatchWhitening"
    patch: int = Field(3, ge=1, description="height and width of a patch, an odd number")
    images: int = Field(1024, ge=1, description="images at the start of the stream that the filters are fitted to")
    floor: float = Field(
        1e-3, gt=0, le=1, description="what is added to the variance of each component, as a share of the largest"
    )

    def output_shape(self, image_shape: Shape) -> Shape:
        """(H, W, patch · patch · channels). Raises ValueError for an image that is not a map."""
        if len(image_shape) not in (2, 3) or min(image_shape[:2]) < self.patch or not self.patch % 2:
            raise ValueError(
                f"needs an odd patch and images [height, width, channels] that are not smaller, but patch = "
                f"{self.patch} and network.image_shape = {[*image_shape]}"
            )
        return *image_shape[:2], self.patch**2 * channels_of(image_shape)

    @property
    def fitted_samples(self) -> int:
        """The images that the filters are fitted to."""
        return self.images
