"""Looks into a classifier: what its layers compare, the activities behind that, and their weights as images.

It computes with the formulas of learning and prediction, and changes nothing. Image negatives are drawn from a fixed
generator, so the same question has the same answer.

Shapes: B images, I inputs, F units, L labels; weights as images (N, h, w, c).
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from ffstream.ff.classifier import Classifier
from ffstream.ff.connection import size_of
from ffstream.ff.decoding import LinearDecoding, with_values
from ffstream.ff.health import right_and_strongest_wrong
from ffstream.ff.image_negatives import Noise
from ffstream.ff.maps import WEIGHT
from ffstream.ff.member import DECODER, below, layer_name
from ffstream.ff.placement import Placement
from ffstream.ff.randomness import generator_for
from ffstream.ff.recipe import Recipe

_CHUNK = 64  # images computed at a time


class Compared(NamedTuple):
    """The goodness (B) of the right side, and of the wrong side, of what a layer compares."""

    right_B: Tensor
    wrong_B: Tensor


class Shown(NamedTuple):
    """One layer for one image: its activities (F) on the right and on the wrong side, and the goodness of each."""

    right_F: Tensor
    wrong_F: Tensor
    goodness_right: float
    goodness_wrong: float


@torch.inference_mode()
def compare(classifier: Classifier, images_BI: Tensor, labels_B: Tensor) -> list[Compared]:
    """For each layer and image: the goodness of its label, and of the strongest other label.

    Layers that learn from image negatives compare the images with negatives made from them; B is at least 2 then.
    """
    # Even parts: none has a single image, of which no negative can be made.
    parts = -(-len(images_BI) // _CHUNK)
    pairs = zip(images_BI.tensor_split(parts), labels_B.tensor_split(parts), strict=True)
    compare_part = _compare_labels if classifier.recipe.image_negatives is None else _compare_images
    found = [compare_part(classifier, images, labels.to(classifier.device)) for images, labels in pairs]
    return [
        Compared(*(torch.cat(sides).float().cpu() for sides in zip(*layer, strict=True)))
        for layer in zip(*found, strict=True)
    ]


def _compare_labels(classifier: Classifier, images_BI: Tensor, labels_B: Tensor) -> list[Compared]:
    layers = classifier.layers(classifier.preprocess(classifier.padded(images_BI)))
    return [Compared(*right_and_strongest_wrong(each.goodness()[: len(labels_B)], labels_B)) for each in layers]


def _compare_images(classifier: Classifier, images_BI: Tensor, labels_B: Tensor) -> list[Compared]:
    x_BI, count = classifier.preprocess(images_BI), len(images_BI)
    sides = [classifier.layers(classifier.padded(rows)) for rows in (x_BI, _negatives(classifier, x_BI))]
    return [Compared(*(each.goodness()[:count, 0] for each in layer)) for layer in zip(*sides, strict=True)]


@torch.inference_mode()
def show(classifier: Classifier, image_I: Tensor, label: int, wrong: int, other_I: Tensor | None) -> list[Shown]:
    """For each layer: its activities for the image under its label and under a wrong one.

    Layers that learn from image negatives know no label. Their wrong side is a negative made from the image and
    another one, `other_I`, which only they need.
    """
    recipe = classifier.recipe
    if recipe.image_negatives is None:
        passes = classifier.layers(classifier.preprocess(image_I[None]))
        own, other = (torch.tensor([each], device=classifier.device) for each in (label, wrong))
        shown = []
        for layer in passes:
            G_L = layer.goodness()[0]
            sides = layer.activities(own)[0].cpu(), layer.activities(other)[0].cpu()
            shown.append(Shown(*sides, float(G_L[label]), float(G_L[wrong])))
        return shown
    assert other_I is not None
    x_2I = classifier.preprocess(torch.stack((other_I, image_I)))
    negative_1I = _negatives(classifier, x_2I)[1:]
    none = torch.zeros(1, dtype=torch.int64, device=classifier.device)  # the layers ignore it
    shown = []
    for real, made in zip(classifier.layers(x_2I[1:]), classifier.layers(negative_1I), strict=True):
        goodness = float(real.goodness()), float(made.goodness())
        shown.append(Shown(real.activities(none)[0].cpu(), made.activities(none)[0].cpu(), *goodness))
    return shown


@torch.inference_mode()
def negative_image(classifier: Classifier, image_I: Tensor, other_I: Tensor) -> Tensor | None:
    """The negative that `show` makes of the image, as pixels 0 to 1 (I). None if the preprocessing changes the shape
    of images, because then it has no pixels."""
    recipe = classifier.recipe
    if (pixels_BI := _dreamt(classifier, 2)) is not None:
        return pixels_BI[1]
    if recipe.preprocessing.output_shape(recipe.image_shape) != recipe.image_shape:
        return None
    scale = 255 if image_I.dtype == torch.uint8 else 1
    return _hybrids(recipe, torch.stack((other_I, image_I)).float() / scale)[1]


def _negatives(classifier: Classifier, x_BI: Tensor) -> Tensor:
    """Negative rows as layers learn them, beside these preprocessed images: hybrids of them, or dreams."""
    pixels_BI = _dreamt(classifier, len(x_BI))
    return _hybrids(classifier.recipe, x_BI) if pixels_BI is None else classifier.preprocess(pixels_BI)


def _dreamt(classifier: Classifier, count: int) -> Tensor | None:
    """Dreams as pixels (B, I); None if the network does not dream, or not yet."""
    first = next(_decoders(classifier), None) if classifier.recipe.dreams else None
    return None if first is None or first.memory.is_empty else first.dream(count, 0).pixels_BI


def _hybrids(recipe: Recipe, x_BI: Tensor) -> Tensor:
    assert recipe.image_negatives is not None
    generator = generator_for("inspection", recipe.seed, 0)
    noise: Noise = lambda shape: torch.rand(shape, generator=generator)  # noqa: E731
    return recipe.image_negatives.make(x_BI, recipe.preprocessing.output_shape(recipe.image_shape), noise)


@torch.inference_mode()
def dreams(classifier: Classifier, labels: int, count: int) -> list[Tensor]:
    """For each layer that, like all layers below it, has a decoder: `count` images of each of the first `labels`
    labels, pixels 0 to 1 (labels, count, I). Empty if the first layer has no decoder, or remembers nothing yet. A
    network that learns without labels has one label, 0.

    Each layer begins with what it remembers itself. All dreams get the first layer's grey values, see
    `ff/decoding.py`.
    """
    # A layer that has skipped all microbatches so far remembers nothing.
    decoders = list(takewhile(lambda decoding: not decoding.memory.is_empty, _decoders(classifier)))
    if not decoders:
        return []
    labels_B = torch.arange(labels).repeat_interleave(count)
    values_BI = decoders[0].draw(labels_B, 0).values_BV
    found = []
    for index, decoding in enumerate(decoders):
        h_BF = decoding.draw(labels_B, 0).h_BF
        for below_it in reversed(decoders[1 : index + 1]):
            h_BF = below_it.decode(h_BF).relu_()
        pixels_BI = with_values(decoders[0].decode(h_BF), values_BI)
        found.append(pixels_BI.view(labels, count, -1).cpu())
    return found


def _decoders(classifier: Classifier) -> Iterator[LinearDecoding]:
    """The decoders of the first layers, up to the first one that has none."""
    recipe = classifier.recipe
    for index, (layer, shape) in enumerate(zip(recipe.layers, recipe.input_shapes(), strict=True)):
        decoding = layer.decoder.build(recipe, index, shape, Placement(classifier.device))
        if decoding is None:
            return
        decoding.load_weights(below(f"{layer_name(index)}.{DECODER}", classifier.weights))
        yield decoding


@torch.inference_mode()
def filters(classifier: Classifier, index: int, limit: int) -> Tensor:
    """The weights (N, h, w, c) of up to `limit` units of a layer, those with the largest norm first.

    In the first layer these are weights on the pixels of images, and include the preprocessing. In later layers they
    are weights on the channels of the layer below. Raises ValueError if the units of this layer are not connected to
    an area.
    """
    recipe = classifier.recipe
    options, shape = recipe.layers[index], list(recipe.input_shapes())[index]
    weight = below(layer_name(index), classifier.weights)[WEIGHT].float()
    if options.label_scheme.clears_inputs:  # there the label is, with weights of its own
        weight = weight.clone()
        weight[:, : recipe.labels] = 0
    fields = options.connection.receptive_fields(weight, shape)
    if fields is None:
        raise ValueError(f'the weights of connection = "{options.connection.kind}" cannot be shown as images')
    if index and fields[0].numel() == size_of(shape):
        raise ValueError(f"each unit of layer {index} is connected to all units of the layer below, not to an area")
    strongest = fields.flatten(1).norm(dim=1).topk(min(limit, len(fields))).indices
    fields = fields[strongest]
    return (fields if index else classifier.to_pixels(fields)).cpu()
