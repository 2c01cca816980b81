"""The loops behind `kernels.py`, compiled by numba. They run on float32 arrays and release the GIL.

Importing numba takes about half a second, so this module is imported when the first loop is needed.
Shapes: B samples, N rows, L labels, F units.
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
    """Compiles a loop, and caches the machine code on disk if there is a folder that can be written."""

    def compile(loop: _Loop) -> _Loop:
        try:
            return cast(_Loop, numba.njit(signature, nogil=True, fastmath=fastmath, cache=True)(loop))
        except RuntimeError:  # no folder for the cache: compiled at each start, which takes seconds
            return cast(_Loop, numba.njit(signature, nogil=True, fastmath=fastmath)(loop))

    return compile


@_compiled("void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1])", fastmath=True)
def squares(z_NF: _Array, label_scale_N: _Array, vectors_LF: _Array, out_NL: _Array) -> None:
    """Writes Σ_f relu(z + g E[l])² into `out`."""
    for n in range(z_NF.shape[0]):
        for label in range(vectors_LF.shape[0]):
            total = _ZERO
            for f in range(z_NF.shape[1]):
                h = max(z_NF[n, f] + label_scale_N[n] * vectors_LF[label, f], _ZERO)
                total += h * h
            out_NL[n, label] = total


@_compiled("void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[:,::1])", fastmath=True)
def errors(
    z_NF: _Array,
    label_scale_N: _Array,
    vectors_LF: _Array,
    goodness_gradient_NL: _Array,
    error_NF: _Array,
    gradient_LF: _Array,
) -> None:
    """Writes ∂L/∂z = Σ_l (∂L/∂G_l) h_l into `error`, and ∂L/∂E into `gradient`."""
    error_NF[:] = _ZERO
    gradient_LF[:] = _ZERO
    for n in range(z_NF.shape[0]):
        label_scale = label_scale_N[n]
        for label in range(vectors_LF.shape[0]):
            goodness_gradient = goodness_gradient_NL[n, label]
            if goodness_gradient == _ZERO:
                continue
            for f in range(z_NF.shape[1]):
                error = goodness_gradient * max(z_NF[n, f] + label_scale * vectors_LF[label, f], _ZERO)
                error_NF[n, f] += error
                gradient_LF[label, f] += label_scale * error


@_compiled("f4(f4[:,::1], i8[::1], f4, f4, f4[:,::1])")
def softmax(
    goodness_BL: _Array, labels_B: NDArray[np.int64], alpha: float, smoothing: float, out_BL: _Array
) -> float:
    """Writes ∂L/∂G of the smoothed softmax loss into `out`, and returns the loss."""
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
