"""All labels' goodness and errors of a layer, the part of the algorithm that is not a matrix product.

What a label adds to a row is g·E[l], so for every label h = relu(a + g E[l]). Written with tensor operations this
is half a dozen passes over B·L·O numbers, as much time as the products take; as a loop it is two passes over numbers
that stay in the first-level cache. On the CPU the loops are compiled (`loops`), elsewhere the same formulas are
tensor operations.

Shapes: B samples, L labels, O outputs. Everything float32.
"""

import torch
from torch import Tensor


def prepare() -> None:
    """Fetches the compiled loops now; otherwise the first that needs them does."""
    from ffstream.ff import loops  # noqa: F401


def softmax_slopes(goodness_BL: Tensor, labels_B: Tensor, alpha: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """`objective.Softmax` on the CPU: a dozen small tensor operations as one loop."""
    from ffstream.ff import loops

    slope_BL = torch.empty_like(goodness_BL)
    loss = loops.softmax(goodness_BL.numpy(), labels_B.numpy(), alpha, smoothing, slope_BL.numpy())
    return slope_BL, torch.tensor(loss)


def all_label_squares(term_BO: Tensor, gain_B: Tensor, vectors_LO: Tensor) -> Tensor:
    """Σ_o relu(a + g E[l])² for every sample and label, (B, L)."""
    if term_BO.device.type == "cpu":
        from ffstream.ff import loops

        squares_BL = torch.empty(len(term_BO), len(vectors_LO))
        loops.squares(term_BO.numpy(), gain_B.numpy(), vectors_LO.numpy(), squares_BL.numpy())
        return squares_BL
    h_BLO = torch.addcmul(term_BO[:, None], gain_B[:, None, None], vectors_LO).clamp_min_(0)
    return h_BLO.square_().sum(2)


def all_label_errors(
    term_BO: Tensor, gain_B: Tensor, vectors_LO: Tensor, slope_BL: Tensor, error_BO: Tensor
) -> Tensor:
    """Fills error with ∂L/∂z summed over labels, for ∂L/∂h = slope·h; returns ∂L/∂E (L, O)."""
    if term_BO.device.type == "cpu":
        from ffstream.ff import loops

        gradient_LO = torch.empty_like(vectors_LO)
        arrays = (term_BO, gain_B, vectors_LO, slope_BL, error_BO, gradient_LO)
        loops.errors(*(each.numpy() for each in arrays))
        return gradient_LO
    h_BLO = torch.addcmul(term_BO[:, None], gain_B[:, None, None], vectors_LO).clamp_min_(0)
    h_BLO.mul_(slope_BL[:, :, None])
    torch.sum(h_BLO, 1, out=error_BO)
    return torch.einsum("b,blo->lo", gain_B, h_BLO)
