from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffstream.data.dataset import Split
from ffstream.data.streams import Order, batches, label_permutation_at, stream
from ffstream.util.labels import UNLABELLED

N = 60
ORDERS: list[Order] = ["shuffled", "sorted_by_label", "as_is"]


def numbered(n: int = N) -> Split:
    """A split whose images hold their own index, and whose labels are the index modulo 10."""
    index = np.arange(n, dtype=np.uint8)
    return Split(np.broadcast_to(index[:, None, None], (n, 2, 2)).copy(), index % 10)


def sent(split: Split, batch: int = 7, **options: Any) -> tuple[list[int], list[int]]:
    """Return (indices, labels) of all samples in the order they come."""
    parts = list(batches(split, batch, **options))
    return [int(i) for images, _ in parts for i in images[:, 0, 0]], [int(k) for _, labels in parts for k in labels]


@pytest.mark.parametrize("order", ORDERS)
def test_each_pass_contains_every_sample_once(order: Order) -> None:
    passes = list(stream(numbered(), passes=3, order=order))
    assert [sorted(indices.tolist()) for indices in passes] == [list(range(N))] * 3


def test_a_shuffle_depends_on_seed_and_pass_only() -> None:
    first, second = (indices.tolist() for indices in stream(numbered(), passes=2, seed=5))
    assert first == np.random.default_rng([5, 0]).permutation(N).tolist()
    assert second == np.random.default_rng([5, 1]).permutation(N).tolist()
    assert first != second
    assert next(stream(numbered(), seed=6)).tolist() != first


def test_sorted_by_label_sends_one_class_after_the_other_each_shuffled() -> None:
    first, second = stream(numbered(), passes=2, order="sorted_by_label")
    for indices in first, second:
        assert (indices % 10).tolist() == sorted((indices % 10).tolist())
    assert first.tolist() != second.tolist()
    assert first.tolist() != np.argsort(numbered().labels, kind="stable").tolist()


def test_as_is_keeps_the_order_of_the_split() -> None:
    assert sent(numbered(), order="as_is")[0] == list(range(N))


@given(
    n=st.integers(0, 20),
    batch=st.integers(1, 25),
    passes=st.integers(0, 4),
    limit=st.none() | st.integers(0, 90),
    order=st.sampled_from(ORDERS),
)
def test_batches_are_the_stream_in_full_pieces(
    n: int, batch: int, passes: int, limit: int | None, order: Order
) -> None:
    split = numbered(n)
    whole = [i for indices in stream(split, passes=passes, seed=3, order=order) for i in indices.tolist()]
    parts = list(batches(split, batch, passes=passes, seed=3, limit=limit, order=order))
    assert [i for images, _ in parts for i in images[:, 0, 0].tolist()] == whole[:limit]
    assert all(len(images) == batch for images, _ in parts[:-1])
    assert all(1 <= len(images) <= batch for images, _ in parts)
    for images, labels in parts:
        assert (images[:, 0, 0] % 10).tolist() == labels.tolist()


def test_batches_are_contiguous_copies_also_if_the_split_is_not_contiguous() -> None:
    split = numbered()
    turned = Split(np.asfortranarray(split.images), split.labels[::-1][::-1])
    for drift in None, label_permutation_at(3):
        for images, labels in batches(turned, 7, drift=drift):
            assert images.flags.c_contiguous
            assert labels.flags.c_contiguous
            assert images.dtype == labels.dtype == np.uint8
            images[:], labels[:] = 0, 0
    assert np.array_equal(turned.images, split.images)
    assert np.array_equal(turned.labels, split.labels)


@pytest.mark.parametrize("batch", [1, 7, 25, N])
def test_a_drift_renames_every_class_from_its_sample_on_at_any_batch_size(batch: int) -> None:
    indices, labels = sent(numbered(), batch, passes=2, drift=label_permutation_at(25))
    assert [i % 10 for i in indices[:25]] == labels[:25]
    renamed = {i % 10: label for i, label in zip(indices[25:], labels[25:], strict=True)}
    assert [renamed[i % 10] for i in indices[25:]] == labels[25:]
    assert sorted(renamed.values()) == list(range(10))
    assert all(old != new for old, new in renamed.items())


@given(classes=st.integers(2, 256), seed=st.integers(0, 1000))
def test_a_drift_is_a_permutation_of_its_classes_without_fixed_points(classes: int, seed: int) -> None:
    every = np.arange(256, dtype=np.uint8)
    renamed = label_permutation_at(0, classes=classes, seed=seed)(0, every)
    assert sorted(renamed[:classes].tolist()) == list(range(classes))
    assert (renamed[:classes] != every[:classes]).all()
    assert (renamed[classes:] == every[classes:]).all()


def test_a_drift_depends_on_its_seed() -> None:
    labels = np.arange(10, dtype=np.uint8)
    first, again, other = (label_permutation_at(0, seed=seed)(0, labels).tolist() for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("options", [{"passes": -1}, {"limit": -1}, {"seed": -1}, {"batch": 0}])
def test_negative_counts_are_rejected(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"negative|at least 1"):
        sent(numbered(), **options)


@pytest.mark.parametrize("classes", [1, 257])
def test_a_drift_has_2_to_256_classes(classes: int) -> None:
    with pytest.raises(ValueError, match="must be 2 to 256"):
        label_permutation_at(0, classes=classes)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_a_fraction_of_the_samples_has_a_label_and_it_is_the_same_in_each_pass(fraction: float) -> None:
    indices, labels = sent(numbered(), passes=3, label_fraction=fraction)
    assert indices == sent(numbered(), passes=3)[0], "the order does not depend on the fraction"
    known = [
        {i for i, k in zip(part, own, strict=True) if k != UNLABELLED} for part, own in passes_of(indices, labels)
    ]
    assert known[0] == known[1] == known[2]
    assert len(known[0]) == round(fraction * N)
    assert all(k in (i % 10, UNLABELLED) for i, k in zip(indices, labels, strict=True))


def passes_of(indices: list[int], labels: list[int]) -> list[tuple[list[int], list[int]]]:
    return [(indices[at : at + N], labels[at : at + N]) for at in range(0, len(indices), N)]


def test_which_samples_have_a_label_depends_on_the_seed() -> None:
    def known(seed: int) -> set[int]:
        indices, labels = sent(numbered(), label_fraction=0.5, seed=seed)
        return {i for i, k in zip(indices, labels, strict=True) if k != UNLABELLED}

    assert known(1) == known(1) != known(2)


def test_a_drift_does_not_give_a_label_to_samples_without_one() -> None:
    _, plain = sent(numbered(), label_fraction=0.5)
    _, drifted = sent(numbered(), label_fraction=0.5, drift=label_permutation_at(0))
    assert [k == UNLABELLED for k in plain] == [k == UNLABELLED for k in drifted]
    assert all(a != b for a, b in zip(plain, drifted, strict=True) if a != UNLABELLED)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_label_fraction_is_0_to_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be 0 to 1"):
        sent(numbered(), label_fraction=fraction)
