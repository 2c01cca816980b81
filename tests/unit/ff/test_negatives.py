from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ffstream.ff.negatives import hardest_wrong_labels, random_wrong_labels
from tests.unit.ff import formulas
from tests.unit.ff.formulas import SMALL, variant

B = 200


@given(labels=st.integers(2, 20), seed=st.integers(0, 2**20), step=st.integers(0, 2**40))
def test_random_ones_are_never_right_and_repeat(labels: int, seed: int, step: int) -> None:
    own_B = formulas.random_labels(B, labels)
    wrong_B = random_wrong_labels(own_B, labels, seed, step)
    assert wrong_B.dtype == torch.int64
    assert ((wrong_B >= 0) & (wrong_B < labels)).all()
    assert (wrong_B != own_B).all()
    assert torch.equal(wrong_B, random_wrong_labels(own_B, labels, seed, step))


def test_random_ones_differ_for_another_number() -> None:
    own_B = formulas.random_labels(B, 10)
    drawn = [random_wrong_labels(own_B, 10, 1, step).tolist() for step in (5, 6, 7, 100)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[i + 1 :])


def test_random_ones_differ_for_another_seed() -> None:
    own_B = formulas.random_labels(B, 10)
    drawn = [random_wrong_labels(own_B, 10, seed, 5).tolist() for seed in (0, 1, 2, 100)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[i + 1 :])


def test_random_ones_are_spread_evenly() -> None:
    drawn = torch.cat([random_wrong_labels(torch.full((B,), 3), 10, 0, step) for step in range(90)])
    counts = Counter(drawn.tolist())
    assert sorted(counts) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert all(abs(count / 2000 - 1) < 0.12 for count in counts.values()), counts


def test_drawing_leaves_the_global_random_numbers_alone() -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    random_wrong_labels(torch.zeros(B, dtype=torch.int64), 10, 0, 0)
    assert torch.equal(torch.rand(1), want)


@given(st.integers(0, 2**32))
def test_the_hardest_is_the_best_liked_wrong_one(seed: int) -> None:
    goodness_BL = torch.rand(20, 5, generator=torch.Generator().manual_seed(seed))
    own_B = formulas.random_labels(20, 5, seed)
    before = goodness_BL.clone()
    assert torch.equal(hardest_wrong_labels(goodness_BL, own_B), formulas.hardest(goodness_BL, own_B))
    assert torch.equal(goodness_BL, before)


def test_the_first_layer_hands_on_the_hardest_label_of_its_own_goodness() -> None:
    recipe = variant(SMALL, objective="paired", hand_on="labelled", negatives="hardest", widths=(300, 5), labels=10)
    network = formulas.random_network(variant(recipe, batch_size=64, young_batch_size=64))
    images_BI, own_B = formulas.random_images(64, 16, torch.uint8), formulas.random_labels(64, 10)
    weights = formulas.leaves(network.first.averaged(), first=True)
    given = network.first.forward(images_BI, own_B, 0, "interleaved")
    mean_I = formulas.pixels(images_BI).mean(0)

    def goodness_of(labels_B: Tensor) -> Tensor:
        return formulas.goodness(recipe, formulas.first_layer(recipe, weights, images_BI, mean_I, labels_B))

    with torch.no_grad():
        goodness_BL = formulas.every_label(recipe, 64, goodness_of)
    assert torch.equal(given.labels_N[64:], formulas.hardest(goodness_BL, own_B))
