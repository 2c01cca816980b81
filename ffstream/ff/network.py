"""The serial reference: the whole algorithm on one thread. The pipeline must equal it bit for bit.

>>> network = Network(recipe("fast"))
>>> for step, (images, labels) in enumerate(batches):         # uint8 (B, 784), int64 (B)
...     network.learn(images, labels, step)
>>> network.classifier().predict(test_images).labels_B
"""

from collections.abc import Mapping

from torch import Tensor

from ffstream.ff.classifier import Classifier
from ffstream.ff.input import Input
from ffstream.ff.layer import Layer, Placement
from ffstream.ff.member import INPUT, Member, below, joined, layer_name
from ffstream.ff.objective import Phase
from ffstream.ff.recipe import Recipe


def build(recipe: Recipe, placement: Placement | None = None) -> tuple[Input, list[Layer]]:
    """The input and the layers, with the weights that the recipe's seed gives."""
    placement = placement or Placement()
    shapes = enumerate(recipe.input_shapes())
    return Input(recipe, placement), [Layer(recipe, index, shape, placement) for index, shape in shapes]


class Network:
    """Layers in a row; each learns as soon as it has passed its activities on."""

    def __init__(self, recipe: Recipe, placement: Placement | None = None) -> None:
        self.recipe = recipe
        self.input, self.layers = build(recipe, placement)

    def learn(self, images_BI: Tensor, labels_B: Tensor, step: int, phase: Phase = "interleaved") -> None:
        """One microbatch: images (B, I; uint8 or float32), labels (B) int64. Raises ValueError for too many."""
        if not 0 < len(images_BI) <= self.recipe.rows:
            raise ValueError(f"{len(images_BI)} samples in a microbatch: this recipe takes 1 to {self.recipe.rows}")
        activities = self.input.forward(images_BI, labels_B, step, phase)
        for layer in self.layers:
            activities = layer.forward(activities)
            layer.update()

    def classifier(self) -> Classifier:
        """The EMA weights of this moment."""
        return Classifier(self.recipe, self.weights())

    def weights(self) -> dict[str, Tensor]:
        """A copy of what predicts, by name: `layers.0.weight` and so on."""
        return joined((prefix, each.weights()) for prefix, each in self._members())

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of all that later updates depend on, by name: `layers.0.parameters` and so on."""
        return joined((prefix, each.state_dict()) for prefix, each in self._members())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state as if it had been reached here."""
        for prefix, each in self._members():
            each.load_state_dict(below(prefix, state))

    def _members(self) -> list[tuple[str, Member]]:
        return [(INPUT, self.input), *((layer_name(layer.index), layer) for layer in self.layers)]
