"""Options of fast weights: a memory of the recent stream, which a layer reads beside its input.

Samples come in the order of the stream, and what followed a moment ago tells something about what follows now. With x
the layer's input and y the label of the sample,

    k = (x − x̄) / |x − x̄|        v = onehot(y) − 1/L        m = A k        A ← λ A + v kᵀ

where x̄ is a running mean (Ba et al. 2016, "Using Fast Weights to Attend to the Recent Past"; with keys and values as
in Schlag et al. 2021). m is which labels came with inputs like this one. The layer gets [x, m], with m scaled to the
root mean square of x, and learns what to make of it. `ff/recall.py` computes it.

`fixed` and `recent` are controls: as many extra inputs, without the memory of what came with what.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ffstream.ff.part import Part, register, resolve


class FastWeights(Part):
    """What a layer reads beside its input."""

    family: ClassVar[str] = "fast_weights"
    must_define: ClassVar[tuple[str, ...]] = ("extra_inputs",)

    def extra_inputs(self, labels: int) -> int:
        """How many numbers the layer gets beside its input."""
        raise NotImplementedError

    def incompatibility(self, position: int, *, label_free: bool) -> str:
        """Why the layer at that position (0: the first) cannot use it; empty if it can. `label_free`: it receives one
        row for each sample."""
        if not position:
            return "the first layer sees images only; give it to a later one, in [[network.layers]]"
        return (
            "" if label_free else "needs one row for each sample: network.activities = label_free, and no images made"
        )

    def build(self, inputs: int, labels: int, seed: int, device: Any) -> Any:
        """An `ff.recall.Recall` for rows of that many inputs; None if there is nothing to read."""
        return resolve("ffstream.ff.recall:Recall")(self, inputs, labels, seed, device)


@register
class NoFastWeights(FastWeights):
    """Nothing: the layer sees its input only."""

    kind: Literal["none"] = "none"

    def extra_inputs(self, labels: int) -> int:
        """0."""
        return 0

    def incompatibility(self, position: int, *, label_free: bool) -> str:
        """Every layer can do without."""
        return ""

    def build(self, inputs: int, labels: int, seed: int, device: Any) -> Any:
        """None."""
        return None


class Remembering(FastWeights):
    """Fast weights A (labels, keys). `has_keys`: whether k depends on the input. `learns`: whether A changes."""

    has_keys: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    decay: float = Field(
        0.998, ge=0, le=1, description="what a sample's share of the memory is multiplied by with each later sample"
    )
    mean_rate: float = Field(
        0.01, gt=0, le=1, description="share of a microbatch in the running mean of the layer's input"
    )

    def extra_inputs(self, labels: int) -> int:
        """One for each label."""
        return labels


@register
class Hebbian(Remembering):
    """A ← λ A + v kᵀ after each sample of the stream."""

    kind: Literal["hebbian"] = "hebbian"


@register
class Recent(Remembering):
    """The control without keys: k = 1, so m is how often each label came of late, whatever the input."""

    kind: Literal["recent"] = "recent"
    has_keys: ClassVar[bool] = False


@register
class Fixed(Remembering):
    """The control without a memory: A is random and stays, so m is only another view of the input."""

    kind: Literal["fixed"] = "fixed"
    learns: ClassVar[bool] = False
