"""The serial reference: the whole algorithm on one thread. The pipeline must equal it bit for bit.

>>> network = Network(recipe("fast"))
>>> for step, (images, labels) in enumerate(batches):         # uint8 (B, 784), int64 (B)
...     network.learn(images, labels, step)
>>> network.classifier().predict(test_images).labels_B
"""

from collections.abc import Mapping

from torch import Tensor

from ffstream.ff.activities import Scored
from ffstream.ff.classifier import Classifier
from ffstream.ff.head import Head
from ffstream.ff.input import Input
from ffstream.ff.layer import Layer
from ffstream.ff.member import INPUT, READOUT, Member, below, joined, layer_name
from ffstream.ff.objective import Phase
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from ffstream.ff.recurrent import make_layer, steps_of


def build(recipe: Recipe, placement: Placement | None = None) -> tuple[Input, list[Layer]]:
    """The input and the layers, initialised from the recipe's seed."""
    placement = placement or Placement()
    shapes = enumerate(recipe.input_shapes())
    layers = [make_layer(recipe, index, shape, placement) for index, shape in shapes]
    return Input(recipe, placement, layers[0].decoding), layers


class Network:
    """Layers in a row. Each one learns as soon as it has passed its activities on; recurrent layers, which compute
    together, learn after the last round."""

    def __init__(self, recipe: Recipe, placement: Placement | None = None) -> None:
        self.recipe = recipe
        self.input, self.layers = build(recipe, placement)
        self._steps = steps_of(self.layers)
        self.readout: Head | None = recipe.readout.build(recipe, placement or Placement())

    def learn(
        self,
        images_BI: Tensor,
        labels_B: Tensor,
        step: int,
        phase: Phase = "interleaved",
        ages_R: Tensor | None = None,
        replicas: int = 1,
    ) -> Scored | None:
        """Learns one microbatch: images (B, I; uint8, or float32 between 0 and 1), labels (B; int64).

        In a sleep phase whose samples the first layer dreams (`recipe.sleeps_without_images`), only B counts: there
        need not be any images (0, I), and labels are ignored.

        `step` is the number of the microbatch. `ages_R` are the ages of the last R samples, if these are replayed:
        how many samples of the stream ago each came. `replicas`: how many networks, this one among them, learn
        different microbatches until they are merged (`ff/merging.py`).

        Returns the scores of the fresh samples by the weights before this update, or None if there are none: layers
        pass on label-conditioned activities. Raises ValueError if B is not between 1 and `recipe.rows`.
        """
        if not 0 < len(labels_B) <= self.recipe.rows:
            raise ValueError(f"{len(labels_B)} samples in a microbatch: this recipe takes 1 to {self.recipe.rows}")
        activities = self.input.forward(images_BI, labels_B, step, phase, ages_R, replicas)
        for each in self._steps:
            activities = each.forward(activities)
            each.update()
        if self.readout is not None:
            return self.readout.learn(activities)
        return activities.scored

    def classifier(self) -> Classifier:
        """Predicts with a copy of the current EMA weights."""
        return Classifier(self.recipe, self.weights())

    def weights(self) -> dict[str, Tensor]:
        """A copy of the EMA weights, by name: `input.mean`, `layers.0.weight` and so on."""
        return joined((prefix, each.weights()) for prefix, each in self._members())

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Starts over from weights that `weights` returned.

        Only the weights are taken. The optimiser, the learning rate schedule, the EMA and the preprocessing begin as
        in a new network. Raises ValueError, which names the tensor, if a tensor is missing, unknown or of another
        shape.
        """
        expected = self.weights()
        if odd := sorted(expected.keys() ^ weights.keys()):
            reason = "is missing" if odd[0] in expected else "does not belong to this network"
            raise ValueError(f"the tensor {odd[0]} {reason}")
        for name, value in weights.items():
            if value.shape != expected[name].shape:
                shapes = f"{tuple(value.shape)}, but this network needs {tuple(expected[name].shape)}"
                raise ValueError(f"the tensor {name} has the shape {shapes}")
        for prefix, each in self._members():
            each.load_weights(below(prefix, weights))

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of everything that later updates depend on, by name: `layers.0.parameters` and so on."""
        return joined((prefix, each.state_dict()) for prefix, each in self._members())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state that `state_dict` returned, as if it had been reached here."""
        for prefix, each in self._members():
            each.load_state_dict(below(prefix, state))

    def _members(self) -> list[tuple[str, Member]]:
        members: list[tuple[str, Member]] = [(INPUT, self.input)]
        members += ((layer_name(layer.index), layer) for layer in self.layers)
        return members if self.readout is None else [*members, (READOUT, self.readout)]
