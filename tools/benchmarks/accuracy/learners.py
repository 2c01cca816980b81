"""What learns a stream: a Forward-Forward network, or (in `backprop.py`) its peer."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ffstream.ff.classifier import Classifier
from ffstream.ff.layer import Placement
from ffstream.ff.network import Network
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch

Predict = Callable[[Tensor], Tensor]  # images (B, I; uint8) to labels (B)


class Learner(Protocol):
    """Learns microbatches in order. Its state is complete: a run that was killed continues bit for bit."""

    def learn(self, batch: MicroBatch) -> None:
        """One update."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that predict."""
        ...

    def predictor(self, weights: Mapping[str, Tensor]) -> Predict:
        """Predicts with weights that `weights` returned."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that later updates depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        ...


class ForwardForward:
    """The serial reference, which the pipeline of a daemon equals bit for bit."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype) -> None:
        self.network = Network(recipe, Placement(product_dtype=dtype))

    def learn(self, batch: MicroBatch) -> None:
        """One update of every layer."""
        self.network.learn(batch.images, batch.labels, batch.step, batch.phase, batch.ages)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights."""
        return self.network.weights()

    def predictor(self, weights: Mapping[str, Tensor]) -> Predict:
        """Predicts as a daemon does."""
        classifier = Classifier(self.network.recipe, weights)
        return lambda images_BI: classifier.predict(images_BI).labels_B

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the network."""
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.network.load_state_dict(state)
