"""Activities are reduced to means of neighbours, and groups stay apart."""

import math

import pytest
import torch

from ffstream.serving.reduction import VALUES_MAX, Reduction


@pytest.mark.parametrize("shape", [(500,), (1024,), (4, 4, 64), (14, 7, 3), (1, 1, 8)])
def test_few_activities_stay_as_they_are(shape: tuple[int, ...]) -> None:
    h_F = torch.rand(math.prod(shape))
    reduction = Reduction(shape)
    assert reduction.reduced == shape
    assert torch.equal(reduction(h_F), h_F)


@pytest.mark.parametrize(
    "shape", [(1025,), (2000,), (14, 14, 32), (16, 16, 64), (8, 8, 128), (7, 5, 3000), (100, 90, 1)]
)
def test_many_activities_are_few_means(shape: tuple[int, ...]) -> None:
    h_F = torch.rand(math.prod(shape))
    reduction = Reduction(shape)
    reduced = reduction(h_F)
    assert len(shape) == len(reduction.reduced)
    assert VALUES_MAX / 4 < len(reduced) == math.prod(reduction.reduced) <= VALUES_MAX
    assert torch.allclose(reduction(torch.full_like(h_F, 0.3)), torch.full_like(reduced, 0.3)), "edges count as much"


def test_means_are_those_of_neighbours() -> None:
    units = torch.arange(2000.0)
    assert torch.equal(Reduction((2000,))(units), units.view(1000, 2).mean(1))
    h_HWC = torch.rand(16, 16, 64)
    want = h_HWC.view(4, 4, 4, 4, 64).mean((1, 3))
    assert torch.allclose(Reduction((16, 16, 64))(h_HWC.flatten()), want.flatten())


@pytest.mark.parametrize("shape", [(503,), (2005,), (30, 30, 41)])
def test_a_run_does_not_cross_the_border_of_a_group(shape: tuple[int, ...]) -> None:
    size = shape[-1] // 10
    groups = tuple((label * size, (label + 1) * size - 1) for label in range(10))
    h = torch.zeros(shape)
    for label, (first, last) in enumerate(groups):
        h[..., first : last + 1] = label + 1
    reduction = Reduction(shape, groups)
    reduced = reduction(h.flatten()).view(reduction.reduced)
    ends = -1
    for label, group in enumerate(groups):
        first, last = reduction.group(group)
        assert first == ends + 1
        ends = last
        assert torch.allclose(reduced[..., first : last + 1], torch.tensor(label + 1.0))
    assert (reduced[..., ends + 1 :] == 0).all(), "units that are left over"
    assert reduced.shape[-1] > ends + 1


def test_more_groups_than_values_keep_a_value_each() -> None:
    groups = tuple((at, at) for at in range(3000))
    assert Reduction((3000,), groups).reduced == (3000,)
