"""The mathematics of ffstream.ff written a second time: by rows, in float64, differentiated by autograd.

Shapes: B samples, N rows, I inputs, O outputs, L labels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from ffstream.ff.layer import LayerWeights, Polarity
from ffstream.ff.network import Network
from ffstream.ff.presets import Recipe

STEP = 1024.0  # large, so that float32 parameters lose nothing of the gradient that they move by

# Plain gradient descent, so that one step on a whole microbatch shows the gradient.
SMALL = replace(
    Recipe(),
    inputs=16,
    widths=(6, 5),
    labels=4,
    batch_size=7,
    young_samples=0,
    young_batch_size=7,
    rehearsal=0,
    alpha=0.7,
    theta=1.5,
    label_strength=1.7,
    optimizer="sgd",
    momentum=0.0,
    learning_rate=STEP,
    learning_rate_samples=0.0,
    averaging_samples=0.0,
)


def variant(recipe: Recipe, **options: Any) -> Recipe:
    """The recipe with other options, by names that need not be literals."""
    return replace(recipe, **options)


class Weights(NamedTuple):
    """Leaves in float64: weight (O, I), bias (O), label vectors (L, O; none for the first layer)."""

    weight_OI: Tensor
    bias_O: Tensor
    vectors_LO: Tensor


def leaves(layer: LayerWeights, *, first: bool) -> Weights:
    """A layer's weights as autograd's leaves."""
    vectors_LO = layer.vectors_LO[:0] if first else layer.vectors_LO
    parts = (layer.weight_OI, layer.bias_O, vectors_LO)
    return Weights(*(part.double().clone().requires_grad_() for part in parts))


def random_network(recipe: Recipe, seed: int = 1, scale: float = 0.6) -> Network:
    """A network in which no parameter is zero, label vectors and biases included."""
    network = Network(recipe)
    generator = torch.Generator().manual_seed(seed)
    state = network.state()
    for name, value in state.items():
        if name.endswith((".parameters", ".average")):
            state[name] = torch.empty_like(value).normal_(0, scale, generator=generator)
    network.load(state)
    return network


def random_images(count: int, inputs: int, dtype: torch.dtype, seed: int = 2) -> Tensor:
    """Images (B, I), of which the label's pixels are bright too."""
    generator = torch.Generator().manual_seed(seed)
    images_BI = torch.randint(0, 256, (count, inputs), generator=generator, dtype=torch.uint8)
    return images_BI if dtype == torch.uint8 else images_BI / 255


def random_labels(count: int, labels: int, seed: int = 3) -> Tensor:
    """Labels (B)."""
    return torch.randint(0, labels, (count,), generator=torch.Generator().manual_seed(seed))


def pixels(images_BI: Tensor) -> Tensor:
    """float64 between 0 and 1."""
    return images_BI.double() / 255 if images_BI.dtype == torch.uint8 else images_BI.double()


def goodness(recipe: Recipe, h_NO: Tensor) -> Tensor:
    """Σh², or its mean."""
    return h_NO.square().sum(-1) if recipe.goodness == "sum_squares" else h_NO.square().mean(-1)


def normalized(recipe: Recipe, x_NI: Tensor) -> Tensor:
    """Rows of mean square 1, or of length 1."""
    if recipe.normalization == "rms":
        return x_NI / (x_NI.square().mean(1, keepdim=True) + 1e-8).sqrt()
    return x_NI / (x_NI.square().sum(1, keepdim=True).sqrt() + 1e-4)


def with_label(recipe: Recipe, images_BI: Tensor, mean_I: Tensor, labels_B: Tensor) -> Tensor:
    """Centred images whose first L pixels are dark but for the label's."""
    x_BI = pixels(images_BI) - mean_I.double()
    for row, label in enumerate(labels_B.tolist()):
        x_BI[row, : recipe.labels] = 0
        x_BI[row, label] = recipe.label_strength
    return x_BI


def first_layer(recipe: Recipe, weights: Weights, images_BI: Tensor, mean_I: Tensor, labels_B: Tensor) -> Tensor:
    """Activities (B, O) of images with these labels written into them."""
    x_BI = normalized(recipe, with_label(recipe, images_BI, mean_I, labels_B))
    return (x_BI @ weights.weight_OI.t() + weights.bias_O).relu()


def first_layer_neutral(recipe: Recipe, weights: Weights, images_BI: Tensor, mean_I: Tensor) -> Tensor:
    """Activities (B, O) of images as long as with a label, in which no label is written."""
    x_BI = normalized(recipe, with_label(recipe, images_BI, mean_I, torch.zeros(len(images_BI), dtype=torch.int64)))
    x_BI[:, 0] = 0
    return (x_BI @ weights.weight_OI.t() + weights.bias_O).relu()


def later_layer(recipe: Recipe, weights: Weights, x_NI: Tensor, labels_N: Tensor | None) -> Tensor:
    """Activities (N, O) of rows with these labels' vectors added, or with none."""
    z_NO = normalized(recipe, x_NI.double()) @ weights.weight_OI.t() + weights.bias_O
    if labels_N is not None and len(weights.vectors_LO):
        z_NO = z_NO + weights.vectors_LO[labels_N]
    return z_NO.relu()


def every_label(recipe: Recipe, size: int, goodness_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Goodness (B, L) of a batch given label 0, then label 1, and so on."""
    columns = [goodness_of(torch.full((size,), label)) for label in range(recipe.labels)]
    return torch.stack(columns, 1)


def hardest(goodness_BL: Tensor, labels_B: Tensor) -> Tensor:
    """The wrong label with the highest goodness, by trying all."""
    rows = zip(goodness_BL.tolist(), labels_B.tolist(), strict=True)
    return torch.tensor([max((g, label) for label, g in enumerate(row) if label != own)[1] for row, own in rows])


def contrast(recipe: Recipe, positive_B: Tensor, negative_B: Tensor, polarity: Polarity) -> Tensor:
    """The loss of a pair of rows, or of those that the polarity has."""
    if recipe.objective != "threshold":
        return softplus(-recipe.alpha * (positive_B - negative_B)).mean()
    loss = torch.zeros((), dtype=torch.float64)
    if polarity != "sleep":
        loss = loss + softplus(-recipe.alpha * (positive_B - recipe.theta)).mean()
    if polarity != "wake":
        loss = loss + softplus(recipe.alpha * (negative_B - recipe.theta)).mean()
    return loss


def label_loss(
    recipe: Recipe,
    goodness_of: Callable[[Tensor], Tensor],
    labels_B: Tensor,
    wrong_B: Tensor,
    polarity: Polarity,
) -> Tensor:
    """The loss of a layer that adds the label itself."""
    if recipe.objective == "softmax":
        logits_BL = recipe.alpha * every_label(recipe, len(labels_B), goodness_of)
        return cross_entropy(logits_BL, labels_B, label_smoothing=recipe.smoothing)
    return contrast(recipe, goodness_of(labels_B), goodness_of(wrong_B), polarity)


def gradients(loss: Tensor, weights: Weights) -> Weights:
    """∂loss of every leaf, zero where the loss does not depend on it."""
    return Weights(*torch.autograd.grad(loss, list(weights), allow_unused=True, materialize_grads=True))


def moved_by(before: LayerWeights, after: LayerWeights, *, first: bool) -> Weights:
    """The gradient that one step of plain descent went along."""
    old, new = leaves(before, first=first), leaves(after, first=first)
    return Weights(*((a - b).detach() / STEP for a, b in zip(old, new, strict=True)))


def assert_close(got: Weights, want: Weights, tolerance: float = 2e-5) -> None:
    """Raises AssertionError unless every part is within the tolerance of the largest gradient."""
    largest = max(float(part.abs().max()) for part in want if part.numel())
    assert largest > 1e-4, "a gradient of zero proves nothing"
    for name, a, b in zip(want._fields, got, want, strict=True):
        assert a.shape == b.shape
        error = float((a - b).abs().max()) if a.numel() else 0.0
        assert error <= tolerance * largest, f"{name}: off by {error:.3g} of {largest:.3g}"
