"""A ring of recent samples, and what is drawn from it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ffstream.ff.presets import recipe
from ffstream.pipeline.replay_buffer import ReplayBuffer

INPUTS = 4


def ring(capacity: int, seed: int = 0, shape: tuple[int, ...] = (INPUTS,), jitter: int = 0) -> ReplayBuffer:
    """A replay buffer of that capacity; none for 0."""
    options = recipe(
        image_shape=shape,
        label_scheme="vectors",
        batch_size=1,
        warmup_batch_size=1,
        warmup_samples=0,
        replay_buffer=max(1, capacity),
        replay_jitter=jitter,
        seed=seed,
    )
    return ReplayBuffer(options, used=capacity > 0)


def numbered(first: int, count: int, inputs: int = INPUTS) -> tuple[Tensor, Tensor]:
    """Samples whose label and pixels are their number."""
    labels = torch.arange(first, first + count)
    return labels.remainder(256).to(torch.uint8)[:, None].expand(count, inputs), labels


def filled(capacity: int = 50, count: int = 50, seed: int = 0) -> ReplayBuffer:
    replay = ring(capacity, seed)
    replay.add(*numbered(0, count))
    return replay


def content(replay: ReplayBuffer) -> list[int]:
    return sorted(set(replay.draw(60 * replay.capacity, 1)[1].tolist()))


@given(capacity=st.integers(1, 12), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_the_newest_samples_are_kept(capacity: int, sizes: list[int]) -> None:
    replay, added = ring(capacity), 0
    for size in sizes:
        size = min(size, capacity)  # noqa: PLW2901 - a microbatch is never larger than the buffer here
        replay.add(*numbered(added, size))
        added += size
        assert len(replay) == min(added, capacity)
    assert content(replay) == list(range(max(0, added - capacity), added))


def test_images_stay_with_their_labels() -> None:
    images, labels, _ = filled(capacity=30, count=70 - 40).draw(500, 3)
    assert images.dtype == torch.uint8
    assert images.shape == (500, INPUTS)
    assert labels.dtype == torch.int64
    assert torch.equal(images, labels.to(torch.uint8)[:, None].expand(500, INPUTS))


def test_float_images_are_kept_to_the_nearest_of_256_levels() -> None:
    replay = ring(4)
    replay.add(torch.tensor([[0.0, 0.5, 1.0, 0.3]]), torch.tensor([1]))
    assert replay.draw(1, 0)[0].tolist() == [[0, 128, 255, 76]]
    replay.add(torch.full((4, INPUTS), 1.7), torch.zeros(4, dtype=torch.int64))
    replay.add(torch.full((4, INPUTS), -0.7), torch.zeros(4, dtype=torch.int64))
    assert replay.draw(1, 0)[0].tolist() == [[0] * INPUTS]


def test_the_same_step_draws_the_same_and_another_step_others() -> None:
    replay = filled()
    drawn = [replay.draw(40, step)[1].tolist() for step in (3, 3, 4, 5)]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) == 3
    again = filled()
    again.draw(7, 99)  # what was drawn before does not matter
    assert again.draw(40, 3)[1].tolist() == drawn[0]


def test_another_seed_draws_others() -> None:
    assert not torch.equal(filled(seed=1).draw(40, 3)[1], filled(seed=2).draw(40, 3)[1])


def test_every_sample_is_drawn_as_often_as_any_other() -> None:
    counts = torch.bincount(filled(10, 10).draw(20_000, 1)[1], minlength=10)
    assert (counts - 2000).abs().max() < 250


def test_drawing_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    filled().draw(9, 1)
    assert torch.equal(torch.rand(1), want)


@given(capacity=st.integers(1, 12), before=st.integers(0, 30), after=st.integers(0, 30))
def test_a_loaded_state_goes_on_the_same(capacity: int, before: int, after: int) -> None:
    whole = ring(capacity, 7)
    for number in range(before):
        whole.add(*numbered(number, 1))
    tensors, progress = whole.state_dict()
    resumed = ring(capacity, 7)
    resumed.load_state_dict(tensors, progress["replay.added"])
    for number in range(before, before + after):
        for replay in (whole, resumed):
            replay.add(*numbered(number, 1))
    assert len(resumed) == len(whole)
    if len(whole):
        assert torch.equal(resumed.draw(40, 5)[1], whole.draw(40, 5)[1])
        assert torch.equal(resumed.draw(40, 5)[0], whole.draw(40, 5)[0])


def test_a_state_is_a_copy() -> None:
    replay = filled(10, 10)
    tensors, _ = replay.state_dict()
    before = {name: value.clone() for name, value in tensors.items()}
    replay.add(*numbered(100, 10))
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def test_with_capacity_zero_nothing_is_kept_and_there_is_no_state() -> None:
    replay = filled(capacity=0)
    assert len(replay) == 0
    assert replay.state_dict() == ({}, {})


def centred_dots(count: int, side: int) -> Tensor:
    """Images of three bright pixels in the middle, so that a small shift keeps them inside."""
    images = torch.zeros(count, side, side, dtype=torch.uint8)
    images[:, side // 2, side // 2] = 200
    images[:, side // 2, side // 2 + 1] = 100
    images[:, side // 2 - 1, side // 2] = 50
    return images.view(count, -1)


@pytest.mark.parametrize("reach", [1, 2])
def test_jitter_shifts_whole_images_by_at_most_so_many_pixels(reach: int) -> None:
    side = 9
    replay = ring(4, shape=(side, side), jitter=reach)
    replay.add(centred_dots(4, side), torch.arange(4))
    images = replay.draw(400, 2).images_BI
    original = centred_dots(1, side).view(side, side)
    offsets = set()
    for image in images.view(-1, side, side):
        (at,) = (image == 200).nonzero().tolist()
        down, right = at[0] - side // 2, at[1] - side // 2
        offsets.add((down, right))
        assert torch.equal(image, original.roll((down, right), (0, 1))), "a shift, all mass inside"
    assert offsets == {(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1)}


def test_jitter_does_not_wrap_round_the_border() -> None:
    replay = ring(1, shape=(3, 3), jitter=1)
    corner = torch.zeros(1, 3, 3, dtype=torch.uint8)
    corner[0, 0, 0] = 9
    replay.add(corner.view(1, -1), torch.zeros(1, dtype=torch.int64))
    images = replay.draw(200, 0)[0].view(-1, 3, 3)
    assert set(images[:, 2, :].flatten().tolist()) == set(images[:, :, 2].flatten().tolist()) == {0}
    assert {tuple(at) for image in images for at in image.nonzero().tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert any(not image.any() for image in images), "shifted out"


def test_jitter_is_deterministic_and_does_not_change_the_buffer() -> None:
    replay = ring(4, shape=(9, 9), jitter=2)
    replay.add(centred_dots(4, 9), torch.arange(4))
    first = replay.draw(50, 8).images_BI
    again = replay.draw(50, 8).images_BI
    assert torch.equal(first, again)
    assert torch.equal(replay.state_dict()[0]["replay.images"], centred_dots(4, 9))


def test_jitter_shifts_all_channels_of_a_pixel_together() -> None:
    replay = ring(1, shape=(3, 5, 2), jitter=1)
    image = torch.zeros(1, 3, 5, 2, dtype=torch.uint8)
    image[0, 1, 2] = torch.tensor([7, 9])
    replay.add(image.view(1, -1), torch.zeros(1, dtype=torch.int64))
    drawn = replay.draw(100, 0)[0].view(-1, 3, 5, 2)
    places = {tuple(at) for each in drawn for at in (each[..., 0] == 7).nonzero().tolist()}
    assert places == {(y, x) for y in (0, 1, 2) for x in (1, 2, 3)}
    assert torch.equal((drawn[..., 0] == 7), (drawn[..., 1] == 9))
