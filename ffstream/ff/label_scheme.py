"""Label schemes: how a label enters a layer.

`pixels` and `vectors` add g·E[l] to the preactivation of a row, so one pass through the connection serves all labels.
`groups` divides the units among the labels: a label is never an input, and its goodness is computed from its group.

Shapes: N rows, F units (outputs of the connection, flattened), L labels, K units that the goodness of one label is
computed from; the units have the shape of a map with P places and C channels, or (C).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from pydantic import Field

from ffstream.ff.connection import Shape
from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor

VECTORS = "label_vectors"  # the parameter E (L, F)


class LayerContext(NamedTuple):
    """The layer that is to use a label scheme. `label_free` says whether the rows it receives hold no label,
    `image_negatives` whether they include negative rows made from images."""

    position: int  # 0 is the first layer
    inputs: int
    units: int
    weight_shape: tuple[int, ...]
    labels: int
    label_free: bool
    image_negatives: bool
    places: int  # of a map; 1 for other layers


class LabelScheme(Part):
    """From one preactivation for each row to one for each row and label, and the gradients back."""

    family: ClassVar[str] = "label_scheme"
    conditions_rows: ClassVar[bool] = False  # whether `condition_` changes a row
    clears_inputs: ClassVar[bool] = False  # whether the first L inputs are set to 0, to make room for the label

    @property
    def extra_squares(self) -> float:
        """What the label adds to the sum of squares of each row."""
        return 0.0

    def incompatibility(self, layer: LayerContext) -> str:
        """Why this layer cannot use the scheme; empty if it can."""
        return ""

    def parameters(self, labels: int, units: int) -> dict[str, tuple[int, ...]]:
        """The names and shapes of the scheme's parameters."""
        return {}

    def group(self, label: int, labels: int, shape: Shape) -> tuple[int, int] | None:
        """The first and the last unit (channel of a map) that the goodness of this label is computed from; None if
        these are all units."""
        return None

    def initialize_(self, parameters: Mapping[str, Tensor]) -> None:
        """Sets initial values other than 0. The connection's parameters are already initialised."""

    def label_scale(self, inverse_norm_N: Tensor) -> Tensor:
        """g (N), the scale of the label vector that is added to each row, from the inverse norm of the input."""
        return inverse_norm_N.new_ones(inverse_norm_N.shape)

    def expand(
        self, z_NF: Tensor, label_scale_N: Tensor, parameters: Mapping[str, Tensor], labels: int, shape: Shape
    ) -> Tensor:
        """The preactivations (N, L, K) for every label."""
        raise NotImplementedError

    def collapse(self, e_NLK: Tensor, label_scale_N: Tensor, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the scheme's parameters, from ∂L/∂z_l (N, L, K)."""
        raise NotImplementedError

    def condition_(
        self, z_NF: Tensor, label_scale_N: Tensor, parameters: Mapping[str, Tensor], labels_N: Tensor
    ) -> Tensor:
        """Turns label-free preactivations (N, F) into those of rows with one label each, in place."""
        return z_NF

    def conditioned_gradients(
        self, e_NF: Tensor, label_scale_N: Tensor, labels_N: Tensor, labels: int
    ) -> dict[str, Tensor]:
        """The gradients of the scheme's parameters, from ∂L/∂z (N, F) of rows with one label each."""
        return {}


class Additive(LabelScheme):
    """z_l = z + g E[l]; ∂L/∂E[l] = Σ_n g ∂L/∂z_l."""

    conditions_rows: ClassVar[bool] = True

    def parameters(self, labels: int, units: int) -> dict[str, tuple[int, ...]]:
        """E (L, F)."""
        return {VECTORS: (labels, units)}

    def expand(
        self, z_NF: Tensor, label_scale_N: Tensor, parameters: Mapping[str, Tensor], labels: int, shape: Shape
    ) -> Tensor:
        """(N, L, F)."""
        return z_NF[:, None].addcmul(label_scale_N[:, None, None], parameters[VECTORS])

    def collapse(self, e_NLK: Tensor, label_scale_N: Tensor, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z is the sum over the labels; ∂L/∂E[l] is the sum over the rows, each times g."""
        return e_NLK.sum(1), {VECTORS: (label_scale_N[:, None, None] * e_NLK).sum(0)}

    def condition_(
        self, z_NF: Tensor, label_scale_N: Tensor, parameters: Mapping[str, Tensor], labels_N: Tensor
    ) -> Tensor:
        """Adds g E[label]."""
        return z_NF.addcmul_(label_scale_N[:, None], parameters[VECTORS][labels_N])

    def conditioned_gradients(
        self, e_NF: Tensor, label_scale_N: Tensor, labels_N: Tensor, labels: int
    ) -> dict[str, Tensor]:
        """∂L/∂E."""
        gradient_LF = e_NF.new_zeros((labels, e_NF.shape[1]))
        return {VECTORS: gradient_LF.index_add_(0, labels_N, e_NF * label_scale_N[:, None])}


@register
class Vectors(Additive):
    """A learned vector for each label, initialised with zeros. g = 1."""

    kind: Literal["vectors"] = "vectors"


@register
class Pixels(Additive):
    """The label written into the image: of the first L pixels, the label's is `strength`, the others 0 (Hinton 2022).

    Let x₀ be the image with its first L pixels set to 0, and E[l] the weights of the pixel of label l. Then
    xWᵀ = x₀Wᵀ + strength E[l]. The normalised input is r·x, so g = r · strength. The label's pixel counts in the norm
    of every row.
    """

    kind: Literal["pixels"] = "pixels"
    clears_inputs: ClassVar[bool] = True
    strength: float = Field(
        3.0, allow_inf_nan=False, description="value of the label's pixel; image pixels are 0 to 1"
    )

    @property
    def extra_squares(self) -> float:
        """The square of the label's pixel."""
        return self.strength**2

    def incompatibility(self, layer: LayerContext) -> str:
        """Only a dense first layer can use it, with at least as many inputs as labels."""
        if layer.position:
            return 'only the first layer sees pixels; use "vectors" for later layers'
        if layer.weight_shape != (layer.units, layer.inputs):
            return "the connection must be dense, so that every unit has a weight of its own for the label's pixel"
        if layer.labels > layer.inputs:
            return f"{layer.labels} labels need {layer.labels} inputs, but the image has {layer.inputs}"
        return ""

    def initialize_(self, parameters: Mapping[str, Tensor]) -> None:
        """E begins as the weights of the pixels that it replaces."""
        vectors_LF = parameters[VECTORS]
        vectors_LF.copy_(parameters["weight"][:, : len(vectors_LF)].t())

    def label_scale(self, inverse_norm_N: Tensor) -> Tensor:
        """r · strength."""
        return inverse_norm_N * self.strength


@register
class Groups(LabelScheme):
    """The units are divided into L groups of equal size, one for each label, in order (DeeperForward, 2025).

    The channels of a map are divided, so each group covers all places. Up to L−1 units that are left over are not
    used.
    """

    kind: Literal["groups"] = "groups"

    def incompatibility(self, layer: LayerContext) -> str:
        """There must be a unit at each place for each label, and the input label-free."""
        units = layer.units // layer.places
        if units < layer.labels:
            what = "units" if layer.places == 1 else "channels"
            return f"{units} {what} cannot be divided among {layer.labels} labels"
        return "" if layer.label_free else "network.activities must be label_free"

    def group(self, label: int, labels: int, shape: Shape) -> tuple[int, int] | None:
        """The units of this label."""
        size = shape[-1] // labels
        return label * size, (label + 1) * size - 1

    def expand(
        self, z_NF: Tensor, label_scale_N: Tensor, parameters: Mapping[str, Tensor], labels: int, shape: Shape
    ) -> Tensor:
        """(N, L, K), a view of z if there is one place."""
        used = shape[-1] - shape[-1] % labels
        z_NPLK = z_NF.view(len(z_NF), -1, shape[-1])[..., :used].unflatten(2, (labels, -1))
        z_NLK: Tensor = z_NPLK.transpose(1, 2).reshape(len(z_NF), labels, -1)
        return z_NLK

    def collapse(self, e_NLK: Tensor, label_scale_N: Tensor, shape: Shape) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z is ∂L/∂z_l in the order of the units, and 0 for those that are left over. There are no parameters."""
        rows, labels, _ = e_NLK.shape
        unused = shape[-1] % labels
        e_NPC = e_NLK.unflatten(2, (-1, shape[-1] // labels)).transpose(1, 2).flatten(2)
        if unused:
            e_NPC = e_NPC.new_zeros(rows, e_NPC.shape[1], shape[-1]).slice_scatter(e_NPC, 2, 0, shape[-1] - unused)
        return e_NPC.reshape(rows, -1), {}


@register
class Unlabelled(LabelScheme):
    """The layer adds no label: its input rows already hold one, or negative rows are made from images."""

    kind: Literal["none"] = "none"

    def incompatibility(self, layer: LayerContext) -> str:
        """The input must be label-conditioned, or hold negative rows."""
        if layer.image_negatives or not layer.label_free:
            return ""
        return "its input is label_free, so the layer would learn nothing about labels"

    def expand(
        self, z_NF: Tensor, label_scale_N: Tensor, parameters: Mapping[str, Tensor], labels: int, shape: Shape
    ) -> Tensor:
        """(N, 1, F), a view of z: the same for all labels."""
        return z_NF[:, None]
