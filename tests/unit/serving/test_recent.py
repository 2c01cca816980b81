"""The samples that were evaluated last, in order, and not too many of them."""

import torch

from ffstream.serving.recent import BYTES_MAX, SAMPLES_MAX, RecentSamples


def test_the_latest_samples_are_kept_in_order() -> None:
    recent = RecentSamples()
    assert recent.latest() is None
    for first in range(0, 2000, 30):
        recent.add(torch.full((30, 4), first % 256, dtype=torch.uint8), torch.arange(first, first + 30))
    latest = recent.latest()
    assert latest is not None
    images_BI, labels_B = latest
    assert labels_B.tolist() == list(range(2010 - SAMPLES_MAX, 2010))
    assert images_BI[:, 0].tolist() == [label // 30 * 30 % 256 for label in labels_B.tolist()]
    assert recent._samples < SAMPLES_MAX + 30


def test_large_images_are_fewer() -> None:
    recent = RecentSamples()
    inputs = BYTES_MAX // 10
    for label in range(30):
        recent.add(torch.zeros(1, inputs, dtype=torch.uint8), torch.tensor([label]))
    latest = recent.latest()
    assert latest is not None
    assert latest.labels_B.tolist() == list(range(20, 30))
    recent.add(torch.zeros(20, inputs, dtype=torch.uint8), torch.arange(20))
    assert len(recent._batches) == 1, "a microbatch may exceed the limit alone"


def test_images_of_both_kinds_have_one_scale() -> None:
    recent = RecentSamples()
    recent.add(torch.full((1, 2), 51, dtype=torch.uint8), torch.tensor([0]))
    recent.add(torch.full((1, 2), 0.5), torch.tensor([1]))
    latest = recent.latest()
    assert latest is not None
    assert torch.allclose(latest.images_BI, torch.tensor([[0.2, 0.2], [0.5, 0.5]]))
