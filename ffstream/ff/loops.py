"""The loops of `kernels`, as numba compiles them: without the GIL, for float32 arrays.

numba takes nearly half a second for itself, so this is imported by whoever first has something to compute.
Shapes: B samples, L labels, O outputs.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float32]
_ZERO = np.float32(0)
_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def _compiled(signature: str, *, fastmath: bool = False) -> Callable[[_Loop], _Loop]:
    """Machine code, kept from one start to the next where there is a folder for it."""

    def compile(loop: _Loop) -> _Loop:
        try:
            return cast(_Loop, numba.njit(signature, nogil=True, fastmath=fastmath, cache=True)(loop))
        except RuntimeError:  # neither beside the code nor below the home: made anew at each start, in seconds
            return cast(_Loop, numba.njit(signature, nogil=True, fastmath=fastmath)(loop))

    return compile


@_compiled("void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1])", fastmath=True)
def squares(term_BO: _Array, gain_B: _Array, vectors_LO: _Array, out_BL: _Array) -> None:
    """Σ_o relu(a + g E[l])²."""
    for b in range(term_BO.shape[0]):
        for label in range(vectors_LO.shape[0]):
            total = _ZERO
            for o in range(term_BO.shape[1]):
                h = max(term_BO[b, o] + gain_B[b] * vectors_LO[label, o], _ZERO)
                total += h * h
            out_BL[b, label] = total


@_compiled("void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[:,::1])", fastmath=True)
def errors(
    term_BO: _Array, gain_B: _Array, vectors_LO: _Array, slope_BL: _Array, error_BO: _Array, gradient_LO: _Array
) -> None:
    """Σ_l slope·h into error, and ∂L/∂E into gradient."""
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
def softmax(
    goodness_BL: _Array, labels_B: NDArray[np.int64], alpha: float, smoothing: float, out_BL: _Array
) -> float:
    """The slopes of a smoothed softmax into out; returns its loss."""
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
