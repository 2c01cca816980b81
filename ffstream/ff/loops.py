"""The loops behind `kernels.py`, compiled by numba. They run on float32 arrays and release the GIL.

Importing numba takes about half a second, so this module is imported when the first loop is needed.
Shapes: B samples, N rows, L labels, F units. With label vectors, S segments of K units each; the goodness is that
of A areas, each of some segments.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

_Array = NDArray[np.float32]
_Bits = NDArray[np.int16] | NDArray[np.int32]
_Places = NDArray[np.uint8]
_Areas = NDArray[np.int64]
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_Loop = TypeVar("_Loop", bound=Callable[..., Any])


def _compiled(*signatures: str, fastmath: bool = False) -> Callable[[_Loop], _Loop]:
    """Compiles a loop, and caches the machine code on disk if there is a folder that can be written."""
    # With Python's division, which checks for zero, a loop is not vectorised.
    options: dict[str, Any] = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}

    def compile(loop: _Loop) -> _Loop:
        try:
            return cast(_Loop, numba.njit(list(signatures), cache=True, **options)(loop))
        except RuntimeError:  # no folder for the cache: compiled at each start, which takes seconds
            return cast(_Loop, numba.njit(list(signatures), **options)(loop))

    return compile


# tanh(x) ≈ x P(x²) / Q(x²), beyond the limit ±1: the rational approximation that Eigen uses for float32.
_TANH_LIMIT = np.float32(7.90531110763549805)
_SATURATED = np.float32(16)
_P0, _P1 = np.float32(4.89352455891786e-03), np.float32(6.37261928875436e-04)
_P2, _P3 = np.float32(1.48572235717979e-05), np.float32(5.12229709037114e-08)
_P4, _P5 = np.float32(-8.60467152213735e-11), np.float32(2.00018790482477e-13)
_P6 = np.float32(-2.76076847742355e-16)
_Q0, _Q1 = np.float32(4.89352518554385e-03), np.float32(2.26843463243900e-03)
_Q2, _Q3 = np.float32(1.18534705686654e-04), np.float32(1.19825839466702e-06)


@_compiled("f4(f4)", fastmath=True)
def sigmoid(z: np.float32) -> np.float32:
    """σ(z) = ½ + ½ tanh(½ z), to 2·10⁻⁷. Unlike a call of exp, it does not keep a loop from being vectorised."""
    x = min(max(_HALF * z, -_TANH_LIMIT), _TANH_LIMIT)
    s = x * x
    p = _P0 + s * (_P1 + s * (_P2 + s * (_P3 + s * (_P4 + s * (_P5 + s * _P6)))))
    q = _Q0 + s * (_Q1 + s * (_Q2 + s * _Q3))
    inner = _HALF + _HALF * x * p / q
    # Exactly: an error of 10⁻⁷ times a large z is not small.
    return (_ONE if z > _ZERO else _ZERO) if abs(z) > _SATURATED else inner


# A flag chooses the activation, SiLU or ReLU. It is the same for a whole loop, so the compiler makes a loop for each.


@_compiled("f4(f4, b1)", fastmath=True)
def activity(v: np.float32, silu: bool) -> np.float32:
    """φ(v)."""
    return v * sigmoid(v) if silu else max(v, _ZERO)


@_compiled("f4(f4, f4, b1)", fastmath=True)
def error(goodness_gradient: np.float32, v: np.float32, silu: bool) -> np.float32:
    """(∂L/∂G) φ(v) φ′(v)."""
    if silu:
        sigma = sigmoid(v)
        return goodness_gradient * v * sigma * sigma * (_ONE + v * (_ONE - sigma))
    return goodness_gradient * max(v, _ZERO)


@_compiled("void(f4[:,:,::1], f4[::1], f4[:,:,::1], i8[::1], f4[:,:,::1], b1)", fastmath=True)
def squares(
    z_NSK: _Array, label_scale_N: _Array, vectors_LSK: _Array, area_S: _Areas, out_NAL: _Array, silu: bool
) -> None:
    """Writes Σ φ(z + g E[l])² over the segments of each area into `out`."""
    out_NAL[:] = _ZERO
    for n in range(z_NSK.shape[0]):
        for label in range(vectors_LSK.shape[0]):
            for s in range(z_NSK.shape[1]):
                total = _ZERO
                for k in range(z_NSK.shape[2]):
                    h = activity(z_NSK[n, s, k] + label_scale_N[n] * vectors_LSK[label, s, k], silu)
                    total += h * h
                out_NAL[n, area_S[s], label] += total


@_compiled(
    "void(f4[:,:,::1], f4[::1], f4[:,:,::1], i8[::1], f4[:,:,::1], f4[:,:,::1], f4[:,:,::1], b1)", fastmath=True
)
def errors(
    z_NSK: _Array,
    label_scale_N: _Array,
    vectors_LSK: _Array,
    area_S: _Areas,
    goodness_gradient_NAL: _Array,
    error_NSK: _Array,
    gradient_LSK: _Array,
    silu: bool,
) -> None:
    """Writes ∂L/∂z = Σ_l (∂L/∂G_l) h_l φ′(v_l) into `error`, and ∂L/∂E into `gradient`."""
    error_NSK[:] = _ZERO
    gradient_LSK[:] = _ZERO
    for n in range(z_NSK.shape[0]):
        label_scale = label_scale_N[n]
        for s in range(z_NSK.shape[1]):
            for label in range(vectors_LSK.shape[0]):
                goodness_gradient = goodness_gradient_NAL[n, area_S[s], label]
                if goodness_gradient == _ZERO:
                    continue
                for k in range(z_NSK.shape[2]):
                    v = z_NSK[n, s, k] + label_scale * vectors_LSK[label, s, k]
                    e = error(goodness_gradient, v, silu)
                    error_NSK[n, s, k] += e
                    gradient_LSK[label, s, k] += label_scale * e


@_compiled("void(f4[:,::1], f4[:,::1], b1)", fastmath=True)
def group_squares(z_NF: _Array, out_NL: _Array, silu: bool) -> None:
    """Writes Σ φ(z)² over the group of each label into `out`."""
    labels = out_NL.shape[1]
    size = z_NF.shape[1] // labels
    for n in range(z_NF.shape[0]):
        for label in range(labels):
            total = _ZERO
            for f in range(label * size, label * size + size):
                h = activity(z_NF[n, f], silu)
                total += h * h
            out_NL[n, label] = total


@_compiled("void(f4[:,::1], f4[:,::1], f4[:,::1], b1)", fastmath=True)
def group_errors(z_NF: _Array, goodness_gradient_NL: _Array, error_NF: _Array, silu: bool) -> None:
    """Writes ∂L/∂z = (∂L/∂G of the unit's label) h φ′(z) into `error`, and 0 for units that are left over."""
    labels = goodness_gradient_NL.shape[1]
    size = z_NF.shape[1] // labels
    for n in range(z_NF.shape[0]):
        for label in range(labels):
            goodness_gradient = goodness_gradient_NL[n, label]
            for f in range(label * size, label * size + size):
                error_NF[n, f] = error(goodness_gradient, z_NF[n, f], silu)
        for f in range(labels * size, z_NF.shape[1]):
            error_NF[n, f] = _ZERO


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


# The loops over maps see numbers as bits: a float32 as an int32, a bfloat16, which is the upper half of a float32, as
# an int16. If the lower bits of a negative number are inverted, numbers are ordered as these integers are.


@_compiled(
    "void(i2[:,:,:,::1], f4[::1], f4[:,:,::1], i8, u1[:,:,:,::1], i4[:,:,:,::1], f4[:,:,:,::1])",
    "void(i4[:,:,:,::1], f4[::1], f4[:,:,::1], i8, u1[:,:,:,::1], i4[:,:,:,::1], f4[:,:,:,::1])",
)
def pool(
    map_bits: _Bits, scale_N: _Array, bias: _Array, size: int, at: _Places, out_bits: _Bits, out: _Array
) -> None:
    """Writes the maximum of each window · scale + bias into `out`, whose bits `out_bits` are, and which place of its
    window the maximum is at into `at`; of equal values the first."""
    sign = 8 * map_bits.itemsize - 1
    lower = (1 << sign) - 1
    unused = 31 - sign
    rows, height, width, channels = out.shape
    largest = np.empty(channels, map_bits.dtype)
    for n in range(rows):
        for y in range(height):
            for x in range(width):
                for o in range(channels):
                    bits = map_bits[n, y * size, x * size, o]
                    largest[o] = bits ^ ((bits >> sign) & lower)
                    at[n, y, x, o] = 0
                for place in range(1, size * size):
                    row, column = y * size + place // size, x * size + place % size
                    for o in range(channels):
                        bits = map_bits[n, row, column, o]
                        value = bits ^ ((bits >> sign) & lower)
                        larger = value > largest[o]
                        largest[o] = value if larger else largest[o]
                        at[n, y, x, o] = place if larger else at[n, y, x, o]
                for o in range(channels):
                    bits = largest[o]
                    out_bits[n, y, x, o] = (bits ^ ((bits >> sign) & lower)) << unused
                for o in range(channels):
                    out[n, y, x, o] = out[n, y, x, o] * scale_N[n] + bias[y, x, o]


@_compiled(
    "void(i2[:,:,:,::1], f4[::1], f4[:,:,::1], u1[:,:,:,::1], i4[:,:,:,::1], f4[:,:,:,::1])",
    "void(i4[:,:,:,::1], f4[::1], f4[:,:,::1], u1[:,:,:,::1], i4[:,:,:,::1], f4[:,:,:,::1])",
)
def pool_pairs(map_bits: _Bits, scale_N: _Array, bias: _Array, at: _Places, out_bits: _Bits, out: _Array) -> None:
    """The same for windows of 2 × 2, two to four times as fast: one loop over the channels compares four places."""
    sign = 8 * map_bits.itemsize - 1
    lower = map_bits.dtype.type((1 << sign) - 1)
    unused = 31 - sign
    rows, height, width, channels = out.shape
    out_NF, bias_F = out.reshape(rows, -1), bias.reshape(-1)
    for n in range(rows):
        for y in range(height):
            for x in range(width):
                top, left = 2 * y, 2 * x
                map_0, map_1 = map_bits[n, top, left], map_bits[n, top, left + 1]
                map_2, map_3 = map_bits[n, top + 1, left], map_bits[n, top + 1, left + 1]
                at_O, out_O = at[n, y, x], out_bits[n, y, x]
                for o in range(channels):
                    largest = map_0[o] ^ ((map_0[o] >> sign) & lower)
                    value = map_1[o] ^ ((map_1[o] >> sign) & lower)
                    place = np.uint8(1) if value > largest else np.uint8(0)
                    largest = max(largest, value)
                    value = map_2[o] ^ ((map_2[o] >> sign) & lower)
                    place = np.uint8(2) if value > largest else place
                    largest = max(largest, value)
                    value = map_3[o] ^ ((map_3[o] >> sign) & lower)
                    at_O[o] = np.uint8(3) if value > largest else place
                    largest = max(largest, value)
                    out_O[o] = np.int32(largest ^ ((largest >> sign) & lower)) << unused
        for f in range(out_NF.shape[1]):
            out_NF[n, f] = out_NF[n, f] * scale_N[n] + bias_F[f]


@_compiled(
    "void(f4[:,:,:,::1], f4[::1], u1[:,:,:,::1], i8, i2[:,:,:,::1])",
    "void(f4[:,:,:,::1], f4[::1], u1[:,:,:,::1], i8, i4[:,:,:,::1])",
)
def unpool(error: _Array, scale_N: _Array, at: _Places, size: int, out_bits: _Bits) -> None:
    """Writes error · scale at the place `at` of each window of the map, and 0 at its other places. Rounds to the
    nearest number of the map's precision, and a tie to the even one."""
    unused = 32 - 8 * out_bits.itemsize
    half, odd = (1 << unused >> 1) - 1 if unused else 0, 1 if unused else 0
    rows, height, width, channels = error.shape
    scaled = np.empty(channels, np.float32)
    scaled_bits = scaled.view(np.int32)
    rounded = np.empty(channels, out_bits.dtype)
    for n in range(rows):
        for y in range(height):
            for x in range(width):
                for o in range(channels):
                    scaled[o] = error[n, y, x, o] * scale_N[n]
                for o in range(channels):
                    bits = scaled_bits[o]
                    rounded[o] = (bits + half + ((bits >> unused) & odd)) >> unused
                for place in range(size * size):
                    row, column = y * size + place // size, x * size + place % size
                    for o in range(channels):
                        out_bits[n, row, column, o] = rounded[o] if at[n, y, x, o] == place else 0


@_compiled(
    "void(f4[:,:,:,::1], f4[::1], u1[:,:,:,::1], i2[:,:,:,::1])",
    "void(f4[:,:,:,::1], f4[::1], u1[:,:,:,::1], i4[:,:,:,::1])",
)
def unpool_pairs(error: _Array, scale_N: _Array, at: _Places, out_bits: _Bits) -> None:
    """The same for windows of 2 × 2, twice as fast: a row of windows is rounded at once."""
    unused = 32 - 8 * out_bits.itemsize
    half, odd = (1 << unused >> 1) - 1 if unused else 0, 1 if unused else 0
    rows, height, width, channels = error.shape
    error_NHF = error.reshape(rows, height, -1)
    scaled = np.empty(width * channels, np.float32)
    scaled_bits = scaled.view(np.int32)
    rounded = np.empty(width * channels, out_bits.dtype)
    for n in range(rows):
        for y in range(height):
            for f in range(width * channels):
                scaled[f] = error_NHF[n, y, f] * scale_N[n]
            for f in range(width * channels):
                bits = scaled_bits[f]
                rounded[f] = (bits + half + ((bits >> unused) & odd)) >> unused
            for x in range(width):
                first = x * channels
                for place in range(4):
                    row, column = 2 * y + place // 2, 2 * x + place % 2
                    for o in range(channels):
                        out_bits[n, row, column, o] = rounded[first + o] if at[n, y, x, o] == place else 0
