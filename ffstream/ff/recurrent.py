"""The layers of a recurrent network, which compute together and learn apart.

In one microbatch the layers exchange activities in rounds (`rounds.py`), with fixed weights. Then each learns from
its last computation, as any other layer does: the updates of a microbatch come before the rounds of the next one, and
a barrier only between them. `Settling` has the methods of a layer, so the serial reference and a stage need not know.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ffstream.ff.activities import Activities
from ffstream.ff.compared_rows import ComparedRows
from ffstream.ff.connection import Shape
from ffstream.ff.layer import Layer
from ffstream.ff.placement import Placement
from ffstream.ff.recipe import Recipe
from ffstream.ff.recurrence import TopDown
from ffstream.ff.rounds import SettlingLayer, settle


class Step(Protocol):
    """What a microbatch passes through: a layer, or layers that compute together."""

    def forward(self, input: Activities) -> Activities:
        """The activities to pass on. `input` must not change before the next `update` has returned."""
        ...

    def update(self) -> None:
        """Learns from the rows of the last forward pass."""
        ...


class RecurrentLayer(Layer):
    """A layer that has a row for each sample and label, and learns from the goodness of its last round."""

    def __init__(self, recipe: Recipe, index: int, input_shape: Shape, placement: Placement) -> None:
        assert isinstance(recipe.recurrence, TopDown)
        self.recurrence = recipe.recurrence
        super().__init__(recipe, index, input_shape, placement._replace(buffers=0))  # `rounds.py` has buffers
        self.settling = SettlingLayer(self.formulas, self._weights, self.product_dtype, self._buffers)

    def begin(self, input: Activities) -> None:
        """Takes the microbatch, of which the rounds follow."""
        self._input = input
        self._observation = None  # its hardware is ideal

    def end(self, passed_on: Activities) -> Activities:
        """Takes the result of the last round, and adds this layer's score."""
        self._result = self.settling.result()
        self._goodness_BL: Tensor | None = None
        return passed_on._replace(score_BL=self._add_score(passed_on))

    def _all_goodness(self) -> Tensor:
        if self._goodness_BL is None:
            self._goodness_BL = self._compared = self.settling.goodness()
        return self._goodness_BL

    def _write_gradients(self, goodness_gradient: Tensor) -> None:
        self.settling.write_gradients(goodness_gradient, self.parameters.gradients)

    def _ema_wrong(self, rows: int) -> int:
        weights = {name: self._as_product(name, value) for name, value in self.parameters.ema.items()}
        return ComparedRows(self._input, rows).wrong(self.settling.goodness_by(weights, rows))


class Settling:
    """All layers of a recurrent network."""

    def __init__(self, layers: Sequence[RecurrentLayer]) -> None:
        self._recurrence, self._layers = layers[0].recurrence, layers

    def forward(self, input: Activities) -> Activities:
        """Runs all rounds. What it passes on are the score and what came with the microbatch."""
        for layer in self._layers:
            layer.begin(input)
        settle(self._recurrence, [layer.settling for layer in self._layers], input.h_NF)
        for layer in self._layers:
            input = layer.end(input)
        return input

    def update(self) -> None:
        """Every layer learns."""
        for layer in self._layers:
            layer.update()


def make_layer(recipe: Recipe, index: int, input_shape: Shape, placement: Placement) -> Layer:
    """Layer `index` of the recipe."""
    kind = RecurrentLayer if recipe.recurrence.is_recurrent else Layer
    return kind(recipe, index, input_shape, placement)


def steps_of(layers: Sequence[Layer]) -> Sequence[Step]:
    """What a microbatch passes through: each layer, or recurrent layers together."""
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
    return [Settling(recurrent)] if recurrent else layers
