"""Fast paths: the parts of the algorithm that are not a matrix product, compiled. Each must equal its formula.

What a label adds to a row is g·E[l], so for every label h = relu(z + g E[l]). Written with tensor operations this is
half a dozen passes over N·L·F numbers, as much time as the products take; as a loop it is two passes over numbers
that stay in the first-level cache. `loops` has the loops; they run on the CPU for float32 tensors.

Shapes: N rows, L labels, F units.
"""

import torch
from torch import Tensor

from ffstream.ff.activation import Relu
from ffstream.ff.buffers import Buffers
from ffstream.ff.goodness import MeanSquares, Quadratic, SumSquares
from ffstream.ff.label_formulas import LabelFormulas, Weights
from ffstream.ff.label_scheme import VECTORS, Pixels, Vectors
from ffstream.ff.objective import Objective, Softmax


def prepare() -> None:
    """Imports the compiled loops now; otherwise the first caller that needs them does."""
    from ffstream.ff import loops  # noqa: F401


def fastest(formulas: LabelFormulas, device: torch.device) -> LabelFormulas:
    """The same formulas, compiled where there are kernels for these parts on this device."""
    # These classes, and no subclass of them: that may compute something else.
    if type(formulas.activation) is not Relu or type(formulas.goodness) not in (SumSquares, MeanSquares):
        return formulas
    compiles = device.type == "cpu" and type(formulas.scheme) in (Vectors, Pixels)
    kind = CompiledLabelFormulas if compiles else SquaredLabelFormulas
    return kind(formulas.activation, formulas.goodness, formulas.scheme, formulas.labels)


def fastest_objective(objective: Objective, device: torch.device) -> Objective:
    """The same objective, compiled where there is a kernel for it on this device."""
    if type(objective) is Softmax and device.type == "cpu":
        return CompiledSoftmax.model_construct(**dict(objective))
    return objective


class SquaredLabelFormulas(LabelFormulas):
    """ReLU and a quadratic goodness: the derivative of ReLU is 1 where h is not 0, so no more than h is needed."""

    goodness: Quadratic

    def _error(self, z: Tensor, gradient: Tensor) -> Tensor:
        factor = gradient * (2 * self.goodness.scale(z.shape[-1]))
        return z.clamp_min(0).mul_(factor[..., None])


class CompiledLabelFormulas(SquaredLabelFormulas):
    """The same with added labels, as loops over all labels of a row."""

    def by_label(self, z_NF: Tensor, gain_N: Tensor, weights: Weights) -> Tensor:
        """Goodness (N, L) for every label."""
        from ffstream.ff import loops

        squares_NL = torch.empty(len(z_NF), self.labels)
        loops.squares(z_NF.numpy(), gain_N.numpy(), weights[VECTORS].numpy(), squares_NL.numpy())
        scale = self.goodness.scale(z_NF.shape[1])
        return squares_NL if scale == 1 else squares_NL.mul_(scale)

    def label_errors(
        self, z_NF: Tensor, gain_N: Tensor, weights: Weights, gradient_NL: Tensor, buffers: Buffers
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """∂L/∂z (N, F) and ∂L/∂E (L, F)."""
        from ffstream.ff import loops

        vectors_LF = weights[VECTORS]
        error_NF = buffers.get("error", z_NF, *z_NF.shape)
        gradient_LF = torch.empty_like(vectors_LF)
        scaled_NL = gradient_NL.mul(2 * self.goodness.scale(z_NF.shape[1]))
        arrays = (z_NF, gain_N, vectors_LF, scaled_NL, error_NF, gradient_LF)
        loops.errors(*(each.numpy() for each in arrays))
        return error_NF, {VECTORS: gradient_LF}


class CompiledSoftmax(Softmax):
    """A dozen small tensor operations as one loop."""

    def loss(self, G_BL: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
        """∂L/∂G (B, L) and L."""
        if G_BL.dtype != torch.float32:
            return super().loss(G_BL, own_B)
        from ffstream.ff import loops

        gradient_BL = torch.empty_like(G_BL)
        loss = loops.softmax(G_BL.numpy(), own_B.numpy(), self.alpha, self.smoothing, gradient_BL.numpy())
        return gradient_BL, torch.tensor(loss)
