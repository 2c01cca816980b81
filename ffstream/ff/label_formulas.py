"""From preactivations to goodness, and from ∂L/∂G back to ∂L/∂z: activation, goodness and label scheme combined.

    h_l = φ(z_l)        G_l = G(h_l)        ∂L/∂z_l = (∂L/∂G_l) G′(h_l) φ′(z_l)

`kernels.py` has faster versions for some combinations.

Shapes: N rows, F units, L labels, K units that the goodness of one label is computed from, P places
of a map, A areas of it.
"""

from collections.abc import Mapping

from torch import Tensor

from ffstream.ff.activation import Activation
from ffstream.ff.buffers import Buffers
from ffstream.ff.connection import Shape
from ffstream.ff.goodness import Goodness
from ffstream.ff.label_scheme import LabelScheme

Weights = Mapping[str, Tensor]  # a layer's parameters by name; `weight` has the dtype of the matrix products


class LabelFormulas:
    """The formulas for one combination of activation, goodness and label scheme."""

    def __init__(
        self, activation: Activation, goodness: Goodness, scheme: LabelScheme, labels: int, shape: Shape
    ) -> None:
        self.activation, self.goodness, self.scheme = activation, goodness, scheme
        self.labels, self.shape = labels, shape

    def expand(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The preactivations (N, L, K) for every label."""
        return self.scheme.expand(z_NF, label_scale_N, weights, self.labels, self.shape)

    def by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """The goodness (N, L) of every label."""
        return self.goodness.value(self.activation.value(self.expand(z_NF, label_scale_N, weights)))

    def areas_by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """What the objective compares: the goodness (N, L), or that of every area (N, A, L) if there are several."""
        return self.by_label(z_NF, label_scale_N, weights)

    def areas_by_row(self, z_NF: Tensor) -> Tensor:
        """The same for label-conditioned rows: the goodness (N), or that of every area (N, A)."""
        return self.by_row(z_NF)

    def over_areas(self, goodness: Tensor) -> Tensor:
        """The goodness of the layer from that of its areas."""
        return goodness

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the label scheme's parameters, from ∂L/∂G (N, L)."""
        e_NLK = self.error(self.expand(z_NF, label_scale_N, weights), gradient_NL)
        return self.scheme.collapse(e_NLK, label_scale_N, self.shape)

    def by_row(self, z_NF: Tensor) -> Tensor:
        """The goodness (N) of label-conditioned rows."""
        return self.goodness.value(self.activation.value(z_NF))

    def row_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, labels_N: Tensor, gradient_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as `label_errors` for label-conditioned rows, from ∂L/∂G (N)."""
        e_NF = self.error(z_NF, gradient_N)
        return e_NF, self.scheme.conditioned_gradients(e_NF, label_scale_N, labels_N, self.labels)

    def error(self, z: Tensor, gradient: Tensor) -> Tensor:
        """∂L/∂z, in a new tensor, from ∂L/∂G."""
        h = self.activation.value(z)
        return self.goodness.gradient(h).mul_(self.activation.gradient(z)).mul_(gradient[..., None])


class RelativeLabelFormulas(LabelFormulas):
    """The same for ΔG_l = G(h_l) − G(h₀) in place of G_l, where h₀ = φ(z) is the activity without a label.

    ∂L/∂z = Σ_l S_l G′(h_l) φ′(z_l) − (Σ_l S_l) G′(h₀) φ′(z), with S_l = ∂L/∂ΔG_l. The parameters of the label scheme
    do not occur in h₀.
    """

    def __init__(self, formulas: LabelFormulas) -> None:
        super().__init__(formulas.activation, formulas.goodness, formulas.scheme, formulas.labels, formulas.shape)
        self._formulas = formulas

    def by_label(self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights) -> Tensor:
        """ΔG (N, L) of every label."""
        G_NL = self._formulas.by_label(z_NF, label_scale_N, weights)
        return G_NL.sub_(self._formulas.by_row(z_NF)[:, None])

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the label scheme's parameters, from ∂L/∂ΔG (N, L)."""
        e_NF, gradients = self._formulas.label_errors(z_NF, label_scale_N, weights, gradient_NL, buffers)
        return e_NF.sub_(self._formulas.error(z_NF, gradient_NL.sum(1))), gradients
