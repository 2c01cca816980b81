"""Activations: h = φ(z), elementwise, and their derivative φ′(z).

Each works on tensors of any shape. Hinton (2022) uses ReLU; the others are for experiments.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register

if TYPE_CHECKING:
    from torch import Tensor


class Activation(Part):
    """h = φ(z)."""

    family: ClassVar[str] = "activation"
    must_define: ClassVar[tuple[str, ...]] = ("value", "gradient")

    def value(self, z: Tensor) -> Tensor:
        """φ(z), in a new tensor."""
        raise NotImplementedError

    def gradient(self, z: Tensor) -> Tensor:
        """φ′(z), in a new tensor."""
        raise NotImplementedError

    def apply_(self, z: Tensor) -> Tensor:
        """φ(z) in place."""
        return z.copy_(self.value(z))


@register
class Relu(Activation):
    """φ(z) = max(z, 0), φ′(0) = 0."""

    kind: Literal["relu"] = "relu"

    def value(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return z.clamp_min(0)

    def gradient(self, z: Tensor) -> Tensor:
        """φ′(z)."""
        return (z > 0).to(z.dtype)

    def apply_(self, z: Tensor) -> Tensor:
        """φ(z) in place."""
        return z.clamp_min_(0)


@register
class LeakyRelu(Activation):
    """φ(z) = z for z > 0, otherwise slope · z (Maas et al. 2013)."""

    kind: Literal["leaky_relu"] = "leaky_relu"
    slope: float = Field(0.1, ge=0, lt=1, description="derivative for negative preactivations")

    def value(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return z.clamp_min(0) + z.clamp_max(0) * self.slope

    def gradient(self, z: Tensor) -> Tensor:
        """φ′(z)."""
        return (z > 0).to(z.dtype) * (1 - self.slope) + self.slope


@register
class Silu(Activation):
    """φ(z) = z σ(z) (Hendrycks and Gimpel 2016)."""

    kind: Literal["silu"] = "silu"

    def value(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return z * z.sigmoid()

    def gradient(self, z: Tensor) -> Tensor:
        """φ′(z) = σ (1 + z (1 − σ))."""
        s = z.sigmoid()
        return s * (1 + z * (1 - s))

    def apply_(self, z: Tensor) -> Tensor:
        """φ(z) in place."""
        return z.mul_(z.sigmoid())


@register
class Gelu(Activation):
    """φ(z) = z Φ(z), where Φ is the cumulative distribution function of the standard normal
    distribution (Hendrycks and Gimpel 2016). Computed exactly, not with the tanh approximation."""

    kind: Literal["gelu"] = "gelu"

    def value(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return z * self._normal_cdf(z)

    def gradient(self, z: Tensor) -> Tensor:
        """φ′(z) = Φ(z) + z N(z), where N is the density of the standard normal distribution."""
        density = (z.square() * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
        return self._normal_cdf(z) + z * density

    @staticmethod
    def _normal_cdf(z: Tensor) -> Tensor:
        return ((z * math.sqrt(0.5)).erf() + 1) * 0.5


@register
class StudentT(Activation):
    """φ(z) = log(1 + z²): up to a constant, the negative log density of a Student-t distribution with one degree of
    freedom. Hinton (2022, section 7) suggests it as an alternative to ReLU."""

    kind: Literal["student_t"] = "student_t"

    def value(self, z: Tensor) -> Tensor:
        """φ(z)."""
        return z.square().log1p()

    def gradient(self, z: Tensor) -> Tensor:
        """φ′(z) = 2z / (1 + z²)."""
        return 2 * z / (z.square() + 1)
