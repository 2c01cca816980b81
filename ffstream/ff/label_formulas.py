"""From preactivations to goodness, and from ∂L/∂G to ∂L/∂z: the formulas that a layer's parts make together.

    h_l = φ(z_l)        G_l = G(h_l)        ∂L/∂z_l = (∂L/∂G_l) G′(h_l) φ′(z_l)

`kernels` computes the same faster for some parts.

Shapes: N rows, F units, L labels, K units that a label's goodness is taken over.
"""

from collections.abc import Mapping

from torch import Tensor

from ffstream.ff.activation import Activation
from ffstream.ff.buffers import Buffers
from ffstream.ff.goodness import Goodness
from ffstream.ff.label_scheme import LabelScheme

Weights = Mapping[str, Tensor]  # by name; what takes part in products has their precision


class LabelFormulas:
    """An activation, a goodness and a label scheme."""

    def __init__(self, activation: Activation, goodness: Goodness, scheme: LabelScheme, labels: int) -> None:
        self.activation, self.goodness, self.scheme, self.labels = activation, goodness, scheme, labels

    def by_label(self, z_NF: Tensor, gain_N: Tensor, weights: Weights) -> Tensor:
        """Goodness (N, L) for every label."""
        return self.goodness.value(self.activation.value(self.scheme.expand(z_NF, gain_N, weights, self.labels)))

    def label_errors(
        self, z_NF: Tensor, gain_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and the gradients of the scheme's parameters, from ∂L/∂G (N, L)."""
        z_NLK = self.scheme.expand(z_NF, gain_N, weights, self.labels)
        return self.scheme.collapse(self._error(z_NLK, gradient_NL), gain_N)

    def by_row(self, z_NF: Tensor) -> Tensor:
        """Goodness (N) of rows that hold their label, if they have one."""
        return self.goodness.value(self.activation.value(z_NF))

    def row_errors(
        self, z_NF: Tensor, gain_N: Tensor, labels_N: Tensor, gradient_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same as `label_errors` for such rows, from ∂L/∂G (N)."""
        e_NF = self._error(z_NF, gradient_N)
        return e_NF, self.scheme.conditioned_gradients(e_NF, gain_N, labels_N, self.labels)

    def _error(self, z: Tensor, gradient: Tensor) -> Tensor:
        h = self.activation.value(z)
        return self.goodness.gradient(h).mul_(self.activation.gradient(z)).mul_(gradient[..., None])
