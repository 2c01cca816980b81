"""From images to the first layer's input: move to the device, scale to 0 … 1, preprocess.

Shapes: B samples, I inputs.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.buffers import Buffers, ReusedBuffers
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.decoding import LinearDecoding
from ffstream.ff.image_negatives import ImageNegatives
from ffstream.ff.member import copied
from ffstream.ff.objective import Phase
from ffstream.ff.placement import Placement
from ffstream.ff.preprocessing import RunningMean, Unchanged
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import Recipe


class Preprocessor(Protocol):
    """Computes a preprocessing, and holds the state that is fitted to the stream."""

    def fit(self, pixels_BI: Tensor, replicas: int = 1) -> None:
        """Updates the state with a microbatch of the stream, which stands for as many as there are `replicas`."""
        ...

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The preprocessed pixels. May change `pixels_BI` in place and return it."""
        ...

    def to_pixels(self, fields_NHWC: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Weights on preprocessed maps as weights on the pixels of images (N, h, w, channels of an image)."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The part of the state that `apply` needs. Not a copy."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the whole state."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over as before the first sample, but predicts with weights that `weights` returned."""
        ...


class Unchanging:
    """Leaves images as they are."""

    def __init__(self, options: Unchanged, image_shape: Shape, device: torch.device) -> None:
        pass

    def fit(self, pixels_BI: Tensor, replicas: int = 1) -> None:
        """Does nothing: there is no state."""

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The pixels themselves."""
        return pixels_BI

    def to_pixels(self, fields_NHWC: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The weights themselves."""
        return fields_NHWC

    def weights(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Does nothing: there is no state."""

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Does nothing: there is no state."""


class Centering:
    """pixels − mean, where the mean is over all images seen so far."""

    def __init__(self, options: RunningMean, image_shape: Shape, device: torch.device) -> None:
        self._min_weight = options.min_weight
        self._mean_I = torch.zeros(size_of(image_shape), device=device)
        self._seen = 0

    def fit(self, pixels_BI: Tensor, replicas: int = 1) -> None:
        """Moves the mean toward that of the microbatch."""
        seen = replicas * len(pixels_BI)
        self._seen += seen
        self._mean_I.lerp_(pixels_BI.mean(0), max(seen / self._seen, self._min_weight))

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Subtracts the mean in place."""
        return pixels_BI.sub_(weights["mean"])

    def to_pixels(self, fields_NHWC: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The weights themselves: what is subtracted is the same for all images."""
        return fields_NHWC

    def weights(self) -> dict[str, Tensor]:
        """`mean` (I)."""
        return {"mean": self._mean_I}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of `mean` (I) and `seen`, the number of images it was computed from."""
        return {"mean": self._mean_I.clone(), "seen": torch.tensor(self._seen)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._mean_I.copy_(state["mean"])
        self._seen = int(state["seen"])

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Predicts with `mean` until the first microbatch, whose mean replaces it."""
        self._mean_I.copy_(weights["mean"])
        self._seen = 0


def to_unit(images_BI: Tensor, device: torch.device, buffers: Buffers) -> Tensor:
    """Pixels (B, I) as float32 between 0 and 1, in a buffer. uint8 is divided by 255, float32 is copied."""
    like = torch.empty(0, device=device)
    pixels_BI = buffers.get("pixels", like, *images_BI.shape).copy_(images_BI)
    return pixels_BI.mul_(1 / 255) if images_BI.dtype == torch.uint8 else pixels_BI


class Input:
    """The input of a network. It runs on the first layer's thread."""

    def __init__(self, recipe: Recipe, placement: Placement, dreamer: LinearDecoding | None = None) -> None:
        """`dreamer`: the decoder of the first layer, if negative rows are its dreams."""
        self._dreamer = dreamer if recipe.dreams else None
        self._sleeps_without_images = recipe.sleeps_without_images
        self._device = placement.device
        self._preprocessor: Preprocessor = recipe.preprocessing.build(recipe.image_shape, placement.device)
        self._buffers = ReusedBuffers()
        self._negatives = recipe.image_negatives
        self._keeps_pixels = recipe.layers[0].decoder.kind != "none"
        self._shape = recipe.preprocessing.output_shape(recipe.image_shape)
        self._seed = recipe.seed

    def forward(
        self,
        images_BI: Tensor,
        labels_B: Tensor,
        step: int,
        phase: Phase,
        ages_R: Tensor | None = None,
        replicas: int = 1,
    ) -> Activities:
        """Label-free activities for the first layer, from images (B, I; uint8, or float32 between 0 and 1).

        `step` is the number of the microbatch: random choices depend on it and on the seed only. `ages_R` are the
        ages of the last R samples, which are replayed: see `Activities`, also for `replicas`.
        """
        ages_R = None if ages_R is None else ages_R.to(self._device)
        labels_B = labels_B.to(self._device)
        if phase == "sleep" and self._sleeps_without_images:
            assert self._dreamer is not None
            pixels_BI, labels_B = self._dreamer.dream(len(labels_B), step, mixed=False)
            given = Activities(self._preprocess(pixels_BI), labels_B, None, step, phase, ages_R=ages_R)
            return given._replace(replicas=replicas)
        pixels_BI = to_unit(images_BI, self._device, self._buffers)
        kept_BI = pixels_BI.clone() if self._keeps_pixels else None
        self._preprocessor.fit(pixels_BI, replicas)
        x_BI = self._preprocess(pixels_BI)
        given = Activities(x_BI, labels_B, None, step, phase, ages_R=ages_R, replicas=replicas, pixels_BI=kept_BI)
        return given if self._negatives is None else self._with_negatives(given, self._negatives)

    def _preprocess(self, pixels_BI: Tensor) -> Tensor:
        return self._preprocessor.apply(pixels_BI, self._preprocessor.weights())

    def _with_negatives(self, given: Activities, negatives: ImageNegatives) -> Activities:
        """Images (not in `sleep`), then negative rows made from them (not in `wake`)."""
        x_BI, labels_B, size = given.h_NF, given.labels_N, len(given.h_NF)
        if given.phase == "wake":
            return given._replace(positives=size)
        if self._dreamer is not None and self._dreamer.is_ready:
            return self._with_dreams(given, self._dreamer)
        generator = generator_for("image negatives", self._seed, given.step)
        negative_BI = negatives.make(x_BI, self._shape, lambda shape: torch.rand(shape, generator=generator))
        if given.phase == "sleep":
            return given._replace(h_NF=negative_BI, positives=0)
        rows_NI = self._buffers.get("rows", x_BI, 2 * size, x_BI.shape[1])
        torch.cat((x_BI, negative_BI), out=rows_NI)
        return given._replace(h_NF=rows_NI, labels_N=labels_B.repeat(2), positives=size)

    def _with_dreams(self, given: Activities, dreamer: LinearDecoding) -> Activities:
        """Images that only the readout learns from, then decoded memories of one sample, then of two samples."""
        size = len(given.h_NF)
        made = [dreamer.dream(size, given.step, mixed=mixed).pixels_BI for mixed in (False, True)]
        rows_NI = torch.cat((given.h_NF, *(self._preprocess(pixels_BI) for pixels_BI in made)))
        return given._replace(h_NF=rows_NI, labels_N=given.labels_N.repeat(3), positives=size, read_only=size)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the state that predictions need."""
        return copied(self._preprocessor.weights())

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the whole state."""
        return self._preprocessor.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self._preprocessor.load_state_dict(state)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over with weights that `weights` returned."""
        self._preprocessor.load_weights(weights)
