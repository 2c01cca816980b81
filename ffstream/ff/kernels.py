"""All labels' goodness and errors of a layer, the part of the algorithm that is not a matrix product.

What a label adds to a row is g·E[l], so for every label h = relu(a + g E[l]). Written with tensor operations this
is half a dozen passes over B·L·O numbers, as much time as the products take; as a loop it is two passes over numbers
that stay in the first-level cache. On the CPU the loops are compiled by numba, without the GIL; elsewhere the same
formulas are tensor operations.

Shapes: B samples, L labels, O outputs. Everything float32.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_Array = NDArray[np.float32]
_ZERO = np.float32(0)
_Loop = TypeVar("_Loop", bound=Callable[..., Any])
_machine_codes: list[Callable[[], Callable[..., Any]]] = []


def _compiled(signature: str, *, fastmath: bool = False) -> Callable[[_Loop], _Loop]:
    """Machine code, kept from one start to the next where there is a folder for it.

    Made or fetched at the first call: numba takes half a second for itself, in which a daemon can take samples.
    """

    def compile(loop: _Loop) -> _Loop:
        @cache
        def machine_code() -> Callable[..., Any]:
            import numba

            try:
                return cast(_Loop, numba.njit(signature, nogil=True, fastmath=fastmath, cache=True)(loop))
            except RuntimeError:  # neither beside the code nor below the home: made anew at each start, in seconds
                return cast(_Loop, numba.njit(signature, nogil=True, fastmath=fastmath)(loop))

        _machine_codes.append(machine_code)

        @wraps(loop)
        def run(*arguments: Any) -> Any:
            return machine_code()(*arguments)

        return cast(_Loop, run)

    return compile


def prepare() -> None:
    """Fetches all loops now, for whoever has the time."""
    for machine_code in _machine_codes:
        machine_code()


@_compiled("void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1])", fastmath=True)
def _squares(term_BO: _Array, gain_B: _Array, vectors_LO: _Array, out_BL: _Array) -> None:
    for b in range(term_BO.shape[0]):
        for label in range(vectors_LO.shape[0]):
            total = _ZERO
            for o in range(term_BO.shape[1]):
                h = max(term_BO[b, o] + gain_B[b] * vectors_LO[label, o], _ZERO)
                total += h * h
            out_BL[b, label] = total


@_compiled("void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[:,::1])", fastmath=True)
def _errors(
    term_BO: _Array, gain_B: _Array, vectors_LO: _Array, slope_BL: _Array, error_BO: _Array, gradient_LO: _Array
) -> None:
    error_BO[:] = _ZERO
    gradient_LO[:] = _ZERO
    for b in range(term_BO.shape[0]):
        gain = gain_B[b]
        for label in range(vectors_LO.shape[0]):
            slope = slope_BL[b, label]
            if slope == _ZERO:
                continue
            for o in range(term_BO.shape[1]):
                error = slope * max(term_BO[b, o] + gain * vectors_LO[label, o], _ZERO)
                error_BO[b, o] += error
                gradient_LO[label, o] += gain * error


@_compiled("f4(f4[:,::1], i8[::1], f4, f4, f4[:,::1])")
def _softmax(
    goodness_BL: _Array, labels_B: NDArray[np.int64], alpha: float, smoothing: float, out_BL: _Array
) -> float:
    size, labels = goodness_BL.shape
    loss = 0.0
    for b in range(size):
        top = goodness_BL[b].max()
        total = 0.0
        for label in range(labels):
            total += np.exp(alpha * (goodness_BL[b, label] - top))
        for label in range(labels):
            log_p = alpha * (goodness_BL[b, label] - top) - np.log(total)
            target = smoothing / labels + (1.0 - smoothing if label == labels_B[b] else 0.0)
            out_BL[b, label] = alpha * (np.exp(log_p) - target) / size
            loss -= target * log_p / size
    return loss


def softmax_slopes(goodness_BL: Tensor, labels_B: Tensor, alpha: float, smoothing: float) -> tuple[Tensor, Tensor]:
    """`objective.Softmax` on the CPU: a dozen small tensor operations as one loop."""
    slope_BL = torch.empty_like(goodness_BL)
    loss = _softmax(goodness_BL.numpy(), labels_B.numpy(), alpha, smoothing, slope_BL.numpy())
    return slope_BL, torch.tensor(loss)


def all_label_squares(term_BO: Tensor, gain_B: Tensor, vectors_LO: Tensor) -> Tensor:
    """Σ_o relu(a + g E[l])² for every sample and label, (B, L)."""
    if term_BO.device.type == "cpu":
        squares_BL = torch.empty(len(term_BO), len(vectors_LO))
        _squares(term_BO.numpy(), gain_B.numpy(), vectors_LO.numpy(), squares_BL.numpy())
        return squares_BL
    h_BLO = torch.addcmul(term_BO[:, None], gain_B[:, None, None], vectors_LO).clamp_min_(0)
    return h_BLO.square_().sum(2)


def all_label_errors(
    term_BO: Tensor, gain_B: Tensor, vectors_LO: Tensor, slope_BL: Tensor, error_BO: Tensor
) -> Tensor:
    """Fills error with ∂L/∂z summed over labels, for ∂L/∂h = slope·h; returns ∂L/∂E (L, O)."""
    if term_BO.device.type == "cpu":
        gradient_LO = torch.empty_like(vectors_LO)
        arrays = (term_BO, gain_B, vectors_LO, slope_BL, error_BO, gradient_LO)
        _errors(*(each.numpy() for each in arrays))
        return gradient_LO
    h_BLO = torch.addcmul(term_BO[:, None], gain_B[:, None, None], vectors_LO).clamp_min_(0)
    h_BLO.mul_(slope_BL[:, :, None])
    torch.sum(h_BLO, 1, out=error_BO)
    return torch.einsum("b,blo->lo", gain_B, h_BLO)
