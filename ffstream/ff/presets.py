"""Recipes: everything that decides which weights a stream leads to, in one frozen record, and those that ship.

Each field's help text is the only place where the option is described; configuration, command line and
documentation read it from here.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ffstream.option_errors import options_of, wrong

GoodnessName = Literal["sum_squares", "mean_squares"]
NormalizationName = Literal["rms", "unit"]
ObjectiveName = Literal["softmax", "paired", "threshold"]
NegativesName = Literal["hardest", "random"]
HandOnName = Literal["neutral", "labelled"]
OptimizerName = Literal["adam", "sgd"]


def _option(default: Any, help: str, **bounds: float) -> Any:
    """`bounds`: some of `ge`, `gt`, `le`, `lt`; for a list, of each of its numbers."""
    return field(default=default, metadata={"help": help, "bounds": bounds})


def _check_ranges(recipe: "Recipe") -> None:
    for name, option in options_of(Recipe).items():
        value = getattr(recipe, name)
        if not isinstance(value, str | bool) and not option.allows(value):
            raise ValueError(wrong(name, value, option.expected()))
    if not recipe.widths:
        raise ValueError(wrong("widths", recipe.widths, "there must be at least one layer"))
    if recipe.labels > recipe.inputs:
        raise ValueError(
            wrong("labels", recipe.labels, f"at most network.inputs = {recipe.inputs}: each label has a pixel")
        )
    if recipe.memory < recipe.batch_size:
        raise ValueError(
            wrong("memory", recipe.memory, f"must hold a microbatch: network.batch_size = {recipe.batch_size}")
        )


@dataclass(frozen=True)
class Recipe:
    """What is learned and how. Lengths are counts, reaches are in samples."""

    inputs: int = _option(784, "numbers in an image; every image must have as many", ge=1)
    widths: tuple[int, ...] = _option((512, 512), "outputs of each layer, first layer first", ge=1)
    labels: int = _option(10, "number of classes; labels are 0 to labels-1", ge=2, le=65_536)
    batch_size: int = _option(128, "samples in a microbatch, one update of every layer", ge=1)
    young_batch_size: int = _option(
        32, "the same while the stream is young: then many small steps learn faster", ge=1
    )
    young_samples: int = _option(8192, "samples for which the stream is young", ge=0)
    rehearsal: int = _option(128, "remembered samples learned beside each microbatch's fresh ones", ge=0)
    rehearsal_jitter: int = _option(1, "pixels that a remembered image is shifted by, at most, each way", ge=0)
    memory: int = _option(10_000, "recent samples remembered, for rehearsal and for sleep", ge=1)
    centering: bool = _option(True, "images are shifted by the running mean of all images seen")
    normalization: NormalizationName = _option("rms", "length of a layer's input: mean(x²)=1, or |x|=1")
    goodness: GoodnessName = _option("sum_squares", "a layer's goodness: Σh² or its mean")
    hand_on: HandOnName = _option("neutral", "activities handed on: of a pass without label, or a row a polarity")
    objective: ObjectiveName = _option("softmax", "loss on goodness: among all labels, a pair, or a threshold")
    smoothing: float = _option(0.2, "share of the softmax objective's target spread over all labels", ge=0, lt=1)
    alpha: float = _option(0.05, "slope of the loss, per unit of goodness", ge=0)
    theta: float = _option(0.0, "the threshold objective's threshold, in units of goodness")
    negatives: NegativesName = _option("hardest", "wrong labels: the first layer's best-liked one, or a random one")
    label_strength: float = _option(3.0, "value of a label pixel, for image pixels between 0 and 1")
    label_vectors: bool = _option(True, "later layers learn a vector a label; otherwise only the first layer sees it")
    optimizer: OptimizerName = _option("adam", "fused Adam, or SGD with momentum")
    learning_rate: float = _option(4e-3, "step size of a whole microbatch at the stream's start", ge=0)
    learning_rate_samples: float = _option(
        6400.0, "step sizes fall as 1/√(1+n/this) with n samples; 0: they do not", ge=0
    )
    learning_rate_floor: float = _option(0.1, "share of the first step size that it never falls below", ge=0)
    momentum: float = _option(0.5, "SGD's momentum, Adam's first decay", ge=0, lt=1)
    second_moment: float = _option(0.95, "Adam's second decay", ge=0, lt=1)
    averaging_samples: float = _option(
        50_000.0, "reach of the averaged weights that predict, in samples; 0: none", ge=0
    )
    score_first_layer: bool = _option(True, "the first layer's goodness counts in predictions")
    seed: int = _option(0, "seed of the first weights, of random wrong labels and of rehearsal", ge=0, lt=2**53)

    @property
    def has_square_images(self) -> bool:
        """Whether the inputs are an image with as many rows as columns."""
        return math.isqrt(self.inputs) ** 2 == self.inputs

    def __post_init__(self) -> None:
        _check_ranges(self)
        several = len(self.widths) > 1
        if self.objective == "softmax" and self.hand_on == "labelled" and several:
            raise ValueError(
                wrong("hand_on", self.hand_on, 'the softmax objective compares all labels, so this must be "neutral"')
            )
        if self.hand_on == "neutral" and not self.label_vectors and several:
            raise ValueError(
                wrong("label_vectors", False, 'with hand_on = "neutral" later layers see a label only through these')
            )
        young = self.young_samples
        if young and young % self.batch_size:
            raise ValueError(
                wrong("young_samples", young, f"must be a multiple of network.batch_size = {self.batch_size}, or 0")
            )
        if young and self.batch_size % self.young_batch_size:
            raise ValueError(
                wrong(
                    "young_batch_size", self.young_batch_size, f"must divide network.batch_size = {self.batch_size}"
                )
            )

    def whole_up_to(self, seq: int) -> int:
        """The last sample of whole microbatches up to `seq`: microbatches lie on a fixed grid."""
        return seq - seq % self._batch_size_after(seq)

    def batch_end(self, seq: int) -> int:
        """The last sample of the microbatch that `seq` + 1 belongs to."""
        return self.whole_up_to(seq) + self._batch_size_after(seq)

    def _batch_size_after(self, seq: int) -> int:
        return self.young_batch_size if seq < self.young_samples else self.batch_size

    @property
    def rows(self) -> int:
        """Samples in a microbatch at most, remembered ones included."""
        return self.batch_size + self.rehearsal


PRESETS: dict[str, Recipe] = {
    # The best one-pass recipe that we measured; see the README's results.
    "stream": Recipe(),
    # Several times the samples a second: large microbatches, nothing rehearsed.
    "fast": Recipe(batch_size=256, rehearsal=0, learning_rate=5e-3),
    # The recipe of the article that this project began with (Hinton's supervised FF as usually re-implemented).
    "seed": Recipe(
        normalization="unit",
        goodness="mean_squares",
        hand_on="labelled",
        objective="threshold",
        smoothing=0.0,
        alpha=1.0,
        theta=3.0,
        negatives="random",
        label_strength=1.0,
        label_vectors=False,
        learning_rate=0.03,
        learning_rate_samples=0.0,
        momentum=0.9,
        second_moment=0.999,
        averaging_samples=0.0,
        batch_size=256,
        young_samples=0,
        rehearsal=0,
    ),
}
