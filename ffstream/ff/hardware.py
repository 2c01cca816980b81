"""Options of the device that computes a layer's products. `ff/hardware_model.py` computes it.

Learning does not use them. It uses the weights that it programmed, the inputs that it sent and what it read back.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ffstream.ff.part import Part, register, resolve
from ffstream.util.option_errors import OptionError, show


class Hardware(Part):
    """What stands between a layer's programmed parameters and the preactivations that are read back."""

    family: ClassVar[str] = "hardware"
    must_define: ClassVar[tuple[str, ...]] = ("implementation",)
    implementation: ClassVar[str]

    def build(self, array: Any) -> Any:
        """An `ff.hardware_model.Device` for the `ff.hardware_model.Array` of a layer."""
        return resolve(self.implementation)(self, array)


@register
class Ideal(Hardware):
    """Computes exactly what it is told to."""

    kind: Literal["ideal"] = "ideal"
    implementation: ClassVar[str] = "ffstream.ff.hardware_model:IdealDevice"


@register
class Analog(Hardware):
    """An array of analog weights, each a little different from what was programmed, read by a converter.

    With g the gain errors, v the values of stuck weights, n the noise and Q the converter:

        W′ = v if stuck, else W (1 + g)        z = 0 if dead, else Q((1 + g) (C(x̂; W′) + b + n))

    g is normal with the standard deviation `mismatch`; n with `noise` · √Σ_i x̂_i² W′_i², as if the products had
    independent errors; v is uniform in ±2.5/√fan_in. All are drawn from `seed`, the layer's index and how often the
    device has changed, and n also from how often it was read. Q has 2^bits − 1 steps of either sign up to its range,
    which is four times the root mean square of max(z, 0), and follows what is read. With pooling, a window
    has the noise of the place where its standard deviation is largest.
    """

    kind: Literal["analog"] = "analog"
    implementation: ClassVar[str] = "ffstream.ff.hardware_model:AnalogDevice"
    seed: int = Field(0, ge=0, lt=2**31, description="which device is drawn")
    mismatch: float = Field(
        0.0, ge=0, description="standard deviation of the relative gain errors, of each weight and of each unit"
    )
    noise: float = Field(
        0.0, ge=0, description="standard deviation of the relative error of each product and reading"
    )
    stuck: float = Field(0.0, ge=0, le=1, description="share of the weights that keep a random value")
    bits: int = Field(0, ge=0, le=16, description="resolution of the converter that reads activities; 0: exact")
    dead: float = Field(0.0, ge=0, le=1, description="share of the units that are always read as 0")
    changes_at: tuple[int, ...] = Field(
        (), description="numbers of samples after which the device is replaced by another one"
    )
    finds_signs: bool = Field(
        True, description="learn from a unit's response whether its gain is negative, and then reverse its steps"
    )
    finds_changes: bool = Field(
        True, description="restart EMA and learning rate when the responses of the units change abruptly"
    )

    @field_validator("changes_at")
    @classmethod
    def _expect_samples(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if min(given, default=1) < 1:
            raise OptionError(f" = {show(given)}: each number of samples must be at least 1")
        return given
