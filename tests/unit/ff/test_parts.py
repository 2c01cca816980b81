"""Each part alone: values equal their definitions, gradients equal autograd."""

import doctest
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from ffstream.ff import goodness as goodness_module
from ffstream.ff.formulas import sum_squares
from ffstream.ff.kernels import fastest_objective
from ffstream.ff.negatives import Draw, HardestLabel, RandomLabel, SampledLabel
from ffstream.ff.objective import Evoked, LossStatistics, Objective, Paired, Phase, Softmax, Threshold
from ffstream.ff.part import members
from ffstream.ff.randomness import generator_for
from tests.unit.ff import formulas

B, L = 6, 5
CPU = torch.device("cpu")


def leaf(*shape: int, seed: int = 0, scale: float = 4.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, dtype=torch.float64, generator=generator) * scale - scale / 3).requires_grad_()


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(goodness_module, extraglobs={"torch": torch})
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("kind", list(members("activation")))
def test_activation_equals_its_definition(kind: str) -> None:
    part = members("activation")[kind](kind=kind)
    z = leaf(4, 5)
    want = formulas.activation(part, z)
    (gradient,) = torch.autograd.grad(want.sum(), z)
    with torch.no_grad():
        assert torch.allclose(part.value(z), want)  # type: ignore[attr-defined]
        assert torch.allclose(part.gradient(z), gradient)  # type: ignore[attr-defined]
        assert torch.allclose(part.apply_(z.clone()), want)  # type: ignore[attr-defined]


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("kind", list(members("goodness")))
def test_goodness_equals_its_definition(kind: str, negative: bool) -> None:
    part = members("goodness")[kind](kind=kind, negative=negative)  # type: ignore[call-arg]
    h = leaf(3, 4, 5)
    want = formulas.goodness(part, h)
    (gradient,) = torch.autograd.grad(want.sum(), h)
    with torch.no_grad():
        assert torch.allclose(part.value(h), want)  # type: ignore[attr-defined]
        assert torch.allclose(part.gradient(h), gradient)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["rms", "unit"])
def test_normalised_rows_have_the_same_length(kind: str) -> None:
    part = members("normalization")[kind](kind=kind)
    row = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)) + 1
    rows = torch.cat((row * 10, row, row * 1000))
    scaled = rows * part.inverse_norm(sum_squares(rows), 50)[:, None]  # type: ignore[attr-defined]
    length = scaled.square().mean(1) if kind == "rms" else scaled.square().sum(1)
    assert torch.allclose(length, torch.ones(3), atol=1e-3)
    assert torch.allclose(scaled, scaled[:1].expand(3, -1), rtol=1e-3)
    assert part.inverse_norm(torch.zeros(1), 50).isfinite().all()  # type: ignore[attr-defined]


# --- objectives --------------------------------------------------------------------------------------------------

OBJECTIVES = [
    Softmax(alpha=0.3, smoothing=0.2),
    Paired(alpha=0.3),
    Threshold(alpha=0.3, theta=1.1),
    Evoked(alpha=0.3),
]


def phases(objective: Objective) -> list[Phase]:
    return ["interleaved", "wake", "sleep"] if objective.has_phases else ["interleaved"]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_gradient_by_label_equals_autograd(objective: Objective) -> None:
    own_B, G_BL = formulas.random_labels(B, L), leaf(B, L)
    wrong_B = (own_B + 1) % L
    for phase in phases(objective):
        want = formulas.label_loss(objective, G_BL, own_B, wrong_B, phase)
        (gradient_BL,) = torch.autograd.grad(want, G_BL)
        result = objective.by_label(G_BL.detach(), own_B, wrong_B, phase)
        assert torch.allclose(result.statistics().loss, want, rtol=1e-12)
        assert torch.allclose(result.goodness_gradient, gradient_BL, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES[1:], ids=str)
def test_the_gradient_by_row_equals_autograd(objective: Objective) -> None:
    for phase in phases(objective):
        positives = {"interleaved": B // 2, "wake": B, "sleep": 0}[phase]
        G_N = leaf(B, seed=positives)
        positive_B, negative_B = G_N[:positives], G_N[positives:]
        want = formulas.contrast(objective, positive_B if positives else None, negative_B if positives < B else None)
        (gradient_N,) = torch.autograd.grad(want, G_N)
        result = objective.by_row(G_N.detach(), positives)
        assert torch.allclose(result.statistics().loss, want, rtol=1e-12)
        assert torch.allclose(result.goodness_gradient, gradient_N, rtol=1e-10, atol=1e-14)
        statistics: LossStatistics = result.statistics()
        assert (statistics.positive_B is None) == (positives == 0)
        assert (statistics.negative_B is None) == (positives == B)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.99])
def test_the_compiled_softmax_equals_the_formula(smoothing: float) -> None:
    own_B, G_BL = formulas.random_labels(B, L), leaf(B, L)
    want = cross_entropy(0.3 * G_BL, own_B, label_smoothing=smoothing)
    (gradient_BL,) = torch.autograd.grad(want, G_BL)
    compiled = fastest_objective(Softmax(alpha=0.3, smoothing=smoothing), CPU)
    assert type(compiled) is not Softmax
    result = compiled.by_label(G_BL.detach().float(), own_B, None, "interleaved")
    assert torch.allclose(result.statistics().loss.double(), want, rtol=1e-5)
    assert torch.allclose(result.goodness_gradient.double(), gradient_BL, rtol=1e-4, atol=1e-6)


def test_losses_are_finite_for_huge_goodness() -> None:
    G_BL = torch.tensor([[0.0, 1e6], [0.0, 1e6]])
    own_B, wrong_B = torch.tensor([0, 0]), torch.tensor([1, 1])
    for objective in (*OBJECTIVES, fastest_objective(OBJECTIVES[0], CPU)):
        result = objective.by_label(G_BL, own_B, wrong_B, "interleaved")
        assert result.goodness_gradient.isfinite().all()
        assert result.statistics().loss.isfinite()


# --- negatives ---------------------------------------------------------------------------------------------------


def drawing(seed: int, step: int) -> Draw:
    generator = generator_for("negatives", seed, step)
    return lambda low, high, shape: torch.randint(low, high, shape, generator=generator)


def random_wrong(own_B: Tensor, labels: int, seed: int, step: int) -> Tensor:
    return RandomLabel().choose(own_B, labels, lambda: pytest.fail("needs no goodness"), drawing(seed, step))


@given(labels=st.integers(2, 20), seed=st.integers(0, 2**20), step=st.integers(0, 2**40))
def test_random_labels_are_wrong_and_reproducible(labels: int, seed: int, step: int) -> None:
    own_B = formulas.random_labels(200, labels)
    wrong_B = random_wrong(own_B, labels, seed, step)
    assert wrong_B.dtype == torch.int64
    assert ((wrong_B >= 0) & (wrong_B < labels)).all()
    assert (wrong_B != own_B).all()
    assert torch.equal(wrong_B, random_wrong(own_B, labels, seed, step))


def test_random_labels_differ_for_another_step_or_seed() -> None:
    own_B = formulas.random_labels(200, 10)
    drawn = [random_wrong(own_B, 10, *key).tolist() for key in ((1, 5), (1, 6), (1, 100), (0, 5), (2, 5))]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[i + 1 :])


def test_random_labels_are_uniform() -> None:
    drawn = torch.cat([random_wrong(torch.full((200,), 3), 10, 0, step) for step in range(90)])
    counts = Counter(drawn.tolist())
    assert sorted(counts) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert all(abs(count / 2000 - 1) < 0.12 for count in counts.values()), counts


def test_random_labels_do_not_use_the_global_random_state() -> None:
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    random_wrong(torch.zeros(9, dtype=torch.int64), 10, 0, 0)
    assert torch.equal(torch.rand(1), want)


@given(st.integers(0, 2**32))
def test_the_hardest_label_is_the_wrong_one_with_the_highest_goodness(seed: int) -> None:
    G_BL = torch.rand(20, 5, generator=torch.Generator().manual_seed(seed))
    own_B = formulas.random_labels(20, 5, seed)
    before = G_BL.clone()
    chosen_B = HardestLabel().choose(own_B, 5, lambda: G_BL, drawing(0, 0))
    assert torch.equal(chosen_B, formulas.hardest(G_BL, own_B))
    assert torch.equal(G_BL, before)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_sampled_labels_follow_the_prediction_without_the_own_label(temperature: float) -> None:
    logits_L = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.2])
    rows, own = 20_000, 2
    own_B = torch.full((rows,), own)
    part = SampledLabel(temperature=temperature)
    chosen_B = part.choose(own_B, L, lambda: logits_L.expand(rows, L), drawing(0, 3))
    assert torch.equal(chosen_B, part.choose(own_B, L, lambda: logits_L.expand(rows, L), drawing(0, 3)))
    wanted = (logits_L / temperature).softmax(0)
    wanted[own] = 0
    found = torch.bincount(chosen_B, minlength=L) / rows
    assert found[own] == 0
    assert torch.allclose(found, wanted / wanted.sum(), atol=0.015)


def test_a_layer_samples_from_the_logits_of_its_own_prediction() -> None:
    """The steepness of its objective counts: with a large one, the sampled label is the hardest."""
    base = formulas.SMALL.change(objective={"kind": "paired", "alpha": 1e4})
    networks = [formulas.random_network(base.change(negatives=kind)) for kind in ("sampled", "hardest")]
    images_BI, labels_B = formulas.random_images(7, base.inputs), formulas.random_labels(7, base.labels)
    chosen = []
    for network in networks:
        network.learn(images_BI, labels_B, 1)
        chosen.append(network.layers[0].wrong_labels())
    assert torch.equal(*chosen)
