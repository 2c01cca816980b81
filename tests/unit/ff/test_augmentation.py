"""Shifts and reflections of replayed images. tests/unit/pipeline/test_replay_buffer.py has more about shifts."""

from typing import Any

import torch
from torch import Tensor

from ffstream.ff.augmentation import Augmentation
from ffstream.ff.presets import recipe


def apply(images: Tensor, **options: Any) -> Tensor:
    """100 changed copies of one image (H, W, C)."""
    shape = tuple(images.shape)
    augmentation = Augmentation(recipe(image_shape=shape, label_scheme="vectors", **options))
    rows = images.reshape(1, -1).expand(100, -1)
    return augmentation.apply(rows, torch.Generator().manual_seed(1)).view(100, *shape)


def numbered(height: int = 3, width: int = 4, channels: int = 2) -> Tensor:
    return torch.arange(1, 1 + height * width * channels, dtype=torch.uint8).view(height, width, channels)


def test_half_of_the_images_are_mirrored() -> None:
    image = numbered()
    made = apply(image, replay_jitter=0, replay_flip=True)
    mirrored = [torch.equal(each, image.flip(1)) for each in made]
    assert all(is_mirrored or torch.equal(each, image) for each, is_mirrored in zip(made, mirrored, strict=True))
    assert 30 < sum(mirrored) < 70


def test_repeated_edges_show_only_pixels_of_the_image() -> None:
    image = numbered()
    made = apply(image, replay_jitter=2, replay_edges="repeat")
    colours = {tuple(pixel) for pixel in image.flatten(0, 1).tolist()}
    assert {tuple(pixel) for pixel in made.flatten(0, 2).tolist()} <= colours
    moved = image[torch.tensor([0, 0, 1])][:, torch.tensor([1, 2, 3, 3])]  # one down, one to the left
    assert any(torch.equal(each, moved) for each in made)


def test_rows_that_are_no_maps_are_left_alone() -> None:
    rows = torch.arange(32, dtype=torch.uint8).view(2, 16)
    augmentation = Augmentation(recipe(image_shape=[16], label_scheme="vectors", replay=0))
    assert torch.equal(augmentation.apply(rows, torch.Generator()), rows)


def test_nothing_to_change_changes_nothing() -> None:
    image = numbered()
    assert torch.equal(apply(image, replay_jitter=0), image.expand(100, -1, -1, -1))
