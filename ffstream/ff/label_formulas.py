"""From preactivations to goodness, and from ∂L/∂G back to ∂L/∂z: activation, goodness and label scheme combined.

    h_l = φ(z_l)        G_l = G(h_l)        ∂L/∂z_l = (∂L/∂G_l) G′(h_l) φ′(z_l)

`kernels.py` has faster versions for some combinations.

Shapes: N rows, F units, L labels, K units that the goodness of one label is computed from, P places
of a map.
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

    def label_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the label scheme's parameters, from ∂L/∂G (N, L)."""
        e_NLK = self._error(self.expand(z_NF, label_scale_N, weights), gradient_NL)
        return self.scheme.collapse(e_NLK, label_scale_N, self.shape)

    def by_row(self, z_NF: Tensor) -> Tensor:
        """The goodness (N) of label-conditioned rows."""
        return self.goodness.value(self.activation.value(z_NF))

    def row_errors(
        self, z_NF: Tensor, label_scale_N: Tensor, labels_N: Tensor, gradient_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as `label_errors` for label-conditioned rows, from ∂L/∂G (N)."""
        e_NF = self._error(z_NF, gradient_N)
        return e_NF, self.scheme.conditioned_gradients(e_NF, label_scale_N, labels_N, self.labels)

    def _error(self, z: Tensor, gradient: Tensor) -> Tensor:
        h = self.activation.value(z)
        return self.goodness.gradient(h).mul_(self.activation.gradient(z)).mul_(gradient[..., None])
