"""Label schemes: how a label meets a layer.

`pixels` and `vectors` add g·E[l] to the preactivation of a row, so one connection pass serves every label.
`groups` divides the units among the classes: a label is never an input, and a class's goodness is its group's.

Shapes: N rows, F units (outputs of the connection, flattened), L labels, K units that the goodness of a label is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor

VECTORS = "label_vectors"  # the parameter E (L, F)


class Place(NamedTuple):
    """Where in a network a label scheme would be. `label_free`: the layer's input is."""

    layer: int
    inputs: int
    units: int
    weight_shape: tuple[int, ...]
    labels: int
    label_free: bool


class LabelScheme(Part):
    """From one preactivation a row to one a row and label, and back."""

    family: ClassVar[str] = "label_scheme"
    conditions_rows: ClassVar[bool] = False  # whether a row with one label differs from a row without
    clears_inputs: ClassVar[bool] = False  # whether the first L inputs make room for the label

    @property
    def extra_squares(self) -> float:
        """What the label adds to the sum of squares of every row."""
        return 0.0

    def misfit(self, place: Place) -> str:
        """Why a layer at this place cannot have it; empty if it can."""
        return ""

    def parameters(self, labels: int, units: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what it learns."""
        return {}

    def initialize_(self, parameters: Mapping[str, Tensor]) -> None:
        """First values, where zeros will not do. The connection's parameters have theirs."""

    def gain(self, factor_N: Tensor) -> Tensor:
        """g (N), from the factor of the normalised input."""
        return factor_N.new_ones(factor_N.shape)

    def expand(self, z_NF: Tensor, gain_N: Tensor, parameters: Mapping[str, Tensor], labels: int) -> Tensor:
        """Preactivations (N, L, K) for every label."""
        raise NotImplementedError

    def collapse(self, e_NLK: Tensor, gain_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the parameters, from ∂L/∂z (N, L, K)."""
        raise NotImplementedError

    def condition_(self, z_NF: Tensor, gain_N: Tensor, parameters: Mapping[str, Tensor], labels_N: Tensor) -> Tensor:
        """Preactivations of rows that have one label each, in place."""
        return z_NF

    def conditioned_gradients(self, e_NF: Tensor, gain_N: Tensor, labels_N: Tensor, labels: int) -> dict[str, Tensor]:
        """The gradients of the parameters, from ∂L/∂z of rows that have one label each."""
        return {}


class Additive(LabelScheme):
    """z_l = z + g E[l]; ∂L/∂E[l] = Σ_n g ∂L/∂z_l."""

    conditions_rows: ClassVar[bool] = True

    def parameters(self, labels: int, units: int) -> dict[str, tuple[int, ...]]:
        """E."""
        return {VECTORS: (labels, units)}

    def expand(self, z_NF: Tensor, gain_N: Tensor, parameters: Mapping[str, Tensor], labels: int) -> Tensor:
        """(N, L, F)."""
        return z_NF[:, None].addcmul(gain_N[:, None, None], parameters[VECTORS])

    def collapse(self, e_NLK: Tensor, gain_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Errors of a sample's labels add up before the weight's product; those of a label over the samples."""
        return e_NLK.sum(1), {VECTORS: (gain_N[:, None, None] * e_NLK).sum(0)}

    def condition_(self, z_NF: Tensor, gain_N: Tensor, parameters: Mapping[str, Tensor], labels_N: Tensor) -> Tensor:
        """Adds g E[label]."""
        return z_NF.addcmul_(gain_N[:, None], parameters[VECTORS][labels_N])

    def conditioned_gradients(self, e_NF: Tensor, gain_N: Tensor, labels_N: Tensor, labels: int) -> dict[str, Tensor]:
        """∂L/∂E."""
        gradient_LF = e_NF.new_zeros((labels, e_NF.shape[1]))
        return {VECTORS: gradient_LF.index_add_(0, labels_N, e_NF * gain_N[:, None])}


@register
class Vectors(Additive):
    """A learned vector for each class, zero at first. g = 1."""

    kind: Literal["vectors"] = "vectors"


@register
class Pixels(Additive):
    """The label as pixels: the first L inputs are 0 but for the label's, which is `strength` (Hinton 2022).

    With x₀ the image whose first L inputs are 0, the weights of a label's pixel are E[l]: xWᵀ = x₀Wᵀ + strength E[l].
    The normalised input is r·x, so g = r · strength, and every row's length contains the label's pixel.
    """

    kind: Literal["pixels"] = "pixels"
    clears_inputs: ClassVar[bool] = True
    strength: float = Field(3.0, allow_inf_nan=False, description="value of a label's pixel; image pixels are 0 to 1")

    @property
    def extra_squares(self) -> float:
        """Of the label's pixel."""
        return self.strength**2

    def misfit(self, place: Place) -> str:
        """Only images have pixels."""
        if place.layer:
            return "only the first layer sees pixels; later layers can have vectors"
        if place.weight_shape != (place.units, place.inputs):
            return "its connection must be dense: a label needs an input with a weight of its own for every unit"
        if place.labels > place.inputs:
            return f"{place.labels} labels need as many inputs, and there are {place.inputs}"
        return ""

    def initialize_(self, parameters: Mapping[str, Tensor]) -> None:
        """As the weights of the pixels that it stands for."""
        vectors_LF = parameters[VECTORS]
        vectors_LF.copy_(parameters["weight"][:, : len(vectors_LF)].t())

    def gain(self, factor_N: Tensor) -> Tensor:
        """r · strength."""
        return factor_N * self.strength


@register
class Groups(LabelScheme):
    """Unit o belongs to class o ÷ (F/L): class groups, as in DeeperForward (2025). No label is ever an input."""

    kind: Literal["groups"] = "groups"

    def misfit(self, place: Place) -> str:
        """Groups are equally large, and know no rows with a label each."""
        if place.units % place.labels:
            return f"{place.units} units cannot be divided among {place.labels} labels"
        return "" if place.label_free else "network.activities must be label_free"

    def expand(self, z_NF: Tensor, gain_N: Tensor, parameters: Mapping[str, Tensor], labels: int) -> Tensor:
        """(N, L, F/L), a view."""
        return z_NF.view(len(z_NF), labels, -1)

    def collapse(self, e_NLK: Tensor, gain_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A view."""
        return e_NLK.flatten(1), {}


@register
class Unlabelled(LabelScheme):
    """The layer sees no label of its own; what it learns from is in its input."""

    kind: Literal["none"] = "none"

    def misfit(self, place: Place) -> str:
        """The input must hold the label."""
        return "its input is label_free, so the layer would learn nothing about labels" if place.label_free else ""
