"""What learns a stream: a Forward-Forward network, or (in `backprop.py`) its peer."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ffstream.checkpoint.replicas import MERGER, further_replicas, of_replica
from ffstream.data import Dataset, Split
from ffstream.ff.classifier import Classifier
from ffstream.ff.member import below, joined
from ffstream.ff.merging import Merger, averaged
from ffstream.ff.network import Network
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from ffstream.pipeline.messages import MicroBatch

CPU = torch.device("cpu")
Predict = Callable[[Tensor], Tensor]  # images (B, I; uint8) to labels (B)


class Splits(NamedTuple):
    """What is learned, and what the error is measured on."""

    train: Split
    held_out: Split
    name: str  # of the held-out data


def splits_of(dataset: Dataset, *, validation: bool) -> Splits:
    """The training and the test split, or with `validation` two parts of the training split."""
    if not validation:
        return Splits(dataset.train, dataset.test, "test")
    return Splits(dataset.split("train_without_validation"), dataset.split("validation"), "validation")


def error(predict: Predict, split: Split) -> float:
    """The share of a split that is predicted wrong."""
    predicted_N = predict(torch.from_numpy(split.images.reshape(len(split), -1)))
    return int((predicted_N != torch.from_numpy(split.labels).long()).sum()) / len(split)


def held_out_error(learner: "Learner", split: Split) -> float:
    """The share of a split that the weights which predict now get wrong."""
    return error(learner.predictor(learner.weights()), split)


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


def predictor(classifier: Classifier) -> Predict:
    """The labels that a classifier predicts."""
    return lambda images_BI: classifier.predict(images_BI).labels_B


class Replicas:
    """The serial reference of replicas, which take turns and are merged (`ffstream/ff/merging.py`)."""

    def __init__(
        self, recipe: Recipe, dtype: torch.dtype, replicas: int, merge_every: int, device: torch.device = CPU
    ) -> None:
        self.networks = [Network(recipe, Placement(device, dtype)) for _ in range(replicas)]
        self._merger = Merger()
        self._merge_steps = replicas * merge_every

    def learn(self, batch: MicroBatch) -> None:
        """One update of the replica whose turn it is, or at the start of all, and a merge if one is due."""
        count = len(self.networks)
        replicas = self.networks[0].recipe.replicas_after(batch.seq - batch.fresh, count)
        for network in self.networks if replicas == 1 else [self.networks[batch.step % count]]:
            network.learn(batch.images, batch.labels, batch.step, batch.phase, batch.ages, replicas)
        if (batch.step + 1) % self._merge_steps == 0:
            merged = self._merger.merge([network.state_dict() for network in self.networks])
            for network in self.networks:
                network.load_state_dict(merged)

    def weights(self) -> dict[str, Tensor]:
        """The mean of the replicas' EMA weights."""
        return averaged([network.weights() for network in self.networks])

    def predictor(self, weights: Mapping[str, Tensor]) -> Predict:
        """Predicts as a daemon does."""
        return predictor(Classifier(self.networks[0].recipe, weights))

    def state_dict(self) -> dict[str, Tensor]:
        """The states of all replicas and of the merger, with their names in a checkpoint."""
        state = joined([(MERGER, self._merger.state_dict())])
        for number, network in enumerate(self.networks):
            state |= of_replica(number, network.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from such a state."""
        self._merger.load_state_dict(below(MERGER, state))
        for network, own in zip(self.networks, (state, *(own for _, own in further_replicas(state))), strict=True):
            network.load_state_dict(own)


class ForwardForward:
    """The serial reference, which the pipeline of a daemon equals bit for bit."""

    def __init__(self, recipe: Recipe, dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.network = Network(recipe, Placement(device, dtype))

    def learn(self, batch: MicroBatch) -> None:
        """One update of every layer."""
        self.network.learn(batch.images, batch.labels, batch.step, batch.phase, batch.ages)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights."""
        return self.network.weights()

    def predictor(self, weights: Mapping[str, Tensor]) -> Predict:
        """Predicts as a daemon does."""
        return predictor(Classifier(self.network.recipe, weights))

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the network."""
        return self.network.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned."""
        self.network.load_state_dict(state)
