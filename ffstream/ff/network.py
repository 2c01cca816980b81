"""The serial reference: the whole algorithm on one thread. The pipeline must equal it bit for bit."""

from collections.abc import Mapping

from torch import Tensor

from ffstream.ff.classifier import Classifier
from ffstream.ff.input_layer import InputLayer
from ffstream.ff.label_layer import NeutralLayer
from ffstream.ff.layer import Placement, Polarity
from ffstream.ff.presets import Recipe
from ffstream.ff.row_layer import RowLayer

LaterLayer = NeutralLayer | RowLayer


def build_layers(recipe: Recipe, placement: Placement) -> tuple[InputLayer, list[LaterLayer]]:
    """The first layer and the later ones, with the weights that the recipe's seed gives."""
    kind: type[LaterLayer] = NeutralLayer if recipe.hand_on == "neutral" else RowLayer
    later = [kind(recipe, index, placement) for index in range(1, len(recipe.widths))]
    return InputLayer(recipe, placement), later


class Network:
    """Layers in a row; each learns as soon as it has handed its activities on."""

    def __init__(self, recipe: Recipe, placement: Placement | None = None) -> None:
        self.recipe = recipe
        self.first, self.later = build_layers(recipe, placement or Placement())

    def learn(self, images_BI: Tensor, labels_B: Tensor, step: int, polarity: Polarity = "interleaved") -> None:
        """One microbatch: images (B, I), labels (B) int64; B is at most the recipe's batch size."""
        activities = self.first.forward(images_BI, labels_B, step, polarity)
        self.first.update()
        for layer in self.later:
            activities = layer.forward(activities)
            layer.update()

    def classifier(self) -> Classifier:
        """The averaged weights of this moment."""
        return Classifier(self.recipe, [layer.averaged() for layer in (self.first, *self.later)])

    def state(self) -> dict[str, Tensor]:
        """A copy of all that later updates depend on, by name: `layers.0.parameters` and so on."""
        return {
            f"layers.{layer.index}.{name}": value
            for layer in (self.first, *self.later)
            for name, value in layer.state().items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continues from a state as if it had been reached here."""
        for layer in (self.first, *self.later):
            prefix = f"layers.{layer.index}."
            layer.load({name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)})
