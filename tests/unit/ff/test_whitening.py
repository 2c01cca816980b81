"""Patch whitening: what the filters do, until when they are fitted, and what is saved."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import unfold

from ffstream.ff.connection import maps_of
from ffstream.ff.preprocessing import Whitening
from ffstream.ff.presets import recipe
from ffstream.ff.whitening import PatchWhitening

SHAPE = (8, 8, 3)
CPU = torch.device("cpu")


def correlated(count: int, seed: int = 0) -> Tensor:
    """Images (B, I) whose neighbouring pixels are alike, between 0 and 1."""
    noise = torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1)
    return smooth.permute(0, 2, 3, 1).flatten(1)


def fitted(stream: Tensor, **options: int | float) -> PatchWhitening:
    whitening = PatchWhitening(Whitening.model_validate(options), SHAPE, CPU)
    for batch in stream.split(16):
        whitening.fit(batch)
    return whitening


def test_the_numbers_of_a_patch_become_uncorrelated_with_variance_one() -> None:
    images = correlated(512)
    whitening = fitted(images, images=512, floor=1e-9)
    white = whitening.apply(images.clone(), whitening.weights())
    inner = white.view(512, 8, 8, 27)[:, 1:-1, 1:-1].flatten(0, 2)
    covariance = inner.t() @ inner / len(inner)
    assert torch.allclose(covariance, torch.eye(27), atol=0.08)
    raw = unfold(maps_of(images - images.mean(0), SHAPE), 3).transpose(1, 2).flatten(0, 1)
    assert float((raw.t() @ raw / len(raw)).fill_diagonal_(0).abs().max()) > 1e-3, "the images are correlated"


def test_the_filters_are_final_after_so_many_images() -> None:
    whitening = fitted(correlated(40), images=24)
    filters = whitening.weights()["filters"].clone()
    assert (
        torch.equal(filters, fitted(correlated(40)[:24], images=24).weights()["filters"]) is False
    )  # the mean goes on
    whitening.fit(correlated(16, seed=5) * 0.1)
    assert torch.equal(whitening.weights()["filters"], filters)
    fresh = fitted(correlated(16), images=24)
    before = fresh.weights()["filters"].clone()
    fresh.fit(correlated(16, seed=5))
    assert not torch.equal(fresh.weights()["filters"], before)


@pytest.mark.parametrize("first", [torch.rand(1, 192), torch.zeros(16, 192)])
def test_a_stream_may_begin_with_one_image_or_with_black_ones(first: Tensor) -> None:
    whitening = PatchWhitening(Whitening(images=64), SHAPE, CPU)
    whitening.fit(first)
    assert torch.equal(whitening.weights()["filters"], torch.eye(27))
    assert whitening.apply(first.clone(), whitening.weights()).isfinite().all()
    whitening.fit(correlated(16))
    assert whitening.apply(correlated(16), whitening.weights()).isfinite().all()


def test_a_saved_state_continues_bit_for_bit() -> None:
    whole = fitted(correlated(32), images=64)
    resumed = PatchWhitening(Whitening(images=64), SHAPE, CPU)
    resumed.load_state_dict(whole.state_dict())
    for whitening in (whole, resumed):
        for batch in correlated(64, seed=3).split(16):
            whitening.fit(batch)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_weights_that_were_loaded_keep_their_filters() -> None:
    whole = fitted(correlated(64), images=64)
    started = PatchWhitening(Whitening(images=64), SHAPE, CPU)
    started.load_weights(whole.weights())
    started.fit(correlated(64, seed=4))
    assert torch.equal(started.weights()["filters"], whole.weights()["filters"])


@pytest.mark.parametrize(("shape", "patch"), [([48], 3), ([4, 4], 2), ([2, 4], 3)])
def test_images_that_have_no_such_patches_are_rejected(shape: list[int], patch: int) -> None:
    with pytest.raises(ValueError, match=r"preprocessing: needs an odd patch and images"):
        recipe(image_shape=shape, replay_jitter=0, preprocessing={"kind": "whitening", "patch": patch})
    with pytest.raises(ValueError, match=r"preprocessing: needs an odd patch and images"):
        recipe("unsupervised", image_shape=shape, preprocessing={"kind": "whitening", "patch": patch})


@pytest.mark.parametrize(("size", "at"), [(3, 4), (10, 0)])
def test_weights_on_whitened_maps_become_weights_on_pixels(size: int, at: int) -> None:
    """A sum over a window of the whitened map is a sum over pixels. The last window is the whole map."""
    whitening = PatchWhitening(Whitening(patch=3, images=64), (10, 10, 2), CPU)
    generator = torch.Generator().manual_seed(1)
    pixels_BI = torch.rand(64, 200, generator=generator)
    whitening.fit(pixels_BI)
    weights = whitening.weights()
    centred_BI = pixels_BI - weights["mean"]
    map_BHWC = whitening.apply(pixels_BI.clone(), weights).view(64, 10, 10, 18)
    fields_NHWC = torch.rand(5, size, size, 18, generator=generator) - 0.5
    want_BN = torch.einsum("bhwc,nhwc->bn", map_BHWC[:, at : at + size, at : at + size], fields_NHWC)
    seen_NHWC = whitening.to_pixels(fields_NHWC, weights)
    first, width = max(at - 1, 0), seen_NHWC.shape[1]
    window_BHWC = centred_BI.view(64, 10, 10, 2)[:, first : first + width, first : first + width]
    got_BN = torch.einsum("bhwc,nhwc->bn", window_BHWC, seen_NHWC)
    assert width == min(size + 2, 10)
    assert torch.allclose(got_BN, want_BN, rtol=1e-3, atol=1e-3)
