"""Images made ready for the first layer: scaled to 0 … 1, preprocessed, on the device.

Shapes: B samples, I inputs.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ffstream.ff.buffers import Buffers, KeptBuffers
from ffstream.ff.connection import Shape, size_of
from ffstream.ff.layer import Activities, Placement
from ffstream.ff.objective import Phase
from ffstream.ff.preprocessing import RunningMean, Unchanged
from ffstream.ff.recipe import Recipe


class Preprocessor(Protocol):
    """What a preprocessing computes. `weights` are what predictions need of its state."""

    def fit(self, pixels_BI: Tensor) -> None:
        """Takes a microbatch of the stream into account."""
        ...

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """Preprocessed pixels, which may be the same tensor, changed in place."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The state that `apply` needs: not a copy."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state."""
        ...


class Unchanging:
    """Does nothing."""

    def __init__(self, options: Unchanged, image_shape: Shape, device: torch.device) -> None:
        pass

    def fit(self, pixels_BI: Tensor) -> None:
        """Nothing to take into account."""

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """The same pixels."""
        return pixels_BI

    def weights(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to continue from."""


class Centering:
    """pixels − mean, the mean of all images seen."""

    def __init__(self, options: RunningMean, image_shape: Shape, device: torch.device) -> None:
        self._min_weight = options.min_weight
        self._mean_I = torch.zeros(size_of(image_shape), device=device)
        self._seen = 0

    def fit(self, pixels_BI: Tensor) -> None:
        """Moves the mean toward the microbatch's."""
        self._seen += len(pixels_BI)
        self._mean_I.lerp_(pixels_BI.mean(0), max(len(pixels_BI) / self._seen, self._min_weight))

    def apply(self, pixels_BI: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """In place."""
        return pixels_BI.sub_(weights["mean"])

    def weights(self) -> dict[str, Tensor]:
        """`mean` (I)."""
        return {"mean": self._mean_I}

    def state_dict(self) -> dict[str, Tensor]:
        """`mean` (I) and `seen`, how many images it is of."""
        return {"mean": self._mean_I.clone(), "seen": torch.tensor(self._seen)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state."""
        self._mean_I.copy_(state["mean"])
        self._seen = int(state["seen"])


def to_unit(images_BI: Tensor, device: torch.device, buffers: Buffers) -> Tensor:
    """float32 pixels (B, I) between 0 and 1, from uint8 or float32, in a buffer."""
    like = torch.empty(0, device=device)
    pixels_BI = buffers.get("pixels", like, *images_BI.shape).copy_(images_BI)
    return pixels_BI.mul_(1 / 255) if images_BI.dtype == torch.uint8 else pixels_BI


class Input:
    """Before the first layer, on its thread."""

    def __init__(self, recipe: Recipe, placement: Placement) -> None:
        self._device = placement.device
        self._preprocessor: Preprocessor = recipe.preprocessing.build(recipe.image_shape, placement.device)
        self._buffers = KeptBuffers()

    def forward(self, images_BI: Tensor, labels_B: Tensor, step: int, phase: Phase) -> Activities:
        """Label-free activities for the first layer, of images (B, I; uint8, or float32 in 0 to 1).

        `step` numbers the microbatch: random wrong labels depend on it and the seed alone.
        """
        pixels_BI = to_unit(images_BI, self._device, self._buffers)
        self._preprocessor.fit(pixels_BI)
        x_BI = self._preprocessor.apply(pixels_BI, self._preprocessor.weights())
        return Activities(x_BI, labels_B.to(self._device), None, step, phase)

    def weights(self) -> dict[str, Tensor]:
        """A copy of what predictions need."""
        return {name: value.clone() for name, value in self._preprocessor.weights().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state."""
        return self._preprocessor.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state."""
        self._preprocessor.load_state_dict(state)
